"""Grad-CAM on the tokens of a layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from hf_gmar._core.request import ForwardRequest
from hf_gmar._core.targets import TargetSpec
from hf_gmar._core.token_layout import ReadoutSpec
from hf_gmar._engines.token_gradients import token_attributions
from hf_gmar._utils.validation import check_layer
from hf_gmar.methods.base import AttributionMethod


class TokenGradCAM(AttributionMethod):
    """Weight each channel of a layer's patch tokens by its mean gradient, and keep what is > 0.

    With the tokens T[p, c] that enter the layer and the score s of the explained class:
    alpha[c] is the mean over the patches of ds / dT[p, c], and map[p] = relu(sum over c of
    alpha[c] T[p, c]). Prefix tokens such as CLS take no part.

    Values are >= 0 and without an upper bound. A map of zeros says that no patch speaks for the
    class.

    The tokens are those that *enter* the layer. Under a class head that reads CLS alone, patches
    that leave the top layer have no influence on any score, and their map would be zero.

    The paper is about convolutional networks; here a patch takes the place of a position in a
    feature map.

    Args:
        layer: whose input is explained, from 0; negative ones count from the top, -1 is the top.

    Example:
        >>> import torch
        >>> from hf_gmar import load_model
        >>> loaded = load_model("bundled")
        >>> cam = TokenGradCAM(loaded.model, layer=-2)
        >>> images = torch.zeros(2, 3, 96, 96)
        >>> maps = cam.attribute_patches(images, target=3)
        >>> maps.shape, bool((maps >= 0).all())
        (torch.Size([2, 8, 8]), True)
    """

    source = "Selvaraju et al., ICCV 2017, arXiv 1610.02391"
    cost = "forward + backward"

    def __init__(
        self, model: Callable[..., Any], layer: int = -1, readout: ReadoutSpec = None
    ) -> None:
        super().__init__(model, readout)
        self.layer = check_layer("layer", layer, self.adapter.layers)

    def _explain(self, request: ForwardRequest, target_specs: Sequence[TargetSpec]) -> list[Tensor]:
        return token_attributions(self.adapter, request, target_specs, self.layer, _weighted)


def _weighted(tokens: Tensor, gradient: Tensor) -> Tensor:
    weights = gradient.mean(1, keepdim=True)
    return (tokens * weights).sum(-1).relu()
