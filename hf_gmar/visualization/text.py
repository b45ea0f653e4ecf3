"""Texts of figures: wrapped by their measured width, so that none is cut or overlaps another."""

from __future__ import annotations

import functools
import warnings
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from hf_gmar._utils.text import escape_dollars, visible

_ROUNDING = 1.05  # a drawn text is up to this much wider, as its letters are fitted to the dots
_ELLIPSIS = "…"
_LONGEST = 1000  # letters of a text that is shortened: no figure has room for more


def wrapped(text: str, width: float, size: float, lines: int = 3) -> str:
    """Wrap a label to at most ``lines`` lines of ``width`` inches, and escape its dollar signs.

    A word that is wider than a line is broken, after a hyphen if there is one. Text beyond the last
    line becomes an ellipsis; but what follows the last two spaces stays, such as the probability
    after a label, and the text before it is shortened. Hidden characters become escapes. ``size``
    is the font size in points.

    Example:
        >>> print(wrapped("German shepherd, alsatian", 1.0, 10))
        German
        shepherd,
        alsatian
    """
    shown = visible(text, keep="\n\t")
    filled = _filled(shown.split(), width, size, lines)
    body, gap, end = shown.strip().rpartition("  ")
    if len(filled) > lines and gap:
        filled = _shortened_before(body.split(), end.split(), width, size, lines)
    if len(filled) > lines:
        filled = [*filled[: lines - 1], _shortened(filled[lines - 1], width, size)]
    return escape_dollars("\n".join(filled))


def _filled(words: Sequence[str], width: float, size: float, lines: int) -> list[str]:
    """Return the lines, or one more than ``lines`` if the words need more."""
    return list(islice(_lines(words, width, size), lines + 1))


def _shortened_before(
    body: Sequence[str], end: Sequence[str], width: float, size: float, lines: int
) -> list[str]:
    """Return the lines of the longest beginning of the body, an ellipsis, and the end.

    An end that leaves no line to the body is shortened as well.
    """
    most = max(lines - 1, 1)
    tail = _filled(end, width, size, most)
    if len(tail) > most:
        tail = [*tail[: most - 1], _shortened(tail[most - 1], width, size)]
    text, words = " ".join(body), " ".join(tail).split()

    def filled(count: int) -> list[str]:
        beginning = text[:count].rstrip() + _ELLIPSIS
        return _filled([*beginning.split(), *words], width, size, lines)

    counts = range(min(len(text), _LONGEST) + 1)
    count = bisect_left(counts, 1, key=lambda count: len(filled(count)) > lines) - 1
    return filled(max(count, 0))


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
