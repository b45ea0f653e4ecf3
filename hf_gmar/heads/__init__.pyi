from .ablation import HeadAblation, ablate_heads
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
]
