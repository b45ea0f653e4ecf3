from .average_drop import AverageDrop, AverageGain, AverageIncrease, KeptMetric
from .base import Better, Metric, Needs
from .context import Asked, Explain
from .context_builder import Examiner, Explainer, second_class
from .faithfulness_curves import AOPC, SRG, Deletion, Insertion, InsertionDeletion
from .head_ablation import HeadAblationArea
from .inputs import Curves, Kept, Located
from .localization import GridPointing, MaskEnergy, MeanIoU, PatchAP, PointingGame
from .patch_ranking import FORMS, Form, kept_count, kept_patches, patch_order, unit_scaled
from .randomization import ClassSensitivity, Randomisation, ssim
from .registry import METRICS, build_metric, check_metric_options, metric_options
from .robustness import Infidelity, SensitivityMax
from .weight_randomization import Cascade, randomised

__all__ = [
    "AOPC",
    "Asked",
    "AverageDrop",
    "AverageGain",
    "AverageIncrease",
    "Better",
    "Cascade",
    "ClassSensitivity",
    "Curves",
    "Deletion",
    "Examiner",
    "Explain",
    "Explainer",
    "FORMS",
    "Form",
    "GridPointing",
    "HeadAblationArea",
    "Infidelity",
    "Insertion",
    "InsertionDeletion",
    "Kept",
    "KeptMetric",
    "Located",
    "METRICS",
    "MaskEnergy",
    "MeanIoU",
    "Metric",
    "Needs",
    "PatchAP",
    "PointingGame",
    "Randomisation",
    "SRG",
    "SensitivityMax",
    "build_metric",
    "check_metric_options",
    "kept_count",
    "kept_patches",
    "metric_options",
    "patch_order",
    "randomised",
    "second_class",
    "ssim",
    "unit_scaled",
]
