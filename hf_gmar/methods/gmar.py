"""GMAR: Gradient-Driven Multi-Head Attention Rollout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

from torch import Tensor

from hf_gmar._core.targets import Target
from hf_gmar._utils.validation import check_number, check_option
from hf_gmar.methods.attention_base import AttentionMethod, AttentionOptions
from hf_gmar.methods.layer_rules import NORMS, GmarRule, Norm


class GMAR(AttentionMethod):
    """Weight each attention head by the gradient of the explained class, then roll out.

    A map is >= 0 and sums to at most 1 over the patches: the share of the readout's relevance that
    lands on each. What is missing to 1 stayed on prefix tokens such as CLS.

    The exact definition, with the choices where the paper is silent, is in ``docs/gmar.md``.

    Args:
        norm: ``"l1"`` sums the absolute gradient of each head, ``"l2"`` takes its Euclidean norm.
        alpha: weight of the residual connection in each layer, >= 0; at 0 attention alone moves
            relevance.
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

    source = "Jo, Jang and Park, ICIP 2025, arXiv 2504.19414"
    cost = "forward + backward"

    def __init__(
        self,
        model: Callable[..., Any],
        norm: Norm = "l1",
        alpha: float = 1.0,
        **options: Unpack[AttentionOptions],
    ) -> None:
        super().__init__(model, **options)
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
