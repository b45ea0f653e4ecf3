"""How far the package is from the oracle, as relative errors."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tests import oracles
from tests.cases import (
    BATCH,
    METHODS,
    MODELS,
    MORE_METHODS,
    MORE_MODELS,
    TARGETS,
    MethodCase,
    ModelCase,
)


class Row(NamedTuple):
    """One combination of the tables."""

    model: ModelCase
    method: MethodCase
    engine: str
    loaded: str
    """Attention implementation that the model was loaded with."""
    given: bool
    """Whether targets are given; else the top class is explained."""

    def __str__(self) -> str:
        """The name of the test."""
        targets = "given" if self.given else "top"
        parts = (self.model.name, self.method.name, self.engine, self.loaded, targets)
        return "-".join(parts)


class Errors(NamedTuple):
    """Largest relative error of each result; 0 for heads of a method without them."""

    patches: float
    heads: float
    attribute: float


_GMAR = {method for method in (*METHODS, *MORE_METHODS) if method.has_heads}
_TRACED = tuple(method for method in METHODS if method.reference)


def _rows() -> Iterator[Row]:
    """All of everything for ViT and DeiT; the other families are taken through it once."""
    full = set(MODELS[:6])
    for model in (*MODELS, *MORE_MODELS):
        methods = (*_TRACED, *MORE_METHODS) if model in full else _TRACED
        for loaded, engines in model.loadings.items():
            given = (False, True) if model in full else (loaded == "sdpa",)
            for method, engine in itertools.product(methods, engines):
                # Loading and targets are not the rule's business: one rule tries them all.
                for one in given if method in _GMAR else given[-1:]:
                    if method in _GMAR or loaded == "sdpa" or len(engines) == 1:
                        yield Row(model, method, engine, loaded, one)


ROWS = tuple(_rows())


def relative_error(got: torch.Tensor, wanted: NDArray[np.float64]) -> float:
    """Largest difference as a share of the largest value; infinite for NaN or a wrong shape."""
    if tuple(got.shape) != wanted.shape:
        return float("inf")
    difference = np.abs(got.to(torch.float64).numpy() - wanted).max()
    error = float(difference / np.abs(wanted).max())
    return error if np.isfinite(error) else float("inf")


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal up to the rounding of float32."""
    return relative_error(one, other.double().numpy()) < 1e-5


def errors(row: Row, dtype: torch.dtype) -> Errors:
    """Relative errors of one row against the oracle in the same precision."""
    case = row.model
    exact = oracles.unrounded_softmax() if dtype == torch.float64 else nullcontext()
    with exact:
        assert row.method.reference is not None
        wanted = row.method.reference(_trace(case, row.method.trace, row.given, dtype))
        model = case.build(attention=row.loaded).to(dtype)
        method = row.method.made(model, row.engine, **case.options)
        images, target = case.images(dtype), TARGETS if row.given else None
        patches = method.attribute_patches(images, target, **case.forward_kwargs)
        attribution = method.attribute(images, target, **case.forward_kwargs)
        heads = 0.0
        if wanted.heads is not None:
            importance = method.head_importance(images, target, **case.forward_kwargs)
            heads = relative_error(importance, wanted.heads)
    channels, height, width = case.shape
    pixels = np.repeat(oracles.spread(wanted.patches, height, width)[:, None], channels, axis=1)
    return Errors(
        relative_error(patches, wanted.patches),
        heads,
        relative_error(attribution, pixels),
    )


@functools.cache
def largest_errors(
    dtype: torch.dtype, rows: tuple[Row, ...] = ROWS
) -> dict[tuple[str, str], Errors]:
    """For each model and method, the largest errors over engines, loadings and targets."""
    worst: dict[tuple[str, str], Errors] = {}
    for row in rows:
        key = row.model.name, row.method.name
        found = errors(row, dtype)
        worst[key] = Errors(*map(max, zip(found, worst.get(key, found), strict=True)))
    return worst


def largest_error(dtype: torch.dtype, rows: tuple[Row, ...] = ROWS) -> float:
    """The largest error of all rows and results."""
    return max(max(found) for found in largest_errors(dtype, rows).values())


@functools.cache
def _trace(
    case: ModelCase, trace: Callable[..., oracles.Trace], given: bool, dtype: torch.dtype
) -> oracles.Trace:
    loaded = next(name for name, engines in case.loadings.items() if "dense" in engines)
    model = case.build(attention=loaded).to(dtype)
    assert len(TARGETS) == BATCH
    return trace(
        model,
        case.images(dtype),
        TARGETS if given else None,
        dict(case.forward_kwargs),
        case.options.get("readout"),
    )
