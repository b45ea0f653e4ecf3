"""The results of an evaluation as plain numbers: means, differences, curves, failures."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from PIL import Image
from torch import Tensor

from hf_gmar.metrics.registry import METRICS

Verdict: TypeAlias = Literal["better", "worse", "higher", "lower", "no difference"]
Order: TypeAlias = Literal["morf", "lerf"]

ALPHA = 0.05
"""The level at which a difference counts as one, after Holm's correction."""

GROUPS = ("Localisation", "Robustness and sanity checks", "Other measures")
"""Headings of the measures without a perturbation, in the order of the report."""

_GROUP_OF_KIND = {"localization": GROUPS[0], "mosaic": GROUPS[0], "context": GROUPS[1]}


def faithfulness(perturbation: str) -> str:
    """The heading of the measures under a perturbation."""
    return f"Faithfulness, patches removed by {perturbation}"


@dataclass(frozen=True)
class ExampleMaps:
    """One image with its maps by several methods, to be shown in a report.

    Attributes:
        picture: the image as far as the model saw it.
        title: what is written below it, such as its class and its name; two lines at most.
        maps: relevance of each patch, (rows, columns), by label of the method.
    """

    picture: Image.Image
    title: str
    maps: Mapping[str, Tensor]


@dataclass(frozen=True)
class Measure:
    """One metric under its options, and under one perturbation if it is measured for each.

    Attributes:
        label: the key of its values in the rows.
        title: the metric with its options.
        metric: its name alone.
        perturbation: the perturbation with its options, if there is one.
        higher_is_better: whether higher values are better, ``None`` if neither direction is.

    Example:
        >>> measure = Measure.of("average-drop (keep=0.3):blur (radius=8)", {"average-drop": False})
        >>> measure.title, measure.metric, measure.perturbation, measure.higher_is_better
        ('average-drop (keep=0.3)', 'average-drop', 'blur (radius=8)', False)
    """

    label: str
    title: str
    metric: str
    perturbation: str | None
    higher_is_better: bool | None

    @classmethod
    def of(cls, label: str, directions: Mapping[str, bool | None]) -> Measure:
        """The measure of a key in the rows; ``directions`` says of metrics if higher is better."""
        # A colon within the brackets of an option does not divide.
        match = re.match(r"((?:[^:(]|\([^)]*\))+):(.+)", label, re.DOTALL)
        title, perturbation = match.groups() if match else (label, None)
        metric = title.split(" (")[0]
        return cls(label, title, metric, perturbation, directions.get(metric))

    @property
    def group(self) -> str:
        """The heading under which it is reported."""
        if self.perturbation is not None:
            return faithfulness(self.perturbation)
        kind = METRICS[self.metric].input_kind if self.metric in METRICS else ""
        return _GROUP_OF_KIND.get(kind, GROUPS[2])


@dataclass(frozen=True)
class Difference:
    """A method's value minus the baseline's on the same image, over the images that have both.

    Attributes:
        mean: over these images.
        low: 2.5 % quantile of the bootstrap, ``None`` for a single image.
        high: 97.5 % quantile.
        images: how many have both values.
        p: of the two-sided sign-flip test.
        corrected: the same after Holm's correction over the methods of this measure.
        verdict: what it says, by the direction that is better and the corrected p-value.
    """

    mean: float
    low: float | None
    high: float | None
    images: int
    p: float
    corrected: float
    verdict: Verdict


@dataclass(frozen=True)
class Cell:
    """One method's mean of one measure.

    Attributes:
        method: its label.
        measure: label of the measure.
        mean: over the images with a value, ``None`` if there are none.
        low: 2.5 % quantile of the bootstrap, ``None`` for fewer than two images.
        high: 97.5 % quantile.
        images: how many have a value.
        difference: to the baseline; ``None`` for the baseline itself and without one.
    """

    method: str
    measure: str
    mean: float | None
    low: float | None
    high: float | None
    images: int
    difference: Difference | None = None


@dataclass(frozen=True)
class Curve:
    """The target's mean score while patches are removed, with its 95 % band.

    Attributes:
        method: whose order of patches it is.
        perturbation: how they are removed.
        order: most or least relevant first.
        fractions: share of the patches that is removed, from 0 to 1.
        mean: over the images, one value for each fraction.
        low: 2.5 % quantile of the bootstrap, ``None`` for a single image.
        high: 97.5 % quantile.
        images: how many have this curve.
    """

    method: str
    perturbation: str
    order: Order
    fractions: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...] | None
    high: tuple[float, ...] | None
    images: int


@dataclass(frozen=True)
class Failure:
    """An image that could not be read, or a method that failed on one.

    Attributes:
        index: of the image.
        key: its name in the data set.
        method: which failed, with the measure if it was that alone; ``None`` if it was the image.
        reason: in one line.
    """

    index: int
    key: str
    method: str | None
    reason: str


@dataclass(frozen=True)
class Results:
    """All that the rows of an evaluation say, whatever their order.

    Attributes:
        settings: how it was measured.
        methods: labels, in the order of the settings.
        measures: in the order of the report.
        baseline: the method that the others are compared with.
        seed: of the bootstrap and the sign flips.
        images: how many were read and explained by one method at least.
        cells: one for each measure and method.
        curves: one for each method, perturbation and order that was measured.
        failures: broken images, and methods that failed, by image and method.
    """

    settings: Mapping[str, Any]
    methods: tuple[str, ...]
    measures: tuple[Measure, ...]
    baseline: str | None
    seed: int
    images: int
    cells: tuple[Cell, ...]
    curves: tuple[Curve, ...]
    failures: tuple[Failure, ...]

    @functools.cached_property
    def by_place(self) -> dict[tuple[str, str], Cell]:
        """Cells by label of the measure and of the method."""
        return {(cell.measure, cell.method): cell for cell in self.cells}

    @property
    def groups(self) -> dict[str, list[Measure]]:
        """Measures by the heading under which they are reported."""
        groups: dict[str, list[Measure]] = {}
        for measure in self.measures:
            groups.setdefault(measure.group, []).append(measure)
        return groups

    def compared(self, measures: Sequence[Measure]) -> list[Measure]:
        """Those of the measures in which any method has a difference to the baseline."""
        labels = {cell.measure for cell in self.cells if cell.difference is not None}
        return [measure for measure in measures if measure.label in labels]

    @property
    def broken(self) -> list[Failure]:
        """Images that could not be read."""
        return [failure for failure in self.failures if failure.method is None]

    @property
    def failed(self) -> dict[str, list[Failure]]:
        """Images that a method, or one measure of it, failed on, for those with any."""
        failures: dict[str, list[Failure]] = {label: [] for label in self.methods}
        for failure in self.failures:
            if failure.method is not None:
                failures.setdefault(failure.method, []).append(failure)
        return {label: items for label, items in failures.items() if items}
