"""Methods that read attention: a layer rule, fed by an engine."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypedDict

from torch import Tensor

from hf_gmar._core.inputs import size_errors
from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar._core.request import ForwardRequest, GradientOf
from hf_gmar._core.targets import TargetSpec
from hf_gmar._core.token_layout import ReadoutSpec, engines_of
from hf_gmar._engines.propagation import LayerRule
from hf_gmar._engines.run import ENGINES, RuleResult, capture
from hf_gmar._utils.validation import check_option
from hf_gmar.errors import OptionError, UnsupportedModelError
from hf_gmar.methods.base import AttributionMethod


class AttentionOptions(TypedDict, total=False):
    """The options of :class:`AttentionMethod`, for a subclass that passes them on."""

    start_layer: int
    engine: str
    chunk_size: int | None
    checkpoint: bool
    readout: ReadoutSpec


class AttentionMethod(AttributionMethod):
    """Base of the methods whose map is made of attention and its gradient, layer by layer.

    A subclass sets ``rule``, a :class:`~hf_gmar._engines.propagation.LayerRule`, and says in ``gradient``
    whose gradient the rule needs.

    Args:
        model: see :class:`~hf_gmar.methods.base.AttributionMethod`.
        start_layer: the lowest layer that takes part, 0 for all of them.
        engine: ``"streaming"`` recomputes attention in blocks and keeps none of it; ``"dense"``,
            the plain reference, keeps all attention maps and their gradients. Both give the same
            numbers.
        chunk_size: query rows that the streaming engine holds at a time; ``None`` chooses.
        checkpoint: let the streaming engine keep only each layer's input and run the layers again
            in the backward: one more forward, a fraction of the memory. For the largest images;
            it changes nothing where no gradient is needed.
        readout: see :class:`~hf_gmar.methods.base.AttributionMethod`.

    Raises:
        UnsupportedModelError: unknown or hierarchical family, no model or several, or a head of
            your own without a readout.
        OptionError: an option that does not exist or is outside its range.
    """

    gradient: GradientOf = "score"
    """Whose gradient the rule needs."""

    rule: LayerRule
    """What the method does at each layer; each instance sets its own."""

    def __init__(
        self,
        model: Callable[..., Any],
        start_layer: int = 0,
        engine: str = "streaming",
        chunk_size: int | None = None,
        checkpoint: bool = False,
        readout: ReadoutSpec = None,
    ) -> None:
        super().__init__(model, readout)
        check_option("start_layer", start_layer, range(self.adapter.layers))
        check_option("engine", engine, ENGINES)
        _check_engine(engine, self.adapter)
        _check_streaming(engine, chunk_size, checkpoint)
        self.start_layer = start_layer
        self.engine = engine
        self.chunk_size = None if chunk_size is None else int(chunk_size)
        self.checkpoint = checkpoint

    def _explain(self, request: ForwardRequest, target_specs: Sequence[TargetSpec]) -> list[Tensor]:
        return [found.patches for found in self._captured(request, target_specs)]

    def _of_heads(
        self, inputs: Tensor | tuple[Tensor, ...], target_spec: TargetSpec, args: Any, kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """What the rule says of each head, (B, layers, H, ...), and the map of patches."""
        request = self._request(inputs, args, kwargs)
        with size_errors(self.adapter, request.inputs):
            (found,) = self._captured(request, [target_spec])
        if found.heads is None:
            raise TypeError(f"{type(self.rule).__name__} says nothing of heads")
        return found.heads, found.patches

    def _captured(
        self, request: ForwardRequest, target_specs: Sequence[TargetSpec]
    ) -> list[RuleResult]:
        return capture(self.adapter, request, target_specs, self.rule, self.engine)

    def _request(
        self, inputs: Tensor | tuple[Tensor, ...], args: Any, kwargs: dict[str, Any]
    ) -> ForwardRequest:
        return replace(
            super()._request(inputs, args, kwargs),
            start_layer=self.start_layer,
            gradient=self.gradient,
            chunk_size=self.chunk_size,
            checkpoint=self.checkpoint,
        )


def _check_engine(engine: str, adapter: ModelAdapter) -> None:
    engines = engines_of(adapter.vision_model)
    if engine not in engines:
        raise UnsupportedModelError(
            f"{type(adapter.vision_model).__name__} gives no attention maps, which engine={engine!r} "
            f"needs; use engine={engines[0]!r}"
        )


def _check_streaming(engine: str, chunk_size: Any, checkpoint: Any) -> None:
    if not isinstance(checkpoint, bool):
        raise OptionError(f"checkpoint must be True or False, got {checkpoint!r}")
    if chunk_size is not None and not _is_count(chunk_size):
        raise OptionError(f"chunk_size must be a whole number >= 1 or None, got {chunk_size!r}")
    if engine != "streaming" and (checkpoint or chunk_size is not None):
        raise OptionError(
            f'chunk_size and checkpoint belong to engine="streaming", got engine={engine!r}'
        )


def _is_count(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 1
