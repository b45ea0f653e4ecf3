"""Means, intervals, p-values and their correction, against plain loops over all images."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hf_gmar._utils import stats as intervals
from hf_gmar.evaluation.report import statistics
from hf_gmar.evaluation.report.statistics import FLIPS, estimates, holm, sign_flips

NAN = math.nan

numbers = st.integers(-8, 8).map(float)  # sums of these are exact
columns = st.lists(numbers, min_size=1, max_size=9)
p_values = st.lists(st.one_of(st.floats(0, 1), st.just(NAN)), min_size=1, max_size=12)


def matrix(*found: list[float]) -> NDArray[np.float64]:
    """Columns as (images, columns)."""
    return np.array(found, dtype=float).T


def bootstrap_by_hand(values: list[float], seed: int) -> tuple[float, float, float]:
    """Mean and quantiles of 2000 drawn means, one after another."""
    count = len(values)
    draws = np.random.default_rng(seed).multinomial(count, [1 / count] * count, size=2000)
    means = sorted(
        math.fsum(times * value for times, value in zip(draw, values, strict=True)) / count
        for draw in draws.tolist()
    )
    return math.fsum(values) / count, quantile(means, 0.025), quantile(means, 0.975)


def quantile(ordered: list[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    return ordered[below] + (place - below) * (ordered[below + 1] - ordered[below])


def flips_by_hand(values: list[float]) -> float:
    """The share of all flips with a sum as far from zero."""
    found = abs(sum(map(Fraction, values), Fraction(0)))
    sums = [
        abs(sum((a * Fraction(b) for a, b in zip(signs, values, strict=True)), Fraction(0)))
        for signs in itertools.product((1, -1), repeat=len(values))
    ]
    return sum(one >= found for one in sums) / len(sums)


def holm_by_hand(found: list[float]) -> list[float]:
    """The smallest level at which Holm's steps reject each."""
    known = sorted((p, place) for place, p in enumerate(found) if not math.isnan(p))
    corrected, largest = [NAN] * len(found), 0.0
    for step, (p, place) in enumerate(known):
        largest = max(largest, p * (len(known) - step))
        corrected[place] = min(largest, 1.0)
    return corrected


def same(left: Any, right: Any) -> None:
    np.testing.assert_allclose(np.asarray(left), np.asarray(right), rtol=1e-12, atol=1e-12)


def test_means_and_intervals_are_those_by_hand() -> None:
    values = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0]
    found = estimates(matrix(values, values[::-1]), seed=7)
    for column, each in enumerate((values, values[::-1])):
        same([one[column] for one in found.interval], bootstrap_by_hand(each, 7))
    assert found.images.tolist() == [8, 8]


def test_each_column_is_of_the_images_that_it_has() -> None:
    values = matrix(
        [1.0, 2.0, 6.0, NAN],
        [NAN, 5.0, NAN, 7.0],
        [1.0, 5.0, 9.0, NAN],
        [NAN] * 4,
        [NAN, NAN, 2.0, NAN],
    )
    found = estimates(values)
    assert found.images.tolist() == [3, 2, 3, 0, 1]
    same(found.interval.mean, [3.0, 6.0, 5.0, NAN, 2.0])
    for column in (0, 1, 2):
        known = values[:, column][~np.isnan(values[:, column])].tolist()
        same([one[column] for one in found.interval], bootstrap_by_hand(known, 0))
    assert np.isnan(found.interval.low[3:]).all()
    assert np.isnan(found.interval.high[3:]).all()


@settings(deadline=None, max_examples=25)
@given(columns, st.integers(-50, 50))
def test_a_shift_of_all_values_shifts_mean_and_interval(values: list[float], by: int) -> None:
    plain, shifted = estimates(matrix(values)), estimates(matrix(values) + by)
    for left, right in zip(plain.interval, shifted.interval, strict=True):
        np.testing.assert_allclose(left + by, right, rtol=1e-9, atol=1e-9)


def test_few_draws_at_once_are_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(30, 3))
    whole = estimates(values)
    for size in (100, 7):  # three draws of thirty images, and less than one
        monkeypatch.setattr(intervals, "_AT_ONCE", size)
        for left, right in zip(whole.interval, estimates(values).interval, strict=True):
            same(left, right)


