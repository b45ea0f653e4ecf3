"""What a figure shows: its texts with their places."""

from __future__ import annotations

import itertools
import warnings
from typing import Any
from unittest.mock import patch

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

_DOTS = 1.0  # edges of letters may touch


def drawn_texts(figure: Figure) -> list[Text]:
    """Lay the figure out as it is saved, and return each text that is drawn."""
    texts: list[Text] = []
    draw = Text.draw

    def noted(text: Text, *args: Any, **kwargs: Any) -> None:
        if text.get_visible() and text.get_text().strip() and text not in texts:
            texts.append(text)
        draw(text, *args, **kwargs)

    FigureCanvasAgg(figure)
    with warnings.catch_warnings(), patch.object(Text, "draw", noted):
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        figure.draw_without_rendering()
    return texts


def text_problems(figure: Figure) -> list[str]:
    """Say which texts leave the canvas, and which lie on each other."""
    texts = drawn_texts(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        boxes: list[Any] = [text.get_window_extent() for text in texts]
    problems = [
        f"cut: {text.get_text()!r} at {box.extents.round()} in {figure.bbox.size}"
        for text, box in zip(texts, boxes, strict=True)
        if box.x0 < -_DOTS
        or box.y0 < -_DOTS
        or box.x1 > figure.bbox.x1 + _DOTS
        or box.y1 > figure.bbox.y1 + _DOTS
    ]
    for (text, box), (other, below) in itertools.combinations(zip(texts, boxes, strict=True), 2):
        across = min(box.x1, below.x1) - max(box.x0, below.x0)
        down = min(box.y1, below.y1) - max(box.y0, below.y0)
        if across > _DOTS and down > _DOTS:
            problems.append(f"over each other: {text.get_text()!r} and {other.get_text()!r}")
    return problems
