"""Grad-SAM: gradient self-attention maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

from hf_gmar.methods.attention_base import AttentionMethod, AttentionOptions
from hf_gmar.methods.layer_rules import PositiveGradientRule


class GradSAM(AttentionMethod):
    """Attention times its positive gradient, averaged over layers, heads and queries.

    The mean over the layers and heads of A * relu(dscore/dA). The relevance of a token is the mean
    of its column, over all queries that look at it.

    A map is >= 0 and has no upper bound: it grows with the score.

    Example:
        >>> import torch
        >>> from hf_gmar import load_model
        >>> GradSAM(load_model("bundled").model).attribute(torch.rand(2, 3, 96, 96), 3).shape
        torch.Size([2, 3, 96, 96])
    """

    source = "Barkan et al., CIKM 2021, arXiv 2204.11073"
    cost = "forward + backward"

    def __init__(self, model: Callable[..., Any], **options: Unpack[AttentionOptions]) -> None:
        super().__init__(model, **options)
        self.rule = PositiveGradientRule(self.adapter.layers - self.start_layer, weighted=True)
