"""The registry of metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hf_gmar._utils.registry import Registry

if TYPE_CHECKING:  # the names are known before PyTorch is loaded
    from hf_gmar.metrics.base import Metric

METRICS: Registry[Metric[Any]] = Registry(
    "metric",
    "hf_gmar.metrics.base:Metric",
    {
        "deletion": "hf_gmar.metrics.faithfulness_curves:Deletion",
        "insertion": "hf_gmar.metrics.faithfulness_curves:Insertion",
        "insertion-deletion": "hf_gmar.metrics.faithfulness_curves:InsertionDeletion",
        "aopc": "hf_gmar.metrics.faithfulness_curves:AOPC",
        "srg": "hf_gmar.metrics.faithfulness_curves:SRG",
        "average-drop": "hf_gmar.metrics.average_drop:AverageDrop",
        "increase-in-confidence": "hf_gmar.metrics.average_drop:IncreaseInConfidence",
        "average-gain": "hf_gmar.metrics.average_drop:AverageGain",
        "pointing-game": "hf_gmar.metrics.localization:PointingGame",
        "relevance-mass": "hf_gmar.metrics.localization:RelevanceMass",
        "average-precision": "hf_gmar.metrics.localization:AveragePrecision",
        "miou": "hf_gmar.metrics.localization:MeanIoU",
        "grid-pointing": "hf_gmar.metrics.localization:GridPointing",
        "infidelity": "hf_gmar.metrics.robustness:Infidelity",
        "max-sensitivity": "hf_gmar.metrics.robustness:MaxSensitivity",
        "class-sensitivity": "hf_gmar.metrics.randomization:ClassSensitivity",
        "parameter-randomization": "hf_gmar.metrics.randomization:ParameterRandomization",
        "shapley-correlation": "hf_gmar.metrics.shapley_correlation:ShapleyCorrelation",
        "head-ablation": "hf_gmar.metrics.head_ablation:HeadAblationArea",
    },
)
"""Metrics by the name that the command line, settings and results use."""


def register_metric(name: str, metric: type[Metric[Any]]) -> None:
    """Register a metric of your own by name, for this process.

    A package registers its metrics for every process by an entry point of the group
    ``hf_gmar.metrics``.

    Args:
        name: lower-case letters, digits, dots, dashes and underscores; equal to ``metric.name``.
        metric: a subclass of :class:`~hf_gmar.metrics.Metric`.

    Raises:
        OptionError: the name is taken or malformed, or ``metric`` is no such class.

    Example:
        >>> from hf_gmar.metrics import Deletion
        >>> class Halved(Deletion):
        ...     name = "half-deletion"
        ...     def values(self, curves):
        ...         return super().values(curves) / 2
        >>> register_metric("half-deletion", Halved)
        >>> METRICS.build("half-deletion").label
        'half-deletion'
    """
    METRICS.register(name, metric)
