"""Metrics of curves, of what is kept and of where a map lies, against plain oracles."""

from __future__ import annotations

import itertools
import math
import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hf_gmar.errors import InputError, OptionError
from hf_gmar.metrics import (
    METRICS,
    ConfidenceChange,
    Curves,
    LocalizationInput,
    Metric,
    kept_count,
    kept_patches,
    patch_order,
    unit_scaled,
)

WEIGHTS = [0.05, 0.4, 0.25, 0.3]
"""What each of four patches gives to the score of a linear model."""

BEST = [1, 3, 2, 0]


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def linear_curves(*orders: list[int], weights: list[float] = WEIGHTS) -> Curves:
    """Curves of the linear model: what is removed is taken off the score."""

    def curve(order: list[int]) -> list[float]:
        return [sum(weights[patch] for patch in order[k:]) for k in range(len(order) + 1)]

    count = len(weights)
    most, least = ([curve(order[::way]) for order in orders] for way in (1, -1))
    return Curves(tensor([k / count for k in range(count + 1)]), tensor(most), tensor(least))


def value(name: str, found: Any, **options: Any) -> float:
    """Of the first image."""
    return float(METRICS.build(name, **options).values(found)[0])


def area(values: list[float], steps: list[float]) -> float:
    pairs = zip(itertools.pairwise(steps), itertools.pairwise(values), strict=True)
    return sum((right - left) * (low + high) / 2 for (left, right), (low, high) in pairs)


# The linear model: its scores fall 1, 0.6, 0.3, 0.05, 0 in the best order, most relevant first.
CLOSED_FORMS = {
    "deletion": (0.5 + 0.6 + 0.3 + 0.05) / 4,
    "insertion": (0.5 + 0.95 + 0.7 + 0.4) / 4,
    "insertion-deletion": (0.35 + 0.4 + 0.35) / 4,
    "aopc": (0.4 + 0.7 + 0.95 + 1.0) / 5,
    "srg": (0.35 + 0.4 + 0.35) / 5,
}
ON_CURVES = [name for name, metric in METRICS.items() if metric.input_kind == "curves"]


def test_the_closed_forms_are_of_all_metrics_of_curves() -> None:
    assert list(CLOSED_FORMS) == ON_CURVES


@pytest.mark.parametrize("name", ON_CURVES)
def test_a_linear_model_in_the_best_order(name: str) -> None:
    assert value(name, linear_curves(BEST)) == pytest.approx(CLOSED_FORMS[name])


@pytest.mark.parametrize("name", ON_CURVES)
def test_the_best_and_the_worst_order_are_the_bounds(name: str) -> None:
    orders = [list(order) for order in itertools.permutations(range(4))]
    values = METRICS.build(name).values(linear_curves(*orders))
    best, worst = orders.index(BEST), orders.index(BEST[::-1])
    sign = 1 if METRICS[name].higher_is_better else -1
    assert (sign * values).argmax() == best
    assert (sign * values).argmin() == worst


@pytest.mark.parametrize("name", ON_CURVES)
def test_perfect_steps_reach_the_ends_of_the_range(name: str) -> None:
    """One patch is all: with many patches the areas come as near to 0 and 1 as a step is wide."""
    weights = [1.0] + [0.0] * 99
    best = linear_curves(list(range(100)), weights=weights)
    worst = linear_curves(list(range(99, -1, -1)), weights=weights)
    ends = {"deletion": (0, 1), "insertion": (1, 0), "aopc": (1, 0)}.get(name, (1, -1))
    assert value(name, best) == pytest.approx(ends[0], abs=0.02)
    assert value(name, worst) == pytest.approx(ends[1], abs=0.02)


scores = st.floats(-5, 5, allow_nan=False)


