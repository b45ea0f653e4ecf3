from .ablation import HeadAblation, ablate_heads
from .head_methods import HeadEffects, HeadMaps, head_maps
from .importance import HeadImportance, head_importance

__all__ = [
    "HeadAblation",
    "HeadEffects",
    "HeadImportance",
    "HeadMaps",
    "ablate_heads",
    "head_importance",
    "head_maps",
]
