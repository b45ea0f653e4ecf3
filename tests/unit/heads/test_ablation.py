"""Masked heads: scores as with zeros by hand, orders, curves and areas, and nothing left behind."""

from __future__ import annotations

import functools
import itertools
import json
import math
import operator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Data2VecVisionConfig, Data2VecVisionForImageClassification

from hf_gmar import GMAR, HeadAblation, HeadImportance, ablate_heads, head_importance
from hf_gmar._core.model_adapter import scores_of
from hf_gmar._utils.stats import bootstrap
from hf_gmar.errors import (
    HfGmarError,
    InputError,
    ModelOutputError,
    OptionError,
    TargetError,
    UnsupportedModelError,
)
from hf_gmar.heads import scores_with_masked_heads, single_head_ablation
from hf_gmar.heads.ablation import LERF, MORF, RANDOM, ranks
from tests.reference import oracles
from tests.reference.cases import (
    BATCH,
    HEADS,
    LAYERS,
    MODELS,
    MORE_MODELS,
    TARGETS,
    VIT,
    Around,
    ModelCase,
)
from tests.reference.models import build
from tests.reference.parity import near, relative_error, same
from tests.reference.tolerances import PARITY, PATIENCE
from tests.support.state import PLACES, HalfWayError, fail_halfway, unchanged, used
from tests.support.threads import Halfway

pytestmark = pytest.mark.usefixtures("few_dots")

SHAPE = BATCH, LAYERS, HEADS
MASKED = torch.rand(SHAPE, generator=torch.Generator().manual_seed(3)) < 0.5
"""Other heads for each image."""

MASKABLE = [case for case in (*MODELS, *MORE_MODELS) if not case.name.startswith("data2vec")]

loadings = pytest.mark.parametrize("attention", ["sdpa", "eager"])


def masked_scores(model: Any, masked: torch.Tensor = MASKED, **kwargs: Any) -> torch.Tensor:
    return scores_with_masked_heads(model, VIT.images(), masked, **kwargs)


def test_the_mask_could_show_a_mistake() -> None:
    assert all(bool(one.any(1).all()) for one in MASKED.permute(1, 0, 2))
    assert not any(torch.equal(*pair) for pair in itertools.combinations(MASKED, 2))


@loadings
@pytest.mark.parametrize("case", MASKABLE, ids=lambda case: case.name)
def test_masked_heads_are_zeros_by_hand(case: ModelCase, attention: str) -> None:
    model, images = case.build(attention=attention), case.images()
    got = scores_with_masked_heads(model, images, MASKED, **case.options, **case.forward_kwargs)
    wanted = oracles.scores_without_heads(model, images, MASKED.tolist(), case.forward_kwargs)
    assert near(got, wanted, PARITY)
    with torch.no_grad():
        plain = scores_of(model(images, **case.forward_kwargs))
    assert relative_error(got, plain.double().numpy()) > 0.01
    none = torch.zeros(LAYERS, HEADS, dtype=torch.bool)
    same_again = scores_with_masked_heads(
        model, images, none, **case.options, **case.forward_kwargs
    )
    assert same(same_again, plain)


def test_masked_heads_are_zeros_by_the_weights() -> None:
    model, images = VIT.build().double(), VIT.images(torch.float64)
    got = scores_with_masked_heads(model, images, MASKED)
    with torch.no_grad():
        wanted = torch.stack(
            [
                oracles.vit_logits_without_heads(model, image, heads)
                for image, heads in zip(images, MASKED.tolist(), strict=True)
            ]
        )
    assert relative_error(got, wanted.numpy()) < 1e-12


def test_one_mask_for_all_images() -> None:
    model = VIT.build()
    one = MASKED[1]
    assert same(masked_scores(model, one), masked_scores(model, one.expand(SHAPE)))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_model_that_fixes_its_attention(attention: str) -> None:
    model = build(Data2VecVisionForImageClassification, Data2VecVisionConfig, attention)
    with unchanged(model), pytest.raises(UnsupportedModelError, match="fixes its attention"):
        masked_scores(model)


@loadings
def test_nothing_is_left_behind(attention: str) -> None:
    model = used(VIT, attention)
    importance = torch.rand(SHAPE)
    with unchanged(model):
        masked_scores(model)
        single_head_ablation(model, VIT.images())
        ablate_heads(model, VIT.images(), importance, steps=2)
    with torch.inference_mode(), unchanged(model):
        masked_scores(model)


