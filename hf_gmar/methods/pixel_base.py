"""The base of the methods whose relevance is defined on pixels, too."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from captum.log import log_usage
from torch import Tensor

from hf_gmar._core.cell_layout import cell_sums
from hf_gmar._core.inputs import pixels_of, size_errors
from hf_gmar._core.model_adapter import ModelLike
from hf_gmar._core.request import ForwardRequest
from hf_gmar._core.targets import Target, TargetSpec
from hf_gmar._core.token_layout import ReadoutSpec
from hf_gmar._engines.lrp import LRPMode
from hf_gmar._engines.pixel_gradients import pixel_attributions
from hf_gmar.methods.base import AttributionMethod, Inputs, Resolution


class PixelAttribution(AttributionMethod):
    """Base of methods that multiply the input by a gradient, at tokens or at pixels.

    Args:
        model: see :class:`~hf_gmar.methods.AttributionMethod`.
        readout: see :class:`~hf_gmar.methods.AttributionMethod`.
        grid: see :class:`~hf_gmar.methods.AttributionMethod`.
        resolution: ``"patch"`` for one value for each patch; ``"pixel"`` for one for each pixel and
            channel in :meth:`attribute`; a whole number k for the sums of pixels in k x k cells of
            each patch, whose sides it must divide. The image is explained once, and the map has
            the sum of each patch.
    """

    needs_tokens = False
    resolutions = ("patch", "pixel")

    def __init__(
        self,
        model: ModelLike,
        readout: ReadoutSpec = None,
        grid: Sequence[int] | None = None,
        resolution: Resolution = "patch",
    ) -> None:
        super().__init__(model, readout, grid, resolution)

    @classmethod
    def per(cls, resolution: Resolution) -> str:
        """What a value of a picture belongs to, for its colour bar."""
        if resolution == "pixel":
            return "pixel, mean of a patch around each"
        is_fine = isinstance(resolution, int) and resolution > 1
        return f"cell, {resolution} x {resolution} in a patch" if is_fine else "patch"

    @property
    def of_pixels(self) -> bool:
        """Whether the map is made of the relevance of pixels."""
        return self.adapter.has_cells or self.is_fine

    @log_usage()  # type: ignore[untyped-decorator]  # Captum's NoiseTunnel needs __wrapped__
    def attribute(
        self,
        inputs: Inputs | Mapping[str, Tensor] | None = None,
        target: Target = None,
        additional_forward_args: Any = None,
        contrast: Target = None,
        **forward_kwargs: Any,
    ) -> Inputs:
        """Return the relevance of each pixel: its own with ``resolution="pixel"``.

        Otherwise it has the value of its patch or cell.

        Arguments, errors and shape are those of :meth:`AttributionMethod.attribute`.
        """
        if self.resolution != "pixel":
            spread: Inputs = super().attribute(
                inputs, target, additional_forward_args, contrast, **forward_kwargs
            )
            return spread
        pixels, forward_kwargs = pixels_of(inputs, forward_kwargs)
        spec = self._target_spec(target, contrast)
        request = self._request(pixels, additional_forward_args, forward_kwargs)
        with size_errors(self.adapter, request.inputs):
            (values,) = pixel_attributions(self.adapter, request, [spec], self._lrp())
        attribution: Any = values.to(pixels.dtype)
        result: Inputs = (attribution,) if isinstance(inputs, tuple) else attribution
        return result

    def _explain(self, request: ForwardRequest, target_specs: Sequence[TargetSpec]) -> list[Tensor]:
        if not self.of_pixels:
            return self._of_tokens(request, target_specs)
        return self._explain_finely(request, target_specs)[0]

    def _explain_finely(
        self, request: ForwardRequest, target_specs: Sequence[TargetSpec]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the sums of patches, and of cells or of single pixels, of one backward."""
        rows, columns = self.adapter.layout.grid(*request.inputs.shape[-2:])
        pixels = [
            values.sum(1)
            for values in pixel_attributions(self.adapter, request, target_specs, self._lrp())
        ]
        patches = [cell_sums(values, (rows, columns)) for values in pixels]
        if self.resolution == "pixel":
            return patches, pixels
        cells = rows * self.cells_per_side, columns * self.cells_per_side
        return patches, [cell_sums(values, cells) for values in pixels]

    @property
    def _repetitions(self) -> str:
        return ""  # one backward has all pixels

    @abstractmethod
    def _of_tokens(
        self, request: ForwardRequest, target_specs: Sequence[TargetSpec]
    ) -> list[Tensor]:
        """Return the maps (B, rows, columns) of the relevance of tokens."""

    def _lrp(self) -> LRPMode | None:
        """Return the rules of the gradient, or ``None`` for the gradient itself."""
        return None
