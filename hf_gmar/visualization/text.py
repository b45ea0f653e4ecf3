"""Texts of figures: wrapped by their measured width, so that none is cut or overlaps another."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

_ROUNDING = 1.05  # a drawn text is up to this much wider, as its letters are fitted to the dots
_ELLIPSIS = "…"


def wrapped(text: str, width: float, size: float, lines: int = 3) -> str:
    """Wrap a label to at most ``lines`` lines of ``width`` inches, and escape its dollar signs.

    A word that is wider than a line is broken, after a hyphen if there is one. Text beyond the last
    line becomes an ellipsis. ``size`` is the font size in points.

    Example:
        >>> print(wrapped("German shepherd, alsatian", 1.0, 10))
        German
        shepherd,
        alsatian
    """
    filled: list[str] = []
    for line in _lines(text.split(), width, size):
        if len(filled) == lines:
            filled[-1] = _shortened(filled[-1], width, size)
            break
        filled.append(line)
    return escape_dollars("\n".join(filled))


def _lines(words: Sequence[str], width: float, size: float) -> Iterator[str]:
    line = ""
    for whole in words:
        word = whole
        if line and width_of(f"{line} {word}", size) <= width:
            line = f"{line} {word}"
            continue
        if line and width_of(word, size) > width:
            word = f"{line} {word}"
        elif line:
            yield line
        while width_of(word, size) > width and len(word) > 1:
            fitting = _fitting(word, width, size)
            hyphen = word.rfind("-", fitting // 2, fitting) + 1
            yield word[: hyphen or fitting].rstrip()
            word = word[hyphen or fitting :].lstrip()
        line = word
    if line:
        yield line


def _shortened(line: str, width: float, size: float) -> str:
    """End a line with an ellipsis."""
    room = width - width_of(_ELLIPSIS, size)
    return line[: _fitting(line, room, size)].rstrip() + _ELLIPSIS


def _fitting(text: str, width: float, size: float) -> int:
    """Return how many letters fit, at least one."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if width_of(text[:middle], size) <= width else (low, middle - 1)
    return low


@functools.lru_cache(maxsize=8192)
def width_of(text: str, size: float) -> float:
    """Return the width of a line in inches."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        width, *_ = text_to_path.get_text_width_height_descent(
            text, FontProperties(size=size), ismath=False
        )
    return float(width) / 72 * _ROUNDING


def legend_columns(labels: Sequence[str], width: float, size: float) -> int:
    """Return how many columns of a legend fit into the width, at least one."""
    around = 5.5 * size / 72  # the mark, and the room around it
    for columns in range(len(labels), 1, -1):
        parts = np.array_split(np.array(labels, dtype=object), columns)  # as matplotlib does
        needed = sum(max(width_of(label, size) for label in part) + around for part in parts)
        if needed <= width:
            return columns
    return 1


def escape_dollars(text: str) -> str:
    """Escape "$" in a label, so that matplotlib does not read a formula."""
    return text.replace("$", r"\$")
