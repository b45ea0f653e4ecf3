"""Metrics that ask the method and the model again: on toys whose answers are known."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from captum.metrics import sensitivity_max
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hf_gmar.errors import InputError, OptionError
from hf_gmar.metrics import METRICS, Explain, MetricContext, ssim

CHANNELS, PATCH, ROWS, COLUMNS = 2, 3, 2, 3
WEIGHTS = torch.tensor([[0.5, -1.0, 2.0], [0.0, 0.25, 1.0]], dtype=torch.float64)
"""What each patch's pixels count in the score of a linear model."""


def spread(patches: Tensor) -> Tensor:
    return patches.repeat_interleave(PATCH, -2).repeat_interleave(PATCH, -1)


def linear(pixels: Tensor) -> Tensor:
    """Scores of two classes: the weighted sum of the pixels, and a constant."""
    score = (pixels.double() * spread(WEIGHTS)).sum((1, 2, 3))
    return torch.stack([torch.full_like(score, 7.0), score], 1)


def gives(relevance: Tensor) -> Explain:
    return lambda _pixels, _target: relevance[None]


PIXELS = torch.randn(
    1,
    CHANNELS,
    ROWS * PATCH,
    COLUMNS * PATCH,
    generator=torch.Generator().manual_seed(3),
    dtype=torch.float64,
)

TOY = MetricContext(gives(WEIGHTS), linear, PIXELS, target=1, other_class=0)


def value(name: str, context: MetricContext, **options: Any) -> float:
    (found,) = METRICS.build(name, **options).values(context).tolist()
    return float(found)


class Seen:
    """A model that remembers what it was given."""

    def __init__(self, model: Callable[[Tensor], Tensor]) -> None:
        """Around a model."""
        self.model = model
        self.images: list[Tensor] = []

    def __call__(self, pixels: Tensor) -> Tensor:
        """Its scores."""
        self.images.append(pixels.clone())
        return self.model(pixels)

    @property
    def changed(self) -> Tensor:
        """The images but for the one that is explained."""
        return torch.cat([one for one in self.images if not torch.equal(one, PIXELS)])


# Infidelity


@pytest.mark.parametrize("scale", [1.0, -3.0, 1e-6])
def test_the_weights_of_a_linear_model_tell_all(scale: float) -> None:
    context = replace(TOY, explain=gives(scale * WEIGHTS))
    found = [value("infidelity", replace(context, seed=seed)) for seed in range(20)]
    assert found == pytest.approx([0] * 20, abs=1e-9)
    assert min(found) >= 0  # of whatever rounding leaves, too


@given(st.lists(st.integers(-3, 3), min_size=6, max_size=6), st.integers(0, 99))
def test_infidelity_is_what_is_left_by_the_best_factor(numbers: list[int], seed: int) -> None:
    relevance = torch.tensor(numbers, dtype=torch.float64).reshape(ROWS, COLUMNS)
    model = Seen(lambda pixels: linear(pixels).sin())
    context = replace(TOY, explain=gives(relevance), scores=model, seed=seed)
    found = value("infidelity", context, samples=5, noise=0.3)
    assert len(model.changed) == 5
    before = float(linear(PIXELS)[0, 1].sin())
    pairs = []
    for image in model.changed:
        # What was taken off is one number for each patch, the same for its pixels and channels.
        change = (PIXELS[0] - image)[0, ::PATCH, ::PATCH]
        torch.testing.assert_close(PIXELS[0] - image, spread(change).expand(CHANNELS, -1, -1))
        fall = before - float(linear(image[None])[0, 1].sin())
        pairs.append((float((change * relevance).sum()), fall))
    top = sum(said * fall for said, fall in pairs)
    bottom = sum(said**2 for said, _ in pairs)
    factor = top / bottom if bottom else 0
    expected = sum((factor * said - fall) ** 2 for said, fall in pairs) / 5
    assert found == pytest.approx(expected, abs=1e-9)
    assert found >= 0


def test_changes_have_the_size_that_was_asked_for_and_follow_the_seed() -> None:
    found = []
    for seed, noise in ((1, 0.5), (1, 0.5), (2, 0.5), (1, 0.05)):
        model = Seen(linear)
        value("infidelity", replace(TOY, scores=model, seed=seed), samples=2000, noise=noise)
        found.append(PIXELS - model.changed)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert not torch.allclose(found[0], found[2])
    assert [float(one.std()) for one in found] == pytest.approx([0.5, 0.5, 0.5, 0.05], rel=0.03)


# Sensitivity


def test_a_map_that_never_changes_is_not_sensitive() -> None:
    assert value("max-sensitivity", TOY) == 0


