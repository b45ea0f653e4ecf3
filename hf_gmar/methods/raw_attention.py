"""Raw attention of one layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hf_gmar._core.inputs import PixelInputs
from hf_gmar._core.model_adapter import ModelLike
from hf_gmar._core.request import ForwardRequest
from hf_gmar._core.token_layout import ReadoutSpec
from hf_gmar._utils.validation import check_layer
from hf_gmar.methods.attention_base import AttentionMethod
from hf_gmar.methods.base import Resolution
from hf_gmar.methods.layer_rules import RolloutRule


class RawAttention(AttentionMethod):
    r"""Read the attention of one layer, averaged over its heads; same for every class.

    $$ r = r_0 \frac{1}{H} \sum_h A_{l,h} $$

    $A$: attention of layer $l$; $r_0$: readout. The paper shows each head by itself.

    The map is $r$ on the patches: >= 0, with a sum of at most 1. No gradient is computed.

    Args:
        layer: index $l$ of the layer, from 0; -1 is the last.

    Example:
        >>> import torch
        >>> from hf_gmar import load_model
        >>> attention = RawAttention(load_model("bundled").model, layer=2)
        >>> attention.attribute_patches(torch.rand(2, 3, 96, 96)).shape
        torch.Size([2, 8, 8])
    """

    title = "Raw attention"
    shows = "where the model looks"
    source = "as in Caron et al., ICCV 2021, arXiv 2104.14294"
    cost = "forward"
    unit = "share of attention"
    class_specific = False
    needs_scores = False
    gradient = "none"

    def __init__(
        self,
        model: ModelLike,
        layer: int = -1,
        engine: str = "streaming",
        chunk_size: int | None = None,
        checkpoint: bool = False,
        readout: ReadoutSpec = None,
        resolution: Resolution = "patch",
    ) -> None:
        super().__init__(model, 0, engine, chunk_size, checkpoint, readout, resolution)
        self.layer = check_layer("layer", layer, self.adapter.layers)
        self.rule = RolloutRule("mean", 0, alpha=0)  # one layer, without residual

    def _request(self, inputs: PixelInputs, args: Any, kwargs: dict[str, Any]) -> ForwardRequest:
        request = super()._request(inputs, args, kwargs)
        return replace(request, start_layer=self.layer, stop_layer=self.layer + 1)
