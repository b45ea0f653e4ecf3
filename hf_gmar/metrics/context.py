"""One explained image, with its method and model as plain calls for metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from hf_gmar.errors import InputError
from hf_gmar.metrics.base import Metric

Explain: TypeAlias = Callable[[Tensor, int], Tensor]
"""Makes the map (1, rows, columns) of pixel values (1, channels, height, width) and a class."""

RandomizedExplains: TypeAlias = Callable[[int, int], Iterable[Explain]]
"""For a number of stages and a seed: the method on the model after each stage, in which ever more
weights are drawn anew, from the head down. Call each before the next is taken."""


@dataclass(frozen=True, eq=False)
class MetricContext:
    """One image, and the calls by which an explanation of it is tested.

    :class:`~hf_gmar.metrics.context_builder.ContextBuilder` makes them for a model and a method;
    for a toy a few functions will do.

    Attributes:
        explain: the method on the model.
        scores: the model's scores (K, classes) of pixel values (K, channels, height, width).
        pixels: the image, (1, channels, height, width).
        target: the explained class.
        other_class: the second class; ``None`` for a model with one class.
        seed: of what is drawn at random for this image.
        known_map: ``explain(pixels, target)``, if it is known already.
        explain_randomized: the method on the model while its weights are lost; ``None`` if the
            method can't be moved to another model.
        head_importance: gives the method's importance of each head, (layers, H); ``None`` if it
            has none.
        masked_scores: the model's scores (M, classes) of the image with heads masked, for flags
            (M, layers, H); ``None`` if heads can't be masked.

    Raises:
        InputError: pixels of more than one image.
    """

    explain: Explain
    scores: Callable[[Tensor], Tensor]
    pixels: Tensor
    target: int
    other_class: int | None = None
    seed: int = 0
    known_map: Tensor | None = None
    explain_randomized: RandomizedExplains | None = None
    head_importance: Callable[[], Tensor] | None = None
    masked_scores: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        """Check that it is one image."""
        if self.pixels.dim() != 4 or len(self.pixels) != 1:
            raise InputError(
                "pixel values of one image, (1, channels, height, width), are needed, got "
                f"{tuple(self.pixels.shape)}; ask about one image at a time"
            )

    def relevance(self, target: int | None = None) -> Tensor:
        """The map (rows, columns) of a class, the explained one by default; float64, on the CPU."""
        target = self.target if target is None else target
        if target == self.target and self.known_map is not None:
            return self.as_map(self.known_map)
        return self.as_map(self.explain(self.pixels, target))

    @staticmethod
    def as_map(relevance: Tensor) -> Tensor:
        """A method's map of one image as (rows, columns), float64, on the CPU."""
        return relevance.detach().double().cpu().reshape(relevance.shape[-2:])


class ContextMetric(Metric[MetricContext]):
    """A metric that calls the method and the model again and again."""

    input_kind = "context"


def one_value(value: float) -> Tensor:
    """The number of one image as a metric gives it, (1,)."""
    return torch.tensor([value], dtype=torch.float64)
