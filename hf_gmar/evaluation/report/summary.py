"""Summarizes the rows of an evaluation."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hf_gmar._utils.stats import Array
from hf_gmar._utils.text import brief, counted, visible
from hf_gmar._utils.version import __version__
from hf_gmar.errors import OptionError
from hf_gmar.evaluation.report.columns import ORDERS, Columns
from hf_gmar.evaluation.report.markdown import page
from hf_gmar.evaluation.report.results import (
    ALPHA,
    GROUPS,
    Cell,
    Curve,
    Difference,
    Measure,
    Results,
    Verdict,
    faithfulness,
)
from hf_gmar.evaluation.report.statistics import FLIPS, estimates, holm, sign_flips
from hf_gmar.evaluation.report.tables import TerminalTables


@dataclass(frozen=True, repr=False)
class Summary(Results):
    """The :class:`~hf_gmar.evaluation.report.results.Results` of an evaluation, with all outputs.

    Summaries of the same rows, in any order, are equal, and their JSON is equal byte for byte.
    """

    def __repr__(self) -> str:
        """Count images and measures, and name the methods."""
        return f"Summary({self.brief()})"

    def _repr_html_(self) -> str:
        """Show the tables of the means in a notebook."""
        return self.table()._repr_html_()  # as a notebook asks

    def brief(self) -> str:
        """Return the numbers of images and measures, and the methods, in one line."""
        images, measures = counted(self.images, "image"), counted(len(self.measures), "measure")
        return f"{images}, {measures}, {brief(', '.join(map(visible, self.methods)), 200)}"

    def table(self) -> TerminalTables:
        """Return tables of the means for the terminal, to print by ``rich.print``."""
        return TerminalTables(self)

    def records(self) -> list[dict[str, Any]]:
        """Return one record for each measure and method, with ``None`` for a missing number."""
        measures = {measure.label: measure for measure in self.measures}
        return [
            {
                "method": cell.method,
                "measure": cell.measure,
                "metric": measures[cell.measure].metric,
                "perturbation": measures[cell.measure].perturbation,
                "higher_is_better": measures[cell.measure].higher_is_better,
                "mean": cell.mean,
                "low": cell.low,
                "high": cell.high,
                "images": cell.images,
                "baseline": self.baseline,
                "difference": cell.difference and asdict(cell.difference),
            }
            for cell in self.cells
        ]

    def markdown(self) -> str:
        """Return the report as one page of Markdown, without figures."""
        return page(self)

    def to_json(self) -> str:
        """Return all numbers as JSON, without time or place."""
        numbers = {
            "settings": self.settings,
            "version": __version__,
            "statistics": {
                "interval": "95 %, percentile bootstrap over images",
                "p": f"two-sided sign flips, at most {FLIPS}",
                "corrected": "Holm, over the methods of a measure",
                "level": ALPHA,
                "seed": self.seed,
            },
            "images": self.images,
            "methods": self.methods,
            "baseline": self.baseline,
            "measures": list(map(asdict, self.measures)),
            "cells": self.records(),
            "curves": list(map(asdict, self.curves)),
            "failures": list(map(asdict, self.failures)),
        }
        return json.dumps(_plain(numbers), indent=1, allow_nan=False) + "\n"


def summarize(
    rows: Iterable[Mapping[str, Any]],
    settings: Mapping[str, Any],
    higher_is_better: Mapping[str, bool | None],
    baseline: str | None = None,
    seed: int = 0,
) -> Summary:
    """Compute means with intervals, and paired differences to a baseline, from rows.

    Args:
        rows: one row for each image and method, in any order, read once. A row has ``index``,
            ``key`` and ``method``; ``label`` and ``predicted``; ``values`` by ``METRIC`` or
            ``METRIC:PERTURBATION``; ``curves`` by perturbation, with the scores ``morf`` and
            ``lerf`` at ``fractions``. A missing, infinite or NaN value is undefined for the image.
            A failure has ``error`` instead of values, and no method for a broken image. It is
            ignored if another row has the values.
        settings: the settings of the evaluation. ``methods`` and ``perturbations`` define their
            order in the report; ``score``, ``model``, ``data`` and ``left_out``, a sentence about
            methods that were left out, appear in its first lines.
        higher_is_better: ``True``, ``False`` or ``None`` (neither) for each metric by name, in
            the order of the report. Missing metrics come last, without a direction.
        baseline: label of the method that all methods are compared with; ``None`` for none.
        seed: seed of the bootstrap and the sign flips.

    Raises:
        InputError: rows contradict each other or lack an image or method.
        OptionError: the baseline is neither in the rows nor in the settings' methods, or a
            direction is invalid.

    Example:
        >>> rows = [
        ...     {"index": 0, "key": "a", "method": "gmar", "values": {"deletion:blur": 0.2}},
        ...     {"index": 1, "key": "b", "method": "gmar", "values": {"deletion:blur": 0.4}},
        ... ]
        >>> summary = summarize(rows, {}, {"deletion": False})
        >>> summary.images, round(summary.cells[0].mean, 3)
        (2, 0.3)
    """
    for metric, direction in higher_is_better.items():
        if direction not in (True, False, None):
            raise OptionError(
                f"higher_is_better of {metric} must be True, False or None, got {direction!r}"
            )
    columns = Columns.of(rows)
    methods = _ordered(columns.methods, settings.get("methods"))
    planned = settings.get("methods") or ()
    if baseline is not None and baseline not in {*methods, *_ordered(planned, None)}:
        raise OptionError(
            f"the baseline must be one of the methods, {', '.join(methods)}; got {baseline!r}"
        )
    perturbations = settings.get("perturbations")
    measures = _measures({label for label, _ in columns.values}, perturbations, higher_is_better)
    return Summary(
        settings=dict(settings),
        methods=methods,
        measures=measures,
        baseline=baseline,
        seed=seed,
        images=len(columns.explained),
        cells=_cells(columns, measures, methods, baseline, seed),
        curves=_curves(columns, methods, perturbations, seed),
        failures=columns.failed(),
    )


def _ordered(names: Iterable[str], order: Any) -> tuple[str, ...]:
    """Sort the names by an order; names outside it come last, in alphabetical order."""
    known = list(order) if isinstance(order, list | tuple | Mapping) else []
    places = {name: place for place, name in enumerate(known) if isinstance(name, str)}
    return tuple(sorted(names, key=lambda name: (places.get(name, len(known)), name)))


def _measures(
    labels: set[str], perturbations: Any, higher_is_better: Mapping[str, bool | None]
) -> tuple[Measure, ...]:
    """Sort the measures: faithfulness by perturbation, then other groups, by order of metrics."""
    measures = [Measure.of(label, higher_is_better) for label in labels]
    names = _ordered({item.perturbation for item in measures if item.perturbation}, perturbations)
    groups = [*map(faithfulness, names), *GROUPS]
    metrics = _ordered({measure.metric for measure in measures}, higher_is_better)

    def place(measure: Measure) -> tuple[int, int, str]:
        return groups.index(measure.group), metrics.index(measure.metric), measure.label

    return tuple(sorted(measures, key=place))


def _cells(
    columns: Columns,
    measures: Sequence[Measure],
    methods: tuple[str, ...],
    baseline: str | None,
    seed: int,
) -> tuple[Cell, ...]:
    if not measures:
        return ()
    blocks = [columns.matrix(measure.label, methods) for measure in measures]
    means = _estimates_by_block(blocks, seed)
    differences = _differences(blocks, measures, methods, baseline, seed)
    return tuple(
        Cell(method, measure.label, *_numbers(mean[:, column]), differences.get((row, column)))
        for row, (measure, mean) in enumerate(zip(measures, means, strict=True))
        for column, method in enumerate(methods)
    )


def _differences(
    blocks: Sequence[Array],
    measures: Sequence[Measure],
    methods: tuple[str, ...],
    baseline: str | None,
    seed: int,
) -> dict[tuple[int, int], Difference]:
    """Compute the differences by indices of measure and method."""
    if baseline not in methods:
        return {}
    base = methods.index(baseline)
    pairs = [block - block[:, base : base + 1] for block in blocks]
    for pair in pairs:
        pair[:, base] = np.nan  # the baseline is not tested against itself
    means = _estimates_by_block(pairs, seed)
    p_values = sign_flips(np.concatenate(pairs, axis=1), seed).reshape(len(measures), -1)
    differences = {}
    for row, (measure, p) in enumerate(zip(measures, p_values, strict=True)):
        corrected = holm(p)
        for column in np.flatnonzero(~np.isnan(p)).tolist():
            mean, low, high, images = _numbers(means[row][:, column])
            assert mean is not None  # noqa: S101  # a p-value implies images
            tests = float(p[column]), float(corrected[column])
            verdict = _verdict(mean, tests[1], measure.higher_is_better)
            differences[row, column] = Difference(mean, low, high, images, *tests, verdict)
    return differences


def _verdict(mean: float, corrected: float, higher_is_better: bool | None) -> Verdict:
    if corrected >= ALPHA:
        return "no difference"
    if higher_is_better is None:
        return "higher" if mean > 0 else "lower"
    return "better" if (mean > 0) == higher_is_better else "worse"


def _estimates_by_block(blocks: Sequence[Array], seed: int) -> list[Array]:
    """Compute mean, low, high and count, (4, columns), of each block (images, columns)."""
    # The blocks form one matrix, so that columns of the same images share their draws.
    means = estimates(np.concatenate(blocks, axis=1), seed)
    ends = np.cumsum([block.shape[1] for block in blocks])[:-1]
    return np.split(np.stack([*means.interval, means.images]), ends, axis=1)


def _numbers(estimate: Array) -> tuple[float | None, float | None, float | None, int]:
    mean, low, high = (None if math.isnan(value) else float(value) for value in estimate[:3])
    return mean, low, high, int(estimate[3])


def _curves(
    columns: Columns, methods: tuple[str, ...], perturbations: Any, seed: int
) -> tuple[Curve, ...]:
    names = _ordered({name for name, _, _ in columns.curves}, perturbations)
    keys = [(name, order, method) for name in names for method in methods for order in ORDERS]
    curves = {key: curve for key in keys if (curve := columns.curve(key)) is not None}
    if not curves:
        return ()
    bands = _estimates_by_block([scores for _, scores in curves.values()], seed)
    results = []
    for ((name, order, method), (fractions, _)), band in zip(curves.items(), bands, strict=True):
        images = int(band[3, 0])
        points, mean, low, high = (tuple(line.tolist()) for line in (fractions, *band[:3]))
        ends = (low, high) if images > 1 else (None, None)
        results.append(Curve(method, name, order, points, mean, ends[0], ends[1], images))
    return tuple(results)


def _plain(value: Any) -> Any:
    """Convert settings, which may hold any object, to JSON values."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | None) else str(value)
