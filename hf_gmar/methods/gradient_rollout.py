"""Gradient rollout: generic attention explainability."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

from hf_gmar.methods.attention_base import AttentionMethod, AttentionOptions
from hf_gmar.methods.layer_rules import GradientRolloutRule


class GradientRollout(AttentionMethod):
    """Roll out attention times gradient, where both help the class.

    Equations 5 and 6 of the paper: from R = I, R <- R + mean_h relu(A * dscore/dA) R in each layer,
    lowest first. The map is the readout's row of R - I. So a class head that reads CLS gets the
    paper's map. One that reads patches gets it without its own start, which is the same for all.

    A map is >= 0 and has no upper bound: it grows with the score.

    Example:
        >>> import torch
        >>> from hf_gmar import load_model
        >>> rollout = GradientRollout(load_model("bundled").model)
        >>> rollout.attribute_patches(torch.rand(2, 3, 96, 96), target=3).shape
        torch.Size([2, 8, 8])
    """

    source = "Chefer et al., ICCV 2021, arXiv 2103.15679"
    cost = "forward + backward"

    def __init__(self, model: Callable[..., Any], **options: Unpack[AttentionOptions]) -> None:
        super().__init__(model, **options)
        self.rule = GradientRolloutRule()
