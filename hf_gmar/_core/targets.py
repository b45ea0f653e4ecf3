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

Target: TypeAlias = int | tuple[int, ...] | Tensor | list[int] | list[tuple[int, ...]] | None
"""Captum's forms: an int, a tuple, a tensor of 1 or B values, a list of B, or ``None``."""


@dataclass(frozen=True)
class TargetSpec:
    """The explained score of each image.

    Attributes:
        target: the class, in any of Captum's forms.
        contrast: another class, in the same forms, whose score is subtracted from the target's;
            ``None`` for the target's score alone.

    Example:
        >>> scores = torch.tensor([[0.25, 1.0], [0.75, 0.5]])
        >>> TargetSpec(1).resolve(scores).of(scores)
        tensor(1.5000)
        >>> TargetSpec(1, contrast=0).resolve(scores).of(scores)
        tensor(0.5000)
    """

    target: Target = None
    contrast: Target = None

    def resolve(self, scores: Tensor) -> ResolvedTarget:
        """Return the index of the explained score of each image.

        Raises:
            TargetError: a class that does not fit the scores, or equals its contrast.
        """
        target = resolve_targets(self.target, scores)
        if self.contrast is None:
            return ResolvedTarget(target, None)
        against = resolve_targets(self.contrast, scores)
        same = (target == against).nonzero().flatten().tolist()
        if same:
            raise TargetError(
                f"target and contrast of images {same} are the same class, and its score minus "
                "itself is zero; name two classes"
            )
        return ResolvedTarget(target, against)


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
        spec = TargetSpec(self.target, self.contrast)
        if self.target is None and scores.dim() == 2:
            order = scores.detach().argsort(dim=1, descending=True, stable=True)
            spec = TargetSpec(order[:, min(self.rank, scores.shape[1] - 1)], self.contrast)
        resolved = spec.resolve(scores)
        self.seen.append((scores.detach(), resolved.target))
        return resolved


@dataclass(frozen=True)
class ResolvedTarget:
    """The explained score of each image, by its index.

    Attributes:
        target: flat index of the score of each image, (B,).
        against: flat index of the subtracted score, (B,), or ``None``.
    """

    target: Tensor
    against: Tensor | None

    def of(self, scores: Tensor) -> Tensor:
        """Sum the explained scores over the images, which are independent."""
        total = scores_at(scores, self.target).sum()
        return total if self.against is None else total - scores_at(scores, self.against).sum()


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
        TargetError: wrong type, wrong count or out of range.

    Example:
        >>> scores = torch.tensor([[0.1, 0.9], [0.8, 0.2]])
        >>> resolve_targets(None, scores).tolist(), resolve_targets([1, 1], scores).tolist()
        ([1, 0], [1, 1])
    """
    batch, dims = scores.shape[0], tuple(scores.shape[1:])
    if target is not None:
        rows = _one_for_each_image(target, batch)
        flat = [_flat_index(row, dims, image) for image, row in enumerate(rows)]
        return torch.tensor(flat, dtype=torch.long, device=scores.device)
    if scores.dim() > 2:
        raise TargetError(
            f"the model returns scores of shape {tuple(scores.shape)}; with more than one "
            "dimension for each image there is no top class: pass a tuple of indices as target"
        )
    return scores.flatten(1).argmax(dim=1)


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


def _flat_index(target: Any, dims: tuple[int, ...], image: int) -> int:
    parts = target if isinstance(target, tuple) else (target,)
    if len(parts) != max(len(dims), 1):
        raise TargetError(
            f"the target {shown(target)} of image {image} has {len(parts)} indices, but each image "
            f"has scores of shape {dims}"
        )
    flat = 0
    for part, size in zip(parts, dims or (1,), strict=True):
        flat = flat * size + _checked(part, size, image)
    return flat


def _checked(part: Any, size: int, image: int) -> int:
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
    return index
