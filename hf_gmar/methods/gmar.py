"""GMAR: Gradient-Driven Multi-Head Attention Rollout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from hf_gmar._core.targets import Target
from hf_gmar._core.token_layout import ReadoutSpec
from hf_gmar._utils.validation import check_number, check_option
from hf_gmar.methods.attention_base import AttentionMethod
from hf_gmar.methods.layer_rules import NORMS, GmarRule, Norm


class GMAR(AttentionMethod):
    """Weight each attention head by the gradient of the explained class, then roll out.

    A map is >= 0 and sums to at most 1 over the patches: the share of the readout's relevance that
    lands on each. What is missing to 1 stayed on prefix tokens such as CLS.

    Source: Jo, Jang and Park, "GMAR: Gradient-Driven Multi-Head Attention Rollout for Vision
    Transformer Interpretability", ICIP 2025 (arXiv 2504.19414). The exact definition, with the
    choices where the paper is silent, is in ``docs/gmar.md``.

    Args:
        model: see :class:`~hf_gmar.methods.base.AttributionMethod`.
        norm: ``"l1"`` sums the absolute gradient of each head, ``"l2"`` takes its Euclidean norm.
        alpha: weight of the residual connection in each layer, >= 0; at 0 attention alone moves
            relevance.
        start_layer: the lowest layer that takes part, 0 for all of them.
        engine: ``"streaming"``, or ``"dense"``, the plain reference.
        chunk_size: query rows that the streaming engine holds at a time; ``None`` chooses.
        checkpoint: let the streaming engine run the layers twice to keep a fraction of the memory.
        readout: which tokens a class head of your own reads.

    Raises:
        UnsupportedModelError: unknown or hierarchical family, no model or several.
        OptionError: an option outside its range.

    Example:
        >>> import torch
        >>> from transformers import ViTConfig, ViTForImageClassification
        >>> config = ViTConfig(
        ...     image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=2,
        ...     num_attention_heads=4, intermediate_size=32, num_labels=5,
        ... )
        >>> gmar = GMAR(ViTForImageClassification(config))
        >>> images = torch.randn(2, 3, 32, 32)
        >>> gmar.attribute(images, target=[3, 1]).shape
        torch.Size([2, 3, 32, 32])
        >>> gmar.attribute_patches(images, target=3).shape
        torch.Size([2, 4, 4])
        >>> gmar.head_importance(images, target=3).shape
        torch.Size([2, 2, 4])
    """

    source = "Jo, Jang and Park, ICIP 2025, arXiv 2504.19414"
    cost = "forward + backward"

    def __init__(
        self,
        model: Callable[..., Any],
        norm: Norm = "l1",
        alpha: float = 1.0,
        start_layer: int = 0,
        engine: str = "streaming",
        chunk_size: int | None = None,
        checkpoint: bool = False,
        readout: ReadoutSpec = None,
    ) -> None:
        super().__init__(model, start_layer, engine, chunk_size, checkpoint, readout)
        check_option("norm", norm, NORMS)
        self.rule = GmarRule(norm, check_number("alpha", alpha, 0))

    def head_importance(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Target = None,
        additional_forward_args: Any = None,
        contrast: Target = None,
        **forward_kwargs: Any,
    ) -> Tensor:
        """Share of each head in its layer's gradient, w in the paper.

        Takes and raises what :meth:`attribute` does.

        Returns:
            Tensor (B, layers, H), lowest explained layer first; each layer sums to 1. A layer
            that the score does not depend on has 1/H everywhere.
        """
        target_spec = self._target_spec(target, contrast)
        return self._of_heads(inputs, target_spec, additional_forward_args, forward_kwargs)[0]
