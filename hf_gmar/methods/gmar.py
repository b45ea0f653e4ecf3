"""GMAR: Gradient-Driven Multi-Head Attention Rollout."""

from __future__ import annotations

from typing import Any, Unpack

from torch import Tensor

from hf_gmar._core.inputs import PixelInputs
from hf_gmar._core.model_adapter import ModelLike
from hf_gmar._core.targets import Target
from hf_gmar._utils.validation import check_number, check_option
from hf_gmar.methods.attention_base import AttentionMethod, AttentionOptions
from hf_gmar.methods.layer_rules import NORMS, GmarRule, Norm


class GMAR(AttentionMethod):
    r"""Weight each attention head by the gradient of the explained score, then roll out.

    $$
    r = r_0 M_L \cdots M_1, \quad M_l = \frac{\sum_h w_{l,h} A_{l,h} + \alpha I}{1 + \alpha}, \quad
    w_{l,h} = \frac{g_{l,h}}{\sum_k g_{l,k}}, \quad g_{l,h} = \sum_{i,j} |G_{l,h,i,j}|
    $$

    $A$: attention; $G$: gradient of the score with respect to $A$; $r_0$: readout. ``"l2"`` takes
    $g_{l,h} = \sqrt{\sum_{i,j} G_{l,h,i,j}^2}$. ``docs/gmar.md`` states the choices where the paper
    is silent.

    The map is $r$ on the patches: >= 0, with a sum of at most 1. Prefix tokens keep the rest.

    Args:
        norm: the norm of each head's gradient: ``"l1"`` or ``"l2"``.
        alpha: weight of the residual connection, >= 0.
        **options: see :class:`~hf_gmar.methods.attention_base.AttentionMethod`.

    Example:
        >>> import torch
        >>> from hf_gmar import load_model
        >>> gmar, images = GMAR(load_model("bundled").model), torch.randn(2, 3, 96, 96)
        >>> gmar.attribute(images, target=[3, 1]).shape
        torch.Size([2, 3, 96, 96])
        >>> gmar.attribute_patches(images, target=3).shape
        torch.Size([2, 8, 8])
        >>> gmar.head_importance(images, target=3).shape
        torch.Size([2, 6, 4])
    """

    title = "GMAR"
    shows = "where the model looks"
    source = "Jo, Jang and Park, ICIP 2025, arXiv 2504.19414"
    cost = "forward + backward"
    unit = "share of relevance"

    def __init__(
        self,
        model: ModelLike,
        norm: Norm = "l1",
        alpha: float = 1.0,
        **options: Unpack[AttentionOptions],
    ) -> None:
        super().__init__(model, **options)
        check_option("norm", norm, NORMS)
        self.rule = GmarRule(norm, check_number("alpha", alpha, 0))

    def head_importance(
        self,
        inputs: PixelInputs = None,
        target: Target = None,
        additional_forward_args: Any = None,
        contrast: Target = None,
        **forward_kwargs: Any,
    ) -> Tensor:
        """Return the share of each head in its layer's gradient, $w$ in the paper.

        Arguments and errors are those of :meth:`attribute`. The image is not shifted.

        Returns:
            Tensor (B, layers, H), lowest explained layer first; each layer sums to 1. A layer whose
            gradient is zero everywhere gives every head 1/H.
        """
        target_spec = self._target_spec(target, contrast)
        return self._of_heads(inputs, target_spec, additional_forward_args, forward_kwargs)[0]
