"""The inputs of metrics: tensors with the measurements of each image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_gmar.errors import InputError


class _Float64Fields:
    """Base class that converts all fields to float64 on the CPU."""

    def __post_init__(self) -> None:
        for name, value in vars(self).copy().items():
            if not isinstance(value, Tensor):
                raise InputError(
                    f"{name} must be a tensor, got {type(value).__name__}; torch.tensor makes one "
                    "of numbers"
                )
            object.__setattr__(self, name, value.detach().cpu().double())
        self._check()

    def _check(self) -> None:
        raise NotImplementedError

    def _require(self, fits: object, needed: str) -> None:
        """Raise an InputError with the needed and the received shapes unless the input fits."""
        if not fits:
            shapes = {name: tuple(value.shape) for name, value in vars(self).items()}
            raise InputError(f"{type(self).__name__} needs {needed}; got {shapes}")


@dataclass(frozen=True, eq=False)
class Curves(_Float64Fields):
    """The score of the target while more and more patches are removed.

    Attributes:
        fractions: share of removed patches at each step, (S,), from 0 to 1, or to less if the
            last patches can't be removed.
        morf: scores with the most relevant patches removed first, (B, S); NaN for an image that
            could not be measured.
        lerf: scores with the least relevant patches removed first, (B, S).

    Raises:
        InputError: other shapes, infinite scores, or fractions that do not increase from 0 to at
            most 1.

    Example:
        >>> steps = torch.tensor([0.0, 0.5, 1.0])
        >>> Curves(steps, torch.tensor([[1.0, 0.2, 0.0]]), torch.tensor([[1.0, 0.8, 0.0]])).areas()
        (tensor([0.3500], dtype=torch.float64), tensor([0.6500], dtype=torch.float64))
    """

    fractions: Tensor
    morf: Tensor
    lerf: Tensor

    def areas(self) -> tuple[Tensor, Tensor]:
        """Return the areas under both curves, (B,) each, with the last fraction scaled to 1."""
        steps = self.fractions / self.fractions[-1]
        return torch.trapezoid(self.morf, steps), torch.trapezoid(self.lerf, steps)

    def _check(self) -> None:
        steps = self.fractions
        shapes = self.morf.dim() == 2 and self.morf.shape == self.lerf.shape
        self._require(
            shapes and steps.dim() == 1 and len(steps) == self.morf.shape[1] >= 2,
            "fractions (S,) with S >= 2, and morf and lerf (B, S)",
        )
        self._require(
            (steps.diff() > 0).all() and steps[0] == 0 and steps[-1] <= 1,
            f"fractions that rise from 0 to 1 at most, not {steps.tolist()}",
        )
        curves = torch.stack([self.morf, self.lerf])
        self._require(not curves.isinf().any(), "scores that are not infinite")


@dataclass(frozen=True, eq=False)
class ConfidenceChange(_Float64Fields):
    """The target's score for the whole image, and for the patches that a map keeps.

    Attributes:
        before: score of the whole image, (B,).
        after: score of the kept patches, (B,); NaN for an image that could not be measured.

    Raises:
        InputError: other shapes, or infinite scores.
    """

    before: Tensor
    after: Tensor

    def _check(self) -> None:
        shapes = self.before.dim() == 1 and self.before.shape == self.after.shape
        self._require(shapes, "before (B,) and after (B,)")
        scores = torch.stack([self.before, self.after])
        self._require(not scores.isinf().any(), "scores that are not infinite")


@dataclass(frozen=True, eq=False)
class LocalizationInput(_Float64Fields):
    """Maps, and the patches that the object covers.

    Attributes:
        maps: relevance of each patch, (B, rows, columns), finite.
        cover: share of each patch's area inside the object's mask, (B, rows, columns), from 0 to
            1. An image whose cover is all 0 has no mask, and its values are undefined.

    Raises:
        InputError: other shapes or values.
    """

    maps: Tensor
    cover: Tensor

    def _check(self) -> None:
        shapes = self.maps.dim() == 3 and self.maps.shape == self.cover.shape
        self._require(shapes and self.maps[0:1].numel() > 0, "maps and cover (B, rows, columns)")
        self._require(self.maps.isfinite().all(), "maps that are finite")
        inside = (self.cover >= 0) & (self.cover <= 1)
        self._require(inside.all(), "cover from 0 to 1, the share of each patch's area")
