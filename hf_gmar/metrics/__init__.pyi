from .average_drop import AverageDrop, AverageGain, ConfidenceMetric, IncreaseInConfidence
from .base import InputKind, Metric
from .context import ContextMetric, Explain, MetricContext, ShapleyMap
from .context_builder import ContextBuilder, PatchAttributor, second_class
from .faithfulness_curves import AOPC, SRG, Deletion, Insertion, InsertionDeletion
from .head_ablation import HeadAblationArea
from .inputs import ConfidenceChange, Curves, LocalizationInput
from .localization import AveragePrecision, GridPointing, MeanIoU, PointingGame, RelevanceMass
from .patch_ranking import FORMS, Form, kept_count, kept_patches, patch_order, unit_scaled
from .randomization import ClassSensitivity, ParameterRandomization, ssim
from .registry import METRICS, register_metric
from .robustness import Infidelity, MaxSensitivity
from .shapley_correlation import ShapleyCorrelation
from .weight_randomization import Cascade, randomized_models

__all__ = [
    "AOPC",
    "FORMS",
    "METRICS",
    "SRG",
    "AverageDrop",
    "AverageGain",
    "AveragePrecision",
    "Cascade",
    "ClassSensitivity",
    "ConfidenceChange",
    "ConfidenceMetric",
    "ContextBuilder",
    "ContextMetric",
    "Curves",
    "Deletion",
    "Explain",
    "Form",
    "GridPointing",
    "HeadAblationArea",
    "IncreaseInConfidence",
    "Infidelity",
    "InputKind",
    "Insertion",
    "InsertionDeletion",
    "LocalizationInput",
    "MaxSensitivity",
    "MeanIoU",
    "Metric",
    "MetricContext",
    "ParameterRandomization",
    "PatchAttributor",
    "PointingGame",
    "RelevanceMass",
    "ShapleyCorrelation",
    "ShapleyMap",
    "kept_count",
    "kept_patches",
    "patch_order",
    "randomized_models",
    "register_metric",
    "second_class",
    "ssim",
    "unit_scaled",
]
