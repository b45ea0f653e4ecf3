"""Where a model's input lies on the original image.

A processor resizes, crops and pads as it likes. What it did is measured: drawn ramps go through it
in place of the image, and each pixel that comes out says from which place of the original it is.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from transformers import BaseImageProcessor

from hf_gmar.errors import InputError

# Three ramps, one in each channel, each rising by so many levels for one along x and along y. They
# point some 120 degrees apart, so that their sum is the same everywhere in the image and different
# in any padding. No turn or flip makes them each other.
_RISES = np.array([[5, 1], [-3, 4], [-2, -5]])
_MIDDLE = 125  # their level in the middle of the image: a grey that no processor pads with
_STEEPEST = int(np.abs(_RISES).sum(axis=1).max())
_ROUNDING = 2.5  # what the rounding of all channels can add to their sum
_LARGE = 1 << 20  # pixels of an image on which rounding averages out
_BLOCK = 1 << 17  # pixels that are drawn at a time, so that they stay in the processor's cache

_Floats: TypeAlias = NDArray[np.float64]
_Bytes: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True)
class ImageView:
    """The part of an image that a model saw.

    Attributes:
        size: height and width of the original image, in pixels.
        box: top, left, bottom and right edge of what the model's input covers, in pixels of the
            original from its top left corner; the whole image is ``(0, 0, height, width)``. It
            reaches outside of the image where the processor padded.

    Example:
        >>> view = ImageView((2, 6), (0.0, 1.0, 2.0, 5.0))  # a square out of a wide image
        >>> view.unexplained
        True
        >>> view.project(torch.tensor([[0.25, 0.75]]))
        tensor([[   nan, 0.2500, 0.2500, 0.7500, 0.7500,    nan],
                [   nan, 0.2500, 0.2500, 0.7500, 0.7500,    nan]])
    """

    size: tuple[int, int]
    box: tuple[float, float, float, float]

    @classmethod
    def whole(cls, image: Image.Image) -> ImageView:
        """The view of a model that saw all of an image."""
        return cls((image.height, image.width), (0.0, 0.0, image.height, image.width))

    @property
    def unexplained(self) -> bool:
        """Whether the model did not see some part of the image."""
        top, left, bottom, right = self.box
        return top > 0 or left > 0 or bottom < self.size[0] or right < self.size[1]

    def project(self, patches: Tensor) -> Tensor:
        """Give each pixel of the original the value of the patch in which its centre lies.

        Args:
            patches: any values, (..., rows, columns), over the model's whole input.

        Returns:
            The same values, (..., height, width), on the same device and of the same type (integers
            become floats); NaN where the model saw nothing.

        Raises:
            InputError: no grid of patches.
        """
        if patches.ndim < 2 or 0 in patches.shape[-2:]:
            raise InputError(
                f"the patches have the shape {tuple(patches.shape)}; needed is (..., rows, columns)"
            )
        top, left, bottom, right = self.box
        rows = _cells(self.size[0], top, bottom, patches.shape[-2]).to(patches.device)
        columns = _cells(self.size[1], left, right, patches.shape[-1]).to(patches.device)
        values = patches if patches.is_floating_point() else patches.float()
        framed = pad(values, (0, 1, 0, 1), value=math.nan)
        return framed.index_select(-1, columns).index_select(-2, rows)


def _cells(pixels: int, start: float, end: float, cells: int) -> Tensor:
    """The cell of each pixel's centre along one axis; for none, one after the last."""
    centres = torch.arange(pixels, dtype=torch.float64) + 0.5
    indices = ((centres - start) / (end - start) * cells).floor().long()
    return indices.where((indices >= 0) & (indices < cells), torch.tensor(cells))


