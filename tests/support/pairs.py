"""Choose few rows of a product that still hold each pair of values, or each value some times."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, str]
"""The value of each factor, by the factor's name."""


def covering_rows(rows: Sequence[Row]) -> set[int]:
    """The places of rows that together hold every pair of values that stands in any row.

    Rows that hold many new pairs are taken first, in an order that depends on the rows alone, so
    that every process of a run chooses the same.

    Example:
        >>> product = [{"a": a, "b": b, "c": c} for a in "012" for b in "012" for c in "012"]
        >>> 9 <= len(covering_rows(product)) < 14
        True
    """
    pairs = [set(itertools.combinations(sorted(row.items()), 2)) for row in rows]
    order = sorted(range(len(rows)), key=lambda place: _digest(rows[place]))
    missing = set().union(*pairs) if pairs else set()
    chosen: set[int] = set()
    for needed in range(max(map(len, pairs), default=0), 0, -1):
        for place in order:
            if len(pairs[place] & missing) >= needed:
                chosen.add(place)
                missing -= pairs[place]
    if not missing and all(len(row) < 2 for row in rows):
        return set(range(len(rows)))  # one factor has no pairs
    return chosen


def sampled_rows(rows: Sequence[Row], times: int) -> set[int]:
    """The places of rows that together hold each value of each factor so many times, if they can.

    A row is taken as long as each of its values is wanted, then as long as any is, in an order
    that depends on the rows alone.

    Example:
        >>> product = [{"a": a, "b": b} for a in "01234" for b in "01234"]
        >>> 10 <= len(sampled_rows(product, 2)) < 16
        True
    """
    values = [set(row.items()) for row in rows]
    order = sorted(range(len(rows)), key=lambda place: _digest(rows[place]))
    counts: Counter[tuple[str, str]] = Counter()
    chosen: set[int] = set()
    for enough in (all, any):
        for place in order:
            wanted = enough(counts[value] < times for value in values[place])
            if wanted and place not in chosen:
                chosen.add(place)
                counts.update(values[place])
    return chosen


def factors_of(parameters: Mapping[str, Any]) -> dict[str, str]:
    """The factors of a test by its parameters; a row of a table has one for each of its fields.

    Example:
        >>> factors_of({"engine": "dense", "number": 3})
        {'engine': 'dense', 'number': '3'}
    """
    factors: dict[str, str] = {}
    for name, value in parameters.items():
        fields = getattr(value, "_asdict", None)
        if fields is not None and not hasattr(value, "name"):
            factors |= factors_of(fields())
        else:
            factors[name] = str(getattr(value, "name", value))
            # An address would make every process choose rows of its own.
            assert " at 0x" not in factors[name], f"{name}={factors[name]} has no name"
    return factors


def _digest(row: Row) -> bytes:
    return hashlib.sha256(repr(sorted(row.items())).encode()).digest()
