"""What is asked of one explanation when it is tested: the method and the model as plain calls."""

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

Randomised: TypeAlias = Callable[[int, int], Iterable[Explain]]
"""For a number of stages and a seed: the method on the model after each stage of the cascade, in
which ever more weights are drawn anew, from the head down. Each is to be asked before the next."""


@dataclass(frozen=True, eq=False)
class MetricContext:
    """One image, and the calls by which an explanation of it is tested.

    :class:`~hf_gmar.metrics.context_builder.ContextBuilder` makes them for a model and a method; for a toy a few
    functions will do.

    Attributes:
        explain: the method on the model.
        scores: the model's scores (K, classes) of pixel values (K, channels, height, width).
        pixels: the image, (1, channels, height, width).
        target: the class that is explained.
        other: another class, the second one; ``None`` for a model with one class.
        seed: of what is drawn at random for this image.
        known: ``explain(pixels, target)``, if it is known already.
        randomised: the method on the model while its weights are lost; ``None`` if it can't be.
        heads: gives the method's own importance of each head, (layers, H); ``None`` if it has none.
        masked: the model's scores (M, classes) of the image with heads masked, for flags
            (M, layers, H); ``None`` if they can't be.

    Raises:
        InputError: pixels of more than one image.
    """

    explain: Explain
    scores: Callable[[Tensor], Tensor]
    pixels: Tensor
    target: int
    other: int | None = None
    seed: int = 0
    known: Tensor | None = None
    randomised: Randomised | None = None
    heads: Callable[[], Tensor] | None = None
    masked: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        """Check that it is one image."""
        if self.pixels.dim() != 4 or len(self.pixels) != 1:
            raise InputError(
                "pixel values of one image, (1, channels, height, width), are needed, got "
                f"{tuple(self.pixels.shape)}; ask about one image at a time"
            )

    def relevance(self, target: int | None = None) -> Tensor:
        """The map (rows, columns) of a class, the explained one by default; float64, on the CPU."""
        if target is None or target == self.target:
            own = self.explain(self.pixels, self.target) if self.known is None else self.known
            return self.as_map(own)
        return self.as_map(self.explain(self.pixels, target))

    @staticmethod
    def as_map(found: Tensor) -> Tensor:
        """What a method gave for one image as (rows, columns), float64, on the CPU."""
        return found.detach().double().cpu().reshape(found.shape[-2:])


class ContextMetric(Metric[MetricContext]):
    """A metric that asks the method and the model again and again.

    Args:
        images: see :class:`~hf_gmar.metrics.base.Metric`.

    Raises:
        OptionError: an option outside its range.
    """

    input_kind = "context"

    def __init__(self, images: int | None = None) -> None:
        super().__init__(images)


def one_value(value: float) -> Tensor:
    """The number of one image as a metric gives it, (1,)."""
    return torch.tensor([value], dtype=torch.float64)
