"""Convert Captum's forms of a target to one index for each image."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, SupportsIndex, TypeAlias

import numpy as np
import torch
from torch import Tensor

from hf_gmar._utils.validation import shown
from hf_gmar.errors import TargetError

Index: TypeAlias = tuple[int | slice, ...]
"""One score of several dimensions; with slices, the mean of a region of them."""

Target: TypeAlias = int | Index | Tensor | list[int] | list[Index] | None
"""Captum's forms: an int, a tuple, a tensor of 1 or B values, a list of B, or ``None``."""

Cells: TypeAlias = tuple[slice, ...]
"""The explained scores of one image: a slice for each dimension."""

NO_CLASS = -1
"""The class of an image whose map is of no class."""


@dataclass(frozen=True)
class TargetSpec:
    """The explained score of each image.

    Attributes:
        target: the class, in any of Captum's forms.
        contrast: another class, in the same forms, whose score is subtracted from the target's;
            ``None`` for the target's score alone.
        needs_scores: whether an image needs a class; without, ``None`` is no class if there is no
            top class.

    Example:
        >>> scores = torch.tensor([[0.25, 1.0], [0.75, 0.5]])
        >>> TargetSpec(1).resolve(scores).of(scores)
        tensor(1.5000)
        >>> TargetSpec(1, contrast=0).resolve(scores).of(scores)
        tensor(0.5000)
    """

    target: Target = None
    contrast: Target = None
    needs_scores: bool = True

    def resolve(self, scores: Tensor) -> ResolvedTarget:
        """Return the index of the explained score of each image.

        Raises:
            TargetError: a class that does not fit the scores, or equals its contrast.
        """
        if self.target is None and not self.needs_scores and not _has_top_class(scores):
            return ResolvedTarget(torch.full((len(scores),), NO_CLASS, device=scores.device))
        target, cells = _resolved(self.target, scores)
        if self.contrast is None:
            return ResolvedTarget(target, cells=cells)
        against, other_cells = _resolved(self.contrast, scores)
        resolved = ResolvedTarget(target, against, cells, other_cells)
        dims = tuple(scores.shape[1:])
        pairs = zip(*resolved.all_cells(dims), strict=True)
        if same := [image for image, (own, other) in enumerate(pairs) if own == other]:
            raise TargetError(
                f"target and contrast of images {same} are the same class, and its score minus "
                "itself is zero; name two classes"
            )
        return resolved


@dataclass(frozen=True)
class RecordingTarget(TargetSpec):
    """A target that keeps the scores with which a method resolves it, and the classes.

    Attributes:
        rank: the place of the class by score, 0 for the highest, if the target is ``None``; the
            last class if there are fewer.
        seen: the scores (B, C) and the classes (B,), once the target is resolved.
    """

    rank: int = 0
    seen: list[tuple[Tensor, Tensor]] = field(default_factory=list, compare=False)

    def resolve(self, scores: Tensor) -> ResolvedTarget:
        """Resolve as every target does; errors as well."""
        spec = TargetSpec(self.target, self.contrast, self.needs_scores)
        if self.target is None and scores.dim() == 2 and scores.shape[1]:
            order = scores.detach().argsort(dim=1, descending=True, stable=True)
            spec = TargetSpec(order[:, min(self.rank, scores.shape[1] - 1)], self.contrast)
        resolved = spec.resolve(scores)
        self.seen.append((scores.detach(), resolved.target))
        return resolved


@dataclass(frozen=True)
class FixedTarget(TargetSpec):
    """A target that the first scores resolve for all calls, so that they explain one class.

    Attributes:
        spec: the target.
        resolved: the explained scores, once the target is resolved.
    """

    spec: TargetSpec = field(default_factory=TargetSpec)
    resolved: list[ResolvedTarget] = field(default_factory=list, compare=False)

    @classmethod
    def of(cls, spec: TargetSpec) -> FixedTarget:
        """Fix a target."""
        return cls(spec.target, spec.contrast, spec.needs_scores, spec)

    def resolve(self, scores: Tensor) -> ResolvedTarget:
        """Resolve with the first scores as every target does; errors as well."""
        if not self.resolved:
            self.resolved.append(self.spec.resolve(scores))
        return self.resolved[0]


