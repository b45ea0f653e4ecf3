"""Tiny models of timm in Transformers' wrapper."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

from tests.reference.cases import LABELS

# Architecture, its settings, and the readout over the prefix tokens; the patches have the rest.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any], list[float]]] = {
    "vit": ("vit_tiny_patch16_224", {}, [1.0]),
    "vit-mean": ("vit_tiny_patch16_224", {"global_pool": "avg"}, [0.0]),
    "vit-registers": ("vit_tiny_patch16_224", {"reg_tokens": 3}, [1.0, 0.0, 0.0, 0.0]),
    "deit-distilled": ("deit_tiny_distilled_patch16_224", {}, [0.5, 0.5]),
    "eva": ("eva02_tiny_patch14_224", {}, [0.0]),
    "beit": ("beit_base_patch16_224", {}, [0.0]),
    "dinov3": ("vit_small_patch16_dinov3", {}, [0.0] * 5),
}


TINY = {"img_size": 32, "patch_size": 8, "depth": 3, "num_heads": 4, "embed_dim": 32}


def build(architecture: str, **settings: Any) -> Any:
    """A tiny random model with attention that is not uniform."""
    torch.manual_seed(1)
    labels: dict[str, Any] = {"num_labels": LABELS}
    config = TimmWrapperConfig(architecture=architecture, model_args={**TINY, **settings}, **labels)
    model: Any = TimmWrapperForImageClassification(config)
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("qkv", "q_proj", "k_proj")):
            parameter.data *= 8
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()
