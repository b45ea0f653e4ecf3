"""Gradient x input, on the tokens of a layer or on pixels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hf_gmar._core.model_adapter import ModelLike
from hf_gmar._core.request import ForwardRequest
from hf_gmar._core.targets import TargetSpec
from hf_gmar._core.token_layout import ReadoutSpec
from hf_gmar._engines.token_gradients import product, token_attributions
from hf_gmar._utils.validation import check_layer
from hf_gmar.methods.base import Resolution
from hf_gmar.methods.pixel_base import PixelAttribution


class InputXGradient(PixelAttribution):
    r"""Multiply each patch token by its gradient: its contribution to the score, to first order.

    $$ r_p = \sum_c T_{p,c} G_{p,c} $$

    $T$: patch tokens at the layer's input; $G$: gradient of the score with respect to $T$. At layer
    0 the tokens are the embedded patches with their positions. The paper uses the input itself.

    A model without a fixed grid of patches has a map of cells: $T$ are then the pixels $p$ of a
    cell, in all channels $c$, and their products are summed in the cell.

    The map is $r$: signed and without bounds; negative values speak against the class. It is in the
    units of the score but does not sum to it, as a Vision Transformer is not linear.

    Args:
        layer: index of the layer, from 0; negative ones count from the top, -1 is the top. It must
            be 0 for a map of cells or pixels.
        resolution: ``"pixel"`` multiplies pixels by their gradient, as the paper does and Captum's
            ``InputXGradient``: :meth:`attribute` then returns that product, and the map sums it in
            each patch. A whole number k sums it in k x k cells of each patch, too.

    Example:
        >>> import torch
        >>> from hf_gmar import load_model
        >>> explain = InputXGradient(load_model("bundled").model)
        >>> images = torch.zeros(2, 3, 96, 96)
        >>> explain.attribute_patches(images, target=3).shape
        torch.Size([2, 8, 8])
    """

    title = "Input × gradient"  # noqa: RUF001  # the sign of a product
    shows = "what speaks for the class, and against it"
    source = "Shrikumar et al., 2016, arXiv 1605.01713"
    cost = "forward + backward"
    unit = "input x gradient"
    signed = True

    def __init__(
        self,
        model: ModelLike,
        layer: int = 0,
        readout: ReadoutSpec = None,
        grid: Sequence[int] | None = None,
        resolution: Resolution = "patch",
    ) -> None:
        super().__init__(model, readout, grid, resolution)
        layers = 1 if self.of_pixels else self.adapter.layers
        self.layer = check_layer("layer", layer, layers)

    def _of_tokens(
        self, request: ForwardRequest, target_specs: Sequence[TargetSpec]
    ) -> list[Tensor]:
        return token_attributions(self.adapter, request, target_specs, [self.layer], product)
