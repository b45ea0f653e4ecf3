"""The position of a model's input on the original image.

Processors resize, crop and pad in many ways, so the result is measured: the processor gets an image
of colour ramps, and each pixel of its output encodes a position in the original.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from transformers import BaseImageProcessor

from hf_gmar.errors import InputError
from hf_gmar.models.pixel_values import check_resized, process

# Slopes of the three ramps, one in each channel: levels for one step along x and along y. Their
# directions are some 120 degrees apart, so that their sum is constant in the image and different in
# any padding. No rotation or flip exchanges them.
_RISES = np.array([[5, 1], [-3, 4], [-2, -5]])
_MIDDLE = 125  # level in the middle of the image: a grey that no processor pads with
_STEEPEST = int(np.abs(_RISES).sum(axis=1).max())
_ROUNDING = 2.5  # bound of the rounding error in the sum of the channels
_LARGE = 1 << 20  # pixels of an image in which rounding averages out
_WINDOWS = 3  # images that share the levels of a ramp for a smaller one, 255 levels on each
_STRIP = 20  # sides of a strip
_BLOCK = 1 << 17  # pixels that are drawn at once, so that they stay in the CPU's cache

_Floats: TypeAlias = NDArray[np.float64]
_Bytes: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True)
class ImageView:
    """The part of an image that a model saw.

    Attributes:
        size: height and width of the original image, in pixels.
        box: top, left, bottom and right edge of the model's input, in pixels of the original from
            its top left corner; the whole image is ``(0, 0, height, width)``. With padding, the box
            extends beyond the image.

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
        """Return the view of a whole image."""
        return cls((image.height, image.width), (0.0, 0.0, image.height, image.width))

    @property
    def unexplained(self) -> bool:
        """Whether the model did not see some part of the image."""
        top, left, bottom, right = self.box
        return top > 0 or left > 0 or bottom < self.size[0] or right < self.size[1]

    def scaled(self, height: int, width: int) -> ImageView:
        """Return the view of a copy of the image that has another size."""
        down, across = height / self.size[0], width / self.size[1]
        top, left, bottom, right = self.box
        return ImageView(
            (height, width), (top * down, left * across, bottom * down, right * across)
        )

    def project(self, patches: Tensor, smooth: bool = False) -> Tensor:
        """Give each pixel of the original the value of the patch that contains its centre.

        Args:
            patches: any values, (..., rows, columns), over the model's whole input.
            smooth: interpolate linearly between the centres of the patches.

        Returns:
            The values of the pixels, (..., height, width), with device and dtype of the patches
            (integers become floats); NaN outside of the box.

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
        if smooth:
            down = _weights(self.size[0], top, bottom, patches.shape[-2]).to(values)
            across = _weights(self.size[1], left, right, patches.shape[-1]).to(values)
            whole = down @ values @ across.T
            unseen = (rows == patches.shape[-2])[:, None] | (columns == patches.shape[-1])
            return whole.masked_fill(unseen, math.nan)
        framed = pad(values, (0, 1, 0, 1), value=math.nan)
        return framed.index_select(-1, columns).index_select(-2, rows)


def _cells(pixels: int, start: float, end: float, cells: int) -> Tensor:
    """Return the cell of each pixel's centre along one axis; ``cells`` if there is none."""
    centres = torch.arange(pixels, dtype=torch.float64) + 0.5
    indices = ((centres - start) / (end - start) * cells).floor().long()
    return indices.where((indices >= 0) & (indices < cells), torch.tensor(cells))


def _weights(pixels: int, start: float, end: float, cells: int) -> Tensor:
    """Return the weights of the cells in each pixel's value along one axis, (pixels, cells)."""
    centres = torch.arange(pixels, dtype=torch.float64) + 0.5
    places = ((centres - start) / (end - start) * cells - 0.5).clamp(0, cells - 1)
    return (1 - (places[:, None] - torch.arange(cells)).abs()).clamp_min(0)


def measure_view(processor: BaseImageProcessor, size: tuple[int, int]) -> ImageView:
    """Measure the part of an image of this size that a processor gives to its model.

    The processor may resize, crop and pad with one colour; its settings are not read. The error of
    an edge is a few hundredths of a pixel of the model's input, rarely a few tenths (nearly no
    resizing), or less than a tenth of the image's own pixel (enlarged strips). An edge within half
    an input pixel of the image's border is put on the border. Along an axis of a single pixel the
    image fills its part of the input.

    The cost is one processor call on an image of this size, three below a megapixel, and some more
    if less than half of a side is seen. Results for the last sizes are cached while the processor's
    settings stay.

    Args:
        processor: an image processor for colour images.
        size: height and width of the original image, in pixels.

    Returns:
        The view; its box is in pixels of the original.

    Raises:
        InputError: an empty size, or one that the processor resizes to more pixels than Pillow
            reads; or the processor flips, rotates, tiles or changes colours.

    Example:
        >>> from transformers import DeiTImageProcessorPil  # to 256 x 256, of which 224 x 224
        >>> view = measure_view(DeiTImageProcessorPil(), (480, 640))
        >>> [round(edge) for edge in view.box]
        [30, 40, 450, 600]
    """
    if min(size) < 1:
        raise InputError(f"the size is {size}; needed are a height and a width of at least 1 pixel")
    check_resized(processor, *size)
    return _measured(processor, repr(vars(processor)), (int(size[0]), int(size[1])))


