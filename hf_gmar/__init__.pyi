from . import (
    comparison,
    data,
    errors,
    evaluation,
    heads,
    methods,
    metrics,
    models,
    perturbations,
    pipeline,
    report,
    visualization,
)
from ._core.model_adapter import ModelLike
from ._core.token_layout import TokenLayout, register_layout
from ._utils.version import __version__
from .comparison.method_specs import MethodSpec
from .comparison.quantus import quantus_explain
from .comparison.result import Comparison
from .comparison.run import compare
from .evaluation.evaluator import Evaluation, evaluate
from .explainer import Explainer, explain
from .explanation import Explanation
from .explanations import Explanations
from .faithfulness import FaithfulnessCheck, SufficientSet
from .heads.ablation import HeadAblation, ablate_heads
from .heads.head_methods import head_maps
from .heads.importance import HeadImportance, head_importance
from .methods.attention_base import AttentionMethod
from .methods.attention_rollout import AttentionRollout
from .methods.attn_lrp import AttnLRP
from .methods.base import AttributionMethod
from .methods.gmar import GMAR
from .methods.grad_sam import GradSAM
from .methods.gradient_rollout import GradientRollout
from .methods.input_x_gradient import InputXGradient
from .methods.joint import attribute_jointly
from .methods.legrad import LeGrad
from .methods.random_attribution import RandomAttribution
from .methods.raw_attention import RawAttention
from .methods.registry import register_method
from .methods.shapley_values import ShapleyValues
from .methods.token_grad_cam import TokenGradCAM
from .metrics.registry import register_metric
from .models.hub import load_model
from .models.wrappers import LogitsModel, SimilarityModel, ZeroShotModel
from .perturbations.registry import register_perturbation
from .pipeline import ImageAttributionPipeline
from .questions import SimilarTo
from .report.html_report import ReportWriter, save_report
from .report.model_card import save_card
from .report.push import push_card

__all__ = [
    "GMAR",
    "AttentionMethod",
    "AttentionRollout",
    "AttnLRP",
    "AttributionMethod",
    "Comparison",
    "Evaluation",
    "Explainer",
    "Explanation",
    "Explanations",
    "FaithfulnessCheck",
    "GradSAM",
    "GradientRollout",
    "HeadAblation",
    "HeadImportance",
    "ImageAttributionPipeline",
    "InputXGradient",
    "LeGrad",
    "LogitsModel",
    "MethodSpec",
    "ModelLike",
    "RandomAttribution",
    "RawAttention",
    "ReportWriter",
    "ShapleyValues",
    "SimilarTo",
    "SimilarityModel",
    "SufficientSet",
    "TokenGradCAM",
    "TokenLayout",
    "ZeroShotModel",
    "__version__",
    "ablate_heads",
    "attribute_jointly",
    "compare",
    "comparison",
    "data",
    "errors",
    "evaluate",
    "evaluation",
    "explain",
    "head_importance",
    "head_maps",
    "heads",
    "load_model",
    "methods",
    "metrics",
    "models",
    "perturbations",
    "pipeline",
    "push_card",
    "quantus_explain",
    "register_layout",
    "register_method",
    "register_metric",
    "register_perturbation",
    "report",
    "save_card",
    "save_report",
    "visualization",
]
