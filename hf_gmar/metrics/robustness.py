"""Metrics of small changes of the image: does the map tell what they do, and does it stay?"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from captum.metrics import infidelity, sensitivity_max
from torch import Tensor

from hf_gmar._utils.validation import check_option, check_positive
from hf_gmar.metrics.context import ContextMetric, MetricContext

_YEH = "Yeh et al., NeurIPS 2019, arXiv 1901.09392"
_SAMPLES = range(1, 10_001)


class Infidelity(ContextMetric):
    """Infidelity, definition 2.1, by ``captum.metrics.infidelity`` with ``normalize=True``.

    The brightness of every patch is changed by a random amount, the same for all its pixels and
    channels; the sum of relevance times change is compared with the fall of the score. Relevance is
    multiplied by the one factor that fits best, so that a map counts by its proportions alone.

    Args:
        samples: random changes of each image.
        noise: their standard deviation, in units of the model's input.
        images: see :class:`~hf_gmar.metrics.base.Metric`.
    """

    name = "infidelity"
    higher_is_better = False
    summary = "How badly the map tells what small changes of the patches do to the score."
    formula = "mean over changes I of (c sum(relevance x I) - (score(x) - score(x - I)))^2, best c"
    source = _YEH
    caveats = "in units of the score squared, so images where it hardly moves count little"

    def __init__(self, samples: int = 10, noise: float = 0.2, images: int | None = None) -> None:
        super().__init__(images)
        check_option("samples", samples, _SAMPLES)
        self.samples = int(samples)
        self.noise = check_positive("noise", noise)

    def values(self, context: MetricContext) -> Tensor:
        """>= 0, (1,)."""
        relevance, pixels = context.relevance(), context.pixels
        random = np.random.default_rng(context.seed)

        def perturb(images: Tensor) -> tuple[Tensor, Tensor]:
            drawn = random.normal(0, self.noise, (len(images), *relevance.shape))
            change = _on_pixels(torch.from_numpy(drawn), pixels)
            return change, images - change.to(images)

        with torch.no_grad():
            value: Tensor = infidelity(
                lambda images: context.scores(images).double().cpu(),
                perturb,
                pixels,
                # The best factor makes up for the number of pixels in a patch.
                _on_pixels(relevance[None], pixels),
                target=context.target,
                n_perturb_samples=self.samples,
                normalize=True,
            )
        return value.double().cpu().clamp(min=0)


class MaxSensitivity(ContextMetric):
    """Max-sensitivity, by ``captum.metrics.sensitivity_max``.

    The largest Euclidean distance between the map of the image and those of its noisy copies, by
    the length of the former (by 1 if that is 0).

    Args:
        samples: noisy copies.
        radius: the noise is uniform between plus and minus this, in units of the model's input.
        images: see :class:`~hf_gmar.metrics.base.Metric`.
    """

    name = "max-sensitivity"
    higher_is_better = False
    summary = "How far the map moves, at most, when noise that no one sees is added to the image."
    formula = "max over noisy copies y of length(map(y) - map(x)) / length(map(x))"
    source = _YEH
    caveats = "a map that never changes is best, whatever it shows"

    def __init__(self, samples: int = 10, radius: float = 0.02, images: int | None = None) -> None:
        super().__init__(images)
        check_option("samples", samples, _SAMPLES)
        self.samples = int(samples)
        self.radius = check_positive("radius", radius)

    def values(self, context: MetricContext) -> Tensor:
        """>= 0, (1,)."""
        random = np.random.default_rng(context.seed)

        def perturb(images: Tensor, radius: float) -> Tensor:
            drawn = random.uniform(-radius, radius, tuple(images.shape))
            return images + torch.from_numpy(drawn).to(images)

        def explain(images: Any) -> Any:
            # Captum gives the image itself as a tuple, and wants one back for a tuple alone.
            if isinstance(images, tuple):
                return (context.relevance()[None],)
            return context.as_map(context.explain(images, context.target))[None]

        value: Tensor = sensitivity_max(
            explain,
            context.pixels,
            perturb,
            perturb_radius=self.radius,
            n_perturb_samples=self.samples,
            max_examples_per_batch=1,
        )
        return value.double().cpu()


def _on_pixels(patches: Tensor, pixels: Tensor) -> Tensor:
    """Each patch's number at all its pixels and channels, (K, channels, height, width)."""
    height, width = (
        size // count for size, count in zip(pixels.shape[2:], patches.shape[1:], strict=True)
    )
    spread = patches.repeat_interleave(height, 1).repeat_interleave(width, 2)
    return spread[:, None].expand(-1, pixels.shape[1], -1, -1)