def seen_part(processor: BaseImageProcessor, image: Image.Image) -> Image.Image:
    """Crop an image to the part that the model sees; errors as in :func:`measure_view`."""
    top, left, bottom, right = measure_view(processor, (image.height, image.width)).box
    return image.crop((round(left), round(top), max(round(right), 1), max(round(bottom), 1)))


@functools.lru_cache(maxsize=64)
def _measured(processor: BaseImageProcessor, _settings: str, size: tuple[int, int]) -> ImageView:
    try:
        return ImageView(size, _box(processor, _Ramps.whole(size)))
    except _NoPictureError as error:
        raise InputError(
            f"the image processor {type(processor).__name__} gives {error}; to show relevance on "
            "the original image, it may only resize, crop and pad; explain with Python on the "
            "processed pixels instead"
        ) from None


class _NoPictureError(Exception):
    """An output that is no picture of the input; the message describes it."""


def _box(processor: BaseImageProcessor, ramps: _Ramps) -> tuple[float, float, float, float]:
    images = (ramps.draw(window) for window in range(ramps.windows))
    levels = np.sum([_process(processor, image) for image in images], axis=0) - ramps.middle
    rows, columns = _image_part(levels, _ROUNDING * ramps.windows)
    across, down = _places(levels[:, rows, columns])
    height, width = ramps.axes
    spans = height.seen(down), width.seen(across)
    if spans != ramps.spans:  # little is seen of a long axis: steeper ramps tell where it is
        return _box(processor, replace(ramps, spans=spans))
    if ramps.windows == 1 and ramps.needs_windows:
        return _box(processor, replace(ramps, windows=_WINDOWS))
    top, bottom = height.edges(down, rows.start, levels.shape[1])
    left, right = width.edges(across.T, columns.start, levels.shape[2])
    return top, left, bottom, right


