"""Perturbations of tokens: the model runs without the token of a missing patch."""

from __future__ import annotations

from dataclasses import dataclass

from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar.errors import UnsupportedModelError
from hf_gmar.perturbations.base import CopyPlan, Perturbation, PerturbationInput
from hf_gmar.perturbations.token_removal import (
    DropSites,
    drop_tokens,
    mask_tokens,
    reads_patches,
)


def _check_tokens(name: str, adapter: ModelAdapter) -> None:
    if adapter.has_cells:
        raise UnsupportedModelError(
            f"{name} takes tokens out, and {type(adapter.backbone).__name__} has no fixed grid of "
            "patch tokens; take a perturbation of pixels: mean, blur, noise or dataset-mean"
        )


@dataclass(frozen=True)
class AttentionMasking(Perturbation):
    """Mask a missing patch in the attention of all layers and in the head's readout.

    Scores equal those of :class:`TokenDropping` up to rounding, as no token that the head reads
    depends on a missing patch. The cost is higher, as the number of tokens stays the same. Copies
    with different numbers of patches share a forward if the head reads no patches.

    Source: Deiseroth et al., "AtMan: Understanding Transformer Predictions Through Memory
    Efficient Attention Manipulation", NeurIPS 2023 (arXiv 2301.08110), who weaken the attention to
    a token in all layers; here it is zero.
    """

    name = "attention-masking"
    soft = False
    summary = "no attention to the patch in any layer"
    source = "Deiseroth et al. 2023"

    def copies(self, image: PerturbationInput) -> CopyPlan:
        """Return the unchanged pixels, with masked tokens in each forward."""
        _check_tokens(self.name, image.adapter)
        return CopyPlan(
            lambda keep_mask: image.pixels.expand(len(keep_mask), -1, -1, -1),
            lambda keep_mask: mask_tokens(image.adapter, keep_mask.flatten(1)),
            same_count=reads_patches(image.adapter),
        )


@dataclass(frozen=True)
class TokenDropping(Perturbation):
    """Drop the token of a missing patch before the layers; other tokens keep their positions.

    Source: Jain et al., "Missingness Bias in Model Debugging", ICLR 2022 (arXiv 2204.08945).
    """

    name = "token-dropping"
    soft = False
    summary = "nothing: its token does not enter the layers"
    source = "Jain et al. 2022"

    def copies(self, image: PerturbationInput) -> CopyPlan:
        """Return the unchanged pixels, with dropped tokens in each forward."""
        _check_tokens(self.name, image.adapter)
        sites = DropSites.of(image.adapter)
        return CopyPlan(
            lambda keep_mask: image.pixels.expand(len(keep_mask), -1, -1, -1),
            lambda keep_mask: drop_tokens(image.adapter, keep_mask.flatten(1), sites),
            same_count=True,
            one_by_one=sites.one_by_one,
        )
