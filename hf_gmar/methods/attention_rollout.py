"""Attention rollout."""

from __future__ import annotations

from typing import Unpack

from hf_gmar._core.model_adapter import ModelLike
from hf_gmar._utils.validation import check_number, check_option
from hf_gmar.methods.attention_base import AttentionMethod, AttentionOptions
from hf_gmar.methods.layer_rules import FUSIONS, Fusion, RolloutRule


class AttentionRollout(AttentionMethod):
    r"""Multiply the attention of all layers, with residual connections; same for every class.

    $$ r = r_0 M_L \cdots M_1, \quad M_l = \frac{F_l + \alpha I}{1 + \alpha}, \quad
    F_l = \frac{1}{H} \sum_h A_{l,h} $$

    $A$: attention; $r_0$: readout. Later work fuses heads by their maximum or minimum and sets
    small attention to zero. Each row of $F$ is divided by its sum before the residual is added.

    The map is $r$ on the patches: >= 0, with a sum of at most 1. No gradient is computed.

    Args:
        head_fusion: ``"mean"`` as in the paper, ``"max"`` or ``"min"`` of the heads.
        discard_ratio: share of each row of the fused attention that is set to zero, smallest
            first, from 0 to less than 1. Other code discards over the whole matrix, where tokens
            with diffuse attention lose all of it.
        alpha: weight of the residual connection, >= 0.
        **options: see :class:`~hf_gmar.methods.attention_base.AttentionMethod`.

    Example:
        >>> import torch
        >>> from hf_gmar import load_model
        >>> rollout = AttentionRollout(load_model("bundled").model, head_fusion="max")
        >>> rollout.attribute_patches(torch.rand(2, 3, 96, 96)).shape
        torch.Size([2, 8, 8])
    """

    title = "Attention rollout"
    shows = "where the model looks"
    source = "Abnar and Zuidema, ACL 2020, arXiv 2005.00928"
    cost = "forward"
    unit = "share of relevance"
    class_specific = False
    needs_scores = False
    gradient = "none"

    def __init__(
        self,
        model: ModelLike,
        head_fusion: Fusion = "mean",
        discard_ratio: float = 0.0,
        alpha: float = 1.0,
        **options: Unpack[AttentionOptions],
    ) -> None:
        super().__init__(model, **options)
        check_option("head_fusion", head_fusion, FUSIONS)
        share = check_number("discard_ratio", discard_ratio, 0, below=1)
        self.rule = RolloutRule(head_fusion, share, check_number("alpha", alpha, 0))
