"""The metrics: how good an explanation is, in one number for each image.

No metric knows a method: it is given what was measured. A new one is a class and a line in
``METRICS``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hf_gmar.errors import OptionError
from hf_gmar.metrics.average_drop import AverageDrop, AverageGain, IncreaseInConfidence
from hf_gmar.metrics.base import Metric, options_of
from hf_gmar.metrics.faithfulness_curves import AOPC, SRG, Deletion, Insertion, InsertionDeletion
from hf_gmar.metrics.head_ablation import HeadAblationArea
from hf_gmar.metrics.localization import (
    AveragePrecision,
    GridPointing,
    MeanIoU,
    PointingGame,
    RelevanceMass,
)
from hf_gmar.metrics.randomization import ClassSensitivity, ParameterRandomization
from hf_gmar.metrics.robustness import Infidelity, MaxSensitivity

_ALL: tuple[type[Metric[Any]], ...] = (
    Deletion,
    Insertion,
    InsertionDeletion,
    AOPC,
    SRG,
    AverageDrop,
    IncreaseInConfidence,
    AverageGain,
    PointingGame,
    RelevanceMass,
    AveragePrecision,
    MeanIoU,
    GridPointing,
    Infidelity,
    MaxSensitivity,
    ClassSensitivity,
    ParameterRandomization,
    HeadAblationArea,
)

METRICS: dict[str, type[Metric[Any]]] = {metric.name: metric for metric in _ALL}
"""Metrics by name."""


def metric_options(name: str) -> dict[str, Any]:
    """The options of the metric of that name, with their values when nothing is said.

    Raises:
        OptionError: there is no such metric.

    Example:
        >>> metric_options("average-drop")
        {'keep': 0.5, 'form': 'patches'}
    """
    if name not in METRICS:
        raise OptionError(f"there is no metric {name!r}; there are {', '.join(METRICS)}")
    return {one.name: one.default for one in options_of(METRICS[name])}


def check_metric_options(name: str, options: Iterable[str]) -> None:
    """Check the names of options.

    Raises:
        OptionError: there is no such metric, or it has no such option.
    """
    known = list(metric_options(name))
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise OptionError(
            f"the metric {name!r} has no option {', '.join(unknown)}; it has "
            f"{', '.join(known) or 'none'}"
        )


def build_metric(name: str, **options: Any) -> Metric[Any]:
    """The metric of that name.

    Raises:
        OptionError: there is no such metric, or it has no such option, or a value is out of range.

    Example:
        >>> build_metric("average-drop", keep=0.3).label
        'average-drop (keep=0.3)'
    """
    check_metric_options(name, options)
    return METRICS[name](**options)
