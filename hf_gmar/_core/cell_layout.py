"""The grid of a map of pixels, for models without a fixed grid of patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

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
