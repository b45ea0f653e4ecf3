"""Gradient rollout: generic attention explainability."""

from __future__ import annotations

from typing import Unpack

from hf_gmar._core.model_adapter import ModelLike
from hf_gmar.methods.attention_base import AttentionMethod, AttentionOptions
from hf_gmar.methods.layer_rules import GradientRolloutRule


class GradientRollout(AttentionMethod):
    r"""Roll out the positive part of attention times gradient (equations 5 and 6 of the paper).

    $$ r = r_0 (R_L - I), \quad R_l = R_{l-1} + \frac{1}{H} \sum_h
    \operatorname{relu}(A_{l,h} \circ G_{l,h}) R_{l-1}, \quad R_0 = I $$

    $A$: attention; $G$: gradient of the score with respect to $A$; $r_0$: readout. For a CLS head
    this is the paper's map. For a patch head, $-I$ removes $r_0$, the same for all patches.

    The map is $r$ on the patches: >= 0, without an upper bound; it grows with the score.

    Example:
        >>> import torch
        >>> from hf_gmar import load_model
        >>> rollout = GradientRollout(load_model("bundled").model)
        >>> rollout.attribute_patches(torch.rand(2, 3, 96, 96), target=3).shape
        torch.Size([2, 8, 8])
    """

    title = "Gradient rollout"
    shows = "what raises the score of the class"
    source = "Chefer et al., ICCV 2021, arXiv 2103.15679"
    cost = "forward + backward"
    unit = "attention x positive gradient,\nrolled out"

    def __init__(self, model: ModelLike, **options: Unpack[AttentionOptions]) -> None:
        super().__init__(model, **options)
        self.rule = GradientRolloutRule()
