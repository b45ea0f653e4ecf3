"""The results of an evaluation as data: means, differences, curves, failures."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from PIL import Image
from torch import Tensor

from hf_gmar._utils.names import make_unique
from hf_gmar.methods.registry import title_of_label
from hf_gmar.metrics.registry import METRICS

Verdict: TypeAlias = Literal["better", "worse", "higher", "lower", "no difference"]
Order: TypeAlias = Literal["morf", "lerf"]

ALPHA = 0.05
"""The significance level of a difference, after Holm's correction."""

GROUPS = ("Localisation", "Robustness and sanity checks", "Other measures")
"""Headings of the measures without a perturbation, in the order of the report."""

_GROUP_OF_KIND = {"localization": GROUPS[0], "mosaic": GROUPS[0], "context": GROUPS[1]}


def faithfulness(perturbation: str) -> str:
    """Return the heading of the measures under a perturbation."""
    return f"Faithfulness, patches removed by {perturbation}"


@dataclass(frozen=True)
class ExampleMaps:
    """One image with its maps by several methods, for the report.

    Attributes:
        picture: the image, cropped to the part that the model saw.
        title: the text below the image, for example its class, two spaces and probability, and its
            name; at most two lines.
        maps: relevance of each patch, (rows, columns), by label of the method.
    """

    picture: Image.Image
    title: str
    maps: Mapping[str, Tensor]


@dataclass(frozen=True)
class Measure:
    """One metric with its options and, for faithfulness metrics, one perturbation.

    Attributes:
        label: the key of the measure's values in the rows.
        title: the metric with its options.
        metric: the name of the metric.
        perturbation: the perturbation with its options, if any.
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
        """Parse a key of the rows; ``directions`` has each metric's ``higher_is_better``."""
        # A colon within the parentheses of the options does not separate the perturbation.
        match = re.match(r"((?:[^:(]|\([^)]*\))+):(.+)", label, re.DOTALL)
        title, perturbation = match.groups() if match else (label, None)
        metric = title.split(" (")[0]
        return cls(label, title, metric, perturbation, directions.get(metric))

    @property
    def group(self) -> str:
        """The measure's heading in the report."""
        if self.perturbation is not None:
            return faithfulness(self.perturbation)
        kind = METRICS[self.metric].input_kind if self.metric in METRICS else ""
        return _GROUP_OF_KIND.get(kind, GROUPS[2])


@dataclass(frozen=True)
class Difference:
    """A method's values minus the baseline's, over the images that have both values.

    Attributes:
        mean: mean over these images.
        low: 2.5 % quantile of the bootstrap, ``None`` for a single image.
        high: 97.5 % quantile of the bootstrap.
        images: number of images with both values.
        p: p-value of the two-sided sign-flip test.
        corrected: the p-value after Holm's correction over the methods of this measure.
        verdict: the conclusion from the corrected p-value and the better direction.
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
        method: label of the method.
        measure: label of the measure.
        mean: mean over the images with a value, ``None`` without such images.
        low: 2.5 % quantile of the bootstrap, ``None`` for fewer than two images.
        high: 97.5 % quantile of the bootstrap.
        images: number of images with a value.
        difference: difference to the baseline; ``None`` for the baseline or without a baseline.
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
        method: the method that ranks the patches.
        perturbation: the perturbation that removes the patches.
        order: ``"morf"`` or ``"lerf"``: most or least relevant patches first.
        fractions: share of removed patches, from 0 to 1.
        mean: mean score over the images, for each fraction.
        low: 2.5 % quantile of the bootstrap, ``None`` for a single image.
        high: 97.5 % quantile of the bootstrap.
        images: number of images with this curve.
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
    """An image that could not be read, or a method that failed on an image.

    Attributes:
        index: index of the image.
        key: name of the image in the data set.
        method: the failed method, with the measure if only that failed; ``None`` for the image.
        reason: the reason in one line.
    """

    index: int
    key: str
    method: str | None
    reason: str


@dataclass(frozen=True)
class Results:
    """The results of an evaluation, independent of the order of its rows.

    Attributes:
        settings: the settings of the evaluation.
        methods: labels of the methods, in the order of the settings.
        measures: the measures, in the order of the report.
        baseline: label of the method that all methods are compared with.
        seed: seed of the bootstrap and the sign flips.
        images: number of images that at least one method explained.
        cells: one cell for each measure and method.
        curves: one curve for each measured method, perturbation and order.
        failures: broken images and failed methods, by image and method.
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
        """The cells by labels of measure and method."""
        return {(cell.measure, cell.method): cell for cell in self.cells}

    @functools.cached_property
    def titles(self) -> dict[str, str]:
        """The names of the methods as papers write them, by label; no two are the same."""
        described = self.settings.get("methods")
        known = described if isinstance(described, Mapping) else {}
        titles = [title_of_label(label, _class_of(known.get(label))) for label in self.methods]
        return dict(zip(self.methods, make_unique(titles, "{} ({})"), strict=True))

    def title(self, label: str) -> str:
        """Return the name of a method for a reader, also before a comma and a measure."""
        for method in sorted(self.methods, key=len, reverse=True):
            if f"{label}, ".startswith(f"{method}, "):
                return self.titles[method] + label[len(method) :]
        return label

    @property
    def groups(self) -> dict[str, list[Measure]]:
        """The measures by their heading in the report."""
        groups: dict[str, list[Measure]] = {}
        for measure in self.measures:
            groups.setdefault(measure.group, []).append(measure)
        return groups

    def compared(self, measures: Sequence[Measure]) -> list[Measure]:
        """Select the measures in which at least one method has a difference to the baseline."""
        labels = {cell.measure for cell in self.cells if cell.difference is not None}
        return [measure for measure in measures if measure.label in labels]

    @property
    def broken(self) -> list[Failure]:
        """The images that could not be read."""
        return [failure for failure in self.failures if failure.method is None]

    @property
    def failed(self) -> dict[str, list[Failure]]:
        """The failures of each method, or of one of its measures, that has any."""
        failures: dict[str, list[Failure]] = {label: [] for label in self.methods}
        for failure in self.failures:
            if failure.method is not None:
                failures.setdefault(failure.method, []).append(failure)
        return {label: items for label, items in failures.items() if items}


def _class_of(description: Any) -> str:
    """Return the class in the description of a method, or nothing."""
    return str(description.get("class", "")) if isinstance(description, Mapping) else ""