def brightness(pixels: Tensor, _target: int) -> Tensor:
    """Signed sums of the patches' pixels."""
    sums: Tensor = torch.nn.functional.avg_pool2d(pixels.sum(1), PATCH)
    return sums


def test_sensitivity_is_the_largest_relative_distance() -> None:
    noisy: list[Tensor] = []

    def explain(pixels: Tensor, target: int) -> Tensor:
        if not torch.equal(pixels, PIXELS):
            noisy.append(pixels)
        return brightness(pixels, target)

    found = value("max-sensitivity", replace(TOY, explain=explain), samples=7, radius=0.1)
    own = brightness(PIXELS, 1)
    assert len(noisy) == 7
    distances = [float((brightness(one, 1) - own).norm() / own.norm()) for one in noisy]
    assert found == pytest.approx(max(distances))
    assert len({round(one, 6) for one in distances}) == 7
    changes = torch.stack(noisy) - PIXELS
    assert 0.095 < changes.abs().max() <= 0.1
    assert changes.min() < 0 < changes.max()
    reference = sensitivity_max(
        lambda images: (
            tuple(brightness(one, 1) for one in images)
            if isinstance(images, tuple)
            else brightness(images, 1)
        ),
        PIXELS,
        lambda _: torch.cat(noisy),
        n_perturb_samples=7,
    )
    assert found == pytest.approx(float(reference))


