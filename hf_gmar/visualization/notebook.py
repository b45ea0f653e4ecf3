"""Pictures in notebooks."""

from __future__ import annotations

import base64
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from hf_gmar._utils.html import html_text

_DOTS = 100  # per inch of a figure: as wide as a notebook's page, or a bit wider


class NotebookFigure(Figure):
    """A matplotlib figure that a notebook shows, whether pyplot is imported or not.

    Notebooks learn from pyplot how to show a plain ``Figure``; before, they print its size.

    Names in a figure never go to LaTeX, which runs commands and which matplotlib's settings may ask
    for.
    """

    def draw(self, renderer: Any) -> None:
        """Draw the figure with matplotlib's own letters."""
        with mpl.rc_context({"text.usetex": False}):
            for text in self.findobj(Text):
                text.set_usetex(False)
            super().draw(renderer)

    def _repr_png_(self) -> bytes:
        return _png(self)


def html_image(picture: Figure | Image.Image, text: str) -> str:
    """Return a picture as an HTML image with its data.

    Args:
        picture: a figure, drawn with 100 dots per inch, or an image, of which each pixel stays.
        text: what is shown where there are no pictures.

    Example:
        >>> html_image(Image.new("RGB", (2, 1)), "<scene>")[:68]
        '<img alt="&lt;scene&gt;" style="max-width: 100%" src="data:image/png'
    """
    data = base64.b64encode(_png(picture)).decode()
    source = f"data:image/png;base64,{data}"
    return f'<img alt="{html_text(text, 1000)}" style="max-width: 100%" src="{source}">'


def write_png(figure: Figure, file: Path | BytesIO, dots: int) -> None:
    """Write a figure as a PNG with ``dots`` per inch."""
    with warnings.catch_warnings():
        # A letter that the font lacks is drawn as a box; the saved numbers have the full label.
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        figure.savefig(file, dpi=dots, format="png")


def _png(picture: Figure | Image.Image) -> bytes:
    buffer = BytesIO()
    if isinstance(picture, Figure):
        write_png(picture, buffer, _DOTS)
    else:
        picture.save(buffer, "PNG", compress_level=1)  # a third of the time for some more bytes
    return buffer.getvalue()
