"""An attribution map over its image, as a figure with a colour bar or as a plain image."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hf_gmar._utils.files import whole_file
from hf_gmar._utils.validation import check_number
from hf_gmar.errors import InputError, OptionError
from hf_gmar.models.image_view import ImageView
from hf_gmar.visualization.notebook import NotebookFigure, write_png
from hf_gmar.visualization.text import wrapped

COLOUR_MAP = "inferno"
"""Colour map of maps without negative values."""

SIGNED_COLOUR_MAP = "RdBu_r"
"""Colour map of maps with negative values: blue below zero, white at zero, red above."""

THIN = 0.05  # inches: each side of a strip must have dots
OPACITY = 0.6
"""Opacity of a heatmap over its image."""

_DIMMED = 0.4  # brightness of the grey outside the explained part
_DOTS = 150  # per inch

UNSEEN = "#595959"
"""The colour that stands for the part that the model does not see, in a legend."""

_Edges: TypeAlias = tuple[float, float, float, float]


def overlay_figure(
    image: Image.Image,
    patches: Tensor,
    title: str,
    caption: str = "",
    view: ImageView | None = None,
    unit: str = "relevance",
    scale: Scale = "max",
    per: str = "patch",
) -> Figure:
    """Draw the image beside a copy of it under its heatmap.

    Args:
        image: the original image, of any size.
        patches: relevance of each patch or of finer cells, (rows, columns). The colours start at
            zero. If a value is negative, they are symmetric about zero over a grey image, and blue
            marks evidence against the class.
        title: the explained class, for example with its probability.
        caption: the lines below the figure.
        view: the part of the image that the patches cover, from ``measure_view``; the rest is
            dark, as the model does not see it. ``None`` is the whole image.
        unit: the meaning of a value: the ``unit`` of the method.
        scale: see :func:`colour_scale`.
        per: what a value belongs to.

    Returns:
        A matplotlib figure without a window; ``save_figure`` writes it.

    Raises:
        InputError: the view and the image have different sizes.

    Example:
        >>> import torch
        >>> figure = overlay_figure(Image.new("RGB", (32, 32)), torch.rand(4, 4), "cat")
        >>> len(figure.axes)  # image, overlay, colour bar
        3
    """
    view = view or ImageView.whole(image)
    layout = layout_of(image, title, caption, patches, view, unit, per)
    colours = colour_scale(patches, scale)
    values = patches.detach().float().cpu().numpy()
    figure = NotebookFigure(figsize=layout.size)
    across, down = layout.bottom, (layout.width, layout.height)
    plain = add_axes(figure, layout.plain, across, *down)
    overlay = add_axes(figure, layout.overlay, across, *down)
    bar = add_axes(figure, layout.bar, layout.centre - layout.length / 2, 0.16, layout.length)
    plain.set_title("the image", fontsize=13)
    overlay.set_title(layout.title, fontsize=13)
    figure.supxlabel(layout.caption, y=0.06 / layout.size[1], fontsize=9, color="0.35")
    _show(plain, image)
    small = shrink(image, _MOST)
    seen = ~torch.isnan(view.scaled(small.height, small.width).project(torch.zeros(1, 1)))
    _show(overlay, image, _below(small, seen.numpy(), is_signed(values)))
    mappable = draw_map(
        overlay, values, colours.name, colours.low, colours.high, extent=_extent(*view.box)
    )
    overlay.set(xlim=plain.get_xlim(), ylim=plain.get_ylim())  # padding is not part of the image
    figure.colorbar(mappable, cax=bar).set_label(layout.unit, fontsize=9)
    if view.unexplained:
        _explain_unseen(overlay)
    return figure


@dataclass(frozen=True)
class ColourScale:
    """A colour map of matplotlib, and the values at its ends.

    Attributes:
        name: the name of the colour map.
        low: the value of its first colour; lower values have it too.
        high: the value of its last colour.
    """

    name: str
    low: float
    high: float

    def picture(self, values: NDArray[np.float32]) -> Image.Image:
        """Convert values (height, width) to an RGB image with 256 colours."""
        scaled = np.clip((values - self.low) / (self.high - self.low), 0, 1)
        picture = Image.fromarray((scaled * 255).round().astype(np.uint8))
        picture.putpalette(_palette(self.name), "RGBA")
        return picture.convert("RGB")


@functools.lru_cache(maxsize=8)
def _palette(name: str) -> bytes:
    if name not in mpl.colormaps:
        raise OptionError(
            f"colormap must be one of matplotlib's, such as 'inferno' or 'viridis'; got {name!r}"
        )
    return bytes(np.asarray(mpl.colormaps[name](np.arange(256), bytes=True)).tobytes())


Scale: TypeAlias = Literal["max", "percentile"] | tuple[float, float]
"""The values at the ends of the colours."""


def colour_scale(
    values: Tensor | NDArray[np.float32], scale: Scale = "max", colormap: str | None = None
) -> ColourScale:
    """Choose the colours of a map.

    Args:
        values: relevance; NaN is left out.
        scale: ``"max"`` is from zero to the maximum, so that a flat map looks flat;
            ``"percentile"`` from the 2nd to the 98th percentile; or the two values. With negative
            values, the first two are symmetric about zero.
        colormap: a colour map of matplotlib; by default one for maps with negative values and one
            for others.

    Raises:
        OptionError: the scale or the colour map is none.

    Example:
        >>> colour_scale(np.array([1.0, 3.0])), colour_scale(np.array([-1.0, 3.0])).low
        (ColourScale(name='inferno', low=0.0, high=3.0), -3.0)
    """
    numbers = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
    numbers = numbers[np.isfinite(numbers)].astype(np.float64)
    signed = bool((numbers < 0).any())
    name = colormap or (SIGNED_COLOUR_MAP if signed else COLOUR_MAP)
    _palette(name)
    if scale == "max":
        high = float(np.abs(numbers).max(initial=0))
        low = -high if signed else 0.0
    elif scale == "percentile":
        ends = np.percentile(np.abs(numbers) if signed else numbers, [2, 98])
        low, high = (-float(ends[1]) if signed else float(ends[0])), float(ends[1])
    else:
        low, high = _checked_ends(scale)
    return ColourScale(name, low, high if high > low else low + 1)  # zeros must look like zeros


def _checked_ends(scale: Any) -> tuple[float, float]:
    try:
        low, high = map(float, scale)
    except (TypeError, ValueError):
        low = high = 0.0
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise OptionError(
            "scale must be 'max', 'percentile' or a pair of values, the lower one first; got "
            f"{scale!r}"
        )
    return low, high


def overlay_image(
    image: Image.Image,
    heatmap: Tensor,
    colormap: str | None = None,
    opacity: float = OPACITY,
    scale: Scale = "max",
) -> Image.Image:
    """Draw the image under its heatmap, pixel for pixel, without axes or text.

    Args:
        image: the original image. Under a map with negative values it is grey, so that its colours
            are not taken for those of the map.
        heatmap: relevance of each pixel, (height, width), from ``ImageView.project``; NaN outside
            the explained part.
        colormap: see :func:`colour_scale`.
        opacity: opacity of the map, from 0 to 1.
        scale: see :func:`colour_scale`.

    Returns:
        An RGB image of the same size; dark grey outside the explained part.

    Raises:
        InputError: the heatmap and the image have different sizes.
        OptionError: an option is outside its range.

    Example:
        >>> import torch
        >>> heatmap = torch.tensor([[0.0, 0.5, 1.0, float("nan")]])
        >>> picture = overlay_image(Image.new("RGB", (4, 1), "white"), heatmap)
        >>> [picture.getpixel((x, 0)) for x in (0, 2, 3)]
        [(102, 102, 103), (253, 254, 200), (102, 102, 102)]
    """
    _check_size("heatmap", tuple(heatmap.shape), image)
    share = check_number("opacity", opacity, 0, 1.000001)
    values = heatmap.detach().float().cpu().numpy()
    seen = ~np.isnan(values)
    colours = colour_scale(values, scale, colormap).picture(np.where(seen, values, 0))
    below = _below(image, seen, is_signed(values))
    under = Image.blend(below, colours, share)
    return Image.composite(under, below, Image.fromarray(seen.astype(np.uint8) * 255))


def kept_image(image: Image.Image, mask: Tensor, view: ImageView) -> Image.Image:
    """Draw only some patches of an image, pixel for pixel; the rest is grey.

    Args:
        image: the original image.
        mask: the patches, bool (rows, columns).
        view: the part of the image that the patches cover.

    Example:
        >>> image, mask = Image.new("RGB", (4, 2), "white"), torch.tensor([[True, False]])
        >>> picture = kept_image(image, mask, ImageView.whole(image))
        >>> picture.getpixel((0, 0)), picture.getpixel((3, 0))
        ((255, 255, 255), (128, 128, 128))
    """
    shown = view.project(mask.float()).nan_to_num(0).numpy() > 0.5  # half a pixel
    rest = Image.new("RGB", image.size, _LEFT_OUT)
    return Image.composite(
        image.convert("RGB"), rest, Image.fromarray(shown.astype(np.uint8) * 255)
    )


_LEFT_OUT = "#808080"


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG with 150 dots per inch; an error leaves no partial file."""
    with whole_file(path) as part:
        write_png(figure, part, _DOTS)