@dataclass(frozen=True)
class _Ramps:
    """The ramp image for a processor, drawn once or, for finer ramps, as several windows.

    The ramps rise over a span of each axis; outside, they are flat.
    """

    size: tuple[int, int]
    spans: tuple[tuple[int, int], tuple[int, int]]
    windows: int = 1

    @classmethod
    def whole(cls, size: tuple[int, int]) -> _Ramps:
        """Return the ramps over whole axes."""
        ramps = cls(size, _whole(size))
        # A processor may enlarge a strip to many megapixels: one window tells what is seen of it.
        is_strip = max(size) > _STRIP * min(size)
        return replace(ramps, windows=_WINDOWS) if ramps.needs_windows and not is_strip else ramps

    @property
    def needs_windows(self) -> bool:
        """Whether rounding does not average out over the pixels of the span."""
        return math.prod(self.size) < _LARGE and self.spans == _whole(self.size)

    @property
    def middle(self) -> int:
        """Level in the middle of the image, in all channels."""
        return _MIDDLE * self.windows

    @property
    def axes(self) -> list[_Axis]:
        """Height and width."""
        return [
            _Axis(pixels, span, self._step(span[1] - span[0]))
            for pixels, span in zip(self.size, self.spans, strict=True)
        ]

    def _step(self, pixels: int) -> float:
        """Distance of neighbouring pixels in a span, in steps of the slopes."""
        reach = self.middle // _STEEPEST  # x and y run from -reach to reach
        if max(end - start for start, end in self.spans) <= reach:
            return float(2 * (reach // pixels))  # whole, as few pixels average badly
        return 2 * reach / pixels

    def draw(self, window: int) -> _Bytes:
        """Draw the levels of a window, (height, width, 3)."""
        picture = np.empty((*self.size, 3), np.uint8)
        y, x = ((np.arange(axis.pixels) + 0.5 - axis.middle) * axis.step for axis in self.axes)
        block = max(1, _BLOCK // self.size[1])
        for channel, (along_x, along_y) in enumerate(_RISES):
            across = (along_x * x).astype(np.float32)
            down = (along_y * y + (self.middle - 255 * window + 0.5)).astype(np.float32)
            for first in range(0, self.size[0], block):
                rows = slice(first, first + block)
                picture[rows, :, channel] = np.clip(across + down[rows, None], 0, 255)
        return picture


def _whole(size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    return (0, size[0]), (0, size[1])


def _process(processor: BaseImageProcessor, image: _Bytes) -> _Floats:
    """Process an image (height, width, 3) to (3, height, width), without colour changes."""
    try:
        processed = processor(
            images=image,
            input_data_format="channels_last",
            do_normalize=False,
            do_rescale=False,
            resample=Image.Resampling.BILINEAR,  # linear ramps stay linear, up to the border
            return_tensors="pt",
        )
    except Exception:  # noqa: BLE001  # timm's takes no settings; a damaged one fails again
        return _process_and_undo_colours(processor, image)
    return _picture(processed)


def _process_and_undo_colours(processor: BaseImageProcessor, image: _Bytes) -> _Floats:
    """Process an image without settings in the call; undo the change of colours."""
    references = (Image.new("RGB", (64, 64), colour) for colour in ("black", "white"))
    images = Image.fromarray(image), *references
    picture, black, white = (
        _picture({"pixel_values": process(processor, item, "an image", return_tensors="pt")})
        for item in images
    )
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
    """Find the rows and columns of the image, without padding."""
    image = np.abs(levels.sum(axis=0)) < rounding
    if not image.any():
        raise _NoPictureError("other colours than those of its image")
    rows, columns = (np.flatnonzero(image.any(axis=axis)) for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _places(levels: _Floats) -> tuple[_Floats, _Floats]:
    """Solve the three levels of each pixel for x and y, in steps from the image's middle."""
    # The inverse ignores a common offset of all three, such as the rounding of halves.
    inverse = np.linalg.pinv(_RISES)
    # Some processors swap red and blue.
    (x, y), (swapped_x, swapped_y) = (np.tensordot(inverse, levels[::way], 1) for way in (1, -1))
    return min((x, y), (swapped_x, swapped_y), key=_crookedness)


def _crookedness(places: tuple[_Floats, _Floats]) -> float:
    """Measure how much x varies within columns, and y within rows."""
    x, y = places
    return float(x.std(axis=0).mean() + y.std(axis=1).mean())


@dataclass(frozen=True)
class _Axis:
    """One axis of the image: its pixels, the span of the ramps, and the step between pixels."""

    pixels: int
    span: tuple[int, int]
    step: float

    @property
    def middle(self) -> float:
        """Middle of the span."""
        return sum(self.span) / 2

    def seen(self, levels: _Floats) -> tuple[int, int]:
        """Return a span around all levels, if it is less than half of the present one."""
        low, high = levels.min() / self.step + self.middle, levels.max() / self.step + self.middle
        margin = 2 + 2 / self.step + (high - low) / 8  # rounding, and what resizing mixes in
        start, end = max(0, math.floor(low - margin)), min(self.pixels, math.ceil(high + margin))
        return (start, end) if end - start < (self.span[1] - self.span[0]) / 2 else self.span

    def edges(self, levels: _Floats, first: int, length: int) -> tuple[float, float]:
        """Return start and end of a picture of ``length``, in pixels of the image.

        The levels (along, across) are of the part with the image, which starts at ``first``.
        """
        core = levels[_core(levels.shape[0]), _core(levels.shape[1])]
        places = core / self.step + self.middle
        line = self._line(places, first + _core(levels.shape[0]).start)
        slope = self.pixels / levels.shape[0] if line is None else line[0]
        start = -first * slope if line is None else line[1]
        return (
            _snapped(start, 0.0, slope / 2),
            _snapped(start + slope * length, float(self.pixels), slope / 2),
        )

    def _line(self, places: _Floats, first: int) -> tuple[float, float] | None:
        """Fit slope and start: image pixels for each picture pixel, and the picture's start."""
        level = 1 / self.step
        middle = places.mean(axis=1)
        # Beyond the centres of the outermost pixels, the ramps are flat.
        sloping = (middle > (1 + level) / 2) & (middle < self.pixels - (1 + level) / 2)
        if sloping.sum() < 2:
            return None
        centres = np.flatnonzero(sloping) + first + 0.5
        slope, start = np.polyfit(centres, middle[sloping], 1)
        residuals = places[sloping] - (start + slope * centres)[:, None]
        # The slope must exceed rounding; a flipped picture has a negative slope.
        if slope * len(middle) < level / 10 or residuals.std() > slope / 2 + level / 6:
            raise _NoPictureError("something else than one upright, straight picture of its image")
        return float(slope), float(start)


def _core(length: int) -> slice:
    """Leave out the outermost pixels if possible: resizing mixes padding into them."""
    trim = max(0, min(2, (length - 2) // 2))
    return slice(trim, length - trim)


def _snapped(edge: float, border: float, tolerance: float) -> float:
    return border if abs(edge - border) < tolerance else edge
