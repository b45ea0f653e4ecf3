"""Masks: read from pictures, and converted to each patch's covered share."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hf_gmar.data.base import Mask
from hf_gmar.errors import ImageFileError, InputError
from hf_gmar.models.image_view import ImageView


def to_mask(picture: Image.Image) -> Mask:
    """Convert a black and white picture to a mask, bool (height, width), True where white.

    The threshold is half of the highest level, as smooth edges or JPEG give levels in between. A
    map of class numbers is rejected, because it does not say which class is the object.

    Raises:
        ImageFileError: the picture is not black and white.

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
    # Class numbers start at 0; some data sets mark ignored pixels by 255.
    if len(levels) > 2 and (picture.mode == "P" or levels[-2] < 128):
        raise ImageFileError(
            f"a mask has {len(levels)} levels from {levels[0]} to {levels[-1]}, as a map of class "
            "numbers has; a mask is black, and white where the object is, one for each image"
        )
    mask: Mask = np.greater(pixels, levels[-1] / 2)
    return mask


def patch_coverage(mask: Mask, view: ImageView, grid: tuple[int, int]) -> Tensor:
    """Compute the share of each patch's area that a mask of the original image covers.

    A patch is a rectangle of the original image. Its edges may cut pixels: a pixel counts by its
    part inside the patch. Padding by the processor is not in the mask.

    Args:
        mask: bool, (height, width), on the original image.
        view: the part of the image that the model saw.
        grid: rows and columns of patches.

    Returns:
        (rows, columns), float64, between 0 and 1.

    Raises:
        InputError: the mask has another size than the view's image, or the grid is empty.

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
    # The last digits of float64 sums differ between machines. Rounding keeps a share of exactly
    # one half the same on all of them.
    return shares.round(decimals=9)


def _shares(cells: int, start: float, end: float, pixels: int) -> Tensor:
    """Compute the share of each cell's length that lies in each pixel, (cells, pixels)."""
    edges = start + (end - start) * torch.arange(cells + 1, dtype=torch.float64)[:, None] / cells
    pixel = torch.arange(pixels, dtype=torch.float64)
    overlap = torch.minimum(edges[1:], pixel + 1) - torch.maximum(edges[:-1], pixel)
    return overlap.clamp(min=0) / ((end - start) / cells)