def measure_view(processor: BaseImageProcessor, size: tuple[int, int]) -> ImageView:
    """Measure which part of an image of that size a processor gives to its model.

    Any processor will do that only resizes, crops and pads with one colour: its settings are not
    read. An edge is off by a few hundredths of a pixel of the model's input, rarely by a few tenths
    (images that are resized by nearly nothing), or by less than a tenth of the image's own pixel
    (strips that are enlarged). An edge within half a pixel of the model's input from the image's
    border is on the border. Along an axis of a single pixel the image fills its part of the input.

    It costs one more call of the processor on an image of that size, three for less than a
    megapixel. The last sizes are remembered while the processor's settings stay.

    Args:
        processor: an image processor for colour images.
        size: height and width of the original image, in pixels.

    Returns:
        The view; its box is in pixels of the original.

    Raises:
        InputError: no such size, or the processor flips, turns, cuts into tiles or changes colours.

    Example:
        >>> from transformers import DeiTImageProcessorPil  # to 256 x 256, of which 224 x 224
        >>> view = measure_view(DeiTImageProcessorPil(), (480, 640))
        >>> [round(edge) for edge in view.box]
        [30, 40, 450, 600]
    """
    if min(size) < 1:
        raise InputError(f"the size is {size}; needed are a height and a width of at least 1 pixel")
    return _measured(processor, repr(vars(processor)), (int(size[0]), int(size[1])))


def seen_part(processor: BaseImageProcessor, image: Image.Image) -> Image.Image:
    """The part of an image that the model sees, in the image's own pixels.

    Raises:
        InputError: see :func:`measure_view`.
    """
    top, left, bottom, right = measure_view(processor, (image.height, image.width)).box
    return image.crop((round(left), round(top), max(round(right), 1), max(round(bottom), 1)))


@functools.lru_cache(maxsize=64)
def _measured(processor: BaseImageProcessor, _settings: str, size: tuple[int, int]) -> ImageView:
    try:
        return ImageView(size, _box(processor, _Ramps(size)))
    except _NoPictureError as error:
        raise InputError(
            f"the image processor {type(processor).__name__} gives {error}; to show relevance on "
            "the original image, it may only resize, crop and pad; explain with Python on the "
            "processed pixels instead"
        ) from None


class _NoPictureError(Exception):
    """The message says what came out of the processor instead."""


def _box(processor: BaseImageProcessor, ramps: _Ramps) -> tuple[float, float, float, float]:
    images = (ramps.draw(window) for window in range(ramps.windows))
    levels = np.sum([_process(processor, image) for image in images], axis=0) - ramps.middle
    rows, columns = _image_part(levels, _ROUNDING * ramps.windows)
    across, down = _places(levels[:, rows, columns])
    height, width = (_Axis(pixels, ramps.step(pixels)) for pixels in ramps.size)
    top, bottom = height.edges(down, rows.start, levels.shape[1])
    left, right = width.edges(across.T, columns.start, levels.shape[2])
    return top, left, bottom, right


