"""The readable reference engine: eager attention, and gradients of the returned attention maps.

Memory grows with layers x heads x tokens x tokens, twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor

from hf_gmar._core.attention import attention_here
from hf_gmar._core.hooks import recorded_maps, recorded_runs
from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar._core.request import ForwardRequest, GradientOf
from hf_gmar._engines.base import EngineRun, check_reached
from hf_gmar._engines.propagation import Block, Groups, RelevancePropagation

Maps: TypeAlias = tuple[Tensor, ...]


@contextmanager
def dense_engine(adapter: ModelAdapter, request: ForwardRequest) -> Iterator[EngineRun]:
    """Keep every attention map and its gradient."""
    with (
        attention_here(adapter.vision_model, "eager"),
        recorded_runs(adapter, request.inputs) as runs,
        recorded_maps(adapter.vision_model) as recorded,
    ):
        # Gradients flow to the maps even if every weight is frozen: the graph starts at the inputs.
        scores = request.call(adapter, graph=True)
    runs.check(request.inputs, scores)
    layers = request.layers(adapter)
    maps = recorded[0][layers.start : layers.stop]
    without = len(layers) - len(request.gradient_layers(adapter))

    def explain(scores: Sequence[Tensor], propagation: RelevancePropagation, again: bool) -> None:
        graded = _GRADIENTS[request.gradient](scores, maps[without:], again)
        gradients = (*map(_zeros, maps[:without]), *graded)
        for attention, gradient in reversed(list(zip(maps, gradients, strict=True))):
            propagation.layer(_whole_layer(attention.detach(), gradient), attention.device)

    yield EngineRun(scores, maps[-1].shape[-1], explain)


def _of_score(scores: Sequence[Tensor], maps: Maps, again: bool) -> Maps:
    (score,) = scores
    found: tuple[Tensor | None, ...] = (None,) * len(maps)
    if score.requires_grad and all(layer.requires_grad for layer in maps):
        found = torch.autograd.grad(score, maps, retain_graph=again, allow_unused=True)
    gradients = tuple(gradient for gradient in found if gradient is not None)
    check_reached(len(gradients), len(maps))
    return gradients


def _of_each(scores: Sequence[Tensor], maps: Maps, _: bool) -> Maps:
    """Each layer's own score goes through that layer alone."""
    pairs = zip(scores, maps, strict=True)
    return tuple(_of_score([score], (layer,), True)[0] for score, layer in pairs)


def _none(_: Sequence[Tensor], maps: Maps, __: bool) -> Maps:
    return tuple(map(_zeros, maps))


def _zeros(layer: Tensor) -> Tensor:
    return layer.new_zeros(()).expand_as(layer)


_GRADIENTS: dict[GradientOf, Callable[[Sequence[Tensor], Maps, bool], Maps]] = {
    "score": _of_score,
    "layers": _of_each,
    "none": _none,
}


def _whole_layer(attention: Tensor, gradient: Tensor) -> Groups:
    def groups(relevance: Sequence[Tensor]) -> list[list[list[Block]]]:
        return [[[Block(attention.to(r.dtype), gradient.to(r.dtype), r) for r in relevance]]]

    return groups
