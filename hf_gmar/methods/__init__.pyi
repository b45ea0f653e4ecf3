from .attention_base import AttentionMethod
from .attention_rollout import AttentionRollout
from .attn_lrp import AttnLRP
from .base import AttributionMethod
from .gmar import GMAR
from .grad_sam import GradSAM
from .gradient_rollout import GradientRollout
from .input_x_gradient import InputXGradient
from .joint import attribute_jointly
from .layer_rules import Block, LayerResult, LayerRule, Sums
from .legrad import LeGrad
from .random_attribution import RandomAttribution
from .raw_attention import RawAttention
from .registry import METHODS, register_method
from .shapley_values import ShapleyAttribution, ShapleyValues
from .token_grad_cam import TokenGradCAM

__all__ = [
    "GMAR",
    "METHODS",
    "AttentionMethod",
    "AttentionRollout",
    "AttnLRP",
    "AttributionMethod",
    "Block",
    "GradSAM",
    "GradientRollout",
    "InputXGradient",
    "LayerResult",
    "LayerRule",
    "LeGrad",
    "RandomAttribution",
    "RawAttention",
    "ShapleyAttribution",
    "ShapleyValues",
    "Sums",
    "TokenGradCAM",
    "attribute_jointly",
    "register_method",
]
