"""The embedding of an image: the tokens that a class head, or the model itself, pools."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_gmar._core.families import model_type
from hf_gmar._core.model_adapter import ModelAdapter, find_backbone, unwrapped
from hf_gmar._core.token_layout import (
    embedding_readout,
    family_of,
    own_readout,
    prompted_readout,
)
from hf_gmar.errors import UnsupportedModelError

_POOLER_BEFORE_HEAD = ("beit", "data2vec-vision")
"""Families whose class head reads ``pooler_output``, which normalises the mean of the patches."""

_UNTRAINED_POOLER = ("vit", "deit", "ijepa")
"""Families with a dense layer on the first token, which most checkpoints were saved without."""


@dataclass(frozen=True)
class Embedding:
    """How a model embeds an image.

    Attributes:
        adapter: the Transformers model, its tower and its prefix tokens.
        readout: the tokens that the embedding pools, a key of ``READOUTS``.
        compute: embeds pixel values (B, channels, height, width); keywords are the tower's.
    """

    adapter: ModelAdapter
    readout: str
    compute: Callable[..., Tensor]

    @classmethod
    def of(cls, model: Any) -> Embedding:
        """Find the embedding of the one Transformers model in a model.

        - A model of image and text: its image features.
        - A classifier: what its class head pools.
        - A vision tower: its ``pooler_output``, such as CLS of DINOv2. ViT, DeiT and I-JEPA, whose
          pooler is seldom trained: CLS, or the mean of the patches.

        Raises:
            UnsupportedModelError: no or several Transformers models, or a family whose embedding is
                not known.
        """
        backbone = find_backbone(unwrapped(model))
        adapter = ModelAdapter.of(backbone, needs_scores=False)
        tower, family = adapter.vision_model, family_of(adapter.vision_model)
        if readout := prompted_readout(backbone):
            return cls(adapter, readout, _image_features(backbone))
        own = None if family is None else own_readout(family, backbone, tower)
        if own is not None and hasattr(tower, "timm_model"):
            raise UnsupportedModelError(
                f"{type(tower).__name__} gives no embedding of an image beside its scores; load "
                "its backbone: load_model(name, head=False), or TimmWrapperModel"
            )
        readout = own or embedding_readout(tower)
        if readout is None:
            raise UnsupportedModelError(
                f"it is not known how {type(backbone).__name__} embeds an image; put it into an "
                "nn.Module that returns the similarity to your image as scores (images, 1)"
            )
        kind = model_type(tower)
        pooled = kind in _POOLER_BEFORE_HEAD if own else kind not in _UNTRAINED_POOLER
        prefix = adapter.tokens.num_prefix_tokens
        return cls(adapter, readout, _tokens_of(tower, readout, prefix, pooled))


def _image_features(model: Any) -> Callable[..., Tensor]:
    def compute(pixels: Tensor, **kwargs: Any) -> Tensor:
        features: Tensor = model.get_image_features(
            pixels, **kwargs, return_dict=True
        ).pooler_output
        return features

    return compute


def _tokens_of(tower: Any, readout: str, prefix: int, pooled: bool) -> Callable[..., Tensor]:
    """Return the pooler's output, if it is wanted and there is one, or else pooled tokens."""

    def compute(pixels: Tensor, **kwargs: Any) -> Tensor:
        output = tower(pixels, **kwargs, return_dict=True)
        pooler: Tensor | None = getattr(output, "pooler_output", None)
        if pooled and pooler is not None:
            return pooler
        return _pool(output.last_hidden_state, readout, prefix)

    return compute


def _pool(tokens: Tensor, readout: str, prefix: int) -> Tensor:
    """Pool tokens (B, N, hidden) as a class head with this readout does."""
    cls, patches = tokens[:, 0], tokens[:, prefix:].mean(1)
    if readout == "cls":
        return cls
    if readout == "cls+patches":
        return torch.cat([cls, patches], dim=-1)
    if readout == "cls+distillation":
        return torch.cat([cls, tokens[:, 1]], dim=-1)
    return tokens.mean(1) if readout == "tokens" else patches
