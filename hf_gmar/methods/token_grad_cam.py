"""Grad-CAM on the tokens of a layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hf_gmar._core.model_adapter import ModelLike
from hf_gmar._core.request import ForwardRequest
from hf_gmar._core.targets import TargetSpec
from hf_gmar._core.token_layout import ReadoutSpec
from hf_gmar._engines.pixel_gradients import feature_attributions, resized
from hf_gmar._engines.token_gradients import token_attributions
from hf_gmar._utils.validation import check_layer
from hf_gmar.methods.base import AttributionMethod, Resolution


class TokenGradCAM(AttributionMethod):
    r"""Weight each channel of a layer's patch tokens by its mean gradient; keep positive sums.

    $$ r_p = \operatorname{relu}\Bigl(\sum_c a_c T_{p,c}\Bigr), \quad
    a_c = \frac{1}{P} \sum_q G_{q,c} $$

    $T$: tokens of the $P$ patches at the layer's input; $G$: gradient of the score with respect to
    $T$. Prefix tokens such as CLS take no part.

    A model without a fixed grid of patches is explained by its last feature map, as in the paper,
    interpolated bilinearly to the cells of the map.

    The map is $r$: >= 0, without an upper bound. A map of zeros: no patch speaks for the class.

    The layer's input is used: under a class head that reads CLS alone, patches in the output of the
    top layer have no gradient. The paper explains convolutional networks; a patch here takes the
    place of a position in a feature map.

    Args:
        layer: index of the layer, from 0; negative ones count from the top, -1 is the top. For a
            model without a fixed grid of patches, the last feature map is the only layer.

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

    title = "Token Grad-CAM"
    shows = "what raises the score of the class"
    source = "Selvaraju et al., ICCV 2017, arXiv 1610.02391"
    cost = "forward + backward"
    unit = "tokens x mean gradient"
    needs_tokens = False

    def __init__(
        self,
        model: ModelLike,
        layer: int = -1,
        readout: ReadoutSpec = None,
        grid: Sequence[int] | None = None,
        resolution: Resolution = "patch",
    ) -> None:
        super().__init__(model, readout, grid, resolution)
        layers = 1 if self.adapter.has_cells else self.adapter.layers
        self.layer = check_layer("layer", layer, layers)

    def _explain(self, request: ForwardRequest, target_specs: Sequence[TargetSpec]) -> list[Tensor]:
        if self.adapter.has_cells:
            grid = self.adapter.layout.grid(*request.inputs.shape[-2:])
            pairs = feature_attributions(self.adapter, request, target_specs)
            parts = [[part.flatten(1, 2) for part in pair] for pair in pairs]
            return [
                resized(_weighted(*part).reshape(pair[0].shape[:3]), grid)
                for part, pair in zip(parts, pairs, strict=True)
            ]
        return token_attributions(self.adapter, request, target_specs, [self.layer], _weighted)


def _weighted(tokens: Tensor, gradient: Tensor) -> Tensor:
    weights = gradient.mean(1, keepdim=True)
    return (tokens * weights).sum(-1).relu()