@loadings
@pytest.mark.parametrize("place", PLACES)
def test_a_model_that_raises_half_way(place: str, attention: str) -> None:
    model = used(VIT, attention)
    handle = PLACES[place](model).register_forward_hook(fail_halfway)
    with unchanged(model), pytest.raises(HalfWayError):
        masked_scores(model)
    handle.remove()
    wanted = oracles.scores_without_heads(VIT.build(), VIT.images(), MASKED.tolist())
    assert near(masked_scores(model), wanted, PARITY)
    assert same(model.eval()(VIT.images()).logits, VIT.build(attention)(VIT.images()).logits)


@loadings
def test_dropout_is_off(attention: str) -> None:
    model = VIT.build(attention, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5).train()
    assert same(masked_scores(model), masked_scores(VIT.build(attention)))
    assert model.training


@loadings
def test_other_threads_go_on_with_all_their_heads(attention: str) -> None:
    model, halfway = VIT.build(attention), Halfway()
    wanted, plain = masked_scores(model), model(VIT.images()).logits
    model.vit.layers[1].register_forward_hook(halfway)
    with ThreadPoolExecutor(1) as pool:
        masked = halfway.during(lambda: masked_scores(model), pool)
        assert torch.equal(model(VIT.images()).logits, plain)
        halfway.go_on.set()
        assert same(masked.result(PATIENCE), wanted)
    assert torch.equal(model(VIT.images()).logits, plain)


def test_other_threads_wait_with_masks_of_their_own() -> None:
    model, halfway = VIT.build(), Halfway()
    wanted, others = masked_scores(model), masked_scores(model, ~MASKED)
    model.vit.layers[1].register_forward_hook(halfway)
    with ThreadPoolExecutor(2) as pool:
        one = halfway.during(lambda: masked_scores(model), pool)
        other = pool.submit(lambda: masked_scores(model, ~MASKED))
        with pytest.raises(TimeoutError):
            other.result(0.2)
        halfway.go_on.set()
        assert same(one.result(PATIENCE), wanted)
        assert same(other.result(PATIENCE), others)


@loadings
def test_an_explanation_inside_is_not_masked(attention: str) -> None:
    model = VIT.build(attention)
    found: list[torch.Tensor] = []
    wanted, scores = GMAR(model).head_importance(VIT.images(), 3), masked_scores(model)

    def explain(*_: Any) -> None:
        handle.remove()
        found.append(GMAR(model).head_importance(VIT.images(), 3))

    handle = model.vit.layers[1].register_forward_hook(explain)
    assert same(masked_scores(model), scores)
    assert same(found[0], wanted)


def test_masks_inside_masks() -> None:
    model = VIT.build()
    found: list[torch.Tensor] = []
    outer, inner = masked_scores(model), masked_scores(model, ~MASKED)

    def again(*_: Any) -> None:
        handle.remove()
        found.append(masked_scores(model, ~MASKED))

    handle = model.vit.layers[1].register_forward_hook(again)
    assert same(masked_scores(model), outer)
    assert same(found[0], inner)


def test_another_model_of_the_same_config_has_all_its_heads() -> None:
    model = VIT.build()
    found: list[torch.Tensor] = []
    other = type(model)(model.config).eval()
    wanted, plain = masked_scores(model), other(VIT.images()).logits
    model.vit.layers[1].register_forward_hook(lambda *_: found.append(other(VIT.images()).logits))
    assert same(masked_scores(model), wanted)
    assert same(found[0], plain)


def test_a_model_that_is_called_twice() -> None:
    twice = Around(VIT.build(), lambda vit, images: vit(images).logits + vit(images).logits)
    with unchanged(twice), pytest.raises(ModelOutputError, match="3 layers made 6 calls"):
        masked_scores(twice)


WRONG_MASKS: dict[str, tuple[Any, type[HfGmarError], str]] = {
    "numbers": (MASKED.float(), InputError, "bool tensor"),
    "list": (MASKED.tolist(), InputError, "bool tensor"),
    "other layers": (MASKED[:, :2], InputError, "3 layers and 3 images"),
    "other images": (MASKED[:2], InputError, "3 layers and 3 images"),
    "other heads": (MASKED[..., :2], ModelOutputError, "2 heads"),
    "one dimension": (MASKED[0, 0], InputError, "bool tensor"),
}


@pytest.mark.parametrize("name", WRONG_MASKS)
def test_a_mask_that_does_not_fit(name: str) -> None:
    masked, kind, words = WRONG_MASKS[name]
    model = VIT.build()
    with unchanged(model), pytest.raises(kind, match=words):
        masked_scores(model, masked)


