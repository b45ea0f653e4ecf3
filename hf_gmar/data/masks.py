"""Pictures of masks: white, or whatever is not black, is the object."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hf_gmar.data.base import Mask
from hf_gmar.errors import ImageFileError


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
