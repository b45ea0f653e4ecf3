"""Means, paired differences and their p-values over images, for many columns at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hf_gmar._utils.stats import Array, Interval, bootstrap

FLIPS = 10_000
"""Random sign flips for a p-value; if not more flips exist, all flips are used."""

_MAX_SIGNS = 4_000_000  # signs in memory at a time, 32 MB
_TOLERANCE = 1e-9  # between equal sums, as a share of the sum of absolute values


class Estimates(NamedTuple):
    """Means over images with 95 % intervals, one for each column.

    Attributes:
        interval: mean, low and high, (columns,) each. The mean is NaN without values, the ends are
            NaN with fewer than two values.
        images: number of images with a value, (columns,).
    """

    interval: Interval
    images: NDArray[np.int64]


def estimates(values: Array, seed: int = 0) -> Estimates:
    """Compute the mean of each column with its 95 % percentile bootstrap interval.

    Columns with values for the same images share their draws.

    Args:
        values: (images, columns), NaN for a missing value.
        seed: seed of the draws.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3.
    """
    images = np.asarray((~np.isnan(values)).sum(0))
    mean, low, high = np.full((3, values.shape[1]), np.nan)
    for rows, columns in _by_images(values):
        mean[columns], low[columns], high[columns] = bootstrap(values[rows][:, columns], seed)
    return Estimates(Interval(mean, low, high), images)


def sign_flips(values: Array, seed: int = 0, flips: int = FLIPS) -> Array:
    """Compute two-sided p-values for the mean of each column being zero, by a sign-flip test.

    Under the null hypothesis, the sign of each difference is random. The p-value is the share of
    sign flips whose mean is at least as far from zero as the observed mean. All flips are used if
    they are no more than ``flips``, else ``flips`` random flips and the observed signs.

    Args:
        values: paired differences, (images, columns), NaN for a missing value.
        seed: seed of the flips.
        flips: the largest number of flips.

    Returns:
        P-values (columns,), above 0 and at most 1; NaN for a column without values.

    Source: Fisher, "The Design of Experiments", 1935, section 21; for random flips
        p = (b + 1) / (m + 1), Phipson and Smyth, "Permutation P-values should never be zero", 2010.
    """
    p_values = np.full(values.shape[1], np.nan)
    for rows, columns in _by_images(values):
        p_values[columns] = _sign_flips(values[rows][:, columns], seed, flips)
    return p_values


def _sign_flips(values: Array, seed: int, flips: int) -> Array:
    """Compute p-values of values (images, columns) without NaN."""
    # The tolerance counts flips whose sum equals the observed sum up to rounding.
    threshold = np.abs(values.sum(0)) - _TOLERANCE * np.abs(values).sum(0)
    count = len(values)
    if count < 64 and 2**count <= flips:
        bits = np.arange(2**count)[:, None] >> np.arange(count) & 1
        signs = 1 - 2 * bits.astype(np.float64)
        return np.asarray((np.abs(signs @ values) >= threshold).mean(0))
    batches = _random_signs(count, seed, flips)
    reached = sum((np.abs(signs @ values) >= threshold).sum(0) for signs in batches)
    return np.asarray((reached + 1) / (flips + 1))


def _random_signs(count: int, seed: int, flips: int) -> Iterator[Array]:
    generator = np.random.default_rng(seed)
    step = max(_MAX_SIGNS // count, 1)
    for start in range(0, flips, step):
        shape = min(step, flips - start), count
        yield 2 * generator.integers(0, 2, shape, dtype=np.int8).astype(np.float64) - 1


def holm(p_values: Array) -> Array:
    """Correct p-values by Holm's method; NaN stays and does not count.

    The i-th smallest of m p-values is multiplied by m - i + 1; the results are made monotonic.

    Source: Holm, "A simple sequentially rejective multiple test procedure", 1979.

    Example:
        >>> holm(np.array([0.04, 0.01, np.nan, 0.03])).tolist()
        [0.06, 0.03, nan, 0.06]
    """
    order = np.argsort(p_values, kind="stable")  # NaN is last
    order = order[: int((~np.isnan(p_values)).sum())]
    corrected = np.full_like(p_values, np.nan)
    steps = p_values[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return corrected


def _by_images(values: Array) -> Iterator[tuple[NDArray[np.bool_], list[int]]]:
    """Group the columns by their images with values; yield the images and columns of each group."""
    known = ~np.isnan(values)
    groups: dict[bytes, list[int]] = {}
    for column, rows in enumerate(np.packbits(known, axis=0).T):
        groups.setdefault(rows.tobytes(), []).append(column)
    for columns in groups.values():
        rows = known[:, columns[0]]
        if rows.any():
            yield rows, columns
