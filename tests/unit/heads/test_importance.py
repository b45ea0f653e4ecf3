"""Head importance over images, and a map for each head."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from hf_gmar import GMAR, HeadImportance, head_importance, head_maps
from hf_gmar.data import CLASSES
from hf_gmar.errors import HfGmarError, InputError, OptionError, TargetError
from hf_gmar.heads import HeadMaps
from hf_gmar.models import ImageView, LoadedModel
from hf_gmar.visualization import head_maps_figure, save_figure
from tests.reference import oracles
from tests.reference.cases import (
    HEADS,
    LAYERS,
    MODELS,
    MORE_MODELS,
    TARGETS,
    VIT,
    Around,
    ModelCase,
    shared,
)
from tests.reference.parity import near, same
from tests.reference.tolerances import PARITY
from tests.support.state import unchanged, used

TOY = HeadImportance(
    torch.tensor(
        [[[0.7, 0.3], [0.5, 0.5]], [[0.3, 0.7], [0.9, 0.1]], [[0.2, 0.8], [0.4, 0.6]]],
        dtype=torch.float64,
    ),
    torch.tensor([4, 2, 4]),
    {2: "two", 4: "four"},
)
"""Three images, two layers of two heads; the means are 0.4, 0.6 and 0.6, 0.4."""


def test_toy_numbers() -> None:
    assert torch.allclose(TOY.mean(), torch.tensor([[0.4, 0.6], [0.6, 0.4]], dtype=torch.float64))
    spread = TOY.std()
    assert float(spread[0, 0]) == pytest.approx(np.sqrt((0.09 + 0.01 + 0.04) / 3))
    assert float(spread[1, 0]) == pytest.approx(np.sqrt((0.01 + 0.09 + 0.04) / 3))
    each = TOY.per_class()
    assert list(each) == [2, 4]
    assert torch.equal(each[2], TOY.values[1])
    assert torch.allclose(each[4][0], torch.tensor([0.45, 0.55], dtype=torch.float64))


def test_the_order_of_heads_and_of_ties() -> None:
    values = torch.tensor([[[0.25, 0.5, 0.25], [0.5, 0.25, 0.25]]])
    found = HeadImportance(values, torch.tensor([0]))
    assert found.rank() == [(0, 1), (1, 0), (0, 0), (0, 2), (1, 1), (1, 2)]
    even = HeadImportance(torch.full((1, 12, 6), 1 / 6), torch.tensor([0]))
    assert even.rank() == [divmod(place, 6) for place in range(72)]


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_it_is_gmars_head_importance(norm: Any) -> None:
    model, images = shared(VIT), VIT.images()
    found = head_importance(model, images, TARGETS, norm=norm)
    wanted = oracles.gmar(oracles.trace(model, images, TARGETS), norm=norm).heads
    assert wanted is not None
    assert near(found.values, wanted, PARITY)
    assert found.targets.tolist() == TARGETS
    assert found.norm == norm
    assert torch.allclose(found.values.sum(2), torch.ones(3, LAYERS))


def test_many_batches_are_one_after_another() -> None:
    model, images = shared(VIT), VIT.images()
    whole = head_importance(model, images, TARGETS)
    data = TensorDataset(images, torch.tensor(TARGETS))
    for inputs in (
        DataLoader(data, batch_size=2),  # its pairs are lists
        [(images[:1], TARGETS[0]), (images[1:], TARGETS[1:])],
        ((part, target) for part, target in zip(images.split(1), TARGETS, strict=True)),
    ):
        found = head_importance(model, inputs)
        assert same(found.values, whole.values)
        assert torch.equal(found.targets, whole.targets)


def test_batches_without_targets() -> None:
    model, images = shared(VIT), VIT.images()
    top = model(images).logits.argmax(1)
    found = head_importance(model, [images[:2], images[2:]])
    assert torch.equal(found.targets, top)
    assert same(found.values, head_importance(model, images, top).values)
    for inputs in ([images[:2], images[2:]], images, (images,)):
        one = head_importance(model, inputs, 3)
        assert one.targets.tolist() == [3, 3, 3]
        assert same(one.values, head_importance(model, images, [3, 3, 3]).values)


def test_one_batch_is_held_at_a_time() -> None:
    """The next one is asked for when the last one is done."""
    model, asked = VIT.build(), []
    model.register_forward_hook(lambda *_: asked.append("forward"))

    def batches() -> Any:
        for image in VIT.images().split(1):
            asked.append("batch")
            yield image

    head_importance(model, batches(), 3)
    assert asked == ["batch", "forward"] * 3


def test_options_reach_the_method() -> None:
    model, images = shared(VIT), VIT.images()
    against = head_importance(model, images, TARGETS, contrast=1)
    wanted = GMAR(model).head_importance(images, TARGETS, contrast=1)
    assert torch.equal(against.values, wanted)
    others: tuple[dict[str, Any], ...] = ({"engine": "dense"}, {"checkpoint": True})
    for options in others:
        found = head_importance(model, images, TARGETS, **options)
        assert torch.equal(found.values, GMAR(model, **options).head_importance(images, TARGETS))
    tall = next(case for case in MODELS if case.name == "vit-interpolated")
    with pytest.raises(InputError, match="interpolate_pos_encoding"):
        head_importance(shared(tall), tall.images())
    assert len(head_importance(shared(tall), tall.images(), **tall.forward_kwargs).values) == 3


def test_names_of_classes(bundled: LoadedModel) -> None:
    pixels = torch.zeros(2, 3, 96, 96)
    assert head_importance(bundled.model, pixels, [6, 1]).names == {1: CLASSES[1], 6: CLASSES[6]}
    around = Around(VIT.build(), lambda vit, images: vit(images).logits)
    assert head_importance(around, VIT.images(), 3).names == {}


def test_a_head_of_your_own() -> None:
    case = next(case for case in MORE_MODELS if case.name == "dinov3-cls+patches")
    model, images = case.build(), case.images()
    found = head_importance(model, images, TARGETS, readout="cls+patches")
    wanted = oracles.gmar(oracles.trace(model, images, TARGETS, reads="cls+patches")).heads
    assert wanted is not None
    assert near(found.values, wanted, PARITY)


WRONG: dict[str, tuple[Any, Any, type[HfGmarError], str]] = {
    "no batch": ([], None, InputError, "no images"),
    "no tensor": (3, None, InputError, "got int"),
    "text": ("image.png", None, InputError, "got str"),
    "other items": ([3], None, InputError, "got int"),
    "tuple": (VIT.images(), (1, 2), TargetError, "one class index"),
    "tuples": ([(VIT.images(), [(1, 2)] * 3)], None, TargetError, "one class index"),
    "twice": ([(VIT.images(), TARGETS)], 3, TargetError, "leave one out"),
    "out of range": (VIT.images(), 99, TargetError, "out of range"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(name: str) -> None:
    inputs, target, kind, words = WRONG[name]
    with pytest.raises(kind, match=words):
        head_importance(shared(VIT), inputs, target)


def test_an_unknown_norm() -> None:
    with pytest.raises(OptionError, match="norm must be"):
        head_importance(shared(VIT), VIT.images(), norm="l3")  # type: ignore[arg-type]


def test_an_unknown_criterion() -> None:
    with pytest.raises(
        OptionError, match="criterion must be one of 'gmar', 'taylor', got 'impact'"
    ):
        head_importance(shared(VIT), VIT.images(), criterion="impact")  # type: ignore[arg-type]


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@functools.cache
def traced(case: ModelCase, dtype: torch.dtype) -> oracles.Trace:
    """The dense trace of a model, from a loading of which all attention can be read."""
    loaded = next(name for name, engines in case.loadings.items() if "dense" in engines)
    reads = case.options.get("readout")
    with oracles.unrounded_softmax():
        model, images = shared(case, loaded, dtype), case.images(dtype)
        return oracles.trace(model, images, TARGETS, case.forward_kwargs, reads)


@pytest.mark.pairwise
@DTYPES
@pytest.mark.parametrize("engine", ["streaming", "dense"])
@pytest.mark.parametrize("case", MODELS, ids=lambda case: case.name)
def test_effects_equal_the_dense_trace(case: ModelCase, engine: str, dtype: torch.dtype) -> None:
    model, images = shared(case, dtype=dtype), case.images(dtype)
    with oracles.unrounded_softmax():
        found = head_importance(
            model, images, TARGETS, criterion="taylor", engine=engine, **case.forward_kwargs
        )
    assert near(found.values, oracles.head_effects(traced(case, dtype)), PARITY)
    assert (found.criterion, found.caption) == ("taylor", "3 images, first-order effect")


def test_effects_of_several_batches_and_a_contrast() -> None:
    model, images = shared(VIT), VIT.images()
    pairs = [(images[:2], TARGETS[:2]), (images[2:], TARGETS[2:])]
    found = head_importance(model, pairs, criterion="taylor")
    each = [
        head_importance(model, images, target, criterion="taylor").values for target in (TARGETS, 1)
    ]
    assert same(found.values, each[0])
    difference = head_importance(model, images, TARGETS, criterion="taylor", contrast=1)
    assert same(difference.values, each[0] - each[1])
    assert found.criterion == "taylor"  # of the whole, as of its parts


def test_the_heatmap_of_effects(tmp_path: Path) -> None:
    effects = HeadImportance(TOY.values - 0.5, TOY.targets, TOY.names, criterion="taylor")
    heat, _, bar, _ = effects.figure().axes
    assert heat.images[0].get_clim() == pytest.approx((-0.1, 0.1))
    assert heat.images[0].get_cmap().name == "RdBu_r"
    assert heat.get_title().replace("\n", " ") == "effect of each head: four (2), two (1)"
    assert "estimated" in bar.get_ylabel()
    assert not bar.texts  # there is no even share
    colours = {text.get_text(): text.get_color() for text in heat.texts}
    assert colours == {"-.10": "white", ".10": "white"}
    with np.load(effects.save_numbers(tmp_path)) as stored:
        assert str(stored["criterion"]) == "taylor"


def test_the_heatmap() -> None:
    heat, spread, bar, _ = TOY.figure().axes
    drawn = heat.images[0]
    assert np.allclose(np.asarray(drawn.get_array()), TOY.mean())
    assert np.allclose(np.asarray(spread.images[0].get_array()), TOY.std())
    assert drawn.get_clim() == pytest.approx((0, 0.6))
    low, high = heat.get_ylim()
    assert low < high  # the top layer is at the top
    assert bar.lines[0].get_ydata()[0] == pytest.approx(0.5)  # type: ignore[index]
    assert "1/2" in bar.texts[0].get_text()
    assert heat.get_title().replace("\n", " ") == "head importance: four (2), two (1)"


def test_one_image_has_no_spread() -> None:
    one = HeadImportance(TOY.values[:1], TOY.targets[:1], {4: "pound $ sterling $"})
    assert not one.std().any()
    figure = one.figure()
    assert len(figure.axes) == 2
    title = figure.axes[0].get_title().replace("\n", " ")
    assert title == r"head importance: pound \$ sterling \$"
    figure.canvas.draw()


def test_many_classes_are_counted() -> None:
    values = torch.full((4, 1, 2), 0.5)
    assert HeadImportance(values, torch.arange(4)).title == "4 classes"
    assert HeadImportance(values, torch.tensor([1, 1, 1, 1])).title == "class 1"


@pytest.mark.usefixtures("few_dots")
def test_a_folder_by_its_name_is_made(tmp_path: Path) -> None:
    files = replace(TOY, settings={"model": "toy"}).save(str(tmp_path / "new"))
    summary = json.loads(files[1].read_text())
    assert summary["settings"] == {"model": "toy"}
    assert summary["targets"] == [4, 2, 4]
    assert summary["version"]


def test_files(tmp_path: Path) -> None:
    files = TOY.save(tmp_path, "toy")
    assert sorted(tmp_path.iterdir()) == sorted(files)
    with np.load(files[0]) as stored:
        assert np.array_equal(stored["values"], TOY.values)
        assert stored["targets"].tolist() == [4, 2, 4]
        assert (str(stored["norm"]), str(stored["criterion"])) == ("l1", "gmar")
    summary = json.loads(files[1].read_text())
    assert summary["images"] == 3
    assert np.allclose(summary["mean"], TOY.mean())
    assert np.allclose(summary["std"], TOY.std())
    assert [tuple(pair) for pair in summary["most important first"]] == TOY.rank()
    assert [one["label"] for one in summary["classes"]] == ["two", "four"]
    with Image.open(files[2]) as picture:
        assert min(picture.size) > 200


class Way(NamedTuple):
    """A model, as it is loaded, and an engine; each is a factor."""

    case: ModelCase
    loaded: str
    engine: str


WAYS = [
    Way(case, loaded, engine)
    for case in (*MODELS, *MORE_MODELS)
    for loaded, engines in case.loadings.items()
    for engine in ("streaming", "dense")
    if engine in engines
]


@pytest.mark.sampled(4)
@DTYPES
@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way.case.name}-{way.loaded}-{way.engine}")
def test_maps_of_heads_equal_the_dense_trace(way: Way, dtype: torch.dtype) -> None:
    case, loaded, engine = way
    images, wanted = case.images(dtype), oracles.head_maps(traced(case, dtype))
    assert wanted.shape[1:3] == (LAYERS, HEADS)
    with oracles.unrounded_softmax():
        maps = HeadMaps(shared(case, loaded, dtype), engine=engine, **case.options)
        assert near(maps.maps(images, **case.forward_kwargs), wanted, PARITY)
        mean = maps.attribute_patches(images, **case.forward_kwargs)
        assert near(mean, wanted.mean((1, 2)), PARITY)


def test_maps_from_some_layers() -> None:
    model, images = shared(VIT), VIT.images()
    every, some = HeadMaps(model), HeadMaps(model, start_layer=1, chunk_size=5)
    assert same(some.maps(images), every.maps(images)[:, 1:])
    assert same(some.attribute_patches(images), every.maps(images)[:, 1:].mean((1, 2)))
    assert torch.equal(head_maps(model, images), every.maps(images))


def test_maps_cost_one_forward() -> None:
    model, calls = VIT.build(), []
    model.register_forward_hook(lambda *_: calls.append("forward"))
    model.classifier.register_full_backward_hook(lambda *_: calls.append("backward"))
    head_maps(model, VIT.images())
    assert calls == ["forward"]


def test_maps_have_no_contrast() -> None:
    with pytest.raises(OptionError, match="same map for every class"):
        HeadMaps(shared(VIT)).attribute(VIT.images(), 1, contrast=2)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_model_comes_back_as_it_was(attention: str) -> None:
    model = used(VIT, attention)
    with unchanged(model):
        head_maps(model, VIT.images())
        head_importance(model, VIT.images())
        with pytest.raises(TargetError):
            head_importance(model, [VIT.images(), (VIT.images(), 99)])


def test_the_grid_of_maps(tmp_path: Path) -> None:
    """Black image, one bright patch in one head: where is it drawn?"""
    maps = torch.zeros(3, 2, 4, 4)
    maps[2, 1, 0, 3] = 1  # top layer, second head, upper right
    figure = head_maps_figure(Image.new("RGB", (64, 64)), maps, caption="a $ b")
    grid = np.asarray(figure.axes[1].images[0].get_array()).astype(int)
    tile = grid[: grid.shape[0] // 3, grid.shape[1] // 2 :]
    inside = tile[3:-3, 3:-3]
    cell = inside.shape[0] // 4
    assert inside[2, -3].sum() > 3 * inside[-3, 2].sum()
    assert inside[cell - 2, -cell + 2].sum() > 3 * inside[cell + 2, -cell + 2].sum()
    others = grid[grid.shape[0] // 3 + 3 :, : grid.shape[1] // 2]
    assert not (others.sum(2)[(others != 255).any(2)] > 300).any()
    labels = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert labels == ["2", "1", "0"]
    save_figure(figure, tmp_path / "maps.png")


def test_the_grid_shows_what_the_model_did_not_see() -> None:
    """Grey at the sides of a wide image of which the middle is seen."""
    view = ImageView((50, 100), (0.0, 25.0, 50.0, 75.0))
    image = Image.new("RGB", (100, 50), "red")
    figure = head_maps_figure(image, torch.ones(1, 1, 2, 2), view=view)
    grid = np.asarray(figure.axes[1].images[0].get_array()).astype(int)
    grey = (grid.max(2) - grid.min(2) < 3)[grid.shape[0] // 2]
    sides, middle = grey[5 : len(grey) // 5], grey[len(grey) * 2 // 5 : len(grey) * 3 // 5]
    assert sides.all()
    assert not middle.any()
