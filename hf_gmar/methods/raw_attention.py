"""The attention of one layer, as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from hf_gmar._core.request import ForwardRequest
from hf_gmar._core.token_layout import ReadoutSpec
from hf_gmar._utils.validation import check_layer
from hf_gmar.methods.attention_base import AttentionMethod
from hf_gmar.methods.layer_rules import RolloutRule


class RawAttention(AttentionMethod):
    """Where the readout looks in one layer: the mean of its heads, the same for every class.

    The map is r0 A, with r0 the tokens that the class head reads (CLS, the mean of the patches,
    ...) and A the layer's attention. A map is >= 0 and sums to at most 1. No gradient is taken.

    Pictures of ViTs often show it; the paper does head by head.

    Args:
        layer: which layer, from 0; -1 is the last.

    Example:
        >>> import torch
        >>> from hf_gmar import load_model
        >>> attention = RawAttention(load_model("bundled").model, layer=2)
        >>> attention.attribute_patches(torch.rand(2, 3, 96, 96)).shape
        torch.Size([2, 8, 8])
    """

    source = "as in Caron et al., ICCV 2021, arXiv 2104.14294"
    cost = "forward"
    class_specific = False
    gradient = "none"

    def __init__(
        self,
        model: Callable[..., Any],
        layer: int = -1,
        engine: str = "streaming",
        chunk_size: int | None = None,
        checkpoint: bool = False,
        readout: ReadoutSpec = None,
    ) -> None:
        super().__init__(model, 0, engine, chunk_size, checkpoint, readout)
        self.layer = check_layer("layer", layer, self.adapter.layers)
        self.rule = RolloutRule("mean", 0, alpha=0)  # one layer, without its residual

    def _request(
        self, inputs: Tensor | tuple[Tensor, ...], args: Any, kwargs: dict[str, Any]
    ) -> ForwardRequest:
        request = super()._request(inputs, args, kwargs)
        return replace(request, start_layer=self.layer, stop_layer=self.layer + 1)
