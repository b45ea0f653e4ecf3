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
from hf_gmar.evaluation.report.columns import ORDERS, Collected, CurveKey
from hf_gmar.evaluation.report.markdown import page
from hf_gmar.evaluation.report.results import (
    ALPHA,
    Cell,
    Curve,
    Difference,
    Measure,
    Results,
    Verdict,
)
from hf_gmar.evaluation.report.statistics import FLIPS, Estimates, estimates, holm, sign_flips
from hf_gmar.evaluation.report.tables import TerminalTables


@dataclass(frozen=True)
class Summary(Results):
    """What an evaluation found: :class:`~hf_gmar.evaluation.report.results.Results` and its forms.

    Two summaries of the same rows are equal, and so is their JSON, byte for byte, in whatever order
    the rows came.
    """

    def table(self) -> TerminalTables:
        """Means for the terminal; ``rich.print`` shows as many side by side as fit."""
        return TerminalTables(self)

    def records(self) -> list[dict[str, Any]]:
        """One flat record for each measure and method, ``None`` where there is no number."""
        measures = {one.label: one for one in self.measures}
        return [_record(cell, measures[cell.measure], self.baseline) for cell in self.cells]

    def markdown(self) -> str:
        """The report as one page of Markdown, without pictures."""
        return page(self)

    def to_json(self) -> str:
        """All numbers; nothing in it says when or where it was made."""
        found = {
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
            "measures": [asdict(one) for one in self.measures],
            "cells": self.records(),
            "curves": [asdict(one) for one in self.curves],
            "failures": [asdict(one) for one in self.failures],
        }
        return json.dumps(_plain(found), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


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
            not defined for this image; ``curves`` by perturbation with the scores ``most`` and
            ``least`` at ``fractions``. Or ``error``, with no method if the image was broken. A
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
        >>> found = summarize(rows, {}, {"deletion": False})
        >>> found.images, round(found.cells[0].mean, 3)
        (2, 0.3)
    """
    for metric, direction in higher_is_better.items():
        if direction not in (True, False, None):
            raise OptionError(
                f"higher_is_better of {metric} must be True, False or None, got {direction!r}"
            )
    found = Collected.of(rows)
    methods = _ordered(found.methods, settings.get("methods"))
    measures = _measures({label for label, _ in found.columns}, settings, higher_is_better)
    baseline = _checked_baseline(baseline, methods, settings)
    return Summary(
        settings=dict(settings),
        methods=methods,
        measures=measures,
        baseline=baseline,
        seed=seed,
        images=len(found.explained),
        cells=_cells(found, measures, methods, baseline, seed),
        curves=_curves(found, methods, settings, seed),
        failures=found.failed(),
    )


def _ordered(found: Iterable[str], wanted: Any) -> tuple[str, ...]:
    """In the order that is wanted; those that it does not name come last, by name."""
    known = list(wanted) if isinstance(wanted, list | tuple | Mapping) else []
    places = {one: place for place, one in enumerate(known) if isinstance(one, str)}
    return tuple(sorted(found, key=lambda one: (places.get(one, len(known)), one)))


def _measures(
    labels: set[str], settings: Mapping[str, Any], higher_is_better: Mapping[str, bool | None]
) -> tuple[Measure, ...]:
    """Faithfulness by perturbation first, then the other groups, each in the metrics' order."""
    measures = [Measure.of(label, higher_is_better) for label in labels]
    perturbations = _ordered(
        {one.perturbation for one in measures if one.perturbation}, settings.get("perturbations")
    )
    metrics = _ordered({one.metric for one in measures}, higher_is_better)
    groups = ("Localisation", "Robustness and sanity checks", "Other measures")

    def place(one: Measure) -> tuple[int, int, str]:
        at = perturbations.index(one.perturbation) if one.perturbation else -1
        group = at if one.perturbation else len(perturbations) + groups.index(one.group)
        return group, metrics.index(one.metric), one.label

    return tuple(sorted(measures, key=place))


def _checked_baseline(
    baseline: str | None, methods: tuple[str, ...], settings: Mapping[str, Any]
) -> str | None:
    planned = settings.get("methods")
    if baseline is not None and baseline not in {*methods, *_ordered(planned or (), None)}:
        raise OptionError(
            f"the baseline must be one of the methods, {', '.join(methods)}; got {baseline!r}"
        )
    return baseline


def _cells(
    found: Collected,
    measures: Sequence[Measure],
    methods: tuple[str, ...],
    baseline: str | None,
    seed: int,
) -> tuple[Cell, ...]:
    if not measures:
        return ()
    # One matrix, (images, measures * methods): columns of the same images share their draws.
    blocks = [found.matrix(one.label, methods) for one in measures]
    means = _by_measure(estimates(np.concatenate(blocks, axis=1), seed), len(measures))
    differences = _differences(blocks, measures, methods, baseline, seed)
    return tuple(
        Cell(method, measure.label, *_numbers(each, column), differences.get((row, column)))
        for row, (measure, each) in enumerate(zip(measures, means, strict=True))
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
    own = methods.index(baseline)
    pairs = [block - block[:, own : own + 1] for block in blocks]
    for pair in pairs:
        pair[:, own] = np.nan  # no test of the baseline against itself
    flat = np.concatenate(pairs, axis=1)
    means = _by_measure(estimates(flat, seed), len(measures))
    p_values = sign_flips(flat, seed).reshape(len(measures), -1)
    found = {}
    for row, (measure, each, p) in enumerate(zip(measures, means, p_values, strict=True)):
        corrected = holm(p)
        for column in np.flatnonzero(~np.isnan(p)).tolist():
            mean, low, high, images = _numbers(each, column)
            assert mean is not None  # noqa: S101  # where there is a p-value there are images
            tests = float(p[column]), float(corrected[column])
            verdict = _verdict(mean, tests[1], measure.higher_is_better)
            found[row, column] = Difference(mean, low, high, images, *tests, verdict)
    return found


def _verdict(mean: float, corrected: float, higher_is_better: bool | None) -> Verdict:
    if corrected >= ALPHA:
        return "no difference"
    if higher_is_better is None:
        return "higher" if mean > 0 else "lower"
    return "better" if (mean > 0) == higher_is_better else "worse"


def _by_measure(found: Estimates, measures: int) -> list[Array]:
    """Mean, low, high and count of each method, (4, methods), for each measure."""
    stacked = np.stack([*found.interval, found.images])
    return list(stacked.reshape(4, measures, -1).transpose(1, 0, 2))


def _numbers(found: Array, column: int) -> tuple[float | None, float | None, float | None, int]:
    mean, low, high, images = (float(one) for one in found[:, column])
    return _defined(mean), _defined(low), _defined(high), int(images)


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value


def _curves(
    found: Collected, methods: tuple[str, ...], settings: Mapping[str, Any], seed: int
) -> tuple[Curve, ...]:
    names = _ordered({name for name, _, _ in found.curves}, settings.get("perturbations"))
    keys = [(name, order, method) for name in names for method in methods for order in ORDERS]
    read = {key: curve for key in keys if (curve := found.curve(key)) is not None}
    if not read:
        return ()
    # One matrix, (images, curves * steps), for the same reason as the means.
    means = estimates(np.concatenate([scores for _, scores in read.values()], axis=1), seed)
    stacked = np.stack([*means.interval, means.images])
    ends = np.cumsum([len(fractions) for fractions, _ in read.values()])[:-1]
    return tuple(
        _curve(key, fractions, part)
        for (key, (fractions, _)), part in zip(
            read.items(), np.split(stacked, ends, 1), strict=True
        )
    )


def _curve(key: CurveKey, fractions: Array, found: Array) -> Curve:
    (name, order, method), images = key, int(found[3, 0])
    mean, low, high = (tuple(one.tolist()) for one in found[:3])
    several = images > 1
    return Curve(
        method=method,
        perturbation=name,
        order=order,
        fractions=tuple(fractions.tolist()),
        mean=mean,
        low=low if several else None,
        high=high if several else None,
        images=images,
    )


def _record(cell: Cell, measure: Measure, baseline: str | None) -> dict[str, Any]:
    return {
        "method": cell.method,
        "measure": cell.measure,
        "metric": measure.metric,
        "perturbation": measure.perturbation,
        "higher_is_better": measure.higher_is_better,
        "mean": cell.mean,
        "low": cell.low,
        "high": cell.high,
        "images": cell.images,
        "baseline": baseline,
        "difference": cell.difference and asdict(cell.difference),
    }


def _plain(value: Any) -> Any:
    """As JSON has it: settings may hold anything."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | None) else str(value)
