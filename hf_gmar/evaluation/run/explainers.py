"""The methods of a run, built once, and their maps of one image."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from torch import Tensor

from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar._core.token_layout import ReadoutSpec
from hf_gmar.comparison.isolation import isolated_model, seeded
from hf_gmar.comparison.method_specs import (
    AttributionTask,
    MethodLikes,
    MethodSpec,
    as_method_specs,
    modules_of,
)
from hf_gmar.errors import ModelOutputError, reason_of
from hf_gmar.evaluation.run.cache import LRUCache, content, places
from hf_gmar.evaluation.run.fingerprint import described, plain
from hf_gmar.methods.base import AttributionMethod
from hf_gmar.methods.joint import attribute_jointly
from hf_gmar.methods.registry import METHODS

_REMEMBERED = 512  # samples of an image, stages of a cascade: small maps

Maps: TypeAlias = dict[str, "Tensor | str"]
"""For each method its map (1, rows, columns), or why there is none."""


@dataclass(frozen=True)
class Explainers:
    """Methods on one model.

    Attributes:
        subject: the model.
        columns: the methods, built, each with its label.
        readout: for methods that have it as an option.
        seed: of the random numbers that Captum's methods draw.
        memo: the last maps: what one method is asked, the others mostly are as well.
    """

    adapter: ModelAdapter
    columns: tuple[MethodSpec, ...]
    readout: ReadoutSpec
    seed: int
    memo: LRUCache[Maps] = field(default_factory=lambda: LRUCache(_REMEMBERED), repr=False)

    @classmethod
    def build(
        cls, model: Callable[..., Any], methods: MethodLikes | None, readout: ReadoutSpec, seed: int
    ) -> Explainers:
        """Find and build the methods.

        Raises:
            OptionError: a method or an option that does not exist.
            UnsupportedModelError: a model that can't be explained.
        """
        built = tuple(_built(model, column, readout, seed) for column in as_method_specs(methods))
        return cls(ModelAdapter.of(model, readout), built, readout, seed)

    @property
    def labels(self) -> list[str]:
        """What the methods are called."""
        return [column.name for column in self.columns]

    def described(self) -> dict[str, Any]:
        """For each label what the method is, as plain data."""
        return {column.name: _described(column) for column in self.columns}

    @property
    def movable(self) -> dict[str, MethodSpec]:
        """The methods that can be put on a copy of the model: ours."""
        return {one.name: one for one in self.columns if isinstance(one.method, AttributionMethod)}

    def on(self, model: Callable[..., Any]) -> Explainers:
        """The methods that can be moved, on a copy of the model."""
        adapter = ModelAdapter.of(model, self.readout)
        moved = tuple(
            replace(one, method=_moved(one.method, model, adapter), label=label)
            for label, one in self.movable.items()
        )
        return Explainers(adapter, moved, self.readout, self.seed)

    def method(self, label: str) -> Any:
        """A method, as it was built."""
        return next(column.method for column in self.columns if column.name == label)

    def maps(self, pixels: Tensor, target: int) -> Maps:
        """The maps of images, (B, rows, columns) each; forwards are shared where they can be."""
        question = content(pixels), target, places(self.adapter.modules()[0])
        return self.memo.get(question, lambda: self._made(pixels, target))

    def _made(self, pixels: Tensor, target: int) -> Maps:
        ours = {
            column.name: column.method
            for column in self.columns
            if isinstance(column.method, AttributionMethod) and not column.options
        }
        found = attribute_jointly(list(ours.values()), pixels, target)
        maps: Maps = {
            label: reason_of(one) if isinstance(one, Exception) else one.cpu()
            for label, one in zip(ours, found, strict=True)
        }
        alone = [column for column in self.columns if column.name not in ours]
        maps |= {column.name: self._alone(column, pixels, target) for column in alone}
        return {label: maps[label] for label in self.labels}

    def one(self, label: str, pixels: Tensor, target: int) -> Tensor:
        """The maps of images by one method, (B, rows, columns).

        Raises:
            ModelOutputError: it has none.
        """
        found = self.maps(pixels, target)[label]
        if isinstance(found, str):
            raise ModelOutputError(found)
        return found

    def _by_captum(self, column: MethodSpec, pixels: Tensor, target: int) -> Tensor:
        grid = self.adapter.layout.grid(*pixels.shape[-2:])
        task = AttributionTask(self.adapter.model, self.readout, pixels, target, None, grid, {})
        with ExitStack() as stack:
            if column.is_captum:
                stack.enter_context(
                    isolated_model([*self.adapter.modules(), *modules_of([column])])
                )
                stack.enter_context(seeded(self.seed, pixels.device))
            return task.runner(column)()

    def _alone(self, column: MethodSpec, pixels: Tensor, target: int) -> Tensor | str:
        try:
            return self._by_captum(column, pixels, target)
        except Exception as error:  # noqa: BLE001  # of any library; the other methods go on
            return reason_of(error)


def _moved(method: Any, model: Callable[..., Any], adapter: ModelAdapter) -> AttributionMethod:
    found: AttributionMethod = copy.copy(method)
    found.model = model
    found.adapter = replace(adapter, layout=method.adapter.layout)  # its own readout
    return found


def _built(
    model: Callable[..., Any], column: MethodSpec, readout: ReadoutSpec, seed: int
) -> MethodSpec:
    if not isinstance(column.method, str):
        return column
    options = dict(column.options)
    if readout is not None and "readout" in METHODS.options(column.method):
        options.setdefault("readout", readout)
    if "seed" in METHODS.options(column.method):
        options.setdefault("seed", seed)
    method = METHODS.build(column.method, model, **options)
    return replace(column, method=method, label=column.name, options={})


def _described(column: MethodSpec) -> dict[str, Any]:
    """What tells a method from others, as plain data."""
    if isinstance(column.method, str):
        return {"method": column.method, **column.options}
    method: Any = column.method
    found = described(method)
    if isinstance(method, AttributionMethod):
        layout = method.adapter.layout
        found["readout"] = [list(layout.readout), layout.rest]
    for name in ("rule", "attribution_method"):  # of a layer; of Captum's NoiseTunnel
        if (inner := getattr(method, name, None)) is not None:
            found[name] = described(inner)
    return {**found, **{name: plain(value) for name, value in column.options.items()}}
