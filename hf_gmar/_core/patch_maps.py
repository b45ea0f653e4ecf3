"""Maps of patches: from the order of tokens to the axes of the input, and back to its positions.

An axis is a negative dimension of the input: height and width of an image are (-2, -1). A map has
its axes in the order of the input, which need not be that of the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Axes = tuple[int, ...]


def patch_count(size: int, patch: int, stride: int, whole: bool) -> int | None:
    """Return the number of patches along an axis, or ``None`` if there are none.

    ``whole`` patches must fill the axis; others may leave out the last positions.

    Example:
        >>> patch_count(224, 16, 16, True), patch_count(225, 16, 16, True)
        (14, None)
        >>> patch_count(128, 16, 10, False)
        12
    """
    if size < patch or (whole and size % patch):
        return None
    return (size - patch) // stride + 1


def in_input_order(values: Sequence[int], axes: Axes) -> tuple[int, ...]:
    """Sort values of the axes by the axes.

    Example:
        >>> in_input_order((14, 7, 8), (-2, -1, -4))  # rows, columns, frames
        (8, 14, 7)
    """
    return tuple(value for _, value in sorted(zip(axes, values, strict=True)))


def to_map(values: Tensor, counts: Sequence[int], axes: Axes) -> Tensor:
    """Reshape values of patches (..., patches) to a map (..., one dimension for each axis).

    Args:
        values: one value for each patch, in the order of the tokens.
        counts: number of patches along each axis, in the order of the tokens.
        axes: the axes, in the order of the tokens.

    Example:
        >>> to_map(torch.arange(6), (3, 2), (-1, -2))  # two rows of time, three of frequency
        tensor([[0, 2, 4],
                [1, 3, 5]])
    """
    leading = values.dim() - 1
    order = sorted(range(len(axes)), key=axes.__getitem__)
    whole = values.reshape(*values.shape[:-1], *counts)
    return whole.permute(*range(leading), *(leading + place for place in order))


def spread(
    maps: Tensor, inputs: Tensor, axes: Axes, overlap: Sequence[tuple[int, int]] | None = None
) -> Tensor:
    """Give each position of the inputs the value of its patch.

    Args:
        maps: values (B, one dimension for each axis).
        inputs: the inputs, whose shape, dtype and device the result has.
        axes: the axes.
        overlap: for patches that overlap, patch size and stride along each axis, in the order of
            the input. A position has the mean of the patches that cover it, or 0 without any.

    Example:
        >>> spread(torch.tensor([[[1.0, 2.0]]]), torch.zeros(1, 1, 1, 4), (-2, -1))
        tensor([[[[1., 1., 2., 2.]]]])
    """
    for place, axis in enumerate(sorted(axes), start=1):
        size, count = inputs.shape[axis], maps.shape[place]
        if overlap is None:
            maps = maps.repeat_interleave(size // count, place)
        else:
            shares = _shares(size, count, *overlap[place - 1]).to(maps)
            maps = torch.tensordot(maps, shares, dims=([place], [1])).movedim(-1, place)
    for dimension in range(1, inputs.dim()):
        if dimension - inputs.dim() not in axes:
            maps = maps.unsqueeze(dimension)
    return maps.expand_as(inputs).to(inputs.dtype).contiguous()


def _shares(size: int, count: int, patch: int, stride: int) -> Tensor:
    """Return the share of each patch in the mean at each position of an axis, (size, count)."""
    position, start = torch.arange(size)[:, None], stride * torch.arange(count)
    covers = ((position >= start) & (position < start + patch)).double()
    return covers / covers.sum(1, keepdim=True).clamp(min=1)
