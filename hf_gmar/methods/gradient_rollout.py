"""Gradient rollout: generic attention explainability."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

from hf_gmar.methods.attention_base import AttentionMethod, AttentionOptions
from hf_gmar.methods.layer_rules import GradientRolloutRule


class GradientRollout(AttentionMethod):
    """Roll out attention times gradient, where both help the class.

    Source: Chefer, Gur and Wolf, "Generic Attention-model Explainability for Interpreting Bi-Modal
    and Encoder-Decoder Transformers", ICCV 2021 (arXiv 2103.15679), equations 5 and 6: from R = I,
    upwards R <- R + mean_h relu(A * dscore/dA) R in each layer. The map is the readout's row of
    R - I: a head that reads CLS gets the paper's map, and one that reads patches not its own start
    on top, which is the same for all of them.

    A map is >= 0 and has no upper bound: it grows with the score.

    Args:
        model: see :class:`~hf_gmar.methods.base.AttributionMethod`.
        **options: see :class:`~hf_gmar.methods.attention_base.AttentionMethod`.

    Raises:
        UnsupportedModelError: unknown or hierarchical family, no model or several.
        OptionError: an option outside its range.

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
