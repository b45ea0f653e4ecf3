"""Means over images with confidence intervals, and rank correlations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

_AT_ONCE = 4_000_000  # drawn numbers in memory at once, 32 MB


class Interval(NamedTuple):
    """A mean with the ends of its 95 % interval, in the shape of one image's values."""

    mean: Array
    low: Array
    high: Array

    def __str__(self) -> str:
        """Format the mean with its interval, or alone if the interval is NaN."""
        if np.isnan(self.low):
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"


def bootstrap(values: Array, seed: int = 0, draws: int = 2000) -> Interval:
    """Compute the mean over images and its 95 % percentile interval by the bootstrap.

    Args:
        values: (images, ...), at least one image.
        seed: seed of the resampling.
        draws: number of resamples.

    Returns:
        Mean, 2.5 % and 97.5 % quantile; NaN quantiles for a single image, which has no interval.

    Example:
        >>> print(bootstrap(np.array([1.0, 2.0, 3.0, 4.0])))
        2.500 (1.500 to 3.500)
        >>> print(bootstrap(np.array([2.0])))
        2.000
    """
    count = len(values)
    mean = values.mean(axis=0)
    if count < 2:
        return Interval(mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan))
    generator = np.random.default_rng(seed)
    means = np.concatenate(
        [_means(values, generator, rows) for rows in _split(draws, _AT_ONCE // count)]
    )
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return Interval(mean, low, high)


def _means(values: Array, generator: np.random.Generator, draws: int) -> Array:
    # A product with the number of times that each image is drawn needs no copies of the values.
    count = len(values)
    times = generator.multinomial(count, [1 / count] * count, size=draws)
    means: Array = np.tensordot(times / count, values, axes=1)
    return means


def _split(total: int, size: int) -> list[int]:
    """Split a total into parts of at most ``size``."""
    size = max(size, 1)
    return [min(size, total - start) for start in range(0, total, size)]


def average_ranks(values: Tensor) -> Tensor:
    """Rank the values (N,) from 1, as float64; equal values get the mean of their ranks.

    Example:
        >>> average_ranks(torch.tensor([0.5, 0.1, 0.5, 0.9])).tolist()
        [2.5, 1.0, 2.5, 4.0]
    """
    _, places, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks: Tensor = last - (counts - 1) / 2
    return ranks[places]


def rank_correlations(maps: Sequence[Tensor]) -> Tensor:
    """Compute Spearman's rank correlation of each pair of maps.

    Args:
        maps: M maps (B, rows, columns) of the same images.

    Returns:
        Tensor (M, M), float64, from -1 to 1: the correlation over an image's patches, averaged over
        the images where neither map is constant. NaN if there are no such images.

    Example:
        >>> up = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
        >>> rank_correlations([up, -(up**3), torch.ones_like(up)])[0].tolist()
        [1.0, -1.0, nan]
    """
    if not maps:
        return torch.empty(0, 0, dtype=torch.float64)
    matrices = [_correlations(image_maps) for image_maps in zip(*maps, strict=True)]
    return torch.stack(matrices).nanmean(0)


def _correlations(maps: Sequence[Tensor]) -> Tensor:
    """Correlate the maps (rows, columns) of one image."""
    ranks = torch.stack([average_ranks(values.flatten()) for values in maps])
    centred = ranks - ranks.mean(1, keepdim=True)
    products = centred @ centred.T
    squares = products.diagonal()
    correlations: Tensor = products / (squares[:, None] * squares).sqrt()
    return correlations.clamp(-1, 1)
