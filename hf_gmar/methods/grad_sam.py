"""Grad-SAM: gradient self-attention maps."""

from __future__ import annotations

from typing import Unpack

from hf_gmar._core.model_adapter import ModelLike
from hf_gmar.methods.attention_base import AttentionMethod, AttentionOptions
from hf_gmar.methods.layer_rules import PositiveGradientRule


class GradSAM(AttentionMethod):
    r"""Average attention times its positive gradient over layers, heads and queries.

    $$ r_j = \frac{1}{LHN} \sum_{l,h,i} A_{l,h,i,j} \operatorname{relu}(G_{l,h,i,j}) $$

    $A$: attention (layer $l$, head $h$, query $i$, key $j$); $G$: gradient of the score w.r.t. $A$.

    The map is $r$ on the patches: >= 0, without an upper bound; it grows with the score.

    Example:
        >>> import torch
        >>> from hf_gmar import load_model
        >>> GradSAM(load_model("bundled").model).attribute(torch.rand(2, 3, 96, 96), 3).shape
        torch.Size([2, 3, 96, 96])
    """

    title = "Grad-SAM"
    shows = "what raises the score of the class"
    source = "Barkan et al., CIKM 2021, arXiv 2204.11073"
    cost = "forward + backward"
    unit = "attention x positive gradient"

    def __init__(self, model: ModelLike, **options: Unpack[AttentionOptions]) -> None:
        super().__init__(model, **options)
        self.rule = PositiveGradientRule(self.adapter.layers - self.start_layer, weighted=True)