@dataclass(frozen=True)
class ResolvedTarget:
    """The explained score of each image, by its index.

    Attributes:
        target: flat index of the score of each image, (B,), or of the first one of a region;
            ``NO_CLASS`` if the map is of no class.
        against: flat index of the subtracted score, (B,), or ``None``.
        cells: the explained scores of each image, if an image has several; their mean is explained.
        against_cells: the same for the subtracted scores.
    """

    target: Tensor
    against: Tensor | None = None
    cells: list[Cells] | None = None
    against_cells: list[Cells] | None = None

    def of(self, scores: Tensor) -> Tensor:
        """Sum the explained scores over the images, which are independent."""
        if len(self.target) and int(self.target[0]) == NO_CLASS:
            return scores.new_zeros(())
        total = _mean_of(scores, self.target, self.cells).sum()
        if self.against is None:
            return total
        return total - _mean_of(scores, self.against, self.against_cells).sum()

    def all_cells(self, dims: tuple[int, ...]) -> list[list[Cells]]:
        """Return the cells of each image for the target and, if there is one, the contrast.

        Args:
            dims: shape of the scores of an image.
        """
        sides = [(self.target, self.cells)]
        if self.against is not None:
            sides.append((self.against, self.against_cells))
        return [
            cells if cells is not None else [_cells_at(n, dims) for n in flat.tolist()]
            for flat, cells in sides
        ]


def _mean_of(scores: Tensor, indices: Tensor, cells: list[Cells] | None) -> Tensor:
    """Return the mean of the explained scores of each image, (B,)."""
    if cells is None:
        return scores_at(scores, indices)
    parts = zip(scores, cells, strict=True)
    return torch.stack([image[one].mean() for image, one in parts])


def _cells_at(flat: int, dims: tuple[int, ...]) -> Cells:
    places = np.unravel_index(flat, dims or (1,))
    return tuple(slice(int(place), int(place) + 1) for place in places)


def scores_at(scores: Tensor, indices: Tensor) -> Tensor:
    """Return the score (B,) of each image at its flat index."""
    return scores.flatten(1).gather(1, indices[:, None])[:, 0]


def resolve_targets(target: Target, scores: Tensor) -> Tensor:
    """Return the flat index of the explained score of each image.

    Args:
        target: an int or a tensor with one value is for all images; a list or a 1-D tensor has one
            class for each image; a tuple (or a list of B tuples) indexes scores with several
            dimensions for each image; ``None`` is the highest score of each image.
        scores: (B, C), or (B, ...) with tuples.

    Returns:
        Long tensor (B,) of positions in ``scores.flatten(1)``, on the device of the scores.

    Raises:
        TargetError: wrong type, wrong count, out of range, or a region of several scores.

    Example:
        >>> scores = torch.tensor([[0.1, 0.9], [0.8, 0.2]])
        >>> resolve_targets(None, scores).tolist(), resolve_targets([1, 1], scores).tolist()
        ([1, 0], [1, 1])
    """
    flat, cells = _resolved(target, scores)
    if cells is not None:
        raise TargetError(
            f"the target {shown(target)} is a region of scores, and one score is needed here; give "
            "whole numbers alone"
        )
    return flat