@given(st.data(), st.integers(2, 7))
def test_areas_and_means_of_any_curves(data: st.DataObject, steps: int) -> None:
    most, least = (data.draw(st.lists(scores, min_size=steps, max_size=steps)) for _ in range(2))
    middle = data.draw(st.lists(st.integers(1, 99), min_size=steps - 2, max_size=steps - 2))
    fractions = sorted({0.0, 1.0, *(number / 100 for number in middle)})
    most, least = most[: len(fractions)], least[: len(fractions)]
    found = Curves(tensor(fractions), tensor([most]), tensor([least]))
    deletion, insertion = area(most, fractions), area(least, fractions)
    falls = [most[0] - one for one in most]
    gaps = [low - high for low, high in zip(least, most, strict=True)]
    expected = {
        "deletion": deletion,
        "insertion": insertion,
        "insertion-deletion": insertion - deletion,
        "aopc": sum(falls) / len(falls),
        "srg": sum(gaps) / len(gaps),
    }
    for name in ON_CURVES:
        assert value(name, found) == pytest.approx(expected[name], abs=1e-9)


@given(st.lists(st.integers(0, 9), min_size=2, max_size=9), st.randoms(use_true_random=False))
def test_the_difference_and_srg_say_the_same_of_even_steps(
    weights: list[int], shuffled: random.Random
) -> None:
    order = list(range(len(weights)))
    shuffled.shuffle(order)
    found = linear_curves(order, weights=[float(one) for one in weights])
    steps = len(weights) + 1
    difference = value("insertion-deletion", found)
    assert value("srg", found) == pytest.approx(difference * (steps - 1) / steps, abs=1e-9)
    back = linear_curves(order[::-1], weights=[float(one) for one in weights])
    assert value("srg", back) == pytest.approx(-value("srg", found), abs=1e-9)


def test_curves_that_end_before_the_last_patch_count_in_full() -> None:
    whole = Curves(tensor([0, 0.25, 1]), tensor([[1, 0.5, 0.2]]), tensor([[1, 0.8, 0.4]]))
    short = Curves(whole.fractions * 0.8, whole.morf, whole.lerf)
    for name in ON_CURVES:
        assert value(name, short) == pytest.approx(value(name, whole))


def test_an_image_that_could_not_be_measured_is_not_defined() -> None:
    found = linear_curves(BEST, BEST)
    broken = Curves(found.fractions, found.morf * tensor([[math.nan], [1]]), found.lerf)
    for name in set(ON_CURVES) - {"insertion"}:
        metric = METRICS.build(name)
        values = metric.update(broken).tolist()
        assert math.isnan(values[0])
        assert metric.compute() == values[1]


@pytest.mark.parametrize(
    ("fractions", "morf", "lerf"),
    [
        ([0, 1], [[1, 0]], [[1, 0, 0]]),
        ([0, 1], [1, 0], [1, 0]),
        ([0, 0.5, 1], [[1, 0]], [[1, 0]]),
        ([0], [[1]], [[1]]),
        ([[0, 1]], [[1, 0]], [[1, 0]]),
        ([0, 0.5, 0.5, 1], [[1, 1, 1, 0]], [[1, 1, 1, 0]]),
        ([0.1, 1], [[1, 0]], [[1, 0]]),
        ([0, 1.1], [[1, 0]], [[1, 0]]),
        ([1, 0], [[1, 0]], [[1, 0]]),
        ([0, math.nan, 1], [[1, 1, 0]], [[1, 1, 0]]),
        ([0, 1], [[math.inf, 0]], [[1, 0]]),
        ([0, 1], [[1, 0]], [[1, -math.inf]]),
    ],
)
def test_curves_that_are_none(fractions: Any, morf: Any, lerf: Any) -> None:
    with pytest.raises(InputError, match=r"Curves needs .*; got \{'fractions'"):
        Curves(tensor(fractions), tensor(morf), tensor(lerf))


def test_numbers_must_be_tensors_and_become_exact() -> None:
    with pytest.raises(InputError, match=r"before must be a tensor, got list; torch\.tensor"):
        ConfidenceChange([0.5], torch.tensor([0.5]))  # type: ignore[arg-type]
    given = torch.tensor([0.5], dtype=torch.bfloat16, requires_grad=True)
    assert ConfidenceChange(given, given).after.dtype == torch.float64
    assert not ConfidenceChange(given, given).before.requires_grad


