"""The explanations of one image in one picture: a row for each class, a column for each method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from hf_gmar.models.image_view import ImageView
from hf_gmar.visualization.overlay import OPACITY, Scale, colour_scale, overlay_image
from hf_gmar.visualization.picture import GREY, Canvas, dots
from hf_gmar.visualization.text import wrapped

# Inches.
_MARGIN = 0.2
_GAP = 0.3  # between columns
_LEAST = 2.3  # width of a column: the text below a map must fit
_LINE = 0.165  # height of a line of 9 points
_BAR = 0.1  # height of a colour bar
_TITLE = 0.3  # above the images of a row

_COLOURS = {"better": "#0072b2", "no better": "#595959", "worse": "#d55e00"}
"""Colours of Okabe and Ito, which colour-blind people tell apart."""


@dataclass(frozen=True)
class Column:
    """A method.

    Attributes:
        title: its name.
        shows: the question that its maps answer.
    """

    title: str
    shows: str = ""


@dataclass(frozen=True)
class Cell:
    """A map with what is known of it.

    Attributes:
        patches: relevance of each patch, (rows, columns).
        unit: the meaning of a patch's value.
        verdict: ``"better"``, ``"no better"`` or ``"worse"`` than random patches; empty if the map
            was not checked.
        numbers: the numbers of the check.
        note: what else a reader must know.
    """

    patches: Tensor
    unit: str
    verdict: str = ""
    numbers: str = ""
    note: str = ""


def explanation_grid(
    image: Image.Image,
    view: ImageView,
    rows: Sequence[str],
    columns: Sequence[Column],
    cells: Mapping[tuple[int, int], Cell],
    caption: str,
    scale: Scale = "max",
) -> Image.Image:
    """Draw the image under each map.

    Args:
        image: the original image.
        view: the part of the image that the maps cover.
        rows: the explained classes.
        columns: the methods.
        cells: the maps by row and column; a place may be empty.
        caption: one line below the picture.
        scale: the values at the ends of each map's colours; see
            :func:`~hf_gmar.visualization.colour_scale`.

    Returns:
        An RGB image with 120 dots per inch.

    Example:
        >>> import torch
        >>> image = Image.new("RGB", (32, 32))
        >>> cells = {(0, 0): Cell(torch.rand(4, 4), "relevance")}
        >>> view = ImageView.whole(image)
        >>> explanation_grid(image, view, ["cat"], [Column("GMAR")], cells, "").mode
        'RGB'
    """
    return draw_grid(image, view, rows, columns, cells, caption, scale).image


def draw_grid(
    image: Image.Image,
    view: ImageView,
    rows: Sequence[str],
    columns: Sequence[Column],
    cells: Mapping[tuple[int, int], Cell],
    caption: str,
    scale: Scale,
) -> Canvas:
    """Draw the picture; the canvas knows where its texts are."""
    layout = _Layout.of(image, rows, columns, cells, caption)
    canvas = Canvas(Image.new("RGB", (dots(layout.size[0]), dots(layout.size[1])), "white"))
    small = image.convert("RGB").resize((dots(layout.width), dots(layout.height)), reducing_gap=2.0)
    seen = view.scaled(small.height, small.width)
    for number, heading in enumerate(layout.headings):
        middle, top = layout.middle(number), layout.size[1] - _MARGIN
        title, *shows = heading
        canvas.text(title, middle, top, 12, "ma")
        canvas.text("\n".join(shows), middle, top - 0.22, 9, "ma", GREY)
    for row, title in enumerate(layout.titles):
        top = layout.top(row)
        canvas.text(title, layout.left(0), top, 12, "la", bold=True)
        below = top - _TITLE * (title.count("\n") + 1)
        canvas.image.paste(small, canvas.place(layout.left(0) + layout.indent, below))
        for column in range(len(columns)):
            if cell := cells.get((row, column)):
                _draw_cell(canvas, layout, cell, column + 1, below, small, seen, scale)
    canvas.text(layout.caption, layout.size[0] / 2, 0.1, 9, "md", GREY)
    return canvas


@dataclass(frozen=True)
class _Layout:
    """The places of all parts, in inches."""

    size: tuple[float, float]
    width: float
    height: float
    column: float
    head: float
    band: float
    headings: list[tuple[str, ...]]
    titles: list[str]
    caption: str

    @classmethod
    def of(
        cls,
        image: Image.Image,
        rows: Sequence[str],
        columns: Sequence[Column],
        cells: Mapping[tuple[int, int], Cell],
        caption: str,
    ) -> _Layout:
        ratio = image.width / image.height
        width = min(2.9 * ratio**0.5, 4.5, 4.5 * ratio)  # about the same area for every shape
        height, column = width / ratio, max(width, _LEAST)
        across = 2 * _MARGIN + (1 + len(columns)) * (column + _GAP) - _GAP
        headings: list[tuple[str, ...]] = [("the image",)]
        headings += [
            (wrapped(item.title, column, 12, 1), *wrapped(item.shows, column, 9, 2).splitlines())
            for item in columns
        ]
        titles = [wrapped(title, across - 2 * _MARGIN, 11, 2) for title in rows]
        below = max((len(_lines(cell, column)) for cell in cells.values()), default=0)
        tall = max((title.count("\n") + 1 for title in titles), default=1)
        band = _TITLE * tall + height + 0.1 + _BAR + 0.2 + _LINE * below + 0.2
        caption = wrapped(caption, across - 2 * _MARGIN, 9, 4)
        head = _MARGIN + 0.3 + _LINE * max(len(heading) - 1 for heading in headings)
        foot = 0.15 + _LINE * (caption.count("\n") + 1)
        return cls(
            (across, head + len(rows) * band + foot),
            width,
            height,
            column,
            head,
            band,
            headings,
            titles,
            caption,
        )

    @property
    def indent(self) -> float:
        """The room beside an image that is narrower than its column."""
        return (self.column - self.width) / 2

    def left(self, column: int) -> float:
        return _MARGIN + column * (self.column + _GAP)

    def middle(self, column: int) -> float:
        return self.left(column) + self.column / 2

    def top(self, row: int) -> float:
        return self.size[1] - self.head - row * self.band


def _lines(cell: Cell, width: float) -> list[str]:
    """Return the lines of text below a map; the first is the verdict."""
    verdict = f"{cell.verdict.capitalize()} than random patches" if cell.verdict else ""
    texts = [wrapped(verdict, width / 1.12, 9, 2)]  # bold letters are wider
    texts += [wrapped(text, width, 9, 5) for text in (cell.numbers, cell.note)]
    return [line for text in texts for line in text.splitlines()]


def _draw_cell(
    canvas: Canvas,
    layout: _Layout,
    cell: Cell,
    column: int,
    top: float,
    small: Image.Image,
    seen: ImageView,
    scale: Scale,
) -> None:
    """Draw a map over the image, its colours, and the text below it."""
    colours = colour_scale(cell.patches, scale)
    heatmap = seen.project(cell.patches.float().cpu(), smooth=True)
    overlay = overlay_image(small, heatmap, colours.name, scale=(colours.low, colours.high))
    left = layout.left(column) + layout.indent
    canvas.image.paste(overlay, canvas.place(left, top))
    below = top - layout.height - 0.08
    start, end = canvas.place(left, below), canvas.place(left + layout.width, below - _BAR)
    ramp = np.linspace(colours.low, colours.high, end[0] - start[0], dtype=np.float32)[None]
    strip = colours.picture(np.repeat(ramp, end[1] - start[1], axis=0))
    paper = Image.new("RGB", strip.size, "white")
    canvas.image.paste(Image.blend(paper, strip, OPACITY), start)
    ImageDraw.Draw(canvas.image).rectangle((*start, *end), outline="black")
    text = below - _BAR - 0.04
    canvas.text(f"{colours.low:.2g}", left, text, 8, "la", GREY)
    canvas.text(f"{colours.high:.2g}", left + layout.width, text, 8, "ra", GREY)
    unit = wrapped(" ".join(cell.unit.split()), layout.width - 1, 8, 1)
    canvas.text(unit, left + layout.width / 2, text, 8, "ma", GREY)
    text -= 0.2
    for number, line in enumerate(_lines(cell, layout.column)):
        is_verdict = bool(cell.verdict) and number == 0
        colour = _COLOURS[cell.verdict] if is_verdict else "black"
        canvas.text(line, layout.left(column), text - number * _LINE, 9, "la", colour, is_verdict)
