"""Maps finer than a patch: the mean over shifts of the image by parts of a patch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor

from hf_gmar._core.request import ForwardRequest
from hf_gmar._core.targets import FixedTarget, TargetSpec

_Explain: TypeAlias = Callable[[ForwardRequest, Sequence[TargetSpec]], list[Tensor]]


def shifted_maps(
    explain: _Explain,
    request: ForwardRequest,
    target_specs: Sequence[TargetSpec],
    grid: tuple[int, int],
    cells: int,
) -> list[Tensor]:
    """Average the maps of ``cells`` x ``cells`` shifts of the images, each shifted back.

    The shifts are by whole cells and by at most half a patch, so that each cell lies once at each
    place of a patch. Pixels that leave an image are lost, and its edge fills the other side. A cell
    is averaged over the shifts that still show it. All shifts explain the classes of the unshifted
    images, and run one after the other, with the memory of a single one.

    Args:
        explain: returns the maps (B, rows, columns) of a request.
        request: the images, and the arguments of the model.
        target_specs: the explained scores.
        grid: rows and columns of patches.
        cells: cells on each side of a patch.

    Returns:
        A map (B, rows * cells, columns * cells) for each target. A cell has the mean of the patches
        around it.
    """
    rows, columns = (size * cells for size in grid)
    height, width = request.inputs.shape[-2:]
    targets = [FixedTarget.of(spec) for spec in target_specs]
    sums: list[Tensor] = []
    counts = torch.zeros(rows, columns)
    steps = sorted(range(-((cells - 1) // 2), cells // 2 + 1), key=abs)  # the image itself first
    for down, across in itertools.product(steps, steps):
        inputs = _moved(request.inputs, down * (height // rows), across * (width // columns))
        maps = explain(replace(request, inputs=inputs), targets)
        own_rows, moved_rows = _overlap(rows, down)
        own_columns, moved_columns = _overlap(columns, across)
        counts[own_rows, own_columns] += 1
        sums = sums or [values.new_zeros(len(values), rows, columns) for values in maps]
        for total, values in zip(sums, maps, strict=True):
            spread = values.repeat_interleave(cells, 1).repeat_interleave(cells, 2)
            total[:, own_rows, own_columns] += spread[:, moved_rows, moved_columns]
    return [total / counts.to(total) for total in sums]


def _moved(images: Tensor, down: int, across: int) -> Tensor:
    """Move images down and to the right by some pixels; their edges fill the gap."""
    if not (down or across):
        return images
    height, width = images.shape[-2:]
    rows, columns = (
        (torch.arange(size, device=images.device) - step).clamp(0, size - 1)
        for size, step in ((height, down), (width, across))
    )
    return images.detach()[:, :, rows[:, None], columns]


def _overlap(count: int, step: int) -> tuple[slice, slice]:
    """Return the cells of an axis that a step leaves in the image, before and after it."""
    start, stop = max(0, -step), min(count, count - step)
    return slice(start, stop), slice(start + step, stop + step)


def patch_means(maps: Tensor, cells: int) -> Tensor:
    """Return the mean of the cells of each patch, (B, rows, columns)."""
    means: Tensor = maps.unflatten(2, (-1, cells)).unflatten(1, (-1, cells)).mean((2, 4))
    return means
