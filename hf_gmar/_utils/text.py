"""Names from outside made safe to show: in a terminal, in Markdown and HTML, and in figures.

Names of classes, images and models may hold anything: escape sequences that a terminal obeys, marks
that reverse the order of a line, tags, links. Every writer passes them through this module.
"""

from __future__ import annotations

import re

# Letters that are not seen, yet change what is: written as numbers, so that none stands here.
_HIDDEN = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # control characters: a terminal obeys them
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # order of the letters in a line
    "\u00ad\u180e\u200b\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb"  # without width
    "\u2028\u2029"  # line breaks
    "\ud800-\udfff"  # halves of characters: bytes of a file name that is not UTF-8
    "\U000e0000-\U000e007f"  # invisible ASCII
    "]"
)


def visible(text: object, keep: str = "") -> str:
    r"""Show control and other hidden characters as Python's escapes.

    Joiners of letters stay: emoji and some scripts need them.

    Args:
        text: any text, or a path.
        keep: hidden characters that stay, such as the line breaks of a text of several lines.

    Example:
        >>> print(visible("\x1b]52;c;eA==\x07 caf\xe9\n"))
        \x1b]52;c;eA==\x07 café\n
    """
    return _HIDDEN.sub(lambda found: _shown(found[0], keep), str(text))


def _shown(letter: str, keep: str) -> str:
    return letter if letter in keep else letter.encode("unicode_escape").decode()


def brief(text: object, most: int = 60) -> str:
    r"""Return a text in one line of at most ``most`` letters; hidden characters become escapes.

    Example:
        >>> print(brief("a\x1b\n b"), brief("heart" * 9, 8))
        a\x1b b hearthe…
    """
    line = " ".join(visible(text, keep="\n\t").split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def counted(count: int, noun: str) -> str:
    """Return a number with its noun.

    Example:
        >>> counted(1, "image"), counted(2, "image")
        ('1 image', '2 images')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"


def encodable(text: str) -> str:
    r"""Escape what UTF-8 can't hold: the bytes of a file name in another encoding.

    Python reads such a byte as half of a character, and no file, page or archive may hold that.

    Example:
        >>> print(encodable("caf\udce9.jpg"))  # the name of a file from a system of Latin-1
        caf\udce9.jpg
    """
    return text.encode("utf-8", "backslashreplace").decode()


def markdown(text: str) -> str:
    r"""Escape a text for Markdown, in one line; also for HTML that is rendered from it.

    Example:
        >>> print(markdown("a_b* <i>|"))
        a\_b\* \<i\>\|
    """
    line = " ".join(visible(text, keep="\n\t").split())
    # Characters that are common in names and harmless within a line are not escaped. GitHub makes
    # links of addresses without any marks.
    escaped = re.sub(r"([!\"#$&*<>@\[\\\]^_`{|}~]|:(?=/)|(?<=www)\.)", r"\\\1", line)
    # At the start, these would be a list, a rule, or make the line above a heading.
    return re.sub(r"^(\d*)([-+=.)])(?= |[-= ]*$)", r"\1\\\2", escaped)


def code_span(text: str) -> str:
    """Quote a text as code in a line of Markdown, whatever backticks it has.

    Example:
        >>> print(code_span("a"), code_span("a`b"), code_span("`"))
        `a` ``a`b`` `` ` ``
    """
    line = visible(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    # A reader takes one space off both ends, unless there is nothing else.
    touches = line.strip(" ") and (line[0] in "` " or line[-1] in "` ")
    room = " " if touches or not line else ""
    return f"{fence}{room}{line}{room}{fence}"


def escape_dollars(text: str) -> str:
    """Escape "$" in a label, so that matplotlib does not read a formula."""
    return text.replace("$", r"\$")
