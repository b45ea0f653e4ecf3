"""hf_gmar: why a Vision Transformer said what it said.

GMAR for the Vision Transformers of Hugging Face, behind Captum's interface::

    from hf_gmar import GMAR

    heat = GMAR(model).attribute(pixel_values, target=281)
"""

from importlib.metadata import version

from hf_gmar.ablation import HeadAblation, ablate_heads
from hf_gmar.compare import compare
from hf_gmar.comparison import Comparison
from hf_gmar.evaluate import Evaluation, evaluate
from hf_gmar.heads import HeadImportance, head_importance
from hf_gmar.hub import load_model
from hf_gmar.methods import (
    GMAR,
    AttentionRollout,
    AttnLRP,
    GradientRollout,
    GradSAM,
    InputXGradient,
    LeGrad,
    RandomAttribution,
    RawAttention,
    TokenGradCAM,
)
from hf_gmar.per_head import head_maps
from hf_gmar.pipeline import ImageAttributionPipeline
from hf_gmar.together import explain_together
from hf_gmar.tokens import TokenLayout, register_layout
from hf_gmar.wrappers import LogitsModel, ZeroShotModel

__version__ = version("hf-gmar")

__all__ = [
    "GMAR",
    "AttentionRollout",
    "AttnLRP",
    "Comparison",
    "Evaluation",
    "GradSAM",
    "GradientRollout",
    "HeadAblation",
    "HeadImportance",
    "ImageAttributionPipeline",
    "InputXGradient",
    "LeGrad",
    "LogitsModel",
    "RandomAttribution",
    "RawAttention",
    "TokenGradCAM",
    "TokenLayout",
    "ZeroShotModel",
    "__version__",
    "ablate_heads",
    "compare",
    "evaluate",
    "explain_together",
    "head_importance",
    "head_maps",
    "load_model",
    "register_layout",
]
