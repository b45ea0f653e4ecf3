"""How much of each patch an object covers."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_gmar.data.base import Mask
from hf_gmar.errors import InputError
from hf_gmar.geometry import View


def cover(mask: Mask, view: View, grid: tuple[int, int]) -> Tensor:
    """Share of each patch's area that lies in a mask of the original image.

    A patch is a rectangle of the original image, whose edges need not be whole pixels: each pixel
    counts by the part of it that lies in the patch. What the processor padded is not in the mask.

    Args:
        mask: bool, (height, width), on the original image.
        view: what the model saw of that image.
        grid: rows and columns of patches.

    Returns:
        (rows, columns), float64, between 0 and 1.

    Raises:
        InputError: a mask of another size than the image of the view, or no grid.

    Example:
        >>> import numpy as np
        >>> mask = np.array([[True, True, True, False]])
        >>> cover(mask, View((1, 4), (0.0, 0.0, 1.0, 4.0)), (1, 2))
        tensor([[1.0000, 0.5000]], dtype=torch.float64)
    """
    if mask.shape != view.size:
        raise InputError(
            f"the mask has the shape {mask.shape} and the image {view.size}; needed is one of the "
            "image's height and width"
        )
    if min(grid) < 1:
        raise InputError(f"the grid is {grid}; needed are rows and columns of at least 1")
    top, left, bottom, right = view.box
    rows = _shares(grid[0], top, bottom, mask.shape[0])
    columns = _shares(grid[1], left, right, mask.shape[1])
    found = rows @ torch.from_numpy(mask).double() @ columns.T
    # Sums of float64 differ between machines in the last places, and a patch that is covered by
    # half is to be so on all of them.
    return found.round(decimals=9)


def _shares(cells: int, start: float, end: float, pixels: int) -> Tensor:
    """Which share of each cell's length lies in each pixel, (cells, pixels)."""
    edges = start + (end - start) * torch.arange(cells + 1, dtype=torch.float64)[:, None] / cells
    pixel = torch.arange(pixels, dtype=torch.float64)
    overlap = torch.minimum(edges[1:], pixel + 1) - torch.maximum(edges[:-1], pixel)
    return overlap.clamp(min=0) / ((end - start) / cells)
