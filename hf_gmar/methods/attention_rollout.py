"""Attention rollout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

from hf_gmar._utils.validation import check_number, check_option
from hf_gmar.methods.attention_base import AttentionMethod, AttentionOptions
from hf_gmar.methods.layer_rules import FUSIONS, Fusion, RolloutRule


class AttentionRollout(AttentionMethod):
    """Roll the attention of all layers out to the patches, the same for every class.

    F is the mean of a layer's heads, (F + alpha I) / (1 + alpha) its rollout with the residual
    connection, and the map the readout's row of the product of all layers. Later practice fuses
    heads by their maximum or minimum, and sets small attention to zero. Each row of F is then
    divided by its sum, so that alpha weighs the same for every fusion.

    A map is >= 0 and sums to at most 1. No gradient is taken.

    Args:
        head_fusion: ``"mean"`` as in the paper, ``"max"`` or ``"min"`` of the heads.
        discard_ratio: share of the fused attention of each query that is set to zero, smallest
            first, from 0 to less than 1. Other code discards over the whole matrix, where tokens
            of spread attention lose all of it.
        alpha: weight of the residual connection, >= 0.
        **options: see :class:`~hf_gmar.methods.attention_base.AttentionMethod`.

    Example:
        >>> import torch
        >>> from hf_gmar import load_model
        >>> rollout = AttentionRollout(load_model("bundled").model, head_fusion="max")
        >>> rollout.attribute_patches(torch.rand(2, 3, 96, 96)).shape
        torch.Size([2, 8, 8])
    """

    source = "Abnar and Zuidema, ACL 2020, arXiv 2005.00928"
    cost = "forward"
    class_specific = False
    gradient = "none"

    def __init__(
        self,
        model: Callable[..., Any],
        head_fusion: Fusion = "mean",
        discard_ratio: float = 0.0,
        alpha: float = 1.0,
        **options: Unpack[AttentionOptions],
    ) -> None:
        super().__init__(model, **options)
        check_option("head_fusion", head_fusion, FUSIONS)
        share = check_number("discard_ratio", discard_ratio, 0, below=1)
        self.rule = RolloutRule(head_fusion, share, check_number("alpha", alpha, 0))
