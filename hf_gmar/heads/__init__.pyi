from .ablation import (
    HeadAblation,
    ablate_heads,
    scores_with_masked_heads,
    single_head_ablation,
)
from .head_methods import HeadMaps, HeadTaylorImportance, head_maps
from .importance import HeadImportance, head_importance

__all__ = [
    "HeadAblation",
    "HeadImportance",
    "HeadMaps",
    "HeadTaylorImportance",
    "ablate_heads",
    "head_importance",
    "head_maps",
    "scores_with_masked_heads",
    "single_head_ablation",
]
