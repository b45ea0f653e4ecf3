"""The figure of a comparison: one row for each image, one column for each method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hf_gmar.visualization.check_figure import VERDICT_COLOURS
from hf_gmar.visualization.notebook import NotebookFigure
from hf_gmar.visualization.overlay import (
    COLOUR_MAP,
    SIGNED_COLOUR_MAP,
    add_axes,
    draw_map,
    is_signed,
)
from hf_gmar.visualization.text import wrapped

# Inches.
_ACROSS = 7  # methods in one band; with more, the text would be too small to read
_WIDTH = 1.75
_GAP = 0.1
_HEAD = 0.38  # above each band: the methods' costs, and one line for their names
_NAME = 0.17  # each further line of names
_FOOT = 0.42  # below each image: its class and name
_MARGIN = 0.2
_BAR = 0.5
_LINE = 0.165  # height of a line of the caption


@dataclass(frozen=True)
class GridColumn:
    """One method in the figure.

    Attributes:
        title: the method's name.
        subtitle: one short line, for example the method's cost.
        maps: relevance of each patch or of finer cells, (images, rows, columns); ``None`` if the
            method failed.
        reason: why the method failed.
        verdicts: for each image, how the map compares with random patches, a key of
            ``VERDICT_COLOURS``; empty without a check.
    """

    title: str
    subtitle: str = ""
    maps: Tensor | None = None
    reason: str = ""
    verdicts: Sequence[str] = ()


@dataclass(frozen=True)
class _Layout:
    """The positions of all parts, in inches from the top left corner."""

    images: int
    across: int
    bands: int
    cell: float
    head: float
    caption: str

    @property
    def width(self) -> float:
        return 2 * _MARGIN + (1 + self.across) * (_WIDTH + _GAP) - _GAP

    @property
    def band(self) -> float:
        return self.head + self.images * (self.cell + _FOOT)

    @property
    def height(self) -> float:
        return _MARGIN + self.bands * self.band + _BAR + self.below

    @property
    def below(self) -> float:
        return _LINE * (self.caption.count("\n") + 1) + _MARGIN

    def place(self, band: int, image: int, column: int) -> tuple[float, float]:
        """Return the left and top edge of a cell; column 0 is the image."""
        top = _MARGIN + band * self.band + self.head + image * (self.cell + _FOOT)
        return _MARGIN + column * (_WIDTH + _GAP), top


def grid_figure(
    pictures: Sequence[Image.Image],
    titles: Sequence[str],
    columns: Sequence[GridColumn],
    caption: str,
) -> Figure:
    """Draw one row for each image and one column for each method, at most seven in a band.

    Each map is divided by its largest absolute value, so all maps share one colour scale: from 0
    to 1, or from -1 to 1 if any map has negative values.

    Args:
        pictures: B images of one shape, cropped to the part that the model saw.
        titles: the text below each image, in one or two lines; see ``wrapped`` for long ones.
        columns: the methods.
        caption: the text below the figure.

    Returns:
        A matplotlib figure without a window.

    Example:
        >>> import torch
        >>> column = GridColumn("gmar", maps=torch.rand(1, 4, 4))
        >>> figure = grid_figure([Image.new("RGB", (32, 32))], ["cat"], [column], "")
        >>> len(figure.axes)  # image, map, colour scale
        3
    """
    layout = _layout(pictures, columns, caption)
    figure = NotebookFigure(figsize=(layout.width, layout.height))
    signed = any(is_signed(column.maps.numpy()) for column in columns if column.maps is not None)
    for band in range(layout.bands):
        in_band = columns[band * layout.across : (band + 1) * layout.across]
        _draw_images(figure, layout, band, pictures, titles)
        for number, column in enumerate(in_band, 1):
            _draw_column(figure, layout, (band, number), column, pictures, signed)
    _draw_scale(figure, layout, signed)
    left, top = _MARGIN / layout.width, layout.below / layout.height
    figure.text(left, top, layout.caption, fontsize=8.5, color="0.3", va="top")
    return figure


def _layout(
    pictures: Sequence[Image.Image], columns: Sequence[GridColumn], caption: str
) -> _Layout:
    bands = math.ceil(len(columns) / _ACROSS)
    across = max(math.ceil(len(columns) / bands), 2)  # room for the colour scale and the caption
    ratio = pictures[0].height / pictures[0].width
    cell = _WIDTH * min(max(ratio, 0.4), 2.5)
    width = (1 + across) * (_WIDTH + _GAP)
    names = max(_title(column).count("\n") for column in columns)
    text = wrapped(caption, width - _GAP, 8.5, 12)
    return _Layout(len(pictures), across, bands, cell, _HEAD + _NAME * names, text)


def _title(column: GridColumn) -> str:
    return wrapped(column.title, _WIDTH, 10, 2)


def _draw_images(
    figure: Figure,
    layout: _Layout,
    band: int,
    pictures: Sequence[Image.Image],
    titles: Sequence[str],
) -> None:
    for row, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        axes = _cell(figure, layout, (band, row, 0))
        axes.imshow(picture, aspect="auto", extent=_UNIT)
        lines = "\n".join(wrapped(line, _WIDTH, 8, 1) for line in title.split("\n"))
        axes.text(0, -0.05 / layout.cell, lines, fontsize=8, va="top", transform=axes.transAxes)


def _draw_column(
    figure: Figure,
    layout: _Layout,
    place: tuple[int, int],
    column: GridColumn,
    pictures: Sequence[Image.Image],
    signed: bool,
) -> None:
    band, number = place
    for row, picture in enumerate(pictures):
        axes = _cell(figure, layout, (band, row, number))
        if row == 0:
            _draw_head(axes, layout, column)
        if column.maps is None:
            _draw_reason(axes, layout, column.reason)
        else:
            _draw_map(axes, picture, column.maps[row].float().numpy(), signed)
            if column.verdicts:
                _draw_verdict(axes, layout, column.verdicts[row])


def _draw_head(axes: Axes, layout: _Layout, column: GridColumn) -> None:
    """Draw the method's name, in up to two lines, and its subtitle below."""
    middle, above = 0.5, 1 + 0.06 / layout.cell
    style: dict[str, Any] = {"ha": "center", "va": "bottom", "transform": axes.transAxes}
    axes.text(
        middle, above, wrapped(column.subtitle, _WIDTH, 7.5, 1), fontsize=7.5, color="0.35", **style
    )
    above += 0.15 / layout.cell if column.subtitle else 0
    axes.text(middle, above, _title(column), fontsize=10, **style)


