"""The reference engine: eager attention, and gradients of the returned attention maps.

Memory grows with layers x heads x tokens x tokens, twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from hf_gmar._core.attention import attention_here
from hf_gmar._core.execution import gradients_of
from hf_gmar._core.hooks import recorded_maps, recorded_runs
from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar._core.request import ForwardRequest
from hf_gmar._engines.base import EngineRun, check_reached
from hf_gmar._engines.propagation import Block, Groups, RelevancePropagation


@contextmanager
def dense_engine(adapter: ModelAdapter, request: ForwardRequest) -> Iterator[EngineRun]:
    """Store every attention map and its gradient."""
    with (
        attention_here(adapter.vision_model, "eager"),
        recorded_runs(adapter, request.inputs) as runs,
        recorded_maps(adapter.vision_model) as recorded,
    ):
        # The graph starts at the inputs, so frozen weights don't matter.
        scores = request.call(adapter, request.leaf())
    runs.check(request.inputs, scores)
    layers = request.layers(adapter)
    maps = recorded[0][layers.start : layers.stop]
    first = len(layers) - len(request.gradient_layers(adapter))  # first layer with a gradient

    def explain(scores: Sequence[Tensor], propagation: RelevancePropagation, retain: bool) -> None:
        gradients = [layer.new_zeros(()).expand_as(layer) for layer in maps[:first]]
        if request.gradient == "layers":  # one score for each layer
            for score, layer in zip(scores, maps[first:], strict=True):
                gradients += _gradients(score, (layer,), True)
        elif request.gradient == "score":
            gradients += _gradients(scores[0], maps[first:], retain)
        for attention, gradient in reversed(list(zip(maps, gradients, strict=True))):
            propagation.layer(_whole_layer(attention.detach(), gradient), attention.device)

    yield EngineRun(scores, recorded[0][-1], explain)


def _gradients(score: Tensor, maps: Sequence[Tensor], retain: bool) -> list[Tensor]:
    gradients = [part for part in gradients_of(score, maps, retain) if part is not None]
    check_reached(len(gradients), len(maps))
    return gradients


def _whole_layer(attention: Tensor, gradient: Tensor) -> Groups:
    def groups(relevance: Sequence[Tensor], _: bool) -> list[list[list[list[Block]]]]:
        return [[[[Block(attention.to(r.dtype), gradient.to(r.dtype), r) for r in relevance]]]]

    return groups
