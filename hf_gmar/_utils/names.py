"""Unique names, and names as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable


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


def encodable(text: str) -> str:
    r"""Escape what UTF-8 can't hold: the bytes of a file name in another encoding.

    Python reads such a byte as half of a surrogate pair, and no file, figure or page may hold that.

    Example:
        >>> print(encodable("caf\udce9.jpg"))  # the name of a file from a system of Latin-1
        caf\udce9.jpg
    """
    return text.encode("utf-8", "backslashreplace").decode()