@dataclass(frozen=True)
class _Ramps:
    """The image that is drawn for a processor, once or, for finer ramps, as several windows."""

    size: tuple[int, int]

    @property
    def windows(self) -> int:
        """Over how many images the levels of a ramp are spread, 255 on each."""
        return 1 if math.prod(self.size) >= _LARGE else 3

    @property
    def middle(self) -> int:
        """The level in the middle of the image, in all channels."""
        return _MIDDLE * self.windows

    def step(self, pixels: int) -> float:
        """Levels from one pixel to the next along an axis, before its rise."""
        reach = self.middle // _STEEPEST  # x and y run from minus to plus this
        if max(self.size) <= reach:
            return float(2 * (reach // pixels))  # whole, for there is little to average over
        return 2 * reach / pixels

    def draw(self, window: int) -> _Bytes:
        """The levels that fall into a window, (height, width, 3)."""
        picture = np.empty((*self.size, 3), np.uint8)
        y, x = ((np.arange(n) - (n - 1) / 2) * self.step(n) for n in self.size)
        block = max(1, _BLOCK // self.size[1])
        for channel, (along_x, along_y) in enumerate(_RISES):
            across = (along_x * x).astype(np.float32)
            down = (along_y * y + (self.middle - 255 * window + 0.5)).astype(np.float32)
            for first in range(0, self.size[0], block):
                rows = slice(first, first + block)
                picture[rows, :, channel] = np.clip(across + down[rows, None], 0, 255)
        return picture


def _process(processor: BaseImageProcessor, image: _Bytes) -> _Floats:
    """Process an image (height, width, 3) to (3, height, width), in the image's own colours."""
    try:
        processed = processor(
            images=image,
            input_data_format="channels_last",
            do_normalize=False,
            do_rescale=False,
            resample=Image.Resampling.BILINEAR,  # keeps straight lines straight, up to the border
            return_tensors="pt",
        )
    except TypeError:  # that of timm's models takes no settings
        return _process_and_undo_colours(processor, image)
    return _picture(processed)


def _process_and_undo_colours(processor: BaseImageProcessor, image: _Bytes) -> _Floats:
    """The same for a processor that takes no settings in a call."""
    plain = (Image.new("RGB", (64, 64), colour) for colour in ("black", "white"))
    images = Image.fromarray(image), *plain
    picture, black, white = (_picture(processor(item, return_tensors="pt")) for item in images)
    contrast = np.abs(white - black).sum(axis=0)
    row, column = np.unravel_index(contrast.argmax(), contrast.shape)  # not in the padding
    low, high = black[:, row, column], white[:, row, column]
    if (low == high).any():
        raise _NoPictureError("the same pixels for a black and a white image")
    levels: _Floats = 255 * (picture - low[:, None, None]) / (high - low)[:, None, None]
    return levels


def _picture(processed: Any) -> _Floats:
    pixels = torch.as_tensor(processed.get("pixel_values", ()))
    if pixels.ndim != 4 or pixels.shape[:2] != (1, 3):
        raise _NoPictureError(f"pixels of the shape {tuple(pixels.shape)} for one colour image")
    picture: _Floats = pixels[0].cpu().double().numpy()
    return picture


def _image_part(levels: _Floats, rounding: float) -> tuple[slice, slice]:
    """The rows and columns that show the image, and not padding."""
    image = np.abs(levels.sum(axis=0)) < rounding
    if not image.any():
        raise _NoPictureError("other colours than those of its image")
    rows, columns = (np.flatnonzero(image.any(axis=axis)) for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _places(levels: _Floats) -> tuple[_Floats, _Floats]:
    """Solve the three levels of each pixel for x and y, in steps from the image's middle."""
    # The inverse leaves out what all three have in common, such as halves that are rounded up.
    inverse = np.linalg.pinv(_RISES)
    # Some processors swap red and blue.
    (x, y), (swapped_x, swapped_y) = (np.tensordot(inverse, levels[::way], 1) for way in (1, -1))
    return min((x, y), (swapped_x, swapped_y), key=_crookedness)


def _crookedness(places: tuple[_Floats, _Floats]) -> float:
    """How far x differs within columns, and y within rows."""
    x, y = places
    return float(x.std(axis=0).mean() + y.std(axis=1).mean())


@dataclass(frozen=True)
class _Axis:
    """One axis of the image: its pixels, and the levels from one to the next."""

    pixels: int
    step: float

    def edges(self, levels: _Floats, first: int, length: int) -> tuple[float, float]:
        """Where a picture of ``length`` begins and ends, in pixels of the image.

        The levels (along, across) are of the part that shows the image and begins at ``first``.
        """
        core = levels[_core(levels.shape[0]), _core(levels.shape[1])]
        places = core / self.step + self.pixels / 2
        line = self._line(places, first + _core(levels.shape[0]).start)
        slope = self.pixels / levels.shape[0] if line is None else line[0]
        start = -first * slope if line is None else line[1]
        return (
            _snapped(start, 0.0, slope / 2),
            _snapped(start + slope * length, float(self.pixels), slope / 2),
        )

    def _line(self, places: _Floats, first: int) -> tuple[float, float] | None:
        """Fit the image's pixels for one of the picture, and the place of the picture's start."""
        level = 1 / self.step
        middle = places.mean(axis=1)
        # Beyond the centres of its outermost pixels, an image goes on flat.
        sloping = (middle > (1 + level) / 2) & (middle < self.pixels - (1 + level) / 2)
        if sloping.sum() < 2:
            return None
        centres = np.flatnonzero(sloping) + first + 0.5
        slope, start = np.polyfit(centres, middle[sloping], 1)
        misses = places[sloping] - (start + slope * centres)[:, None]
        # The rise must stand out of rounding; a picture that is turned the other way falls.
        if slope * len(middle) < level / 10 or misses.std() > slope / 2 + level / 6:
            raise _NoPictureError("something else than one upright, straight picture of its image")
        return float(slope), float(start)


def _core(length: int) -> slice:
    """All but the outermost pixels, where there are enough: resizing mixes padding into them."""
    trim = max(0, min(2, (length - 2) // 2))
    return slice(trim, length - trim)


def _snapped(edge: float, border: float, tolerance: float) -> float:
    return border if abs(edge - border) < tolerance else edge