# What is kept


@given(
    st.lists(st.tuples(st.floats(0, 1), st.one_of(st.floats(0, 1), st.just(math.nan))), min_size=1)
)
def test_drop_increase_and_gain_of_any_probabilities(pairs: list[tuple[float, float]]) -> None:
    found = ConfidenceChange(tensor([one[0] for one in pairs]), tensor([one[1] for one in pairs]))
    drops, rises, gains = (
        METRICS.build(name).values(found).tolist()
        for name in ("average-drop", "increase-in-confidence", "average-gain")
    )
    for (before, after), drop, rise, gain in zip(pairs, drops, rises, gains, strict=True):
        if math.isnan(after):
            assert all(map(math.isnan, (drop, rise, gain)))
            continue
        assert rise == (100 if after > before else 0)
        assert gain == pytest.approx(
            100 * (after - before) / (1 - before) if after > before else 0, rel=1e-6
        )
        if before == 0:
            assert math.isnan(drop)
        else:
            assert drop == pytest.approx(100 * max(0, before - after) / before, rel=1e-6)


def test_the_ends_of_what_is_kept() -> None:
    all_lost, all_won = (
        ConfidenceChange(tensor([0.5]), tensor([0])),
        ConfidenceChange(tensor([0.5]), tensor([1])),
    )
    expected = {
        "average-drop": (100, 0),
        "increase-in-confidence": (0, 100),
        "average-gain": (0, 100),
    }
    for name, ends in expected.items():
        assert value(name, all_lost) == ends[0]
        assert value(name, all_won) == ends[1]
    assert value("average-gain", ConfidenceChange(tensor([1.0]), tensor([1.0]))) == 0


@pytest.mark.parametrize("name", ["average-drop", "average-gain"])
@pytest.mark.parametrize("bad", [-0.2, 1.2])
def test_logits_are_no_probabilities(name: str, bad: float) -> None:
    metric = METRICS.build(name)
    assert metric.probability
    for found in (
        ConfidenceChange(tensor([bad]), tensor([0.5])),
        ConfidenceChange(tensor([0.5]), tensor([bad])),
    ):
        with pytest.raises(InputError, match=r'from 0 to 1, got scores from .*"probability"'):
            metric.update(found)
    assert metric.seen == []
    rounded = ConfidenceChange(tensor([1 + 1e-7]), tensor([-1e-7]))
    assert metric.values(rounded).item() == pytest.approx(0 if name == "average-gain" else 100)


def test_probabilities_that_rounding_moved_over_the_ends() -> None:
    assert math.isnan(value("average-drop", ConfidenceChange(tensor([-1e-7]), tensor([-5e-7]))))
    assert value("average-gain", ConfidenceChange(tensor([1 - 1e-9]), tensor([1 + 1e-7]))) == 100


def test_an_increase_is_defined_for_logits() -> None:
    assert not METRICS["increase-in-confidence"].probability
    assert value("increase-in-confidence", ConfidenceChange(tensor([-3]), tensor([5]))) == 100


@pytest.mark.parametrize(
    ("before", "after"), [([0.5], [0.5, 0.5]), ([[0.5]], [[0.5]]), ([math.inf], [0.5])]
)
def test_scores_that_are_none(before: Any, after: Any) -> None:
    with pytest.raises(InputError, match=r"ConfidenceChange needs .*; got \{'before': "):
        ConfidenceChange(tensor(before), tensor(after))


def test_what_is_kept_follows_the_options() -> None:
    relevance = tensor([[0.3, 0.1, 0.2, 0.6]])
    kept: Callable[..., Any] = lambda **options: METRICS.build("average-drop", **options).keep_mask(  # type: ignore[attr-defined]  # noqa: E731
        relevance
    )
    assert kept().tolist() == [[True, False, False, True]]
    assert kept(keep=0.25).tolist() == [[False, False, False, True]]
    assert kept(form="soft").flatten().tolist() == pytest.approx([0.4, 0, 0.2, 1])


# The order of patches


