"""Means, paired differences and their p-values over images, for many columns at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hf_gmar._utils.stats import Array, Interval, bootstrap

FLIPS = 10_000
"""Draws of signs for a p-value; where there are no more ways to flip them, all are taken."""

_MAX_SIGNS = 4_000_000  # in memory, 32 MB
_TOLERANCE = 1e-9  # of equal sums, as a share of the sum of absolute values


class Estimates(NamedTuple):
    """Means over images with 95 % intervals, each of the columns' shape.

    Attributes:
        interval: mean and ends; NaN where no image has a value, the ends also where only one has.
        images: how many images have a value, (columns,).
    """

    interval: Interval
    images: NDArray[np.int64]


def estimates(values: Array, seed: int = 0) -> Estimates:
    """The mean of each column with its 95 % percentile bootstrap interval.

    Columns with values of the same images share their draws.

    Args:
        values: (images, columns), NaN where an image has no value.
        seed: of the draws.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3.
    """
    images = np.asarray((~np.isnan(values)).sum(0))
    mean, low, high = np.full((3, values.shape[1]), np.nan)
    for rows, columns in _by_images(values):
        mean[columns], low[columns], high[columns] = bootstrap(values[rows][:, columns], seed)
    return Estimates(Interval(mean, low, high), images)


def sign_flips(values: Array, seed: int = 0, flips: int = FLIPS) -> Array:
    """Two-sided p-values of the mean of each column being zero, by flipping signs.

    If a difference between two methods meant nothing, its sign in each image could as well be the
    other one. The p-value is the share of flips whose mean is as far from zero as the observed one:
    of all flips where these are no more than ``flips``, and else of so many random ones, among
    which the observed one counts.

    Args:
        values: paired differences, (images, columns), NaN where an image has none.
        seed: of the flips.
        flips: how many, at most.

    Returns:
        (columns,), from 0 to 1, never 0; NaN where no image has a value.

    Source: Fisher, "The Design of Experiments", 1935, section 21; for random flips
        p = (b + 1) / (m + 1), Phipson and Smyth, "Permutation P-values should never be zero", 2010.
    """
    p_values = np.full(values.shape[1], np.nan)
    for rows, columns in _by_images(values):
        p_values[columns] = _sign_flips(values[rows][:, columns], seed, flips)
    return p_values


def _sign_flips(values: Array, seed: int, flips: int) -> Array:
    """Of (images, columns) without NaN."""
    # Flips that only swap equal differences give the same sum but for rounding: they count.
    needed = np.abs(values.sum(0)) - _TOLERANCE * np.abs(values).sum(0)
    count = len(values)
    if count < 64 and 2**count <= flips:
        bits = np.arange(2**count)[:, None] >> np.arange(count) & 1
        signs = 1 - 2 * bits.astype(np.float64)
        return np.asarray((np.abs(signs @ values) >= needed).mean(0))
    drawn = _random_signs(count, seed, flips)
    reached = sum((np.abs(signs @ values) >= needed).sum(0) for signs in drawn)
    return np.asarray((reached + 1) / (flips + 1))


def _random_signs(count: int, seed: int, flips: int) -> Iterator[Array]:
    generator = np.random.default_rng(seed)
    step = max(_MAX_SIGNS // count, 1)
    for start in range(0, flips, step):
        shape = min(step, flips - start), count
        yield 2 * generator.integers(0, 2, shape, dtype=np.int8).astype(np.float64) - 1


def holm(p_values: Array) -> Array:
    """P-values corrected for how many there are; NaN stays and does not count.

    The i-th smallest of m is multiplied by m - i + 1; none may fall below a smaller one's.

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
    """Columns that have values of the same images, with these images; none without any."""
    known = ~np.isnan(values)
    groups: dict[bytes, list[int]] = {}
    for column, rows in enumerate(np.packbits(known, axis=0).T):
        groups.setdefault(rows.tobytes(), []).append(column)
    for columns in groups.values():
        rows = known[:, columns[0]]
        if rows.any():
            yield rows, columns
