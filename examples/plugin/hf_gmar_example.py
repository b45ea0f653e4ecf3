"""A method, a metric and a perturbation that hf_gmar finds by the entry points of this package."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_gmar import ModelLike
from hf_gmar.methods import GMAR
from hf_gmar.metrics import Curves, Metric
from hf_gmar.perturbations import CopyPlan, Perturbation, PerturbationInput


class UpperGMAR(GMAR):
    """GMAR over the upper half of the layers."""

    source = "this example"

    def __init__(self, model: ModelLike, alpha: float = 1.0) -> None:
        super().__init__(model, alpha=alpha)
        self.start_layer = self.adapter.layers // 2


class LostAtHalf(Metric[Curves]):
    """Loss of score after removal of half of the patches, most relevant first."""

    name = "lost-at-half"
    input_kind = "curves"
    higher_is_better = True
    summary = "Loss of score after removal of half of the patches, most relevant first."
    formula = "score(0) - score(1/2), most relevant first"
    source = "this example"
    caveats = "one point of a curve"
    perturbed = True

    def values(self, curves: Curves) -> Tensor:
        """Return a difference, from -1 to 1 for probabilities, for each image, (B,)."""
        half = int((curves.fractions - 0.5).abs().argmin())
        return (curves.morf[:, 0] - curves.morf[:, half]).double()


@dataclass(frozen=True)
class Black(Perturbation):
    """A missing patch is black."""

    name = "black"
    soft = False
    summary = "black"
    source = "this example"

    def copies(self, image: PerturbationInput) -> CopyPlan:
        """Set missing patches to the lowest value of the image's pixels."""

        def pixels(keep_mask: Tensor) -> Tensor:
            height, width = image.pixels.shape[-2:]
            size = height // keep_mask.shape[1], width // keep_mask.shape[2]
            kept = keep_mask.repeat_interleave(size[0], 1).repeat_interleave(size[1], 2)[:, None]
            return torch.where(kept.bool(), image.pixels, image.pixels.min())

        return CopyPlan(pixels)
