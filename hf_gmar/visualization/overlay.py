"""An attribution map over its image, as a figure with a colour bar or as a plain image."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hf_gmar._utils.files import whole_file
from hf_gmar.errors import InputError
from hf_gmar.models.image_view import ImageView
from hf_gmar.visualization.text import wrapped

COLOUR_MAP = "inferno"
"""Colour map of maps without negative values."""

SIGNED_COLOUR_MAP = "RdBu_r"
"""Colour map of maps with negative values: blue below zero, white at zero, red above."""

OPACITY = 0.6
"""Opacity of a heatmap over its image."""

_DIMMED = 0.4  # brightness of the grey outside the explained part
_DOTS = 150  # per inch

_Edges: TypeAlias = tuple[float, float, float, float]


def overlay_figure(
    image: Image.Image,
    patches: Tensor,
    title: str,
    caption: str = "",
    view: ImageView | None = None,
    unit: str = "relevance",
) -> Figure:
    """Draw the image beside a copy of it under its heatmap.

    Args:
        image: the original image, of any size.
        patches: relevance of each patch, (rows, columns). The colours start at zero. If a value is
            negative, they are symmetric about zero, and blue marks evidence against the class.
        title: the explained class, for example with its probability.
        caption: one line below the figure.
        view: the part of the image that the patches cover, from ``measure_view``; the rest is
            hatched as not seen by the model. ``None`` is the whole image.
        unit: the meaning of a patch's value: the ``unit`` of the method.

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
    _check_size("view", view.size, image)
    values = patches.detach().float().cpu().numpy()
    figure, (plain, overlay, bar) = _layout(image, title, caption, view.unexplained)
    _show(plain, image)
    _show(overlay, image)
    mappable = draw_map(overlay, values, *_scale(values), extent=_extent(*view.box))
    overlay.set(xlim=plain.get_xlim(), ylim=plain.get_ylim())  # padding is not part of the image
    meaning = [f"{unit}, per patch", *["(below 0: against the class)"] * is_signed(values)]
    length = bar.get_position().height * figure.get_figheight()
    lines = [wrapped(line, length, 9, 2) for line in meaning]
    figure.colorbar(mappable, cax=bar).set_label("\n".join(lines), fontsize=9)
    if view.unexplained:
        _hatch_unseen(overlay, view)
    return figure


def overlay_image(image: Image.Image, heatmap: Tensor) -> Image.Image:
    """Draw the image under its heatmap, pixel for pixel, without axes or text.

    Args:
        image: the original image.
        heatmap: relevance of each pixel, (height, width), from ``ImageView.project``; NaN outside
            the explained part. The colours run from zero to the maximum; if a value is negative,
            from minus to plus the largest absolute value.

    Returns:
        An RGB image of the same size; dark grey outside the explained part.

    Raises:
        InputError: the heatmap and the image have different sizes.

    Example:
        >>> import torch
        >>> heatmap = torch.tensor([[0.0, 0.5, 1.0, float("nan")]])
        >>> picture = overlay_image(Image.new("RGB", (4, 1), "white"), heatmap)
        >>> [picture.getpixel((x, 0)) for x in (0, 2, 3)]
        [(102, 102, 103), (253, 254, 200), (102, 102, 102)]
    """
    _check_size("heatmap", tuple(heatmap.shape), image)
    values = heatmap.detach().float().cpu().numpy()
    seen = ~np.isnan(values)
    colours = _to_colours(np.where(seen, values, 0))
    plain = image.convert("RGB")
    dimmed = plain.convert("L").point(lambda grey: grey * _DIMMED).convert("RGB")
    return Image.composite(
        Image.blend(plain, colours, OPACITY), dimmed, Image.fromarray(seen.astype(np.uint8) * 255)
    )


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG with 150 dots per inch; an error leaves no partial file."""
    with whole_file(path) as part, warnings.catch_warnings():
        # A letter that the font lacks is drawn as a box; the saved numbers have the full label.
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        figure.savefig(part, dpi=_DOTS, format="png")


def _check_size(name: str, size: tuple[int, ...], image: Image.Image) -> None:
    if size != (image.height, image.width):
        raise InputError(
            f"the {name} has the size {size} and the image {(image.height, image.width)} (height, "
            "width); they must be the same: take the view of the image's own size"
        )


def _layout(
    image: Image.Image, title: str, caption: str, legend: bool
) -> tuple[Figure, list[Axes]]:
    """Make a figure with its texts, and empty axes for the image, overlay and colour bar."""
    ratio = image.width / image.height
    width = min(3.7 * ratio**0.5, 6.5, 6.5 * ratio)  # about the same area for every aspect ratio
    height = width / ratio
    column, row = max(width, 3.4), max(height, 2.2)  # the title and the colour bar must fit
    title, caption = wrapped(title, column, 13), wrapped(caption, 2 * column + 1.5, 9)
    above = 0.2 + 0.22 * len(title.splitlines())
    below = 0.15 + 0.17 * len(caption.splitlines()) + 0.3 * legend
    figure = Figure(figsize=(2 * column + 2, below + row + above))
    centre, left = below + row / 2, 0.15 + (column - width) / 2
    bottom, length = centre - height / 2, max(0.9 * height, 2)
    plain = add_axes(figure, left, bottom, width, height)
    overlay = add_axes(figure, left + column + 0.25, bottom, width, height)
    bar = add_axes(figure, left + column + width + 0.4, centre - length / 2, 0.16, length)
    plain.set_title("the image", fontsize=13)
    overlay.set_title(title, fontsize=13)
    figure.supxlabel(caption, y=0.06 / (below + row + above), fontsize=9, color="0.35")
    return figure, [plain, overlay, bar]


def add_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Add axes at a place in inches; matplotlib's layouts leave no room for a title."""
    across, down = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / down, width / across, height / down))


