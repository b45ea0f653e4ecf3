"""The explanations of one image in one picture: a row for each class, a column for each method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from hf_gmar.models.image_view import ImageView
from hf_gmar.visualization.check_figure import VERDICT_COLOURS
from hf_gmar.visualization.overlay import (
    THIN,
    Scale,
    colour_scale,
    overlay_image,
)
from hf_gmar.visualization.picture import (
    BAR,
    GREY,
    Canvas,
    dots,
    draw_horizontal_bar,
    enlarged,
)
from hf_gmar.visualization.text import wrapped

# Inches.
_MARGIN = 0.2
_GAP = 0.3  # between columns
_LEAST = 2.3  # width of a column: the text below a map must fit
_LINE = 0.165  # height of a line of 9 points
_LEAST_BAR = 0.9  # its width: the numbers below must fit
_TITLE = 0.3  # above the images of a row

_BOLD = 1.2  # how much wider bold letters are


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
        patches: relevance of each patch or of finer cells, (rows, columns); ``None`` for a method
            without a map.
        unit: the meaning of a value.
        verdict: ``"better"``, ``"no better"`` or ``"worse"`` than random patches; empty if the map
            was not checked. It is the colour of the first text.
        texts: what is known of the map.
    """

    patches: Tensor | None
    unit: str = ""
    verdict: str = ""
    texts: tuple[str, ...] = ()


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
    small = enlarged(image, layout.width, layout.height)
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
                corner = layout.left(column + 1), below
                _draw_cell(canvas, layout, cell, corner, small, seen, scale)
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
        width, height = max(width, THIN), max(width / ratio, THIN)
        column = max(width, _LEAST)
        across = 2 * _MARGIN + (1 + len(columns)) * (column + _GAP) - _GAP
        headings: list[tuple[str, ...]] = [("the image",)]
        headings += [
            (wrapped(item.title, column, 12, 1), *wrapped(item.shows, column, 9, 2).splitlines())
            for item in columns
        ]
        room = (across - 2 * _MARGIN) / _BOLD
        titles = [wrapped(title, room, 12, 2) for title in rows]
        below = max((len(_lines(cell, column)) for cell in cells.values()), default=0)
        tall = max((title.count("\n") + 1 for title in titles), default=1)
        band = _TITLE * tall + height + 0.1 + BAR + 0.2 + _LINE * below + 0.2
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


def _lines(cell: Cell, width: float) -> list[tuple[str, bool]]:
    """Return the lines of text below a map, each with whether it belongs to the verdict."""
    lines = []
    for number, text in enumerate(cell.texts):
        is_verdict = bool(cell.verdict) and number == 0
        room = width / _BOLD if is_verdict else width
        lines += [(line, is_verdict) for line in wrapped(text, room, 9, 5).splitlines()]
    return lines


def _draw_cell(
    canvas: Canvas,
    layout: _Layout,
    cell: Cell,
    corner: tuple[float, float],
    small: Image.Image,
    seen: ImageView,
    scale: Scale,
) -> None:
    """Draw a map over the image, its colours, and the text below it."""
    left, top = corner[0] + layout.indent, corner[1]
    below = top - layout.height - 0.08
    if cell.patches is not None:
        colours = colour_scale(cell.patches, scale)
        heatmap = seen.project(cell.patches.float().cpu(), smooth=True)
        overlay = overlay_image(small, heatmap, colours.name, scale=(colours.low, colours.high))
        canvas.image.paste(overlay, canvas.place(left, top))
        bar = max(layout.width, _LEAST_BAR)
        start = corner[0] + (layout.column - bar) / 2
        draw_horizontal_bar(canvas, colours, cell.unit, (start, below), bar)
    for number, (line, is_verdict) in enumerate(_lines(cell, layout.column)):
        colour = VERDICT_COLOURS[cell.verdict] if is_verdict else "black"
        lower = below - BAR - 0.24 - number * _LINE
        canvas.text(line, corner[0], lower, 9, "la", colour, is_verdict)