def test_sensitivity_follows_the_seed() -> None:
    context = replace(TOY, explain=brightness)
    first, again, other = (
        value("max-sensitivity", replace(context, seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_maps_are_compared_in_double_precision() -> None:
    context = replace(TOY, explain=gives(WEIGHTS.float().requires_grad_()))
    assert context.relevance().dtype == torch.float64
    assert not context.relevance().requires_grad
    assert context.relevance().shape == (ROWS, COLUMNS)


def test_the_map_that_is_known_is_not_made_again() -> None:
    calls: list[int] = []

    def explain(pixels: Tensor, target: int) -> Tensor:
        calls.append(target)
        return brightness(pixels, target)

    context = replace(TOY, explain=explain, known_map=brightness(PIXELS, 1)[0])
    assert context.relevance().shape == (ROWS, COLUMNS)
    assert not calls
    value("max-sensitivity", context, samples=3)
    assert calls == [1] * 3
    assert context.relevance(0).dtype == torch.float64
    assert calls == [1, 1, 1, 0]


# Classes


def of_class(pixels: Tensor, target: int) -> Tensor:
    return brightness(pixels, target) * (1 if target else -1)


def test_maps_of_two_classes() -> None:
    assert value("class-sensitivity", TOY) == 1
    assert value("class-sensitivity", replace(TOY, explain=of_class)) == -1
    assert math.isnan(value("class-sensitivity", replace(TOY, other_class=None)))
    assert math.isnan(value("class-sensitivity", replace(TOY, explain=gives(0 * WEIGHTS))))


@given(st.permutations(range(6)), st.permutations(range(6)))
def test_rank_correlation_of_classes(left: list[int], right: list[int]) -> None:
    pair = [torch.tensor(one).reshape(1, ROWS, COLUMNS) for one in (left, right)]
    context = replace(TOY, explain=lambda _, target: pair[target])
    squares = sum((one - other) ** 2 for one, other in zip(left, right, strict=True))
    assert value("class-sensitivity", context) == pytest.approx(1 - 6 * squares / (6 * 35))


# Shapley values


def with_shapley(relevance: Tensor, values: Tensor) -> MetricContext:
    """A context whose map and Shapley values are these."""
    return replace(
        TOY, explain=lambda *_: relevance[None], shapley=lambda samples, _groups: values * samples
    )


def test_the_correlation_with_shapley_values() -> None:
    relevance = torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])
    values = torch.tensor([[-3.0, 7.0, 8.0], [9.0, 11.0, 10.0]])  # one swap of neighbours
    wanted = 1 - 6 * 2 / (6 * 35)
    assert value("shapley-correlation", with_shapley(relevance, values)) == pytest.approx(wanted)
    assert value("shapley-correlation", with_shapley(relevance, -values)) == pytest.approx(-wanted)
    assert math.isnan(value("shapley-correlation", TOY))
    assert math.isnan(value("shapley-correlation", with_shapley(0 * relevance, values)))


def test_groups_are_compared_by_their_means() -> None:
    """Of 3 x 3 patches: a group of four, two of two and one of one."""
    relevance = torch.tensor([[0.0, 0.0, 3.0], [0.0, 10.0, 3.0], [2.0, 2.0, 9.0]])
    values = torch.tensor([[5.0, 5.0, 6.0], [5.0, 5.0, 6.0], [4.0, 4.0, 7.0]])
    context = with_shapley(relevance, values)  # means 2.5, 3, 2, 9 and 5, 6, 4, 7
    assert value("shapley-correlation", context, groups=(2, 2)) == pytest.approx(1)
    assert value("shapley-correlation", context) < 0.9
    assert math.isnan(value("shapley-correlation", context, groups=(5, 3)))  # one group


# Randomisation


def after_stages(*maps: Tensor) -> Callable[[int, int], Iterator[Explain]]:
    def explain_randomized(stages: int, seed: int) -> Iterator[Explain]:
        assert (stages, seed) == (len(maps), 5)
        yield from map(gives, maps)

    return explain_randomized


def test_randomization_is_the_mean_over_the_stages() -> None:
    options: dict[str, Any] = {"stages": 3, "seed": 5}
    stays = replace(TOY, explain_randomized=after_stages(WEIGHTS, 3 * WEIGHTS, WEIGHTS + 1))
    turns = replace(TOY, explain_randomized=after_stages(WEIGHTS, -WEIGHTS, WEIGHTS))
    for similarity in ("rank", "ssim"):
        assert value(
            "parameter-randomization", stays, similarity=similarity, **options
        ) == pytest.approx(1)
    assert value("parameter-randomization", turns, **options) == pytest.approx(1 / 3)
    by_ssim = value("parameter-randomization", turns, similarity="ssim", **options)
    assert by_ssim == pytest.approx((2 + ssim(WEIGHTS, -WEIGHTS)) / 3)


def test_stages_without_an_order_do_not_count() -> None:
    some = replace(TOY, explain_randomized=after_stages(0 * WEIGHTS, WEIGHTS))
    none = replace(TOY, explain_randomized=after_stages(0 * WEIGHTS))
    assert value("parameter-randomization", some, stages=2, seed=5) == pytest.approx(1)
    assert math.isnan(value("parameter-randomization", none, stages=1, seed=5))
    assert math.isnan(value("parameter-randomization", TOY))


def plain_ssim(left: list[list[float]], right: list[list[float]]) -> float:
    """Wang et al., equation 13, window by window, in loops."""

    def scaled(rows: list[list[float]]) -> list[list[float]]:
        low, high = min(map(min, rows)), max(map(max, rows))
        return [[(one - low) / (high - low) if high > low else 0.0 for one in row] for row in rows]

    x, y = scaled(left), scaled(right)
    height, width = min(7, len(x)), min(7, len(x[0]))
    found = []
    for top, start in itertools.product(range(len(x) - height + 1), range(len(x[0]) - width + 1)):
        places = list(itertools.product(range(top, top + height), range(start, start + width)))
        a, b = ([rows[i][j] for i, j in places] for rows in (x, y))
        count = len(places)
        mean_a, mean_b = sum(a) / count, sum(b) / count
        var_a = sum((one - mean_a) ** 2 for one in a) / count
        var_b = sum((one - mean_b) ** 2 for one in b) / count
        both = sum((p - mean_a) * (q - mean_b) for p, q in zip(a, b, strict=True)) / count
        light = (2 * mean_a * mean_b + 0.0001) / (mean_a**2 + mean_b**2 + 0.0001)
        found.append(light * (2 * both + 0.0009) / (var_a + var_b + 0.0009))
    return sum(found) / len(found)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (7, 7), (9, 8), (4, 12)])
def test_ssim_is_the_published_formula(shape: tuple[int, int]) -> None:
    left, right = torch.randn(2, *shape, dtype=torch.float64)
    assert ssim(left, right) == pytest.approx(plain_ssim(left.tolist(), right.tolist()))
    assert ssim(left, right) == pytest.approx(ssim(right, left))
    assert ssim(left, left) == pytest.approx(1)
    assert ssim(left, torch.zeros(shape)) == pytest.approx(
        plain_ssim(left.tolist(), torch.zeros(shape).tolist())
    )


# Heads


HEADS = torch.tensor([[0.1, 0.4], [0.2, 0.3]], dtype=torch.float64)


def headed(masks: Tensor) -> Tensor:
    """Each head gives its own share of the score of class 1."""
    score = (HEADS * ~masks).sum((1, 2))
    return torch.stack([torch.zeros_like(score), score], 1)


def headed_context(importance: Tensor, **more: Any) -> MetricContext:
    return replace(TOY, head_importance=lambda: importance, masked_scores=headed, **more)