def shrink(image: Image.Image, side: int) -> Image.Image:
    """Make an RGB copy that is at most ``side`` pixels wide and high."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    return small


def _show(axes: Axes, image: Image.Image) -> None:
    small = shrink(image, 1500)  # more pixels than the figure can show
    axes.imshow(np.asarray(small), extent=_extent(0, 0, image.height, image.width))
    axes.set_axis_off()


def _extent(top: float, left: float, bottom: float, right: float) -> _Edges:
    """Convert edges to matplotlib's extent, where the first pixel's centre is at 0."""
    return left - 0.5, right - 0.5, bottom - 0.5, top - 0.5


def is_signed(values: NDArray[np.float32]) -> bool:
    """Return whether any value is negative, so that the colours must be symmetric."""
    return bool((values < 0).any())


def _scale(values: NDArray[np.float32]) -> tuple[str, float, float]:
    """Return the colour map for the values, and the values at its two ends."""
    top = float(np.abs(values).max(initial=0)) or 1  # a map of zeros must look like zeros
    if is_signed(values):
        return SIGNED_COLOUR_MAP, -top, top
    return COLOUR_MAP, 0, top  # the colours start at zero, so that a flat map looks flat


def draw_map(
    axes: Axes, values: NDArray[np.float32], colours: str, low: float, high: float, **options: Any
) -> AxesImage:
    """Draw an attribution map of patches over the image that is in the axes."""
    blend: dict[str, Any] = {"alpha": OPACITY, "interpolation": "bilinear", **options}
    return axes.imshow(values, cmap=colours, vmin=low, vmax=high, **blend)


def _hatch_unseen(axes: Axes, view: ImageView) -> None:
    """Hatch the part of the image outside the view."""
    top, left, bottom, right = view.box
    height, width = view.size
    whole = _rectangle(0, 0, height, width)
    seen = _rectangle(max(top, 0), max(left, 0), min(bottom, height), min(right, width))
    hole = Outline(np.asarray(seen.vertices)[::-1], seen.codes)
    cover = PathPatch(
        Outline.make_compound_path(whole, hole),
        facecolor=(0.35, 0.35, 0.35, 0.8),
        edgecolor="0.75",
        hatch="//",
        linewidth=0,
        label="not seen by the model",
    )
    axes.add_patch(cover)
    axes.legend(handles=[cover], loc="upper center", bbox_to_anchor=(0.5, 0), frameon=False)


def _rectangle(top: float, left: float, bottom: float, right: float) -> Outline:
    left, right, bottom, top = _extent(top, left, bottom, right)
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    return Outline(corners, closed=True)


def _to_colours(values: NDArray[np.float32]) -> Image.Image:
    """Convert the values to an RGB image with 256 colours of their colour map."""
    colours, low, high = _scale(values)
    scaled = np.clip((values - low) / (high - low), 0, 1)
    picture = Image.fromarray((scaled * 255).round().astype(np.uint8))
    palette = np.asarray(mpl.colormaps[colours](np.arange(256), bytes=True))
    picture.putpalette(palette.tobytes(), "RGBA")
    return picture.convert("RGB")
