"""Random maps: the baseline that a method must beat."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from hf_gmar._core.execution import accumulation_dtype, predict
from hf_gmar._core.model_adapter import ModelLike
from hf_gmar._core.request import ForwardRequest
from hf_gmar._core.targets import TargetSpec
from hf_gmar._core.token_layout import ReadoutSpec
from hf_gmar._utils.validation import check_option
from hf_gmar.methods.base import AttributionMethod, Resolution

_SEEDS = range(2**32)


class RandomAttribution(AttributionMethod):
    r"""Draw a map of uniform random numbers: the random baseline.

    $$ r_p \sim \mathcal{U}(0, 1) $$

    The generator is seeded by ``seed`` and the image's pixels. The map of an image is therefore the
    same in any batch, on every run and for every class. The caller's random state stays unchanged.

    Args:
        seed: a whole number from 0 to 2^32 - 1.

    Example:
        >>> from hf_gmar import load_model
        >>> baseline = RandomAttribution(load_model("bundled").model, seed=1)
        >>> baseline.attribute_patches(torch.rand(2, 3, 96, 96)).shape
        torch.Size([2, 8, 8])
    """

    title = "Random"
    shows = "nothing: random numbers"
    source = "none: the random baseline"
    cost = "forward"
    unit = "random number"
    class_specific = False
    needs_scores = False
    needs_tokens = False

    def __init__(
        self,
        model: ModelLike,
        seed: int = 0,
        readout: ReadoutSpec = None,
        grid: Sequence[int] | None = None,
        resolution: Resolution = "patch",
    ) -> None:
        super().__init__(model, readout, grid, resolution)
        check_option("seed", seed, _SEEDS)
        self.seed = int(seed)

    def _explain(self, request: ForwardRequest, target_specs: Sequence[TargetSpec]) -> list[Tensor]:
        scores = predict(self.adapter, request)
        for target_spec in target_specs:
            target_spec.resolve(scores)  # raises the errors of other methods
        images = request.inputs.detach()
        grid = self.adapter.grid(images)
        maps = torch.stack([_numbers(image, self.seed, grid) for image in images])
        return [maps.to(scores.device, accumulation_dtype(scores), copy=True) for _ in target_specs]


def _numbers(image: Tensor, seed: int, grid: tuple[int, ...]) -> Tensor:
    """Uniform numbers in the map's shape, a function of image and seed."""
    pixels = image.float().cpu().contiguous().numpy().tobytes()
    digest = hashlib.sha256(seed.to_bytes(4, "little") + pixels).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
    return torch.rand(grid, generator=generator, dtype=torch.float64)