maps = st.integers(1, 4).flatmap(
    lambda columns: st.lists(
        st.lists(st.integers(-2, 2), min_size=columns, max_size=columns), min_size=1, max_size=4
    )
)


@given(maps)
def test_ties_go_to_the_first_patch(rows: list[list[int]]) -> None:
    flat = [number for row in rows for number in row]
    expected = sorted(range(len(flat)), key=lambda patch: (-flat[patch], patch))
    assert patch_order(torch.tensor(rows)).tolist() == expected
    assert patch_order(torch.tensor([rows, rows])).tolist() == [expected, expected]


@pytest.mark.parametrize(("patches", "kept"), [(49, 25), (13, 7), (15, 8), (1, 1)])
def test_half_of_an_odd_number_of_patches_is_rounded_up(patches: int, kept: int) -> None:
    assert kept_count(patches, 0.5) == kept
    assert kept_patches(torch.rand(1, patches), 0.5).sum() == kept


def test_all_patches_may_be_kept() -> None:
    assert kept_patches(torch.zeros(2, 2), 1).all()


def test_ties_of_large_maps_and_of_zeros_of_both_signs() -> None:
    flat = torch.zeros(40, 40)
    flat[20:] = -0.0
    flat[7, 3] = 1
    order = patch_order(flat).tolist()
    assert order == [283, *range(283), *range(284, 1600)]


@given(maps, st.floats(0.01, 1))
def test_the_best_patches_are_kept(rows: list[list[int]], keep: float) -> None:
    relevance = torch.tensor(rows)
    kept = kept_patches(relevance, keep)
    count = kept_count(relevance.numel(), keep)
    assert kept.shape == relevance.shape
    assert set(kept.flatten().nonzero().flatten().tolist()) == set(
        patch_order(relevance)[:count].tolist()
    )
    assert count == max(1, int(keep * relevance.numel() + 0.5)) <= relevance.numel()


@given(maps)
def test_soft_keeping_is_the_scaled_map(rows: list[list[int]]) -> None:
    kept = kept_patches(torch.tensor(rows), form="soft").flatten().tolist()
    flat = [number for row in rows for number in row]
    low, high = min(flat), max(flat)
    expected = [(one - low) / (high - low) if high > low else 0 for one in flat]
    assert kept == pytest.approx(expected)


def test_each_map_is_scaled_by_its_own_range() -> None:
    scaled = unit_scaled(tensor([[[0, 2]], [[5, 5]], [[-4, 4]]]))
    assert scaled.flatten().tolist() == [0, 1, 0, 0, 0, 1]


@pytest.mark.parametrize("bad", [torch.zeros(3), torch.zeros(0, 2), [[1.0]]])
def test_maps_that_are_none(bad: Any) -> None:
    with pytest.raises(InputError, match=r"a map of patches \(rows, columns\) is needed, got"):
        patch_order(bad)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_maps_without_an_order(bad: float) -> None:
    with pytest.raises(InputError, match="NaN or infinity, so its patches have no order"):
        kept_patches(tensor([[bad, 1.0]]))


@pytest.mark.parametrize("keep", [0, -0.1, 1.01, math.nan, math.inf, True, "half", None])
def test_shares_that_are_none(keep: Any) -> None:
    with pytest.raises(OptionError, match="keep must be a number above 0 and at most 1, got"):
        kept_patches(torch.zeros(2, 2), keep)
    with pytest.raises(OptionError, match="keep must be a number above 0"):
        METRICS.build("average-drop", keep=keep)


def test_forms_that_are_none() -> None:
    with pytest.raises(OptionError, match="form must be one of 'patches', 'soft', got 'hard'"):
        kept_patches(torch.zeros(2, 2), form="hard")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="form must be one of"):
        METRICS.build("average-gain", form="hard")


# Where a map lies


def located(relevance: Any, cover: Any) -> LocalizationInput:
    return LocalizationInput(tensor([relevance]), tensor([cover]))


