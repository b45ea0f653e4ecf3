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

from hf_gmar._core.targets import TargetSpec
from tests.reference import oracles
from tests.reference.cases import (
    BATCH,
    METHODS,
    MODELS,
    MORE_METHODS,
    MORE_MODELS,
    TARGETS,
    MethodCase,
    ModelCase,
    shared,
)
from tests.reference.tolerances import SAME, Limit


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


def near(got: torch.Tensor, wanted: torch.Tensor | NDArray[np.float64], limit: Limit) -> bool:
    """Equal up to a limit, that of the precision of the result."""
    if isinstance(wanted, torch.Tensor):
        wanted = wanted.detach().double().numpy()
    return relative_error(got.detach(), wanted) < limit.of(got.dtype)


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal up to rounding."""
    return near(one, other, SAME)


def errors(row: Row, dtype: torch.dtype) -> Errors:
    """Relative errors of one row against the oracle in the same precision."""
    case = row.model
    exact = oracles.unrounded_softmax() if dtype == torch.float64 else nullcontext()
    with exact:
        wanted = _wanted(case, row.method, row.given, dtype)
        method = row.method.made(shared(case, row.loaded, dtype), row.engine, **case.options)
        images, target = case.images(dtype), TARGETS if row.given else None
        heads, attribution = 0.0, None
        if wanted.heads is None:
            # As one pixel of each patch shows it.
            attribution = method.attribute(images, target, **case.forward_kwargs)
            (rows, columns), (_, height, width) = case.grid, case.shape
            patches = attribution[:, 0, :: height // rows, :: width // columns]
        else:
            target_spec = TargetSpec(target, None)
            importance, patches = method._of_heads(images, target_spec, None, case.forward_kwargs)
            heads = relative_error(importance, wanted.heads)
            if row.given and row.loaded == "sdpa":  # how it spreads is not the loading's business
                attribution = method.attribute(images, target, **case.forward_kwargs)
    return Errors(
        relative_error(patches, wanted.patches),
        heads,
        0.0 if attribution is None else relative_error(attribution, _pixels(case, wanted.patches)),
    )


def _pixels(case: ModelCase, patches: NDArray[np.float64]) -> NDArray[np.float64]:
    channels, height, width = case.shape
    return np.repeat(oracles.spread(patches, height, width)[:, None], channels, axis=1)


@functools.cache
def _wanted(
    case: ModelCase, method: MethodCase, given: bool, dtype: torch.dtype
) -> oracles.Reference:
    assert method.reference is not None
    return method.reference(_trace(case, method.trace, given, dtype))


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
    assert len(TARGETS) == BATCH
    return trace(
        shared(case, loaded, dtype),
        case.images(dtype),
        TARGETS if given else None,
        dict(case.forward_kwargs),
        case.options.get("readout"),
    )
