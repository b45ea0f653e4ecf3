"""The base of the methods whose relevance is defined on pixels, too."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

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
from hf_gmar._utils.validation import check_option
from hf_gmar.methods.base import AttributionMethod, Inputs

Resolution: TypeAlias = Literal["patch", "pixel"]


class PixelAttribution(AttributionMethod):
    """Base of methods that multiply the input by a gradient, at tokens or at pixels.

    Args:
        model: see :class:`~hf_gmar.methods.AttributionMethod`.
        readout: see :class:`~hf_gmar.methods.AttributionMethod`.
        grid: see :class:`~hf_gmar.methods.AttributionMethod`.
        resolution: ``"patch"`` for one value for each patch, ``"pixel"`` for one for each pixel and
            channel in :meth:`attribute`.
    """

    needs_tokens = False

    def __init__(
        self,
        model: ModelLike,
        readout: ReadoutSpec = None,
        grid: Sequence[int] | None = None,
        resolution: Resolution = "patch",
    ) -> None:
        super().__init__(model, readout, grid)
        check_option("resolution", resolution, get_args(Resolution))
        self.resolution = resolution

    @property
    def of_pixels(self) -> bool:
        """Whether the map is made of the relevance of pixels."""
        return self.adapter.has_cells or self.resolution == "pixel"

    @log_usage()  # type: ignore[untyped-decorator]  # Captum's NoiseTunnel needs __wrapped__
    def attribute(
        self,
        inputs: Inputs | Mapping[str, Tensor] | None = None,
        target: Target = None,
        additional_forward_args: Any = None,
        contrast: Target = None,
        **forward_kwargs: Any,
    ) -> Inputs:
        """Return the relevance of each pixel: its own with ``resolution="pixel"``, or its patch's.

        Arguments, errors and shape are those of :meth:`AttributionMethod.attribute`.
        """
        if self.resolution != "pixel":
            of_patches: Inputs = super().attribute(
                inputs, target, additional_forward_args, contrast, **forward_kwargs
            )
            return of_patches
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
        grid = self.adapter.layout.grid(*request.inputs.shape[-2:])
        pixels = pixel_attributions(self.adapter, request, target_specs, self._lrp())
        return [cell_sums(values.sum(1), grid) for values in pixels]

    @abstractmethod
    def _of_tokens(
        self, request: ForwardRequest, target_specs: Sequence[TargetSpec]
    ) -> list[Tensor]:
        """Return the maps (B, rows, columns) of the relevance of tokens."""

    def _lrp(self) -> LRPMode | None:
        """Return the rules of the gradient, or ``None`` for the gradient itself."""
        return None
