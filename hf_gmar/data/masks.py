"""Masks: read from pictures, and as shares of patches."""

from __future__ import annotations

import numpy as np
import torch
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
    pixels = np.asarray(picture)
    if pixels.ndim == 3 and picture.mode == "RGB" and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]
    if pixels.ndim != 2:
        raise ImageFileError(
            f"a mask is in colour (mode {picture.mode!r}); a mask is black, and white where the "
            "object is"
        )
    levels = np.unique(pixels)
    # Class numbers go up from 0, and some data sets have 255 for what they leave out.
    if len(levels) > 2 and (picture.mode == "P" or levels[-2] < 128):
        raise ImageFileError(
            f"a mask has {len(levels)} levels from {levels[0]} to {levels[-1]}, as a map of class "
            "numbers has; a mask is black, and white where the object is, one for each image"
        )
    mask: Mask = np.greater(pixels, levels[-1] / 2)
    return mask


def patch_coverage(mask: Mask, view: ImageView, grid: tuple[int, int]) -> Tensor:
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
        >>> patch_coverage(mask, ImageView((1, 4), (0.0, 0.0, 1.0, 4.0)), (1, 2))
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
    shares = rows @ torch.from_numpy(mask).double() @ columns.T
    # Sums of float64 differ between machines in the last places, and a patch that is covered by
    # half is to be so on all of them.
    return shares.round(decimals=9)


def _shares(cells: int, start: float, end: float, pixels: int) -> Tensor:
    """Which share of each cell's length lies in each pixel, (cells, pixels)."""
    edges = start + (end - start) * torch.arange(cells + 1, dtype=torch.float64)[:, None] / cells
    pixel = torch.arange(pixels, dtype=torch.float64)
    overlap = torch.minimum(edges[1:], pixel + 1) - torch.maximum(edges[:-1], pixel)
    return overlap.clamp(min=0) / ((end - start) / cells)