def _check_size(name: str, size: tuple[int, ...], image: Image.Image) -> None:
    if size != (image.height, image.width):
        raise InputError(
            f"the {name} has the size {size} and the image {(image.height, image.width)} (height, "
            "width); they must be the same: take the view of the image's own size"
        )


@dataclass(frozen=True)
class Layout:
    """Where the parts of the figure are, in inches from its lower left corner."""

    size: tuple[float, float]
    width: float
    height: float
    column: float
    plain: float
    overlay: float
    bottom: float
    centre: float
    bar: float
    length: float
    title: str
    caption: str
    unit: str


def layout_of(
    image: Image.Image,
    title: str,
    caption: str,
    patches: Tensor,
    view: ImageView,
    unit: str,
    per: str = "patch",
) -> Layout:
    """Lay out an image, its overlay, a colour bar and their wrapped texts.

    Raises:
        InputError: the view and the image have different sizes.
    """
    _check_size("view", view.size, image)
    ratio = image.width / image.height
    width = min(3.7 * ratio**0.5, 6.5, 6.5 * ratio)  # about the same area for every aspect ratio
    width, height = max(width, THIN), max(width / ratio, THIN)
    column, row = max(width, 3.4), max(height, 2.2)  # the title and the colour bar must fit
    title = wrapped(title, column, 13)
    lines = (wrapped(line, 2 * column + 1.5, 9) for line in caption.split("\n"))
    caption = "\n".join(filter(None, lines))
    above = 0.2 + 0.22 * len(title.splitlines())
    below = 0.15 + 0.17 * len(caption.splitlines()) + 0.3 * view.unexplained
    centre, left = below + row / 2, 0.15 + (column - width) / 2
    length = max(0.9 * height, 2)
    meaning = [f"{unit}, per patch"] if per == "patch" else [unit, f"per {per}"]
    meaning += ["(below 0: against the class)"] * bool((patches < 0).any())
    return Layout(
        (2 * column + 2, below + row + above),
        width,
        height,
        column,
        left,
        left + column + 0.25,
        centre - height / 2,
        centre,
        left + column + width + 0.4,
        length,
        title,
        caption,
        "\n".join(wrapped(line, length, 9, 2) for line in meaning),
    )


