"""The protocol of engines: run the model for a request, then explain scores of the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar._core.request import ForwardRequest
from hf_gmar._engines.propagation import RelevancePropagation
from hf_gmar.errors import ModelOutputError


@dataclass(frozen=True)
class EngineRun:
    """A finished forward whose scores can be explained.

    Attributes:
        scores: the model's scores, connected to the graph.
        top: a part of the top layer's attention on the graph, (B, H, N, ...), a row for each token.
        explain: propagates relevance through the layers for one score (a scalar), or for one score
            of each layer, lowest first; the last argument keeps the graph for further calls.
    """

    scores: Tensor
    top: Tensor
    explain: Callable[[Sequence[Tensor], RelevancePropagation, bool], None]


Engine: TypeAlias = Callable[[ModelAdapter, ForwardRequest], AbstractContextManager[EngineRun]]


def check_reached(reached: int, layers: int) -> None:
    """Raise a ModelOutputError unless the gradient reaches every layer."""
    if reached != layers:
        raise ModelOutputError(
            f"the gradient of the scores reaches {reached} of {layers} attention layers; "
            "the scores must depend on every layer, without no_grad(), detach() or quantised "
            "weights in between"
        )