def _resolved(target: Target, scores: Tensor) -> tuple[Tensor, list[Cells] | None]:
    """Return the flat index of each image's first score, and the cells of regions, if any."""
    batch, dims = scores.shape[0], tuple(scores.shape[1:])
    if not scores[:1].numel():
        raise TargetError(
            "the model has no class head, so there are no classes and no scores to explain; leave "
            "target out, which is for methods without gradients, or load the model with a class "
            "head"
        )
    if target is not None:
        rows = _one_for_each_image(target, batch)
        cells = [_checked_cells(row, dims, image) for image, row in enumerate(rows)]
        starts = [[part.start for part in one] for one in cells]
        flat = [int(np.ravel_multi_index(start, dims or (1,))) for start in starts]
        has_regions = any(_has_slice(row) for row in rows)
        indices = torch.tensor(flat, dtype=torch.long, device=scores.device)
        return indices, cells if has_regions else None
    if not _has_top_class(scores):
        raise TargetError(
            f"the model returns scores of shape {tuple(scores.shape)}; with more than one "
            "dimension for each image there is no top class: pass a tuple of indices as target"
        )
    return scores.flatten(1).argmax(dim=1), None


def _has_top_class(scores: Tensor) -> bool:
    return scores.dim() <= 2 and bool(scores[:1].numel())


def _has_slice(row: Any) -> bool:
    return isinstance(row, tuple) and any(isinstance(part, slice) for part in row)


def _one_for_each_image(target: Any, batch: int) -> Sequence[Any]:
    if isinstance(target, Tensor):
        return _tensor_rows(target, batch)
    if not isinstance(target, list):
        return [target] * batch
    if len(target) != batch:
        raise TargetError(
            f"got {len(target)} targets for {batch} images; pass one for each image, or a single "
            "int for all of them"
        )
    return target


def _tensor_rows(target: Tensor, batch: int) -> list[int]:
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TargetError(f"targets are class indices (integers), got a tensor of {target.dtype}")
    if target.numel() == 1:
        return [int(target.item())] * batch
    if target.dim() != 1 or len(target) != batch:
        raise TargetError(
            f"got a target tensor of shape {tuple(target.shape)} for {batch} images; pass one "
            f"value, or a tensor of shape ({batch},)"
        )
    return [int(value) for value in target.tolist()]


def _checked_cells(target: Any, dims: tuple[int, ...], image: int) -> Cells:
    parts = target if isinstance(target, tuple) else (target,)
    sizes = dims or (1,)
    if len(parts) != len(sizes):
        raise TargetError(
            f"the target {shown(target)} of image {image} has {len(parts)} indices, but each image "
            f"has scores of shape {dims}"
        )
    return tuple(_checked(part, size, image) for part, size in zip(parts, sizes, strict=True))


def _checked(part: Any, size: int, image: int) -> slice:
    if isinstance(part, slice):
        return _checked_range(part, size, image)
    # bool and some arrays have __index__, but are no classes.
    if isinstance(part, bool | np.ndarray) or not isinstance(part, SupportsIndex):
        raise TargetError(
            f"the target of image {image} is {shown(part)}; a class index (integer) is needed"
        )
    index = operator.index(part)  # NumPy's integers too
    if not 0 <= index < size:
        raise TargetError(
            f"target {shown(index)} of image {image} is out of range: the model has {size} "
            f"classes, 0 to {size - 1}"
        )
    return slice(index, index + 1)


def _checked_range(part: slice, size: int, image: int) -> slice:
    """Return a region's side with its ends; Python's own slices would be cut to the scores."""
    start, stop = part.start, part.stop
    ends = 0 if start is None else start, size if stop is None else stop
    whole = all(isinstance(end, SupportsIndex) and not isinstance(end, bool) for end in ends)
    if not whole or part.step not in (None, 1):
        raise TargetError(
            f"the target of image {image} has {shown(part)}; a region is a slice of whole numbers "
            "without a step, such as slice(2, 5)"
        )
    start, stop = map(operator.index, ends)
    if not 0 <= start < stop <= size:
        raise TargetError(
            f"the target of image {image} has {shown(part)}, and the scores have {size} places in "
            f"that direction; a region is one or more of them, such as slice(0, {size})"
        )
    return slice(start, stop)
