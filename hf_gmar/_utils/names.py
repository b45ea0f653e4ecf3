"""Unique names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


def make_unique(names: Iterable[str], form: str = "{}#{}") -> list[str]:
    """Add a number to each repeated name.

    Args:
        names: any names; the first occurrence of a name does not change.
        form: format of a name with its number.

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
        while counts[name] > 1 and result in taken:  # another name may be the same text
            counts[name] += 1
            result = form.format(name, counts[name])
        unique.append(result)
        taken.add(result)
    return unique
