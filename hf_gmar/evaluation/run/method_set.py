"""The methods of a run, built once, and a cache of their maps."""

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
    applicable,
    as_method_specs,
    modules_of,
)
from hf_gmar.errors import ModelOutputError, reason_of
from hf_gmar.evaluation.run.fingerprint import described, plain, tensor_digest
from hf_gmar.methods.base import AttributionMethod
from hf_gmar.methods.joint import attribute_jointly
from hf_gmar.methods.registry import METHODS

Maps: TypeAlias = dict[str, "Tensor | str"]
"""The map (1, rows, columns) of each method, or the reason of its failure."""

Value = TypeVar("Value")

_CACHE_SIZE = 512  # maps of copies of an image and of stages of a cascade, which are small


@dataclass(frozen=True)
class MethodSet:
    """Methods on one model, with a cache of recent maps that several metrics need.

    Attributes:
        adapter: the model.
        methods: the built methods by label.
        readout: the readout for methods with this option.
        seed: seed of the random numbers that Captum's methods draw.
        left_out: a sentence about the optional methods that do not apply to the model, if any.
    """

    adapter: ModelAdapter
    methods: Mapping[str, MethodSpec]
    readout: ReadoutSpec
    seed: int
    left_out: str = ""
    _cache: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def build(
        cls, model: Callable[..., Any], methods: MethodLikes | None, readout: ReadoutSpec, seed: int
    ) -> MethodSet:
        """Build the methods, without optional ones that need tokens which the model lacks.

        Raises:
            OptionError: a method or an option does not exist.
            UnsupportedModelError: the model can't be explained.
        """
        adapter = ModelAdapter.of(model, readout)
        specs, left_out = applicable(as_method_specs(methods), adapter)
        built = {spec.name: _built(model, spec, readout, seed) for spec in specs}
        return cls(adapter, built, readout, seed, left_out)

    @property
    def labels(self) -> list[str]:
        """The labels of the methods."""
        return list(self.methods)

    def described(self) -> dict[str, Any]:
        """Describe each method as plain data, by label."""
        return {label: _described(spec) for label, spec in self.methods.items()}

    def on(self, model: Callable[..., Any]) -> MethodSet:
        """Move the methods to another model, without Captum's, which can't be moved."""
        if model is self.adapter.model:
            return self
        adapter = ModelAdapter.of(model, self.readout)
        specs = {}
        for label, spec in self.methods.items():
            if isinstance(spec.method, AttributionMethod):
                moved: Any = copy.copy(spec.method)
                moved.model = model
                moved.adapter = replace(
                    adapter, layout=moved.adapter.layout, own_readout=moved.adapter.own_readout
                )
                specs[label] = replace(spec, method=moved)
        return MethodSet(adapter, specs, self.readout, self.seed)

    def cached(self, key: Hashable, images: Tensor, make: Callable[[], Value]) -> Value:
        """Return the value for a key, images and the model's current weights, from the cache."""
        weights = hash(tuple(w.data_ptr() for w in self.adapter.modules()[0].parameters()))
        key = key, tensor_digest(images), weights
        value: Value = self._cache.pop(key) if key in self._cache else make()
        self._cache[key] = value  # at the end of the dict, as the most recently used
        if len(self._cache) > _CACHE_SIZE:
            del self._cache[next(iter(self._cache))]
        return value

    def maps(self, pixels: Tensor, target: int) -> Maps:
        """Return the maps of all methods, (B, rows, columns) each, with shared forwards."""
        return self.cached(target, pixels, lambda: self._maps(pixels, target))

    def attribute_patches(self, inputs: Tensor, target: int, *, method: str) -> Tensor:
        """Return the maps of one method, (B, rows, columns).

        Raises:
            ModelOutputError: the method failed.
        """
        result = self.maps(inputs, target)[method]
        if isinstance(result, str):
            raise ModelOutputError(result)
        return result

    def head_importance(self, inputs: Tensor, target: int, *, method: str) -> Tensor:
        """Return the head importance by one method, (B, layers, H)."""
        explainer: Any = self.methods[method].method
        return cast("Tensor", explainer.head_importance(inputs, target))

    def _maps(self, pixels: Tensor, target: int) -> Maps:
        joint: dict[str, Any] = {
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
                return task.runner(spec)().patches
        except Exception as error:  # noqa: BLE001  # of any library; the other methods run
            return reason_of(error)


def _built(
    model: Callable[..., Any], spec: MethodSpec, readout: ReadoutSpec, seed: int
) -> MethodSpec:
    if not isinstance(spec.method, str):
        return spec.on(model)
    defaults = {"seed": seed} if readout is None else {"seed": seed, "readout": readout}
    known = METHODS.options(spec.method)
    options = {name: value for name, value in defaults.items() if name in known} | {**spec.options}
    return replace(spec, method=METHODS.build(spec.method, model, **options), options={})


def _described(spec: MethodSpec) -> dict[str, Any]:
    """Describe a method as plain data that distinguishes it from others."""
    method: Any = spec.method
    description = described(method)
    if isinstance(method, AttributionMethod):
        description["readout"] = method.adapter.described_layout()
    for name in ("rule", "attribution_method"):  # the layer rule; the method in a NoiseTunnel
        if (inner := getattr(method, name, None)) is not None:
            description[name] = described(inner)
    return description | {name: plain(value) for name, value in spec.options.items()}