def add_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Add axes at a place in inches; matplotlib's layouts leave no room for a title."""
    across, down = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / down, width / across, height / down))


def shrink(image: Image.Image, side: int) -> Image.Image:
    """Make an RGB copy that is at most ``side`` pixels wide and high."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    return small


def _show(axes: Axes, image: Image.Image, drawn: Image.Image | None = None) -> None:
    """Show an image, or what is drawn of it, in the coordinates of its pixels."""
    small = shrink(image, _MOST) if drawn is None else drawn
    axes.imshow(np.asarray(small), extent=_extent(0, 0, image.height, image.width))
    axes.set_axis_off()


_MOST = 1500  # pixels of a side, more than a figure can show


def _extent(top: float, left: float, bottom: float, right: float) -> _Edges:
    """Convert edges to matplotlib's extent, where the first pixel's centre is at 0."""
    return left - 0.5, right - 0.5, bottom - 0.5, top - 0.5


def is_signed(values: NDArray[np.float32]) -> bool:
    """Return whether any value is negative, so that the colours must be symmetric."""
    return bool((values < 0).any())


def draw_map(
    axes: Axes, values: NDArray[np.float32], colours: str, low: float, high: float, **options: Any
) -> AxesImage:
    """Draw an attribution map of patches over the image that is in the axes."""
    blend: dict[str, Any] = {"alpha": OPACITY, "interpolation": "bilinear", **options}
    return axes.imshow(values, cmap=colours, vmin=low, vmax=high, **blend)


def _below(image: Image.Image, seen: NDArray[np.bool_], signed: bool) -> Image.Image:
    """Return what lies under a map: the image, grey for a signed map, and dark where unseen."""
    grey = image.convert("L")
    below = grey.convert("RGB") if signed else image.convert("RGB")
    dimmed = grey.point(lambda level: level * _DIMMED).convert("RGB")
    return Image.composite(below, dimmed, Image.fromarray(seen.astype(np.uint8) * 255))


def _explain_unseen(axes: Axes) -> None:
    """Say what the dark part of the image is."""
    mark = Patch(facecolor=UNSEEN, label="not seen by the model")
    axes.legend(handles=[mark], loc="upper center", bbox_to_anchor=(0.5, 0), frameon=False)
