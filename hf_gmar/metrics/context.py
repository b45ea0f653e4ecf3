"""One explained image, with the functions that metrics need of its method and model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from hf_gmar.errors import InputError
from hf_gmar.metrics.base import Metric

Explain: TypeAlias = Callable[[Tensor, int], Tensor]
"""Maps pixel values (1, channels, height, width) and a class to a map (1, rows, columns)."""

ShapleyMap: TypeAlias = Callable[[int, tuple[int, int]], Tensor]
"""Maps a number of permutations, and the rows and columns of patches in a player, to the Shapley
values (rows, columns) of the patches for the target's logit."""

RandomizedExplains: TypeAlias = Callable[[int, int], Iterable[Explain]]
"""Takes a number of stages and a seed, and yields the method on the model after each stage. Each
stage randomizes more weights, from the head down. Call an item before taking the next one."""


@dataclass(frozen=True, eq=False)
class MetricContext:
    """One image, and the functions that test an explanation of it.

    :class:`~hf_gmar.metrics.context_builder.ContextBuilder` makes contexts for a model and a
    method. For a toy model, a few functions are enough.

    Attributes:
        explain: the method on the model.
        scores: maps pixel values (K, channels, height, width) to scores (K, classes).
        pixels: the image, (1, channels, height, width).
        target: the explained class.
        other_class: the second class; ``None`` for a model with one class.
        seed: seed of everything drawn at random for this image.
        known_map: ``explain(pixels, target)``, if it is already known.
        explain_randomized: the method on the model with randomized weights; ``None`` if the
            method can't be moved to another model.
        head_importance: returns the method's importance of each head, (layers, H); ``None`` if
            the method has no head importance.
        masked_scores: maps flags (M, layers, H) of masked heads to the scores (M, classes) of the
            image; ``None`` if heads can't be masked.
        shapley: returns the Shapley values of the patches; ``None`` if nothing computes them, as in
            a context of :class:`~hf_gmar.metrics.ContextBuilder`.

    Raises:
        InputError: the pixels are of more than one image.
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
    shapley: ShapleyMap | None = None

    def __post_init__(self) -> None:
        """Check that the pixels are of one image."""
        if self.pixels.dim() != 4 or len(self.pixels) != 1:
            raise InputError(
                "pixel values of one image, (1, channels, height, width), are needed, got "
                f"{tuple(self.pixels.shape)}; ask about one image at a time"
            )

    def relevance(self, target: int | None = None) -> Tensor:
        """Return the map (rows, columns) of a class, by default ``target``; float64, on the CPU."""
        target = self.target if target is None else target
        if target == self.target and self.known_map is not None:
            return self.as_map(self.known_map)
        return self.as_map(self.explain(self.pixels, target))

    @staticmethod
    def as_map(relevance: Tensor) -> Tensor:
        """Reshape a method's map of one image to (rows, columns), float64, on the CPU."""
        return relevance.detach().double().cpu().reshape(relevance.shape[-2:])


class ContextMetric(Metric[MetricContext]):
    """Base of the metrics that call the method and the model repeatedly."""

    input_kind = "context"


def one_value(value: float) -> Tensor:
    """Return the value of one image as a tensor (1,)."""
    return torch.tensor([value], dtype=torch.float64)