@settings(deadline=None)
@given(columns)
def test_few_images_get_the_exact_share_of_all_flips(values: list[float]) -> None:
    assert sign_flips(matrix(values)).item() == flips_by_hand(values)


def test_flips_with_the_same_sum_count_although_rounding_differs() -> None:
    values = [0.1, 0.2, 0.3, -0.3, 0.7, -0.1]
    tenths = [round(10 * one) for one in values]
    assert sign_flips(matrix(values)).item() == flips_by_hand([float(one) for one in tenths])


def test_all_flips_are_taken_as_long_as_they_are_few() -> None:
    thirteen, fourteen = [1.0] * 13, [1.0] * 14
    assert 2**13 <= FLIPS < 2**14
    assert sign_flips(matrix(thirteen)).item() == 2 / 2**13
    # Of all 16384, two would be as far; of 10,000 random ones one or two, and the one found.
    assert sign_flips(matrix(fourteen)).item() * (FLIPS + 1) == pytest.approx(2.5, abs=4)
    assert sign_flips(matrix([1.0] * 3), flips=7).item() * 8 in range(1, 9)
    assert sign_flips(matrix([1.0] * 3), flips=8).item() == 0.25


@pytest.mark.parametrize(("above", "below"), [(24, 16), (30, 30), (40, 25)])
def test_random_flips_come_near_the_binomial(above: int, below: int) -> None:
    count = above + below
    most = max(above, below)
    exact = min(1.0, 2 * sum(math.comb(count, k) for k in range(most, count + 1)) / 2**count)
    found = sign_flips(matrix([1.0] * above + [-1.0] * below)).item()
    assert found == pytest.approx(exact, abs=5 * math.sqrt(exact * (1 - exact) / FLIPS) + 2e-4)


def test_no_random_p_value_is_zero() -> None:
    assert sign_flips(matrix([1.0] * 60)).item() == 1 / (FLIPS + 1)
    assert sign_flips(matrix([0.0] * 60)).item() == 1  # each of the flips counts once


def test_parts_of_the_flips_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_MAX_SIGNS", 60 * 999)
    assert sign_flips(matrix([0.0] * 60)).item() == 1
    assert sign_flips(matrix([1.0] * 60)).item() == 1 / (FLIPS + 1)
    monkeypatch.setattr(statistics, "_MAX_SIGNS", 7)  # less than one flip
    assert sign_flips(matrix([0.0] * 60), flips=20).item() == 1


def test_flips_leave_out_images_without_a_value_and_columns_apart() -> None:
    some = [1.0, NAN, 2.0, 3.0, NAN]
    found = sign_flips(
        matrix(some, [1.0, -1.0, 1.0, -1.0, 0.0], [NAN] * 5, [NAN, 4.0, NAN, NAN, NAN])
    )
    same(found, [0.25, 1.0, NAN, 1.0])


@settings(deadline=None, max_examples=25)
@given(columns, st.randoms(use_true_random=False))
def test_p_values_see_neither_sign_nor_unit_nor_order(values: list[float], random: Any) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)
    found = sign_flips(
        matrix(values, [-one for one in values], [8 * one for one in values], shuffled)
    )
    assert len(set(found.tolist())) == 1


def test_seeds_give_other_draws_and_the_same_seed_the_same() -> None:
    values = np.random.default_rng(1).normal(0.2, 1, size=(50, 1))
    assert estimates(values, 3).interval == estimates(values, 3).interval
    assert estimates(values, 3).interval.low != estimates(values, 4).interval.low
    assert sign_flips(values, 3) == sign_flips(values, 3)
    assert sign_flips(values, 3) != sign_flips(values, 4)


@given(p_values)
def test_holm_is_that_by_hand(found: list[float]) -> None:
    corrected = holm(np.array(found))
    same(corrected, holm_by_hand(found))
    known = ~np.isnan(corrected)
    assert (corrected[known] >= np.array(found)[known]).all()


def test_holm_of_a_known_case() -> None:
    same(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    same(holm(np.array([0.5, 0.6])), [1.0, 1.0])
