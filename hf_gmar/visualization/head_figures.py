"""Figures of attention heads: importance, attention maps, and ablation curves."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hf_gmar._utils.stats import Array, Interval
from hf_gmar.models.image_view import ImageView
from hf_gmar.visualization.notebook import NotebookFigure
from hf_gmar.visualization.overlay import (
    COLOUR_MAP,
    SIGNED_COLOUR_MAP,
    overlay_image,
    shrink,
)
from hf_gmar.visualization.text import wrapped

_TILE = 120  # length in pixels of the longer side of a head's map
_GAP = 6  # pixels between maps
_DOTS = 130  # pixels of the grid per inch
_MOST_NUMBERS = 300  # with more cells, their numbers would be too small to read


def importance_figure(
    mean: NDArray[np.float32],
    std: NDArray[np.float32] | None,
    title: str,
    caption: str = "",
    shares: bool = True,
) -> Figure:
    """Draw the importance of layers by heads as a heatmap, top layer at the top.

    The colours of shares start at zero; the colours of signed effects are symmetric about zero.

    Args:
        mean: importance, (layers, H).
        std: standard deviation over images, (layers, H); ``None`` for one image.
        title: the explained class.
        caption: one line below the figure.
        shares: whether the numbers are shares of their layer, or else signed effects on the score.

    Returns:
        A matplotlib figure without a window; the colour bar of shares marks the even share, 1/H.

    Example:
        >>> figure = importance_figure(np.full((3, 4), 0.25), None, "heart")
        >>> len(figure.axes)  # the heatmap and its colour bar
        2
    """
    panels = [mean] if std is None else [mean, std]
    layers, heads = mean.shape
    across, down = max(0.55 * heads, 2.4), max(0.36 * layers, 1.8)
    kind = "head importance" if shares else "effect of each head"
    title = wrapped(f"{kind}: {title}", across, 11)
    caption = wrapped(caption, (across + 1.5) * len(panels) - 0.3, 9)
    texts = 0.2 * title.count("\n") + 0.15 * caption.count("\n")
    size = (across + 1.5) * len(panels), down + 1.3 + texts
    figure = NotebookFigure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    if shares:
        _heatmap(figure, axes[0], mean, "share of the layer's gradient", 1 / heads)
    else:
        _heatmap(figure, axes[0], mean, "estimated loss of score without the head", signed=True)
    axes[0].set_title(title, fontsize=11)
    if std is not None:
        _heatmap(figure, axes[1], std, "standard deviation")
        axes[1].set_title("variation over images", fontsize=11)
    figure.supxlabel(caption, fontsize=9, color="0.35")
    return figure


def _heatmap(
    figure: Figure,
    axes: Axes,
    values: NDArray[np.float32],
    label: str,
    even: float | None = None,
    signed: bool = False,
) -> None:
    top = max(float(np.abs(values).max()), even or 0) or 1.0
    colours = SIGNED_COLOUR_MAP if signed else COLOUR_MAP
    mappable = axes.imshow(
        values, cmap=colours, vmin=-top * signed, vmax=top, origin="lower", aspect="auto"
    )
    axes.set(xlabel="head", ylabel="layer")
    for axis, count in ((axes.xaxis, values.shape[1]), (axes.yaxis, values.shape[0])):
        axis.set_ticks(range(0, count, -(-count // 12)))
    if values.size <= _MOST_NUMBERS:
        for (layer, head), value in np.ndenumerate(values):
            # Large values are bright in the map from zero, and dark at both ends of the signed map.
            colour = "black" if (abs(value) > 0.65 * top) != signed else "white"
            text = f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 100 else f"{value:.2g}"
            axes.text(head, layer, text, ha="center", va="center", fontsize=7, color=colour)
    bar = figure.colorbar(mappable, ax=axes)
    bar.set_label(wrapped(label, max(0.36 * len(values), 1.8), 10, 2))
    if even is not None:
        bar.ax.axhline(even, color="cyan", linewidth=2)
        text, beside = f"even\nshare\n1/{round(1 / even)}", bar.ax.get_yaxis_transform()
        place = "top" if even > 0.8 * top else "center"  # below the title
        bar.ax.text(-0.2, even, text, ha="right", va=place, fontsize=8, transform=beside)


def head_maps_figure(
    image: Image.Image,
    maps: Tensor,
    title: str = "where each head looks",
    caption: str = "",
    view: ImageView | None = None,
) -> Figure:
    """Draw a grid of head maps over one image, layers by heads, top layer at the top.

    Args:
        image: the original image.
        maps: (layers, H, rows, columns), from :func:`~hf_gmar.heads.head_methods.head_maps` for
            one image. Each map's colours run from zero to its maximum.
        title: the text above the grid.
        caption: one line below the figure.
        view: the part of the image that the patches cover; ``None`` is the whole image.

    Returns:
        A matplotlib figure without a window.

    Example:
        >>> import torch
        >>> figure = head_maps_figure(Image.new("RGB", (32, 24)), torch.rand(2, 3, 4, 4))
        >>> len(figure.axes)  # the image, and the grid of maps
        2
    """
    layers, heads = maps.shape[:2]
    grid = _grid(image, maps, view)
    across, down = grid.width / _DOTS, grid.height / _DOTS
    room = max(across, 2.6)  # the title must fit
    note = "colours run from zero to the maximum of each map"
    if view is not None and view.unexplained:
        note += "; dark grey: not seen by the model"
    width = room + 2.9
    lines = [wrapped(line, width - 0.3, 8, 2) for line in (caption, note) if line]
    foot = "\n".join(lines)
    title = wrapped(title, room, 11, 2)
    height = down + 1.2 + 0.15 * foot.count("\n") + 0.2 * title.count("\n")
    figure = NotebookFigure(figsize=(width, height), layout="constrained")
    plain, axes = figure.subplots(1, 2, width_ratios=(2.2, room))
    plain.imshow(np.asarray(shrink(image, 600)))
    plain.set_axis_off()
    plain.set_anchor("N")  # at the top, as the grid may be much taller
    plain.set_title("the image", fontsize=11)
    axes.imshow(np.asarray(grid), interpolation="nearest")
    _name_tiles(axes, grid.width / heads, grid.height / layers, heads, layers)
    axes.set_title(title, fontsize=11)
    figure.supxlabel(foot, fontsize=8, color="0.35")
    return figure


def _name_tiles(axes: Axes, width: float, height: float, heads: int, layers: int) -> None:
    """Label heads and layers beside the grid; ``width`` and ``height`` are pixels of a tile."""
    axes.set_xticks((np.arange(heads) + 0.5) * width, [str(head) for head in range(heads)])
    axes.set_yticks((np.arange(layers) + 0.5) * height, [str(n) for n in reversed(range(layers))])
    axes.tick_params(length=0)
    axes.set(xlabel="head", ylabel="layer")
    for spine in axes.spines.values():
        spine.set_visible(False)


def _grid(image: Image.Image, maps: Tensor, view: ImageView | None) -> Image.Image:
    """Draw all maps on small copies of the image, as one picture."""
    shrunk = shrink(image, _TILE)
    view = _scaled(view or ImageView.whole(image), shrunk)
    layers, heads = maps.shape[:2]
    width, height = shrunk.width + _GAP, shrunk.height + _GAP
    grid = Image.new("RGB", (heads * width, layers * height), "white")
    heatmaps = view.project(maps.detach().float().cpu())
    for layer in range(layers):
        for head in range(heads):
            place = head * width + _GAP // 2, (layers - 1 - layer) * height + _GAP // 2
            grid.paste(overlay_image(shrunk, heatmaps[layer, head]), place)
    return grid


def _scaled(view: ImageView, image: Image.Image) -> ImageView:
    """Scale the view to a smaller copy of the image."""
    down, across = image.height / view.size[0], image.width / view.size[1]
    top, left, bottom, right = view.box
    box = top * down, left * across, bottom * down, right * across
    return ImageView((image.height, image.width), box)


_COLOURS = ("#c1272d", "#0072b2", "0.45")
_MARKS = ("o", "s", "^")


def ablation_figure(
    fractions: Array, bands: Mapping[str, Interval], images: int, caption: str = ""
) -> Figure:
    """Draw the target's mean score against the share of masked heads, with 95 % bands.

    Args:
        fractions: share of masked heads, (steps,).
        bands: mean curve and band of each order, each (steps,).
        images: number of images.
        caption: one line below the figure.

    Returns:
        A matplotlib figure without a window.

    Example:
        >>> ends = np.array([2.0, 1.0])
        >>> figure = ablation_figure(1 - ends / 2, {"random": Interval(ends, ends, ends)}, 3)
        >>> figure.axes[0].get_xlabel()
        'share of heads masked'
    """
    figure = NotebookFigure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    for (name, band), colour, mark in zip(bands.items(), _COLOURS, _MARKS, strict=False):
        axes.plot(fractions, band.mean, color=colour, marker=mark, markersize=4, label=name)
        axes.fill_between(fractions, band.low, band.high, color=colour, alpha=0.18, linewidth=0)
    axes.set(xlabel="share of heads masked", ylabel="raw score of the target", xlim=(0, 1))
    axes.set_title(f"masking heads, {images} image{'s' if images > 1 else ''}", fontsize=11)
    note = "means over images with 95 % bootstrap bands" if images > 1 else ""
    caption = "\n".join(wrapped(part, 6.1, 9) for part in (caption, note) if part)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.supxlabel(caption, fontsize=9, color="0.35")
    return figure
