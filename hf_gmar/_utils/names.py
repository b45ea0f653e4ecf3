"""Unique names, also as file names of a length that file systems take."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import accumulate


def make_unique(
    names: Iterable[str], form: str = "{}#{}", same: Callable[[str], str] = str
) -> list[str]:
    """Add a number to each repeated name.

    Args:
        names: any names; the first occurrence of a name does not change.
        form: format of a name with its number.
        same: maps names that must not stand side by side to the same text.

    Example:
        >>> make_unique(["a.jpg", "b.jpg", "a.jpg", "a.jpg"])
        ['a.jpg', 'b.jpg', 'a.jpg#2', 'a.jpg#3']
        >>> make_unique(["a", "A"], same=str.casefold)
        ['a', 'A#2']
    """
    names = list(names)
    taken, counts = set(map(same, names)), Counter[str]()
    unique = []
    for name in names:
        key = same(name)
        counts[key] += 1
        result = name if counts[key] == 1 else form.format(name, counts[key])
        while counts[key] > 1 and same(result) in taken:  # another name may be the same text
            counts[key] += 1
            result = form.format(name, counts[key])
        unique.append(result)
        taken.add(same(result))
    return unique


_LONGEST_NAME = 250  # bytes: file systems take 255


def file_name(stem: str, ending: str) -> str:
    """Join a file's stem and its ending; a stem that makes the name too long is shortened.

    Example:
        >>> file_name("cat", ".6-heart.png")
        'cat.6-heart.png'
    """
    return shorten(stem, _LONGEST_NAME - _size(ending)) + ending


def slug(text: str, size: int) -> str:
    """Convert a text to a part of a file name, of at most ``size`` bytes; different texts differ.

    Example:
        >>> slug("grad-sam-head_fusion=max", 60), slug("a b", 60)
        ('grad-sam-head_fusion=max', 'a-b~c8687a08')
    """
    plain = re.sub(r"[^\w.=+-]+", "-", text)
    return shorten(plain if plain == text else f"{plain}{_digest(text)}", size)


def shorten(text: str, size: int) -> str:
    """Shorten a text of more than ``size`` bytes, with a digest: different texts stay different."""
    digest = _digest(text)
    return text if _size(text) <= size else cut(text, size - len(digest)) + digest


def cut(text: str, size: int) -> str:
    """Return as many of the first characters as have ``size`` bytes in a file name.

    Example:
        >>> cut("视觉变换器", 10)
        '视觉变'
    """
    ends = accumulate(map(_size, text))
    return text[: sum(end <= size for end in ends)]


def _digest(text: str) -> str:
    return f"~{hashlib.sha256(_encoded(text)).hexdigest()[:8]}"


def _size(text: str) -> int:
    return len(_encoded(text))


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # the names of files may be no UTF-8
