"""Places: one patch as the readout, and the patches under a place of a dense head's scores."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from hf_gmar._core.targets import Cells, ResolvedTarget
from hf_gmar._utils.validation import shown
from hf_gmar.errors import InputError, ModelOutputError, OptionError

Place: TypeAlias = tuple[int, int]
"""Row and column of a patch, from 0."""


def place_of(readout: Any) -> Place | None:
    """Return the patch that a readout names; ``None`` for a readout of another form.

    Two whole numbers are a place; shares of prefix tokens are floats.

    Raises:
        OptionError: a negative place, or a pair of a whole number and a float.

    Example:
        >>> place_of((3, 5)), place_of((0.5, 0.0)), place_of("cls")
        ((3, 5), None, None)
    """
    if not isinstance(readout, tuple) or len(readout) != 2:
        return None
    whole = [isinstance(n, numbers.Integral) and not isinstance(n, bool) for n in readout]
    if not any(whole) or not all(isinstance(number, numbers.Real) for number in readout):
        return None
    if not all(whole):
        raise OptionError(
            f"readout={shown(readout)} has a whole number and a fraction: a place is (row, column) "
            "in whole numbers such as (3, 5), and shares of prefix tokens are floats such as "
            "(1.0, 0.0)"
        )
    if min(readout) < 0:
        raise OptionError(
            f"readout={shown(readout)} is a place before the first patch; rows and columns count "
            "from 0"
        )
    return int(readout[0]), int(readout[1])


def check_place(place: Place | None, grid: tuple[int, ...]) -> None:
    """Raise an InputError for a place outside of the patch grid of the images."""
    if place is not None and (place[0] >= grid[0] or place[1] >= grid[1]):
        raise InputError(
            f"readout={shown(place)} is a place outside of the images' grid of {grid[0]} x "
            f"{grid[1]} patches; rows are 0 to {grid[0] - 1} and columns 0 to {grid[1] - 1}. Name "
            "another place, or give larger images"
        )


def place_row(place: Place, grid: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Return the readout over the patches, (rows * columns,): 1 at the place.

    Example:
        >>> place_row((0, 1), (2, 2), torch.float32)
        tensor([0., 1., 0., 0.])
    """
    row = torch.zeros(grid, dtype=dtype)
    row[place] = 1
    return row.flatten()


def rows_of_target(
    target: ResolvedTarget, scores: Tensor, grid: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """Return the readout over the patches under each image's explained scores, (B, P).

    Patches share by the area that the explained cells of the score grid cover. With a contrast at
    another place, each of the two places has half.

    Raises:
        ModelOutputError: the scores are not of shape (B, classes, rows, columns).
    """
    if scores.dim() != 4 or not scores.shape[1]:
        raise ModelOutputError(
            "readout='place' starts at the place of a score, so scores of shape (images, classes, "
            f"rows, columns) are needed; the model returned {tuple(scores.shape)}. Say which "
            "tokens its head pools by another readout"
        )
    dims = tuple(scores.shape[1:])
    sides = [
        torch.stack([_covered(cells[1:], dims[1:], grid, dtype) for cells in side])
        for side in target.all_cells(dims)
    ]
    return torch.stack(sides).mean(0)


def _covered(
    cells: Cells, dims: Sequence[int], grid: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """Return the share of each patch in the area under some cells, (P,)."""
    down, across = (
        _overlaps(part, size, patches)
        for part, size, patches in zip(cells, dims, grid, strict=True)
    )
    area = torch.outer(down, across).flatten()
    return (area / area.sum()).to(dtype)


def _overlaps(part: slice, size: int, patches: int) -> Tensor:
    """Return the length of a range of cells in each patch, (patches,); both grids are as long."""
    starts = torch.arange(patches, dtype=torch.float64) * size  # in units of 1 / (size * patches)
    low, high = (
        starts.clamp(min=part.start * patches),
        (starts + size).clamp(max=part.stop * patches),
    )
    return (high - low).clamp(min=0)


def near(readout: Tensor, prefix: int, grid: tuple[int, int]) -> Tensor:
    """Return the tokens of a readout (B, N) and the patches that touch them.

    A head that enlarges its scores reads the neighbours of a patch as well.
    """
    named = (readout > 0).float()
    patches = named[:, prefix:].reshape(-1, 1, *grid)
    wider = functional.max_pool2d(patches, 3, stride=1, padding=1).flatten(1)
    return torch.cat([named[:, :prefix], wider], dim=1) > 0
