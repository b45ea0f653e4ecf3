"""Base of the methods that read attention: a layer rule, fed by an engine."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from dataclasses import replace
from types import FunctionType
from typing import Any, TypedDict

from torch import Tensor

from hf_gmar._core.inputs import PixelInputs, size_errors
from hf_gmar._core.model_adapter import ModelAdapter, ModelLike
from hf_gmar._core.request import ForwardRequest, GradientOf
from hf_gmar._core.targets import TargetSpec
from hf_gmar._core.token_layout import ReadoutSpec, engines_of
from hf_gmar._engines.propagation import LayerRule
from hf_gmar._engines.run import ENGINES, RuleResult, run_rules
from hf_gmar._utils.validation import check_option
from hf_gmar.errors import OptionError, UnsupportedModelError
from hf_gmar.methods.base import AttributionMethod, Resolution


class AttentionOptions(TypedDict, total=False):
    """Options of :class:`AttentionMethod` that a subclass passes on."""

    start_layer: int
    engine: str
    chunk_size: int | None
    checkpoint: bool
    readout: ReadoutSpec
    resolution: Resolution


class AttentionMethod(AttributionMethod):
    """Base of the methods that compute a map from attention and its gradient, layer by layer.

    A subclass sets ``rule``, a :class:`~hf_gmar.methods.LayerRule`, and ``gradient``, the score
    whose gradient the rule needs.

    Args:
        model: see :class:`~hf_gmar.methods.base.AttributionMethod`.
        start_layer: the lowest layer that takes part, 0 for all layers.
        engine: ``"streaming"`` recomputes attention in blocks and stores no map; ``"dense"``, the
            reference, stores all attention maps and their gradients. The numbers are the same.
        chunk_size: query rows in a block of the streaming engine; ``None`` chooses.
        checkpoint: activation checkpointing in the streaming engine: one more forward, a fraction
            of the memory. Without a gradient it has no effect.
        readout: see :class:`~hf_gmar.methods.base.AttributionMethod`.
        resolution: see :class:`~hf_gmar.methods.base.AttributionMethod`.
    """

    gradient: GradientOf = "score"
    """The score whose gradient the rule needs."""

    rule: LayerRule
    """The computation at each layer; each instance sets its own."""

    def __init__(
        self,
        model: ModelLike,
        start_layer: int = 0,
        engine: str = "streaming",
        chunk_size: int | None = None,
        checkpoint: bool = False,
        readout: ReadoutSpec = None,
        resolution: Resolution = "patch",
    ) -> None:
        super().__init__(model, readout, resolution=resolution)
        check_option("start_layer", start_layer, range(self.adapter.layers))
        check_option("engine", engine, ENGINES)
        _check_engine(engine, self.adapter)
        _check_streaming(engine, chunk_size, checkpoint)
        self.start_layer = start_layer
        self.engine = engine
        self.chunk_size = None if chunk_size is None else int(chunk_size)
        self.checkpoint = checkpoint

    @property
    def shares_pass(self) -> bool:
        """Whether the map depends on ``rule`` and ``_request`` alone.

        If so, :func:`~hf_gmar.attribute_jointly` may share a pass with other methods. The value is
        False if the resolution is finer than the patch, or if a subclass, a mixin or the instance
        overrides any other method of the bases. A subclass whose overrides do not change the map
        may return True.
        """
        if self.is_fine:  # it needs passes of its own
            return False
        steps = {**vars(AttributionMethod), **vars(AttentionMethod)}
        return all(
            getattr(getattr(self, name), "__func__", None) is step
            for name, step in steps.items()
            if isinstance(step, FunctionType) and name not in ("__init__", "_request")
        )

    def _explain(self, request: ForwardRequest, target_specs: Sequence[TargetSpec]) -> list[Tensor]:
        return [result.patches for result in self._rule_results(request, target_specs)]

    def _of_heads(
        self, inputs: PixelInputs, target_spec: TargetSpec, args: Any, kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the rule's values of each head, (B, layers, H, ...), and the patch map."""
        request = self._request(inputs, args, kwargs)
        with size_errors(self.adapter, request.inputs):
            (result,) = self._rule_results(request, [target_spec])
        if result.heads is None:
            raise TypeError(f"{type(self.rule).__name__} says nothing of heads")
        return result.heads, result.patches

    def _rule_results(
        self, request: ForwardRequest, target_specs: Sequence[TargetSpec]
    ) -> list[RuleResult]:
        spans = [(self.rule, request.layers(self.adapter))]
        results = run_rules(self.adapter, request, target_specs, spans, self.engine)
        return [result for (result,) in results]

    def _request(self, inputs: PixelInputs, args: Any, kwargs: dict[str, Any]) -> ForwardRequest:
        return replace(
            super()._request(inputs, args, kwargs),
            start_layer=self.start_layer,
            gradient=self.gradient,
            chunk_size=self.chunk_size,
            checkpoint=self.checkpoint,
        )


def _check_engine(engine: str, adapter: ModelAdapter) -> None:
    engines = engines_of(adapter.vision_model)
    if not engines:
        raise UnsupportedModelError(
            f"{type(adapter.vision_model).__name__} has no attention matrix over all tokens, which "
            "methods on attention need; AttnLRP, InputXGradient and TokenGradCAM explain it"
        )
    if engine not in engines:
        raise UnsupportedModelError(
            f"{type(adapter.vision_model).__name__} gives no attention maps, which "
            f"engine={engine!r} needs; use engine={engines[0]!r}"
        )


def _check_streaming(engine: str, chunk_size: Any, checkpoint: Any) -> None:
    if not isinstance(checkpoint, bool):
        raise OptionError(f"checkpoint must be True or False, got {checkpoint!r}")
    is_count = isinstance(chunk_size, numbers.Integral) and not isinstance(chunk_size, bool)
    if chunk_size is not None and not (is_count and chunk_size >= 1):
        raise OptionError(f"chunk_size must be a whole number >= 1 or None, got {chunk_size!r}")
    if engine != "streaming" and (checkpoint or chunk_size is not None):
        raise OptionError(
            f'chunk_size and checkpoint belong to engine="streaming", got engine={engine!r}'
        )
