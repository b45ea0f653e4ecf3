"""Rows of an evaluation, in whatever order they come, as columns of numbers."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hf_gmar._utils.stats import Array
from hf_gmar.errors import InputError
from hf_gmar.evaluation.report.results import Failure, Order

ORDERS: tuple[Order, ...] = ("morf", "lerf")

CurveKey: TypeAlias = tuple[str, Order, str]
"""Perturbation, order of the patches, method."""


@dataclass
class Column:
    """Values of one measure by one method, with the index of the image of each."""

    images: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))

    def add(self, image: int, value: float) -> None:
        """One more value."""
        self.images.append(image)
        self.values.append(value)


@dataclass
class Collected:
    """What the rows hold.

    Attributes:
        columns: by label of the measure and of the method.
        curves: the curves of each image by its index, as (fractions, scores).
        explained: indices of the images that a method explained.
        methods: all that occur, also those that always failed.
        failures: reasons by index of the image and method.
        keys: names of the images that are broken or where a method failed.
    """

    columns: dict[tuple[str, str], Column] = field(default_factory=dict)
    curves: dict[CurveKey, dict[int, tuple[Array, Array]]] = field(default_factory=dict)
    explained: set[int] = field(default_factory=set)
    methods: set[str] = field(default_factory=set)
    failures: dict[tuple[int, str | None], str] = field(default_factory=dict)
    keys: dict[int, str] = field(default_factory=dict)
    _done: set[tuple[int, str]] = field(default_factory=set)

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]]) -> Collected:
        """Read each row once.

        Raises:
            InputError: a row without an index or a method, or two rows that contradict each other.
        """
        found = cls()
        for row in rows:
            _check(row)
            if row.get("error") is not None:
                found._add_failure(row)
                found.methods |= {row["method"]} - {None}
            else:
                found._add(row)
        return found

    @property
    def images(self) -> NDArray[np.int64]:
        """Index of each image that a method explained, ascending."""
        return np.array(sorted(self.explained), dtype=np.int64)

    def matrix(self, measure: str, methods: Iterable[str]) -> Array:
        """The values of a measure, (images, methods), NaN where there is none.

        Raises:
            InputError: two rows of one image and method differ.
        """
        images = self.images
        columns = [
            _dense(images, self.columns.get((measure, method), Column()), f"{measure} of {method}")
            for method in methods
        ]
        return np.stack(columns, axis=1)

    def curve(self, key: CurveKey) -> tuple[Array, Array] | None:
        """The fractions of a curve, (steps,), and its scores, (images, steps), or NaN.

        Where fractions differ between images, because their patches do, they are those of the
        first image, and scores between are on the straight line from one to the next.
        """
        found = self.curves.get(key)
        if found is None:
            return None
        fractions = found[min(found)][0]
        images = self.images
        scores = np.full((len(images), len(fractions)), np.nan)
        for place, image in enumerate(images.tolist()):
            if image in found:
                scores[place] = np.interp(fractions, *found[image])
        return fractions, scores

    def failed(self) -> tuple[Failure, ...]:
        """What failed and did not succeed when it was tried again."""
        return tuple(
            Failure(image, self.keys[image], method, self.failures[image, method])
            for image, method in sorted(self.failures, key=lambda one: (one[0], one[1] or ""))
            if not self._went_well(image, method)
        )

    def _went_well(self, image: int, method: str | None) -> bool:
        """Whether it did when it was tried again."""
        return image in self.explained if method is None else (image, method) in self._done

    def _add_failure(self, row: Mapping[str, Any]) -> None:
        place, reason = (row["index"], row["method"]), " ".join(str(row["error"]).split())
        # Of two, the same one is kept whichever came first.
        self.failures[place] = min(reason, self.failures.get(place, reason))
        key = str(row.get("key", row["index"]))
        self.keys[row["index"]] = min(key, self.keys.get(row["index"], key))

    def _add(self, row: Mapping[str, Any]) -> None:
        index, method = row["index"], row["method"]
        self.methods.add(method)
        self.explained.add(index)
        self._done.add((index, method))
        for measure, reason in row.get("undefined", {}).items():
            self._add_failure({**row, "method": f"{method}, {measure}", "error": reason})
        for measure, value in row.get("values", {}).items():
            if _is_number(value):
                self.columns.setdefault((measure, method), Column()).add(index, float(value))
        for perturbation, curves in row.get("curves", {}).items():
            for order in ORDERS:
                scores = curves.get(order)
                if scores and all(map(_is_number, scores)):
                    fractions = row.get("fractions") or ()
                    self._add_curve((perturbation, order, method), index, fractions, scores)

    def _add_curve(self, key: CurveKey, index: int, fractions: Any, scores: Any) -> None:
        name = f"the curve of {key[2]} under {key[0]}"
        if len(fractions) != len(scores):
            raise InputError(
                f"{name} for image {index} has {len(scores)} scores at {len(fractions)} fractions; "
                "each score needs the share of patches that is removed"
            )
        pair = np.array(fractions, dtype=float), np.array(scores, dtype=float)
        known = self.curves.setdefault(key, {}).setdefault(index, pair)
        if not all(map(np.array_equal, known, pair)):
            raise _contradiction(index, name)


def _check(row: Mapping[str, Any]) -> None:
    index, method = row.get("index"), row.get("method")
    named = isinstance(method, str) or (method is None and row.get("error") is not None)
    if not isinstance(index, int) or not named:
        raise InputError(
            "a row must have the index of its image and the label of its method, or no method and "
            f"an error; got index {index!r} and method {method!r}"
        )


def _is_number(value: Any) -> bool:
    """A value that a mean can be taken of; ``None`` and what is not finite count as undefined."""
    return value is not None and math.isfinite(value)


def _dense(images: NDArray[np.int64], column: Column, name: str) -> Array:
    """One value for each image, NaN where the column has none."""
    indices, values = np.array(column.images), np.array(column.values)
    found = np.full(len(images), np.nan)
    places = np.searchsorted(images, indices)
    found[places] = values
    differing = found[places] != values
    if differing.any():
        raise _contradiction(int(indices[differing][0]), name)
    return found


def _contradiction(index: int, name: str) -> InputError:
    return InputError(
        f"two rows of image {index} give different values for {name}; the rows must be of one run: "
        "take the file of each run alone"
    )