_UNIT = (0, 1, 0, 1)


def _draw_map(axes: Axes, picture: Image.Image, values: NDArray[np.float32], signed: bool) -> None:
    # The image is grey, so that every colour comes from the map.
    axes.imshow(picture.convert("L"), cmap="gray", vmin=0, vmax=255, aspect="auto", extent=_UNIT)
    colours, low = (SIGNED_COLOUR_MAP, -1) if signed else (COLOUR_MAP, 0)
    scaled = values / (np.abs(values).max() or 1)
    draw_map(axes, scaled, colours, low, 1, aspect="auto", extent=_UNIT)


def _draw_verdict(axes: Axes, layout: _Layout, verdict: str) -> None:
    """Write the verdict of a check below a map."""
    colour, text = VERDICT_COLOURS[verdict], f"{verdict} than random"
    below = -0.05 / layout.cell
    axes.text(0, below, text, fontsize=8, color=colour, va="top", transform=axes.transAxes)


def _draw_reason(axes: Axes, layout: _Layout, reason: str) -> None:
    axes.set_facecolor("0.94")
    axes.set_axis_on()
    axes.tick_params(length=0, labelbottom=False, labelleft=False)
    for edge in axes.spines.values():
        edge.set_color("0.8")
    lines = max(int((layout.cell - 0.1) / 0.125), 2)
    text = wrapped(f"failed: {reason}", _WIDTH - 0.1, 7, lines)
    axes.text(0.5, 0.5, text, fontsize=7, color="0.25", ha="center", va="center")


def _draw_scale(figure: Figure, layout: _Layout, signed: bool) -> None:
    colours, low = (SIGNED_COLOUR_MAP, -1) if signed else (COLOUR_MAP, 0)
    axes = add_axes(figure, _MARGIN, layout.below + _BAR - 0.2, 2.6, 0.14)
    mappable = ScalarMappable(Normalize(low, 1), colours)
    bar = figure.colorbar(mappable, cax=axes, orientation="horizontal")
    bar.set_ticks([low, 0, 1] if signed else [0, 1])
    axes.tick_params(labelsize=8)
    meaning = "relevance; red: for the class, blue: against it" if signed else "relevance"
    text = f"{meaning}; 1 is the largest absolute value of each map"
    text = wrapped(text, layout.width - 2.8 - 2 * _MARGIN, 8.5)
    axes.text(1.06, 0.5, text, fontsize=8.5, va="center", transform=axes.transAxes)


def _cell(figure: Figure, layout: _Layout, place: tuple[int, int, int]) -> Axes:
    left, top = layout.place(*place)
    axes = add_axes(figure, left, layout.height - top - layout.cell, _WIDTH, layout.cell)
    axes.set_axis_off()
    return axes