def test_heads_in_the_right_and_in_the_wrong_order() -> None:
    best, worst = ((0.5 + 0.6 + 0.3 + 0.1) / 4, (0.5 + 0.9 + 0.7 + 0.4) / 4)
    found = {
        sign: [
            value("head-ablation", headed_context(sign * HEADS, seed=seed), random_orders=200)
            for seed in range(3)
        ]
        for sign in (1, -1)
    }
    # The mean over all orders is a straight line.
    assert found[1] == pytest.approx([best - 0.5] * 3, abs=0.03)
    assert found[-1] == pytest.approx([worst - 0.5] * 3, abs=0.03)
    assert len(set(found[1])) == 3
    assert found[1][0] == value("head-ablation", headed_context(HEADS, seed=0), random_orders=200)


def test_heads_are_masked_step_by_step() -> None:
    calls: list[Tensor] = []

    def masked(masks: Tensor) -> Tensor:
        calls.append(masks)
        return headed(masks)

    found = value(
        "head-ablation", replace(headed_context(HEADS), masked_scores=masked), random_orders=2
    )
    (masks,) = calls
    none, everything, *own = masks[:5].flatten(1).int().tolist()
    assert (none, everything) == ([0] * 4, [1] * 4)
    assert own == [[0, 1, 0, 0], [0, 1, 0, 1], [0, 1, 1, 1]]
    counts = masks.flatten(1).sum(1).tolist()
    assert counts == [0, 4, 1, 2, 3, 1, 2, 3, 1, 2, 3]
    areas = []
    for order in range(3):
        between = headed(masks)[2 + 3 * order : 5 + 3 * order, 1].tolist()
        areas.append((0.5 + sum(between) + 0) / 4)
    assert found == pytest.approx(areas[0] - (areas[1] + areas[2]) / 2)


def test_the_score_of_the_target_is_what_falls() -> None:
    assert value("head-ablation", replace(headed_context(HEADS), target=0)) == 0


def test_few_steps_of_many_heads() -> None:
    counts: list[int] = []

    def masked(masks: Tensor) -> Tensor:
        counts.extend(masks.flatten(1).sum(1).tolist())
        return headed(masks)

    value(
        "head-ablation",
        replace(headed_context(HEADS), masked_scores=masked),
        steps=2,
        random_orders=1,
    )
    assert counts == [0, 4, 2, 2]


def test_ties_of_heads_go_to_the_lower_layer() -> None:
    flat = torch.zeros(2, 2)
    first = value("head-ablation", headed_context(flat), steps=4)
    said = torch.tensor([[4.0, 3.0], [2.0, 1.0]])
    assert first == value("head-ablation", headed_context(said), steps=4)


def test_methods_without_importance_of_heads() -> None:
    assert math.isnan(value("head-ablation", TOY))
    assert math.isnan(value("head-ablation", replace(headed_context(HEADS), masked_scores=None)))
    assert math.isnan(value("head-ablation", replace(headed_context(HEADS), head_importance=None)))


# Options


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("infidelity", {"samples": 0}),
        ("infidelity", {"noise": 0}),
        ("infidelity", {"noise": math.inf}),
        ("infidelity", {"images": 0}),
        ("max-sensitivity", {"samples": 1.5}),
        ("max-sensitivity", {"radius": -1}),
        ("max-sensitivity", {"radius": "0.1"}),
        ("class-sensitivity", {"images": 0}),
        ("parameter-randomization", {"similarity": "cosine"}),
        ("parameter-randomization", {"stages": 0}),
        ("parameter-randomization", {"seed": -1}),
        ("parameter-randomization", {"images": 0}),
        ("shapley-correlation", {"samples": 0}),
        ("shapley-correlation", {"samples": 3}),
        ("shapley-correlation", {"groups": [1, 0]}),
        ("shapley-correlation", {"groups": 2}),
        ("shapley-correlation", {"images": 0}),
        ("head-ablation", {"steps": 1}),
        ("head-ablation", {"random_orders": 0}),
        ("head-ablation", {"images": 0}),
    ],
)
def test_options_outside_their_range(name: str, options: dict[str, Any]) -> None:
    (option,) = options
    with pytest.raises(OptionError, match=f"{option} must be "):
        METRICS.build(name, **options)


@pytest.mark.parametrize("pixels", [torch.zeros(2, 3, 4, 4), torch.zeros(3, 4, 4)])
def test_one_image_at_a_time(pixels: Tensor) -> None:
    with pytest.raises(InputError, match=r"one image, .* got \("):
        replace(TOY, pixels=pixels)


def test_means_of_what_was_asked() -> None:
    metric = METRICS.build("class-sensitivity")
    for context in (TOY, replace(TOY, explain=of_class), replace(TOY, other_class=None)):
        metric.update(context)
    assert metric.compute() == 0
    assert len(metric.seen) == 3
