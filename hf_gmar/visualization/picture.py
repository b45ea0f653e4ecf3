"""An image beside its overlay, drawn by Pillow: the look of the figure in a tenth of the time."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from hf_gmar.models.image_view import ImageView
from hf_gmar.visualization.overlay import (
    OPACITY,
    UNSEEN,
    ColourScale,
    Layout,
    Scale,
    colour_scale,
    layout_of,
    overlay_image,
)
from hf_gmar.visualization.text import wrapped

DOTS = 120  # per inch: a photo of 500 pixels is not enlarged, and a PNG is written quickly

GREY = (89, 89, 89)
BAR = 0.1  # inches: height of a horizontal colour bar
_Box = tuple[float, float, float, float]


def overlay_picture(
    image: Image.Image,
    patches: Tensor,
    title: str,
    caption: str = "",
    view: ImageView | None = None,
    unit: str = "relevance",
    scale: Scale = "max",
    per: str = "patch",
) -> Image.Image:
    """Draw the image beside a copy of it under its heatmap, as ``overlay_figure`` does.

    Args:
        image: see :func:`~hf_gmar.visualization.overlay_figure`, also for the other arguments.
        patches: relevance of each patch or of finer cells, (rows, columns).
        title: the explained class, for example with its probability.
        caption: the lines below the picture.
        view: the part of the image that the patches cover.
        unit: the meaning of a value.
        scale: the values at the ends of the colours.
        per: what a value belongs to.

    Returns:
        An RGB image with 120 dots per inch of the figure.

    Raises:
        InputError: the view and the image have different sizes.

    Example:
        >>> import torch
        >>> overlay_picture(Image.new("RGB", (32, 32)), torch.rand(4, 4), "cat").mode
        'RGB'
    """
    return draw(image, patches, title, caption, view, unit, scale, per).image


def draw(
    image: Image.Image,
    patches: Tensor,
    title: str,
    caption: str,
    view: ImageView | None,
    unit: str,
    scale: Scale,
    per: str = "patch",
) -> Canvas:
    """Draw the picture; the canvas knows where its texts are."""
    view = view or ImageView.whole(image)
    layout = layout_of(image, title, caption, patches, view, unit, per)
    colours = colour_scale(patches, scale)
    canvas = Canvas.of(layout)
    small = enlarged(image, layout.width, layout.height)
    seen = view.scaled(small.height, small.width)
    canvas.image.paste(small, canvas.place(layout.plain, layout.bottom + layout.height))
    heatmap = seen.project(patches.float().cpu(), smooth=True)
    overlay = overlay_image(small, heatmap, colours.name, scale=(colours.low, colours.high))
    canvas.image.paste(overlay, canvas.place(layout.overlay, layout.bottom + layout.height))
    middle = layout.column / 2 + 0.15
    top = layout.centre + layout.height / 2 + 0.08
    canvas.text("the image", middle, top, 13, "md")
    canvas.text(layout.title, middle + layout.column + 0.25, top, 13, "md")
    canvas.text(layout.caption, layout.size[0] / 2, 0.08, 9, "md", GREY)
    if view.unexplained:
        _draw_legend(canvas, layout)
    _draw_bar(canvas, layout, colours)
    return canvas


@dataclass(frozen=True)
class Canvas:
    """A picture in inches from its lower left corner, with the boxes of its texts in dots."""

    image: Image.Image
    boxes: list[tuple[str, _Box]] = field(default_factory=list)

    @classmethod
    def of(cls, layout: Layout) -> Canvas:
        """Return a white canvas."""
        width, height = map(dots, layout.size)
        return cls(Image.new("RGB", (width, height), "white"))

    def place(self, left: float, top: float) -> tuple[int, int]:
        """Convert inches to dots from the upper left corner."""
        return dots(left), self.image.height - dots(top)

    def text(
        self,
        text: str,
        x: float,
        y: float,
        size: float,
        anchor: str,
        colour: object = "black",
        bold: bool = False,
    ) -> None:
        """Draw lines of text at a place; ``anchor`` is one of Pillow, for a single line."""
        font, pen = _font(size, bold), ImageDraw.Draw(self.image)
        step = dots(size * 1.2 / 72)
        across, down = self.place(x, y)
        lines = text.replace(r"\$", "$").splitlines()
        for number, line in enumerate(reversed(lines) if anchor[1] == "d" else lines):
            place = across, down + (-number if anchor[1] == "d" else number) * step
            pen.text(place, line, fill=colour, font=font, anchor=anchor)  # type: ignore[arg-type]
            self.boxes.append((line, pen.textbbox(place, line, font=font, anchor=anchor)))

    def upward(self, text: str, x: float, y: float, size: float) -> None:
        """Draw lines of text that run upwards, centred at a place."""
        font, lines = _font(size), text.replace(r"\$", "$").splitlines()
        step = dots(size * 1.2 / 72)
        pen = ImageDraw.Draw(self.image)
        length = max(round(pen.textlength(line, font=font)) for line in lines)
        strip = Image.new("RGB", (length + 2, step * len(lines) + step // 2), "white")
        for number, line in enumerate(lines):
            place = strip.width / 2, step * (number + 0.75)
            ImageDraw.Draw(strip).text(place, line, fill="black", font=font, anchor="mm")
        turned = strip.transpose(Image.Transpose.ROTATE_90)
        across, down = self.place(x, y)
        corner = across, down - turned.height // 2
        self.image.paste(turned, corner)
        box = *corner, corner[0] + turned.width, corner[1] + turned.height
        self.boxes.append((" ".join(lines), box))


def _draw_bar(canvas: Canvas, layout: Layout, colours: ColourScale) -> None:
    """Draw the colours of the overlay with their values."""
    pen = ImageDraw.Draw(canvas.image)
    left, top = canvas.place(layout.bar, layout.centre + layout.length / 2)
    right, bottom = left + dots(0.16), top + dots(layout.length)
    ramp = np.linspace(colours.high, colours.low, bottom - top, dtype=np.float32)[:, None]
    strip = colours.picture(np.repeat(ramp, right - left, axis=1))
    paper = Image.new("RGB", strip.size, "white")
    canvas.image.paste(Image.blend(paper, strip, OPACITY), (left, top))
    pen.rectangle((left, top, right, bottom), outline="black")
    ticks: NDArray[np.float64] = MaxNLocator(9, steps=[1, 2, 5, 10]).tick_values(  # type: ignore[assignment]
        colours.low, colours.high
    )
    step = abs(ticks[1] - ticks[0])
    widest = 0.0
    for value in ticks[(ticks >= colours.low - step / 1e6) & (ticks <= colours.high + step / 1e6)]:
        share = (value - colours.low) / (colours.high - colours.low)
        inch = layout.centre + (share - 0.5) * layout.length
        down = canvas.place(0, inch)[1]
        pen.line((right, down, right + dots(0.04), down), fill="black")
        text = _tick(value, step)
        canvas.text(text, layout.bar + 0.16 + 0.07, inch, 9, "lm")
        widest = max(widest, pen.textlength(text, font=_font(9)) / DOTS)
    canvas.upward(layout.unit, layout.bar + 0.16 + 0.1 + widest, layout.centre, 9)


def draw_horizontal_bar(
    canvas: Canvas,
    colours: ColourScale,
    unit: str,
    corner: tuple[float, float],
    width: float,
    opacity: float = OPACITY,
) -> None:
    """Draw the colours of a map with the values at their ends and their unit below.

    Args:
        canvas: the picture.
        colours: the colours of the map.
        unit: the meaning of a value.
        corner: left and top edge of the bar, in inches.
        width: its width in inches.
        opacity: opacity of the map over its image.
    """
    left, top = corner
    start, end = canvas.place(left, top), canvas.place(left + width, top - BAR)
    ramp = np.linspace(colours.low, colours.high, end[0] - start[0], dtype=np.float32)[None]
    strip = colours.picture(np.repeat(ramp, end[1] - start[1], axis=0))
    paper = Image.new("RGB", strip.size, "white")
    canvas.image.paste(Image.blend(paper, strip, opacity), start)
    ImageDraw.Draw(canvas.image).rectangle((*start, *end), outline="black")
    text = top - BAR - 0.04
    canvas.text(f"{colours.low:.2g}", left, text, 8, "la", GREY)
    canvas.text(f"{colours.high:.2g}", left + width, text, 8, "ra", GREY)
    meaning = wrapped(" ".join(unit.split()), width - 1, 8, 1)
    canvas.text(meaning, left + width / 2, text, 8, "ma", GREY)


def _tick(value: float, step: float) -> str:
    value = 0.0 if abs(value) < step / 1e6 else value
    return f"{value:.6g}"


def _draw_legend(canvas: Canvas, layout: Layout) -> None:
    """Say what the grey part of the overlay is."""
    words = "not seen by the model"
    length = ImageDraw.Draw(canvas.image).textlength(words, font=_font(10)) / DOTS
    left = layout.overlay + layout.width / 2 - (length + 0.35) / 2
    middle = layout.bottom - 0.16
    start, top = canvas.place(left, middle + 0.05)
    swatch = (start, top, start + dots(0.25), top + dots(0.1))
    ImageDraw.Draw(canvas.image).rectangle(swatch, fill=UNSEEN)
    canvas.text(words, left + 0.35, middle, 10, "lm")


def dots(inches: float) -> int:
    """Convert inches to dots."""
    return round(inches * DOTS)


def enlarged(image: Image.Image, width: float, height: float) -> Image.Image:
    """Return an RGB copy of a size in inches; a line of an image is one dot high.

    Example:
        >>> enlarged(Image.new("RGB", (3000, 1)), 4.5, 0.0015).size
        (540, 1)
    """
    size = max(1, dots(width)), max(1, dots(height))
    return image.convert("RGB").resize(size, reducing_gap=2.0)


@functools.lru_cache(maxsize=8)
def _font(size: float, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return the font of matplotlib's figures, of ``size`` points."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    place = Path(mpl.get_data_path(), "fonts", "ttf", name)
    return ImageFont.truetype(place, round(size * DOTS / 72))
