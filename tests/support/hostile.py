"""Names that try to be more than names; none has a slash, so that files can have them."""

from __future__ import annotations

import unicodedata

MARKUP = "<img src=x onerror=alert(1)>[a](javascript:a)![b](http:a)`<b>`|**c**"
ESCAPES = "\x1b]52;c;eA==\x07\x1b]8;;http:a\x1b\\d\x1b[2J\x9b31m\u202egnp.\u2066"
LINES = "e\r\n# f\n- g\u2028error: h"
COLOURS = "[red]i[bold blue] :cat: $x$"

HOSTILE = (MARKUP, ESCAPES, LINES, COLOURS, MARKUP + ESCAPES + LINES + COLOURS)
"""Tags, links and code; escape sequences and marks of direction; lines; rich's own markup."""


def hidden_in(text: str) -> set[str]:
    """The control characters, line separators, halves of characters and marks of direction."""
    return {
        letter
        for letter in text
        if unicodedata.category(letter) in {"Cc", "Zl", "Zp", "Cs"}
        or unicodedata.bidirectional(letter)
        in {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    }
