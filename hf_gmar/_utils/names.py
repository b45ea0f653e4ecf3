"""Names that must differ from each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


def make_unique(names: Iterable[str], form: str = "{}#{}") -> list[str]:
    """Give the second of a name, and those after it, a number.

    Args:
        names: any names; the first of each stays as it is.
        form: how a name and its number are written.

    Example:
        >>> make_unique(["a.jpg", "b.jpg", "a.jpg", "a.jpg"])
        ['a.jpg', 'b.jpg', 'a.jpg#2', 'a.jpg#3']
    """
    names = list(names)
    taken, counts = set(names), Counter[str]()
    unique = []
    for name in names:
        counts[name] += 1
        result = name if counts[name] == 1 else form.format(name, counts[name])
        while counts[name] > 1 and result in taken:  # another may be called that
            counts[name] += 1
            result = form.format(name, counts[name])
        unique.append(result)
        taken.add(result)
    return unique
