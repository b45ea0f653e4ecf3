"""The methods of a run, built once, and their maps of one image."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, TypeVar, cast

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
from hf_gmar.evaluation.run.fingerprint import described, plain, tensor_digest
from hf_gmar.methods.base import AttributionMethod
from hf_gmar.methods.joint import attribute_jointly
from hf_gmar.methods.registry import METHODS

Maps: TypeAlias = dict[str, "Tensor | str"]
"""For each method its map (1, rows, columns), or why there is none."""

Value = TypeVar("Value")

_CACHE_SIZE = 512  # copies of an image, stages of a cascade: small maps


@dataclass(frozen=True)
class Explainers:
    """Methods on one model. Their last maps are cached: metrics ask most methods for the same ones.

    Attributes:
        adapter: the model.
        methods: the methods, built, by label.
        readout: for methods that have it as an option.
        seed: of the random numbers that Captum's methods draw.
    """

    adapter: ModelAdapter
    methods: Mapping[str, MethodSpec]
    readout: ReadoutSpec
    seed: int
    _cache: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def build(
        cls, model: Callable[..., Any], methods: MethodLikes | None, readout: ReadoutSpec, seed: int
    ) -> Explainers:
        """Find and build the methods.

        Raises:
            OptionError: a method or an option that does not exist.
            UnsupportedModelError: a model that can't be explained.
        """
        specs = {spec.name: _built(model, spec, readout, seed) for spec in as_method_specs(methods)}
        return cls(ModelAdapter.of(model, readout), specs, readout, seed)

    @property
    def labels(self) -> list[str]:
        """What the methods are called."""
        return list(self.methods)

    def described(self) -> dict[str, Any]:
        """For each label what the method is, as plain data."""
        return {label: _described(spec) for label, spec in self.methods.items()}

    def on(self, model: Callable[..., Any]) -> Explainers:
        """The methods on another model: ours alone, as Captum's stay on the model of their own."""
        if model is self.adapter.model:
            return self
        adapter = ModelAdapter.of(model, self.readout)
        specs = {}
        for label, spec in self.methods.items():
            if isinstance(spec.method, AttributionMethod):
                moved: Any = copy.copy(spec.method)
                moved.model = model
                moved.adapter = replace(adapter, layout=moved.adapter.layout)  # its own readout
                specs[label] = replace(spec, method=moved)
        return Explainers(adapter, specs, self.readout, self.seed)

    def cached(self, key: Hashable, images: Tensor, make: Callable[[], Value]) -> Value:
        """The value for a key, images and the model's present weights; made if it is not cached."""
        weights = hash(tuple(w.data_ptr() for w in self.adapter.modules()[0].parameters()))
        key = key, tensor_digest(images), weights
        value: Value = self._cache.pop(key) if key in self._cache else make()
        self._cache[key] = value  # the last one, in the order of a dict
        if len(self._cache) > _CACHE_SIZE:
            del self._cache[next(iter(self._cache))]
        return value

    def maps(self, pixels: Tensor, target: int) -> Maps:
        """The maps of images, (B, rows, columns) each; forwards are shared where they can be."""
        return self.cached(target, pixels, lambda: self._maps(pixels, target))

    def attribute_patches(self, inputs: Tensor, target: int, *, method: str) -> Tensor:
        """The maps of images by one method, (B, rows, columns).

        Raises:
            ModelOutputError: it has none.
        """
        result = self.maps(inputs, target)[method]
        if isinstance(result, str):
            raise ModelOutputError(result)
        return result

    def head_importance(self, inputs: Tensor, target: int, *, method: str) -> Tensor:
        """The importance of heads by a method that has it, (B, layers, H)."""
        explainer: Any = self.methods[method].method
        return cast("Tensor", explainer.head_importance(inputs, target))

    def _maps(self, pixels: Tensor, target: int) -> Maps:
        joint = {
            label: spec.method
            for label, spec in self.methods.items()
            if isinstance(spec.method, AttributionMethod) and not spec.options
        }
        results = attribute_jointly(list(joint.values()), pixels, target, return_errors=True)
        maps: Maps = {
            label: reason_of(result) if isinstance(result, Exception) else result.cpu()
            for label, result in zip(joint, results, strict=True)
        }
        return {
            label: maps[label] if label in maps else self._single_map(spec, pixels, target)
            for label, spec in self.methods.items()
        }

    def _single_map(self, spec: MethodSpec, pixels: Tensor, target: int) -> Tensor | str:
        grid = self.adapter.layout.grid(*pixels.shape[-2:])
        task = AttributionTask(self.adapter.model, self.readout, pixels, target, None, grid, {})
        try:
            with ExitStack() as stack:
                if spec.is_captum:
                    modules = [*self.adapter.modules(), *modules_of([spec])]
                    stack.enter_context(isolated_model(modules))
                    stack.enter_context(seeded(self.seed, pixels.device))
                return task.runner(spec)()
        except Exception as error:  # noqa: BLE001  # of any library; the other methods go on
            return reason_of(error)


def _built(
    model: Callable[..., Any], spec: MethodSpec, readout: ReadoutSpec, seed: int
) -> MethodSpec:
    if not isinstance(spec.method, str):
        return spec
    defaults = {"seed": seed} if readout is None else {"seed": seed, "readout": readout}
    known = METHODS.options(spec.method)
    options = {name: value for name, value in defaults.items() if name in known} | {**spec.options}
    return replace(spec, method=METHODS.build(spec.method, model, **options), options={})


def _described(spec: MethodSpec) -> dict[str, Any]:
    """What tells a method from others, as plain data."""
    method: Any = spec.method
    description = described(method)
    if isinstance(method, AttributionMethod):
        layout = method.adapter.layout
        description["readout"] = [list(layout.readout), layout.rest]
    for name in ("rule", "attribution_method"):  # of a layer; of Captum's NoiseTunnel
        if (inner := getattr(method, name, None)) is not None:
            description[name] = described(inner)
    return description | {name: plain(value) for name, value in spec.options.items()}
