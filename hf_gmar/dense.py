"""The readable reference engine: eager attention, and gradients of the returned attention maps.

Memory grows with layers x heads x tokens x tokens, twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from hf_gmar.attention import attention_here
from hf_gmar.engine import Request, Run, check_reached
from hf_gmar.propagation import Block, Descent, Groups
from hf_gmar.recording import recorded_maps, watched_runs
from hf_gmar.subject import Subject


@contextmanager
def dense_engine(subject: Subject, request: Request) -> Iterator[Run]:
    """Keep every attention map and its gradient."""
    with (
        attention_here(subject.tower, "eager"),
        watched_runs(subject, request.inputs) as runs,
        recorded_maps(subject.tower) as recorded,
    ):
        # Gradients flow to the maps even if every weight is frozen: the graph starts at the inputs.
        scores = request.call(subject, graph=True)
    runs.check(request.inputs, scores)
    maps = recorded[0][request.start_layer :]

    def explain(score: Tensor, descent: Descent, again: bool) -> None:
        gradients = _gradients(score, maps, again)
        for attention, gradient in reversed(list(zip(maps, gradients, strict=True))):
            descent.layer(_whole_layer(attention.detach(), gradient), attention.device)

    yield Run(scores, maps[-1].shape[-1], explain)


def _gradients(score: Tensor, maps: tuple[Tensor, ...], again: bool) -> tuple[Tensor, ...]:
    found: tuple[Tensor | None, ...] = (None,) * len(maps)
    if score.requires_grad and all(layer.requires_grad for layer in maps):
        found = torch.autograd.grad(score, maps, retain_graph=again, allow_unused=True)
    gradients = tuple(gradient for gradient in found if gradient is not None)
    check_reached(len(gradients), len(maps))
    return gradients


def _whole_layer(attention: Tensor, gradient: Tensor) -> Groups:
    def groups(relevance: Tensor) -> list[list[Block]]:
        return [[Block(attention.to(relevance.dtype), gradient.to(relevance.dtype), relevance)]]

    return groups
