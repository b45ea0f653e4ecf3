"""Metrics of small changes of the image: infidelity and max-sensitivity."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from captum.metrics import infidelity, sensitivity_max
from torch import Tensor

from hf_gmar._core.interrupts import deferred_signals
from hf_gmar._utils.validation import check_option, check_positive
from hf_gmar.metrics.context import ContextMetric, MetricContext

_YEH = "Yeh et al., NeurIPS 2019, arXiv 1901.09392"
_SAMPLES = range(1, 10_001)


class Infidelity(ContextMetric):
    """Infidelity, definition 2.1, by ``captum.metrics.infidelity`` with ``normalize=True``.

    The brightness of every patch changes by a random amount, equal for all its pixels and channels.
    The sum of relevance times change is compared with the drop of the score. The map is scaled by
    the best-fitting factor, so only its proportions count.

    Args:
        samples: number of random changes of each image.
        noise: standard deviation of the changes, in units of the model's input.
        images: see :class:`~hf_gmar.metrics.base.Metric`.
    """

    name = "infidelity"
    higher_is_better = False
    summary = "How badly the map predicts the score's response to small changes of the patches."
    formula = "mean over changes I of (c sum(relevance x I) - (score(x) - score(x - I)))^2, best c"
    source = _YEH
    caveats = "in units of the squared score, so images whose score hardly changes count little"

    def __init__(self, samples: int = 10, noise: float = 0.2, images: int | None = None) -> None:
        super().__init__(images)
        check_option("samples", samples, _SAMPLES)
        self.samples = int(samples)
        self.noise = check_positive("noise", noise)

    def values(self, context: MetricContext) -> Tensor:
        """Return the value >= 0, (1,)."""
        relevance, pixels = context.relevance(), context.pixels
        random = np.random.default_rng(context.seed)

        def perturb(images: Tensor) -> tuple[Tensor, Tensor]:
            noise = random.normal(0, self.noise, (len(images), *relevance.shape))
            change = _on_pixels(torch.from_numpy(noise), pixels)
            return change, images - change.to(images)

        with deferred_signals(), torch.no_grad():
            value: Tensor = infidelity(
                lambda images: context.scores(images).double().cpu(),
                perturb,
                pixels,
                # The best-fitting factor also corrects for the number of pixels in a patch.
                _on_pixels(relevance[None], pixels),
                target=context.target,
                n_perturb_samples=self.samples,
                normalize=True,
            )
        return value.double().cpu().clamp(min=0)


class MaxSensitivity(ContextMetric):
    """Max-sensitivity, by ``captum.metrics.sensitivity_max``.

    The largest Euclidean distance between the map of the image and the maps of its noisy copies,
    divided by the norm of the image's map (by 1 if the norm is 0).

    Args:
        samples: number of noisy copies.
        radius: the noise is uniform from -radius to radius, in units of the model's input.
        images: see :class:`~hf_gmar.metrics.base.Metric`.
    """

    name = "max-sensitivity"
    higher_is_better = False
    summary = "How far the map changes, at most, when invisible noise is added to the image."
    formula = "max over noisy copies y of length(map(y) - map(x)) / length(map(x))"
    source = _YEH
    caveats = "a map that never changes is best, whatever it shows"

    def __init__(self, samples: int = 10, radius: float = 0.02, images: int | None = None) -> None:
        super().__init__(images)
        check_option("samples", samples, _SAMPLES)
        self.samples = int(samples)
        self.radius = check_positive("radius", radius)

    def values(self, context: MetricContext) -> Tensor:
        """Return the value >= 0, (1,)."""
        random = np.random.default_rng(context.seed)

        def perturb(images: Tensor, radius: float) -> Tensor:
            noise = random.uniform(-radius, radius, tuple(images.shape))
            return images + torch.from_numpy(noise).to(images)

        def explain(images: Any) -> Any:
            # Captum passes the image itself as a tuple and expects a tuple for it alone.
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
    """Repeat each patch's value over its pixels and channels, (K, channels, height, width)."""
    height, width = (
        size // count for size, count in zip(pixels.shape[2:], patches.shape[1:], strict=True)
    )
    pixel_values = patches.repeat_interleave(height, 1).repeat_interleave(width, 2)
    return pixel_values[:, None].expand(-1, pixels.shape[1], -1, -1)
