"""Pictures of masks: white, or whatever is not black, is the object."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hf_gmar.data.base import Mask
from hf_gmar.errors import ImageFileError, InputError
from hf_gmar.models.image_view import ImageView


def to_mask(picture: Image.Image) -> Mask:
    """Which pixels of a picture in black and white are white, bool (height, width).

    Levels are cut at half of the largest: the two of a mask, and those between, as smooth edges or
    JPEG give. A map of class numbers is refused, as it does not say which one is the object.

    Raises:
        ImageFileError: a picture that is not in black and white.

    Example:
        >>> to_mask(Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8)))
        array([[False,  True],
               [ True, False]])
    """
    levels = _levels(picture)
    found = np.unique(levels)
    if len(found) > 2 and not _smooth(picture.mode, found):
        raise ImageFileError(
            f"a mask has {len(found)} levels from {found[0]} to {found[-1]}, as a map of class "
            "numbers has; a mask is black, and white where the object is, one for each image"
        )
    mask: Mask = np.greater(levels, found[-1] / 2)
    return mask


def _levels(picture: Image.Image) -> NDArray[Any]:
    """The one number of each pixel, (height, width)."""
    levels = np.asarray(picture)
    if levels.ndim == 3 and picture.mode == "RGB" and (levels == levels[..., :1]).all():
        levels = levels[..., 0]
    if levels.ndim != 2:
        raise ImageFileError(
            f"a mask is in colour (mode {picture.mode!r}); a mask is black, and white where the "
            "object is"
        )
    return levels


def _smooth(mode: str, levels: NDArray[Any]) -> bool:
    """Whether these are black, white and what lies between, and no numbers of classes."""
    # Class numbers go up from 0, and some data sets have 255 for what they leave out.
    return mode != "P" and bool(levels[-2] >= 128)


def cover(mask: Mask, view: ImageView, grid: tuple[int, int]) -> Tensor:
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
        >>> cover(mask, ImageView((1, 4), (0.0, 0.0, 1.0, 4.0)), (1, 2))
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