LOCATED = [
    name for name, metric in METRICS.items() if metric.input_kind in {"localization", "mosaic"}
]
MASK = [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("name", LOCATED)
def test_a_map_on_the_object_and_one_off_it(name: str) -> None:
    on = located(MASK, MASK)
    off = located([[0.0, 0.0, 1.0], [1.0, 1.0, 1.0]], MASK)
    assert value(name, on) == 1
    # All patches off the object come first: it is found at the last threshold, 2 of 6.
    assert value(name, off) == pytest.approx(2 / 6 if name == "average-precision" else 0)


@pytest.mark.parametrize("name", LOCATED)
def test_without_a_mask_nothing_is_defined(name: str) -> None:
    found = LocalizationInput(tensor([MASK, MASK]), tensor([[[0.0] * 3] * 2, MASK]))
    assert [math.isnan(one) for one in METRICS.build(name).values(found).tolist()] == [True, False]


def test_a_constant_map_gives_the_floor() -> None:
    flat = located([[0.5] * 3] * 2, MASK)
    assert value("relevance-mass", flat) == value("average-precision", flat) == pytest.approx(2 / 6)
    assert value("pointing-game", flat) == 1  # the first patch
    assert value("pointing-game", located([[0.5] * 3] * 2, [[0.0, 1, 1], [1, 1, 1]])) == 0
    assert value("miou", flat) == pytest.approx((0 + 4 / 6) / 2)  # nothing is marked


@pytest.mark.parametrize(("cover", "expected"), [(0.5, 1), (0.49, math.nan)])
def test_half_a_patch_belongs_to_the_object(cover: float, expected: float) -> None:
    found = located([[0.1, 0.9]], [[0.0, cover]])
    for name in ("pointing-game", "average-precision"):
        assert value(name, found) == pytest.approx(expected, nan_ok=True)
    assert value("relevance-mass", found) == pytest.approx(0.9 * cover)


def test_no_positive_relevance_is_none_inside() -> None:
    for relevance in ([[0.0, 0.0]], [[-1.0, -2.0]]):
        assert value("relevance-mass", located(relevance, [[1.0, 0.0]])) == 0
        assert value("grid-pointing", located(relevance, [[1.0, 0.0]])) == 0
    assert value("relevance-mass", located([[-9.0, 1.0]], [[1.0, 0.0]])) == 0


@pytest.mark.parametrize("name", LOCATED)
def test_images_of_a_batch_are_apart(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    maps, cover = torch.rand(2, 6, 3, 4, generator=generator, dtype=torch.float64)
    maps *= torch.arange(1, 7)[:, None, None]
    alone = [
        value(name, LocalizationInput(one[None], own[None]))
        for one, own in zip(maps, cover, strict=True)
    ]
    assert METRICS.build(name).values(LocalizationInput(maps, cover)).tolist() == pytest.approx(
        alone
    )
    for options in [{"threshold": 0.5}] if name == "miou" else []:
        alone = [
            value(name, LocalizationInput(one[None], own[None]), **options)
            for one, own in zip(maps, cover, strict=True)
        ]
        together = METRICS.build(name, **options).values(LocalizationInput(maps, cover))
        assert together.tolist() == pytest.approx(alone)


covers = st.integers(0, 16)


@given(st.lists(st.tuples(st.integers(-3, 3), covers), min_size=1, max_size=12))
def test_places_of_any_map(patches: list[tuple[int, int]]) -> None:
    """Against sets of pixels: each patch has 16, of which so many are inside the mask."""
    relevance, inside = [one[0] for one in patches], [one[1] for one in patches]
    found = located([relevance], [[one / 16 for one in inside]])
    right = [patch for patch, count in enumerate(inside) if count >= 8]
    values = {name: value(name, found) for name in LOCATED}
    positive = [max(one, 0) for one in relevance]
    if not sum(inside):
        assert all(map(math.isnan, values.values()))
        return
    energy = sum(one * count / 16 for one, count in zip(positive, inside, strict=True))
    assert values["relevance-mass"] == pytest.approx(energy / (sum(positive) or 1))
    assert values["grid-pointing"] == values["relevance-mass"]
    if right:
        first = relevance.index(max(relevance))
        assert values["pointing-game"] == (first in right)
        # The mean over the right patches of the precision at their own threshold.
        precisions = [
            sum(relevance[other] >= relevance[patch] for other in right)
            / sum(other >= relevance[patch] for other in relevance)
            for patch in right
        ]
        assert values["average-precision"] == pytest.approx(sum(precisions) / len(right))
    else:
        assert math.isnan(values["pointing-game"])
        assert math.isnan(values["average-precision"])
    mean = sum(relevance) / len(relevance)
    assert values["miou"] == pytest.approx(pixel_miou([one > mean for one in relevance], inside))
    low, high = min(relevance), max(relevance)
    marked = [high > low and (one - low) / (high - low) > 0.25 for one in relevance]
    assert value("miou", found, threshold=0.25) == pytest.approx(pixel_miou(marked, inside))


def pixel_miou(marked: list[bool], inside: list[int]) -> float:
    every = {(patch, pixel) for patch in range(len(inside)) for pixel in range(16)}
    truth = {(patch, pixel) for patch, pixel in every if pixel < inside[patch]}
    shown = {(patch, pixel) for patch, pixel in every if marked[patch]}
    pairs = [(truth, shown), (every - truth, every - shown)]
    ratios = [len(left & right) / len(left | right) for left, right in pairs if left | right]
    return sum(ratios) / len(ratios)


@pytest.mark.parametrize(
    ("relevance", "cover"),
    [
        ([[[1.0, 2.0]]], [[[1.0]]]),
        ([[1.0, 2.0]], [[1.0, 0.0]]),
        ([[[math.nan, 2.0]]], [[[1.0, 0.0]]]),
        ([[[math.inf, 2.0]]], [[[1.0, 0.0]]]),
        ([[[1.0, 2.0]]], [[[1.1, 0.0]]]),
        ([[[1.0, 2.0]]], [[[-0.1, 0.0]]]),
        ([[[1.0, 2.0]]], [[[math.nan, 0.0]]]),
        ([[[]]], [[[]]]),
    ],
)
def test_places_that_are_none(relevance: Any, cover: Any) -> None:
    with pytest.raises(InputError, match="LocalizationInput needs "):
        LocalizationInput(tensor(relevance), tensor(cover))


@pytest.mark.parametrize("threshold", [1, 1.5, -0.1, math.nan, "median", None, True])
def test_thresholds_that_are_none(threshold: Any) -> None:
    with pytest.raises(OptionError, match="threshold must be"):
        METRICS.build("miou", threshold=threshold)


# What all of them share


def some_images(count: int) -> ConfidenceChange:
    generator = torch.Generator().manual_seed(count)
    before, after = torch.rand(2, count, generator=generator, dtype=torch.float64)
    before[::5] = 0  # a drop is not defined there
    return ConfidenceChange(before, after)


@given(st.integers(1, 30), st.lists(st.integers(0, 30), max_size=4), st.randoms())
def test_parts_in_any_order_are_one(count: int, cuts: list[int], shuffled: random.Random) -> None:
    found = some_images(count + 1)  # one more, so that one is defined
    whole = METRICS.build("average-drop")
    whole.update(found)
    bounds = sorted({0, count + 1, *(min(cut, count) for cut in cuts)})
    parts = []
    for left, right in itertools.pairwise(bounds):
        part = METRICS.build("average-drop")
        part.update(ConfidenceChange(found.before[left:right], found.after[left:right]))
        parts.append(pickle.loads(pickle.dumps(part)))  # noqa: S301  # as between processes
    shuffled.shuffle(parts)
    first, *others = parts
    first.merge(others)
    assert first.compute() == whole.compute()
    assert len(first.seen) == len(whole.seen) == count + 1


def test_the_mean_is_over_the_images_that_are_defined() -> None:
    metric = METRICS.build("average-drop")
    assert metric.update(ConfidenceChange(tensor([0.5, 0]), tensor([0.25, 0.5])))[0] == 50
    metric.update(ConfidenceChange(tensor([0.5]), tensor([0.5])))
    assert metric.compute() == 25
    assert len(metric.seen) == 3
    metric.reset()
    metric.update(ConfidenceChange(tensor([0.5]), tensor([0.5])))
    assert metric.compute() == 0


def test_values_are_not_kept() -> None:
    metric = METRICS.build("deletion")
    assert metric.values(linear_curves(BEST)).dtype == torch.float64
    assert metric.seen == []


def test_no_images_have_no_mean() -> None:
    metric = METRICS.build("average-drop", keep=0.25)
    with pytest.raises(InputError, match=r"average-drop \(keep=0.25\) has seen 0 images"):
        metric.compute()
    metric.update(ConfidenceChange(tensor([0]), tensor([0.5])))
    with pytest.raises(InputError, match="has seen 1 images and is defined for none"):
        metric.compute()


def test_a_metric_merged_with_itself_counts_twice() -> None:
    metric = METRICS.build("deletion")
    metric.update(linear_curves(BEST, BEST[::-1]))
    metric.merge([metric])
    assert len(metric.seen) == 4


@pytest.mark.parametrize(
    "other", [METRICS.build("insertion"), METRICS.build("average-drop", keep=0.3), "deletion"]
)
def test_other_metrics_are_not_merged(other: Any) -> None:
    name = "average-drop" if getattr(other, "input_kind", None) == "confidence" else "deletion"
    metric, good = METRICS.build(name), METRICS.build(name)
    good.seen = [0.5]
    with pytest.raises(InputError, match=f"{name} can be merged with the same metric .* got "):
        metric.merge([good, other])
    assert metric.seen == []


def test_labels_say_the_options_that_are_not_the_usual_ones() -> None:
    assert METRICS.build("average-drop", keep=0.5, form="patches").label == "average-drop"
    assert METRICS.build("average-drop", keep=0.25, form="soft").label == (
        "average-drop (keep=0.25, form=soft)"
    )
    assert METRICS.build("miou", threshold=0.5).label == "miou (threshold=0.5)"
    assert METRICS.build("grid-pointing", images=5).label == "grid-pointing"


@given(st.integers(1, 50), st.integers(1, 60))
def test_measured_images_are_spread_evenly(images: int, count: int) -> None:
    metric = METRICS.build("grid-pointing", images=images)
    chosen = [index for index in range(count) if metric.measures(index, count)]
    assert len(chosen) == min(images, count)
    assert chosen[0] == 0
    gaps = [right - left for left, right in itertools.pairwise([*chosen, count])]
    assert max(gaps) - min(gaps) <= 1
    every = METRICS.build("grid-pointing")
    assert all(every.measures(index, count) for index in range(count))


@pytest.mark.parametrize("images", [0, -1, 2.5, True, "all"])
def test_numbers_of_images_that_are_none(images: Any) -> None:
    with pytest.raises(OptionError, match="images must be a whole number from 1"):
        METRICS.build("grid-pointing", images=images)


def test_every_metric_says_what_it_is() -> None:
    assert len(METRICS.built_in) == 19
    for name, metric in METRICS.items():
        assert metric.name == name
        assert metric.higher_is_better in {True, False}
        assert metric.perturbed == (metric.input_kind in {"curves", "confidence"})
        for text in (metric.summary, metric.formula, metric.source, metric.caveats):
            assert text
            assert not {"|", "\n"} & set(text)  # it stands in a table
        assert metric.summary.endswith(".")
        assert "summary" in vars(metric)  # and not in the docstring, which python -OO strips
        built = METRICS.build(name)
        assert isinstance(built, Metric)
        assert {key: getattr(built, key) for key in METRICS.options(name)} == METRICS.options(name)


def test_names_and_options_that_do_not_exist() -> None:
    with pytest.raises(OptionError, match="there is no metric 'beauty'; there are deletion, "):
        METRICS.build("beauty")
    with pytest.raises(OptionError, match="'deletion' has no option keep; it has none"):
        METRICS.build("deletion", keep=0.5)
    with pytest.raises(OptionError, match="no option a, b; it has keep, form"):
        METRICS.build("average-drop", b=1, a=2)