def test_images_of_another_size() -> None:
    case = next(case for case in MODELS if case.name == "vit-interpolated")
    with pytest.raises(InputError, match="interpolate_pos_encoding"):
        scores_with_masked_heads(case.build(), case.images(), MASKED)


def test_one_head_alone() -> None:
    model, images = VIT.build(), VIT.images()
    drops = single_head_ablation(model, images, TARGETS)
    plain = scores_of(model(images)).detach().numpy()
    for layer, head in ((0, 0), (1, 3), (2, 2)):
        masked = np.zeros(SHAPE, dtype=bool)
        masked[:, layer, head] = True
        scores = oracles.scores_without_heads(model, images, masked.tolist())
        wanted = (plain - scores)[range(BATCH), TARGETS]
        assert np.allclose(drops[:, layer, head], wanted, atol=1e-5)
    top = single_head_ablation(model, images)
    assert same(top, single_head_ablation(model, images, model(images).logits.argmax(1)))


def test_places_of_heads() -> None:
    scores = np.array([[[0.3, 0.1], [0.3, 0.9]], [[0.0, 0.0], [0.0, 0.0]]])
    assert ranks(scores).tolist() == [[[1, 3], [2, 0]], [[0, 1], [2, 3]]]
    assert ranks(scores, within_layers=True).tolist() == [[[0, 1], [1, 0]], [[0, 1], [0, 1]]]
    pairs = np.tile([1.0, 2.0], 36).reshape(1, 12, 6)
    assert ranks(pairs).ravel().tolist() == [n // 2 + 36 * (n % 2 == 0) for n in range(72)]


def by_hand(model: Any, masked: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    scores = oracles.scores_without_heads(model, VIT.images(), masked.tolist())
    picked: np.ndarray[Any, Any] = scores[range(BATCH), TARGETS]
    return picked


@pytest.mark.parametrize("within", [False, True])
def test_curves_by_hand(within: bool) -> None:
    """The first heads of each image by its own scores, first from the top, then from the end."""
    model, scores = VIT.build(), torch.rand(SHAPE)
    found = ablate_heads(
        model, VIT.images(), scores, TARGETS, steps=[0, 0.25, 0.5, 1], within_layers=within
    )
    assert found.fractions.tolist() == [0, 0.25, 0.5, 1]
    assert found.targets.tolist() == TARGETS
    for step, fraction in enumerate(found.fractions):
        for name, sign in ((MORF, 1), (LERF, -1)):
            masked = np.zeros(SHAPE, dtype=bool)
            for image in range(BATCH):
                rows = [list(range(layer * HEADS, (layer + 1) * HEADS)) for layer in range(LAYERS)]
                for heads in rows if within else [functools.reduce(operator.iadd, rows, [])]:
                    heads.sort(key=lambda n: -sign * float(scores[image].flatten()[n]))
                    masked[image].flat[heads[: int(fraction * len(heads))]] = True
            assert np.allclose(found.curves[name][:, step], by_hand(model, masked), atol=1e-5)
    for curve in found.curves.values():
        assert np.allclose(curve[:, [0, -1]], found.curves[MORF][:, [0, -1]], atol=1e-5)


def test_orders_do_not_depend_on_batches_but_on_the_seed() -> None:
    model, images = VIT.build(), VIT.images()
    options: dict[str, Any] = {"steps": 3, "random_orders": 2}
    scores = torch.rand(SHAPE)
    whole = ablate_heads(model, images, scores, 3, **options)
    parts = ablate_heads(model, images.split(1), scores, 3, **options)
    other = ablate_heads(model, images, scores, 3, seed=1, **options)
    for name, curve in whole.curves.items():
        assert np.allclose(curve, parts.curves[name], atol=1e-5)
    assert not np.allclose(whole.curves[RANDOM], other.curves[RANDOM], atol=1e-3)
    assert np.allclose(whole.curves[MORF], other.curves[MORF], atol=1e-5)
    without = ablate_heads(model, images, scores, 3, steps=3, random_orders=0)
    assert set(without.curves) == {MORF, LERF}
    assert without.differences() == {}


def test_random_curves_are_means_of_draws() -> None:
    """The first draw is the same whether others follow, so two draws tell the second."""
    model, images, scores = VIT.build(), VIT.images(), torch.rand(SHAPE)
    found = [
        ablate_heads(model, images, scores, 3, steps=2, random_orders=draws).curves[RANDOM][:, 1]
        for draws in (1, 2)
    ]
    generators = [np.random.default_rng([0, image]) for image in range(BATCH)]
    draws = [np.stack([one.random(SHAPE[1:]) for one in generators]) for _ in range(2)]
    each = []
    for draw in draws:
        masked = torch.from_numpy(ranks(draw) < LAYERS * HEADS // 2)
        each.append(scores_with_masked_heads(model, images, masked)[:, 3].numpy())
    assert np.allclose(found[0], each[0], atol=1e-5)
    assert np.allclose(found[1], (each[0] + each[1]) / 2, atol=1e-5)


def test_targets_of_the_importance() -> None:
    model, images = VIT.build(), VIT.images()
    importance = head_importance(model, images, TARGETS)
    found = ablate_heads(model, images.split(2), importance, steps=2)
    assert found.targets.tolist() == TARGETS
    for inputs, target in ((images, [1, 2, 3]), ([(images, torch.tensor([1, 2, 3]))], None)):
        other = ablate_heads(model, inputs, importance, target, steps=2)
        assert other.targets.tolist() == [1, 2, 3]
    plain = model(images).logits.detach().numpy()
    assert np.allclose(found.curves[MORF][:, 0], plain[range(BATCH), TARGETS], atol=1e-5)
    top = ablate_heads(model, images, importance.values, steps=2)
    assert top.targets.tolist() == plain.argmax(1).tolist()


def test_one_order_for_all_images() -> None:
    model, images, scores = VIT.build(), VIT.images(), torch.rand(SHAPE)
    mean = ablate_heads(model, images, scores, 3, steps=3, mean_order=True)
    one = ablate_heads(model, images, scores.mean(0), 3, steps=3)
    assert np.allclose(mean.curves[MORF], one.curves[MORF], atol=1e-5)
    own = ablate_heads(model, images, scores, 3, steps=3)
    assert not np.allclose(mean.curves[MORF], own.curves[MORF], atol=1e-3)


WRONG: dict[str, tuple[dict[str, Any], type[HfGmarError], str]] = {
    "shape": ({"order_by": torch.rand(BATCH, 2, HEADS)}, InputError, "3 layers"),
    "fewer images": ({"order_by": torch.rand(2, LAYERS, HEADS)}, InputError, "same images"),
    "more images": ({"order_by": torch.rand(4, LAYERS, HEADS)}, InputError, "same images"),
    "no steps": ({"steps": 0}, OptionError, "steps must be"),
    "no end": ({"steps": [0, 0.5]}, OptionError, "steps must be"),
    "outside": ({"steps": [0, 0.5, 2]}, OptionError, "steps must be"),
    "random": ({"random_orders": -1}, OptionError, "random_orders must be"),
    "half a random order": ({"random_orders": 1.5}, OptionError, "random_orders must be"),
    "target": ({"target": 99}, TargetError, "out of range"),
    "no images": ({"inputs": []}, InputError, "no images"),
    "keyword": ({"interpolate": True}, OptionError, "unknown keyword"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(name: str) -> None:
    given, kind, words = WRONG[name]
    call = {"inputs": VIT.images(), "order_by": torch.rand(SHAPE), **given}
    with pytest.raises(kind, match=words):
        ablate_heads(VIT.build(), **call)


TOY = HeadAblation(
    np.array([0.0, 0.5, 1.0]),
    {
        MORF: np.array([[4.0, 1.0, 1.0], [3.0, 2.0, 2.0]]),
        LERF: np.array([[4.0, 4.0, 1.0], [3.0, 3.0, 2.0]]),
        RANDOM: np.array([[4.0, 3.0, 1.0], [3.0, 2.0, 2.0]]),
    },
    np.array([0, 1]),
    {"order": "a toy"},
)
"""Ranges of 3 and 1, so that one step of 1 is 2."""


def test_areas_by_hand() -> None:
    areas = TOY.areas()
    # Above the end: (3, 0, 0) and (1, 0, 0); (3, 3, 0) and (1, 1, 0); (3, 2, 0) and (1, 0, 0).
    assert np.allclose(areas[MORF], [0.375, 0.125])
    assert np.allclose(areas[LERF], [1.125, 0.375])
    assert np.allclose(areas[RANDOM], [0.875, 0.125])
    differences = TOY.differences()
    assert set(differences) == {MORF, LERF}
    assert float(differences[MORF].mean) == pytest.approx(-0.25)
    assert float(differences[LERF].mean) == pytest.approx(0.25)
    assert (float(differences[MORF].low), float(differences[MORF].high)) == (-0.5, 0)


def test_a_score_that_never_moves_has_no_area() -> None:
    flat = HeadAblation(np.array([0.0, 1.0]), {MORF: np.ones((2, 2))}, np.array([0, 0]))
    assert flat.areas()[MORF].tolist() == [0, 0]


def test_the_bootstrap_is_seeded_and_covers() -> None:
    values = np.random.default_rng(5).normal(1, 2, size=(400, 2))
    found = bootstrap(values)
    assert all(map(np.array_equal, found, bootstrap(values)))
    assert not np.array_equal(found.low, bootstrap(values, seed=1).low)
    error = 1.96 * values.std(0) / math.sqrt(400)
    assert np.allclose(found.mean, values.mean(0))
    assert np.allclose(found.high - found.mean, error, rtol=0.1)
    assert np.allclose(found.mean - found.low, error, rtol=0.1)


def test_files_and_figure(tmp_path: Path) -> None:
    files = TOY.save(tmp_path, "toy")
    assert sorted(tmp_path.iterdir()) == sorted(files)
    with np.load(files[0]) as stored:
        assert np.array_equal(stored["most_important_first"], TOY.curves[MORF])
        assert np.array_equal(stored["fractions"], TOY.fractions)
        assert stored["targets"].tolist() == [0, 1]
    summary = json.loads(files[1].read_text())
    assert summary["images"] == 2
    assert summary["areas"][MORF][0] == pytest.approx(0.25)
    assert summary["minus random order"][MORF] == pytest.approx([-0.25, -0.5, 0])
    (axes,) = TOY.figure().axes
    lines = {str(line.get_label()): line.get_ydata() for line in axes.lines}
    assert np.allclose(np.asarray(lines[MORF]), [3.5, 1.5, 1.5])
    assert len(axes.collections) == 3
    assert next(column.header for column in TOY.table().columns) == "order"
    assert next(iter(TOY.table().columns[2].cells)) == "-0.250 (-0.500 to 0.000)"


def test_one_image_has_no_interval(tmp_path: Path) -> None:
    one = HeadAblation(TOY.fractions, {n: c[:1] for n, c in TOY.curves.items()}, np.array([0]))
    summary = json.loads(one.save(tmp_path)[1].read_text())
    assert summary["areas"][MORF][1:] == [None, None]
    assert next(iter(one.table().columns[1].cells)) == "0.250"


def test_an_importance_may_be_of_one_image() -> None:
    importance = HeadImportance(torch.rand(1, LAYERS, HEADS), torch.tensor([3]))
    found = ablate_heads(VIT.build(), VIT.images()[:1], importance, steps=1)
    assert found.curves[MORF].shape == (1, 2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": True}, "steps must be a whole number >= 1"),
        ({"steps": 4.0}, "steps must be a whole number >= 1"),
        ({"steps": None}, "steps must be a whole number >= 1"),
        ({"steps": "ab"}, "steps must be a whole number >= 1"),
        ({"steps": [0, "x", 1]}, "steps must be a whole number >= 1"),
        ({"steps": [0, float("nan"), 1]}, "steps must be a whole number >= 1"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"seed": "a"}, "seed must be a whole number"),
    ],
    ids=str,
)
def test_more_options_out_of_range(options: dict[str, Any], said: str) -> None:
    scores = torch.rand(LAYERS, HEADS)
    with pytest.raises(OptionError, match=said):
        ablate_heads(VIT.build(), VIT.images(), scores, 3, **options)


def test_steps_of_numpy() -> None:
    scores = torch.rand(LAYERS, HEADS)
    options = {"target": 3, "random_orders": 1}
    one = ablate_heads(VIT.build(), VIT.images(), scores, steps=np.int64(3), **options)  # type: ignore[arg-type]
    other = ablate_heads(VIT.build(), VIT.images(), scores, steps=3, **options)  # type: ignore[arg-type]
    assert np.array_equal(one.fractions, other.fractions)


@pytest.mark.parametrize(
    "wrong", ["gmar", torch.full((LAYERS, HEADS), float("nan")), None], ids=str
)
def test_an_importance_that_is_none(wrong: Any) -> None:
    with pytest.raises(InputError, match="must be a HeadImportance or a tensor of finite numbers"):
        ablate_heads(VIT.build(), VIT.images(), wrong, 3)
