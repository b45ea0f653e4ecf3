"""From the rows of an evaluation to its summary."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hf_gmar._utils.stats import Array
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


@dataclass(frozen=True)
class Summary(Results):
    """The :class:`~hf_gmar.evaluation.report.results.Results` of an evaluation, in all forms.

    Two summaries of the same rows are equal, and so is their JSON, byte for byte, in whatever order
    the rows came.
    """

    def table(self) -> TerminalTables:
        """Means for the terminal; ``rich.print`` shows as many side by side as fit."""
        return TerminalTables(self)

    def records(self) -> list[dict[str, Any]]:
        """One flat record for each measure and method, ``None`` where there is no number."""
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
        """The report as one page of Markdown, without pictures."""
        return page(self)

    def to_json(self) -> str:
        """All numbers; nothing in it says when or where it was made."""
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
        return json.dumps(_plain(numbers), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def summarize(
    rows: Iterable[Mapping[str, Any]],
    settings: Mapping[str, Any],
    higher_is_better: Mapping[str, bool | None],
    baseline: str | None = None,
    seed: int = 0,
) -> Summary:
    """Means with intervals, and paired differences to a baseline, from the rows of an evaluation.

    Args:
        rows: one for each image and method, read once, in any order: ``index``, ``key`` and
            ``method``; ``label`` and ``predicted``; ``values`` by ``METRIC`` or
            ``METRIC:PERTURBATION``, where ``None``, a missing key and what is not finite count as
            not defined for this image; ``curves`` by perturbation with the scores ``morf`` and
            ``lerf`` at ``fractions``. Or ``error``, with no method if the image was broken. A
            failure does not count where another row says that it went well.
        settings: how it was measured. Lists under ``methods`` and ``perturbations`` give their
            order in the report, and ``score``, ``model`` and ``data`` are said in its first lines.
        higher_is_better: ``True``, ``False`` or ``None`` (neither) for each metric by its name, in
            the order of the report. Metrics that it lacks come last, without a direction.
        baseline: label of the method that the others are compared with; ``None`` compares none.
        seed: of the bootstrap and the sign flips.

    Raises:
        InputError: rows that contradict each other or name no image or method.
        OptionError: a baseline that occurs neither in the rows nor in the settings' methods, or
            a direction that does not exist.

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
    """The names in an order; those that it does not hold come last, by name."""
    known = list(order) if isinstance(order, list | tuple | Mapping) else []
    places = {name: place for place, name in enumerate(known) if isinstance(name, str)}
    return tuple(sorted(names, key=lambda name: (places.get(name, len(known)), name)))


def _measures(
    labels: set[str], perturbations: Any, higher_is_better: Mapping[str, bool | None]
) -> tuple[Measure, ...]:
    """Faithfulness by perturbation first, then the other groups, each in the metrics' order."""
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
    """By place of the measure and the method."""
    if baseline not in methods:
        return {}
    base = methods.index(baseline)
    pairs = [block - block[:, base : base + 1] for block in blocks]
    for pair in pairs:
        pair[:, base] = np.nan  # no test of the baseline against itself
    means = _estimates_by_block(pairs, seed)
    p_values = sign_flips(np.concatenate(pairs, axis=1), seed).reshape(len(measures), -1)
    differences = {}
    for row, (measure, p) in enumerate(zip(measures, p_values, strict=True)):
        corrected = holm(p)
        for column in np.flatnonzero(~np.isnan(p)).tolist():
            mean, low, high, images = _numbers(means[row][:, column])
            assert mean is not None  # noqa: S101  # where there is a p-value there are images
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
    """Mean, low, high and count, (4, columns), of each block of columns, (images, columns)."""
    # One matrix: columns of the same images share their draws.
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
    """As JSON has it: settings may hold anything."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | None) else str(value)
