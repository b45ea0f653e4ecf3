"""Collects the values and curves in the rows of an evaluation, independent of their order."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, TypeAlias, TypeVar

import numpy as np

from hf_gmar._utils.stats import Array
from hf_gmar.errors import InputError
from hf_gmar.evaluation.report.results import Failure, Order

_TOO_LARGE = 2**1023  # for a float; JSON has whole numbers of any length

ORDERS: tuple[Order, ...] = ("morf", "lerf")

CurveKey: TypeAlias = tuple[str, Order, str]
"""Perturbation, order of the patches, method."""

Value = TypeVar("Value", float, Array)


@dataclass
class Columns:
    """The content of the rows.

    Attributes:
        values: values by image index, for each measure and method.
        curves: fractions and scores, (2, steps), by image index, for each curve.
        explained: indices of the images that at least one method explained.
        methods: all methods in the rows, including methods that always failed.
        failures: reasons by image index and method.
        keys: names of the images that are broken or on which a method failed.
    """

    values: dict[tuple[str, str], dict[int, float]] = field(default_factory=dict)
    curves: dict[CurveKey, dict[int, Array]] = field(default_factory=dict)
    explained: set[int] = field(default_factory=set)
    methods: set[str] = field(default_factory=set)
    failures: dict[tuple[int, str | None], str] = field(default_factory=dict)
    keys: dict[int, str] = field(default_factory=dict)
    _done: set[tuple[int, str]] = field(default_factory=set)

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]]) -> Columns:
        """Read each row once.

        Raises:
            InputError: see :func:`check_row`, or two rows contradict each other.
        """
        columns = cls()
        for row in rows:
            check_row(row)
            if row.get("error") is not None:
                columns._add_failure(row)
                columns.methods |= {row["method"]} - {None}
            else:
                columns._add(row)
        return columns

    def matrix(self, measure: str, methods: Iterable[str]) -> Array:
        """Return the values of a measure, (images, methods), NaN for missing values."""
        columns = [self.values.get((measure, method), {}) for method in methods]
        images = sorted(self.explained)
        return np.array([[column.get(image, np.nan) for column in columns] for image in images])

    def curve(self, key: CurveKey) -> tuple[Array, Array] | None:
        """Return the fractions of a curve, (steps,), and its scores, (images, steps), or NaN.

        The fractions are those of the first image. If another image has other fractions, because
        its number of patches differs, its scores are interpolated linearly.
        """
        curves = self.curves.get(key)
        if curves is None:
            return None
        fractions = curves[min(curves)][0]
        missing = np.full(len(fractions), np.nan)
        scores = [
            np.interp(fractions, *curves[image]) if image in curves else missing
            for image in sorted(self.explained)
        ]
        return fractions, np.stack(scores)

    def failed(self) -> tuple[Failure, ...]:
        """Return the failures that no other row corrects."""
        return tuple(
            Failure(image, self.keys[image], method, self.failures[image, method])
            for image, method in sorted(self.failures, key=lambda place: (place[0], place[1] or ""))
            if (
                image not in self.explained if method is None else (image, method) not in self._done
            )
        )

    def _add_failure(self, row: Mapping[str, Any]) -> None:
        place, reason = (row["index"], row["method"]), " ".join(str(row["error"]).split())
        # The minimum makes the choice between two reasons independent of their order.
        self.failures[place] = min(reason, self.failures.get(place, reason))
        key = str(row.get("key", row["index"]))
        self.keys[row["index"]] = min(key, self.keys.get(row["index"], key))

    def _add(self, row: Mapping[str, Any]) -> None:
        index, method = row["index"], row["method"]
        self.methods.add(method)
        self.explained.add(index)
        self._done.add((index, method))
        for measure, reason in (row.get("undefined") or {}).items():
            self._add_failure({**row, "method": f"{method}, {measure}", "error": reason})
        for measure, value in (row.get("values") or {}).items():
            if _is_number(value):
                column = self.values.setdefault((measure, method), {})
                _set(column, index, float(value), f"{measure} of {method}")
        for perturbation, curves in (row.get("curves") or {}).items():
            for order in ORDERS:
                scores = curves.get(order)
                if scores and all(map(_is_number, scores)):
                    fractions = row.get("fractions") or ()
                    self._add_curve((perturbation, order, method), index, fractions, scores)

    def _add_curve(self, key: CurveKey, index: int, fractions: Any, scores: Any) -> None:
        name = f"the curve of {key[2]} under {key[0]}"
        curve = np.array([fractions, scores], dtype=float)
        _set(self.curves.setdefault(key, {}), index, curve, name)


def check_row(row: object) -> None:
    """Check that a row has the form that :func:`~hf_gmar.evaluation.summarize` describes.

    Raises:
        InputError: a part of the row is missing or has another type.
    """
    if not isinstance(row, Mapping):
        raise InputError(f"a row must be an object with an index and a method, got {_short(row)}")
    index, method, error = row.get("index"), row.get("method"), row.get("error")
    named = isinstance(method, str) or (method is None and error is not None)
    if not isinstance(index, int) or isinstance(index, bool) or index < 0 or not named:
        raise InputError(
            "a row must have the index of its image and the label of its method, or no method and "
            f"an error; got index {_short(index)} and method {_short(method)}"
        )
    for name, needed, of_type in (
        ("key", "a text", str), ("error", "a text", str),
        ("values", "numbers by measure", Mapping), ("undefined", "texts by measure", Mapping),
        ("curves", "scores by perturbation", Mapping), ("fractions", "numbers", Sequence),
    ):  # fmt: skip
        if row.get(name) is not None and not isinstance(row[name], of_type):
            raise InputError(f"{name} of a row must be {needed}, got {_short(row[name])}")
    if error is None and row.get("values") is None and row.get("curves") is None:
        raise InputError("a row must have values or an error, and this one has neither")
    _check_numbers("values", (row.get("values") or {}).values())
    _check_curves(method, row.get("curves") or {}, row.get("fractions") or ())


def _check_curves(method: str | None, curves: Mapping[str, Any], fractions: Sequence[Any]) -> None:
    _check_numbers("fractions", fractions)
    if not all(map(_is_number, fractions)):
        raise InputError(f"the fractions of a row must be finite, got {_short(fractions)}")
    for perturbation, orders in curves.items():
        if not isinstance(orders, Mapping):
            raise InputError(f"a curve must have scores by order, got {_short(orders)}")
        for scores in map(orders.get, ORDERS):
            if scores is None:
                continue
            if not isinstance(scores, Sequence):
                raise InputError(f"the scores of a curve must be numbers, got {_short(scores)}")
            _check_numbers("curves", scores)
            if scores and len(fractions) != len(scores):
                raise InputError(
                    f"the curve of {method} under {perturbation} has {len(scores)} scores at "
                    f"{len(fractions)} fractions; each score needs the share of patches that is "
                    "removed"
                )


def _check_numbers(name: str, values: Iterable[Any]) -> None:
    for value in values:
        if value is None or type(value) is float:
            continue
        too_large = isinstance(value, int) and abs(value) >= _TOO_LARGE
        if not isinstance(value, Real) or too_large:
            raise InputError(f"{name} of a row must be numbers, got {_short(value)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_number(value: Any) -> bool:
    """Return whether the value is a finite number; other values count as undefined."""
    return value is not None and math.isfinite(value)


def _set(column: dict[int, Value], index: int, value: Value, name: str) -> None:
    """Add the value of an image; raise an InputError if a row gave a different value."""
    if index in column and not np.array_equal(column[index], value):
        raise InputError(
            f"two rows of image {index} give different values for {name}; the rows must be of one "
            "run: take the file of each run alone"
        )
    column[index] = value
