"""The grid of a map of pixels, for models without a fixed grid of patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from hf_gmar._utils.validation import check_groups
from hf_gmar.errors import InputError

_MOST, _FEWEST = 32, 8


@dataclass(frozen=True)
class CellLayout:
    """Cells of pixels, as hierarchical models have another grid in each stage.

    Attributes:
        cells: rows and columns of a map; ``None`` for the largest divisors of height and width up
            to 32.

    Example:
        >>> CellLayout().grid(224, 300), CellLayout((7, 7)).grid(224, 224)
        ((32, 30), (7, 7))
    """

    cells: Sequence[int] | None = None

    def __post_init__(self) -> None:
        """Check the cells."""
        if self.cells is not None:
            object.__setattr__(self, "cells", check_groups(self.cells, "grid"))

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of cells in an image of this size.

        Raises:
            InputError: the image is not a whole number of cells.
        """
        if self.cells is None:
            rows, columns = (
                max(count for count in range(1, _MOST + 1) if size % count == 0)
                for size in (height, width)
            )
            if min(rows, columns) < min(_FEWEST, height, width):
                raise InputError(
                    f"the image is {height} x {width} pixels (height x width), which is no whole "
                    f"number of {_FEWEST} to {_MOST} cells on each side; resize it, or say the "
                    "rows and columns of its map, such as grid=(7, 7)"
                )
            return rows, columns
        rows, columns = self.cells
        if height % rows or width % columns:
            raise InputError(
                f"a map of {rows} x {columns} cells does not divide an image of {height} x {width} "
                "pixels (height x width) into equal cells; say another grid, or resize the image"
            )
        return rows, columns


def cell_sums(pixel_values: Tensor, grid: tuple[int, int]) -> Tensor:
    """Sum pixels (B, height, width) in the cells of a grid: (B, rows, columns)."""
    rows, columns = grid
    count, height, width = pixel_values.shape
    cells = pixel_values.reshape(count, rows, height // rows, columns, width // columns)
    return cells.sum((2, 4))


def window_means(pixel_values: Tensor, grid: tuple[int, int]) -> Tensor:
    """Average the pixels of a patch around each pixel, near ones more than others.

    Two means over half a patch are one whose weights fall with the distance. They rank pixels
    better than one mean over a patch (``python -m benchmarks.sharper``).

    Args:
        pixel_values: values (..., height, width).
        grid: rows and columns of patches. A window has the size of half a patch, rounded to an odd
            number of pixels; at the edges it has the pixels of the image alone.

    Example:
        >>> import torch
        >>> window_means(torch.tensor([[0.0, 3.0, 6.0, 3.0]]), (1, 1))
        tensor([[2.2500, 2.8333, 3.8333, 4.2500]])
    """
    height, width = pixel_values.shape[-2:]
    sides = height // grid[0] // 4 * 2 + 1, width // grid[1] // 4 * 2 + 1
    means = pixel_values.reshape(-1, 1, height, width)
    for _ in range(2):
        means = functional.avg_pool2d(
            means,
            sides,
            stride=1,
            padding=(sides[0] // 2, sides[1] // 2),
            count_include_pad=False,
        )
    return means.reshape(pixel_values.shape)


def drawn_map(patches: Tensor, fine_map: Tensor | None, resolution: int | str) -> Tensor:
    """Return the map of a picture: the finest one, (..., rows, columns) of any number.

    Relevance of pixels is averaged over a patch around each pixel, near ones more than others:
    single pixels can't be read, and their mean ranks them better.

    Args:
        patches: relevance of each patch, (..., rows, columns).
        fine_map: the same at the resolution, if it is finer than the patch.
        resolution: of the method; ``"pixel"`` for relevance of pixels.
    """
    if fine_map is None:
        return patches
    if resolution != "pixel":
        return fine_map
    return window_means(fine_map, (patches.shape[-2], patches.shape[-1]))
