"""Maps of videos and of sound: frames under their maps, and a spectrogram under its map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hf_gmar._utils.validation import check_number, check_positive
from hf_gmar.errors import InputError
from hf_gmar.models.image_view import ImageView
from hf_gmar.visualization.notebook import NotebookFigure
from hf_gmar.visualization.overlay import (
    OPACITY,
    THIN,
    Scale,
    colour_scale,
    draw_map,
    is_signed,
    overlay_image,
)
from hf_gmar.visualization.picture import GREY, Canvas, dots, draw_horizontal_bar, enlarged
from hf_gmar.visualization.text import wrapped

# Inches.
_PAGE = 7.5  # width of all frames of a row
_ACROSS = 8  # frames in a row; with more they would be too small
_TILE = 1.6  # the longer side of a frame
_GAP = 0.06  # between frames
_MARGIN = 0.15
_LEAST = 5.0  # width of the picture: the colour bar and its texts must fit
_NAME = 0.2  # above each row of frames
_LINE = 0.21  # height of a line of the title
_FOOT = 0.45  # the colour bar and its texts
_NOTE = 0.15  # a line below them

_WIDTH, _HEIGHT = 6.4, 4.2  # of the figure of a spectrogram


def film_strip(
    frames: Sequence[Image.Image] | NDArray[np.uint8],
    maps: Tensor,
    title: str = "",
    view: ImageView | None = None,
    unit: str = "relevance",
    colormap: str | None = None,
    opacity: float = OPACITY,
    scale: Scale = "max",
) -> Image.Image:
    """Draw the frames of a video in rows, and below each frame the same frame under its map.

    All maps share one colour scale, whose bar is at the bottom. If any value is negative, the
    colours are symmetric about zero over grey frames.

    Args:
        frames: the frames as images of one size, or as bytes (frames, height, width, 3).
        maps: relevance (tubelets, rows, columns) of one video, from ``attribute_patches``. Each map
            belongs to as many successive frames as a tubelet has, one or more.
        title: the explained class, for example with its probability.
        view: the part of the frames that the maps cover; ``None`` is the whole frame.
        unit: the meaning of a value: the ``unit`` of the method.
        colormap: see :func:`~hf_gmar.visualization.overlay_image`.
        opacity: opacity of the maps, from 0 to 1.
        scale: the values at the ends of the colours, as in
            :func:`~hf_gmar.visualization.overlay_image`.

    Returns:
        An RGB image with 120 dots per inch, about as wide as a page if it has 8 frames or more.

    Raises:
        InputError: the frames have different sizes or are no images, the maps have another number
            of dimensions, or their number does not divide that of the frames.
        OptionError: an option is outside its range.

    Example:
        >>> frames = [Image.new("RGB", (64, 48), "grey")] * 8
        >>> film_strip(frames, torch.rand(4, 6, 8), "waving  0.93").mode
        'RGB'
    """
    images = _checked_frames(frames)
    values = _checked_maps(maps, len(images))
    view = view or ImageView.whole(images[0])
    if view.size != (images[0].height, images[0].width):
        raise InputError(
            f"the view is that of images of {view.size} (height, width), but the frames have "
            f"{(images[0].height, images[0].width)}; take the view of the frames' own size"
        )
    check_number("opacity", opacity, 0, 1.000001)
    colours = colour_scale(values, scale, colormap)
    is_grey = is_signed(values.numpy())
    rows = math.ceil(len(images) / _ACROSS)
    across = math.ceil(len(images) / rows)
    width, height = _tile(images[0], across)
    inner = max(across * (width + _GAP) - _GAP, _LEAST)
    heading = wrapped(title, inner, 12, 3) if title else ""
    head = _LINE * len(heading.splitlines())
    band = _NAME + 2 * (height + _GAP)
    foot = _FOOT + _NOTE * view.unexplained
    size = inner + 2 * _MARGIN, _MARGIN + head + rows * band + 0.08 + foot
    canvas = Canvas(Image.new("RGB", (dots(size[0]), dots(size[1])), "white"))
    canvas.text(heading, size[0] / 2, size[1] - 0.1, 12, "ma")
    start = (size[0] - across * (width + _GAP) + _GAP) / 2
    for number, image in enumerate(images):
        row, column = divmod(number, across)
        left, top = start + column * (width + _GAP), size[1] - _MARGIN - head - row * band
        canvas.text(str(number), left + width / 2, top - 0.02, 8, "ma")
        small = enlarged(image, width, height)
        heatmap = view.scaled(small.height, small.width).project(
            values[number * len(values) // len(images)], smooth=True
        )
        below = small.convert("L") if is_grey else small  # of frames without negative values, too
        ends = colours.low, colours.high
        overlay = overlay_image(below, heatmap, colours.name, opacity, scale=ends)
        canvas.image.paste(small, canvas.place(left, top - _NAME))
        canvas.image.paste(overlay, canvas.place(left, top - _NAME - height - _GAP / 2))
    meaning = _meaning(unit, values)
    draw_horizontal_bar(canvas, colours, meaning, (_MARGIN, foot), inner, opacity)
    if view.unexplained:
        canvas.text("dark: not seen by the model", size[0] / 2, 0.08, 8, "md", GREY)
    return canvas.image


def _meaning(unit: str, values: Tensor) -> str:
    """Return the text at the colour bar."""
    against = " (below 0: against the class)" if is_signed(values.numpy()) else ""
    return f"{unit}, per patch{against}"


def _checked_frames(frames: Any) -> list[Image.Image]:
    """Return the frames as images of one size."""
    whole = isinstance(frames, np.ndarray)
    if whole and (frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3):
        raise InputError(
            f"the frames are an array of {frames.dtype} and of the shape {frames.shape}; needed is "
            "uint8 (frames, height, width, 3)"
        )
    images = [Image.fromarray(frame) for frame in frames] if whole else list(frames)
    others = {type(image).__name__ for image in images if not isinstance(image, Image.Image)}
    if others or not images:
        raise InputError(
            f"the frames must be images of Pillow, at least one, or one array of uint8 (frames, "
            f"height, width, 3); got {', '.join(sorted(others)) or 'none'}"
        )
    sizes = sorted({image.size for image in images})
    if len(sizes) > 1:
        raise InputError(f"the frames must have one size; got {sizes[0]} and {sizes[1]}")
    return images


def _checked_maps(maps: Tensor, frames: int) -> Tensor:
    """Return the maps, (tubelets, rows, columns), on the CPU."""
    values = torch.as_tensor(maps).detach().float().cpu()
    if values.ndim != 3 or 0 in values.shape:
        raise InputError(
            f"the maps have the shape {tuple(values.shape)}; needed is (frames or tubelets, rows, "
            "columns), the maps of one video: attribute_patches(...)[0]"
        )
    if frames % len(values):
        raise InputError(
            f"{frames} frames do not fit {len(values)} maps; give all frames that the model saw, "
            "or one frame for each map"
        )
    return values


def _tile(image: Image.Image, across: int) -> tuple[float, float]:
    """Return width and height of a frame in the picture."""
    ratio = image.width / image.height
    width = min(_TILE, _TILE * ratio, (_PAGE + _GAP) / across - _GAP)
    return max(width, THIN), max(width / ratio, THIN)


def spectrogram_figure(
    spectrogram: Tensor | NDArray[np.floating[Any]],
    relevance: Tensor,
    title: str = "",
    hop: float | None = None,
    unit: str = "relevance",
    colormap: str | None = None,
    opacity: float = OPACITY,
    scale: Scale = "max",
) -> Figure:
    """Draw a spectrogram in grey, and below it the same spectrogram under its map.

    Time runs from left to right, frequency upwards.

    Args:
        spectrogram: what the model took, (time, mel bins).
        relevance: relevance of each position, (time, mel bins), from ``attribute``.
        title: the explained class, for example with its probability.
        hop: seconds between two time frames, such as 0.01; ``None`` counts frames.
        unit: the meaning of a value: the ``unit`` of the method.
        colormap: see :func:`~hf_gmar.visualization.overlay_image`.
        opacity: opacity of the map, from 0 to 1.
        scale: the values at the ends of the colours, as in
            :func:`~hf_gmar.visualization.overlay_image`.

    Returns:
        A matplotlib figure without a window; ``save_figure`` writes it.

    Raises:
        InputError: the spectrogram and the map have different shapes, or not two dimensions.
        OptionError: an option is outside its range.

    Example:
        >>> figure = spectrogram_figure(torch.rand(100, 64), torch.rand(100, 64), "siren")
        >>> len(figure.axes)  # the spectrogram, the map, the colour bar
        3
    """
    sound = torch.as_tensor(spectrogram).detach().float().cpu()
    values = torch.as_tensor(relevance).detach().float().cpu()
    if sound.ndim != 2 or sound.shape != values.shape or 0 in sound.shape:
        raise InputError(
            f"the spectrogram has the shape {tuple(sound.shape)} and the map "
            f"{tuple(values.shape)}; both must be (time, mel bins): one spectrogram, and its "
            "relevance from attribute(...)[0]"
        )
    share = check_number("opacity", opacity, 0, 1.000001)
    step = 1.0 if hop is None else check_positive("hop", hop)
    colours = colour_scale(values, scale, colormap)
    heading = wrapped(title, _WIDTH - 1.5, 12, 3) if title else ""
    height = _HEIGHT + _LINE * len(heading.splitlines())
    figure = NotebookFigure(figsize=(_WIDTH, height), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, sharey=True)
    for axes in (upper, lower):
        extent = (0, step * len(sound), 0, sound.shape[1])
        place: dict[str, Any] = {"extent": extent, "origin": "lower", "aspect": "auto"}
        axes.imshow(sound.T.numpy(), cmap="gray", **place)
        axes.set_ylabel("mel bin")
    place |= {"alpha": share, "interpolation": "nearest"}
    mappable = draw_map(lower, values.T.numpy(), colours.name, colours.low, colours.high, **place)
    lower.set_xlabel("time frame" if hop is None else "seconds")
    upper.set_title(heading, fontsize=12)
    bar = figure.colorbar(mappable, ax=[upper, lower])
    bar.set_label(wrapped(_meaning(unit, values), height - 1, 9, 2), fontsize=9)
    return figure
