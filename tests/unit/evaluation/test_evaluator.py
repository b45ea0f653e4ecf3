"""Methods measured on data sets: rows against plain loops, runs that go on, wrong inputs."""

from __future__ import annotations

import copy
import functools
import io
import itertools
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from captum.attr import Saliency
from PIL import Image
from torch import Tensor

from hf_gmar import GMAR, AttnLRP, Evaluation, LogitsModel, ShapleyValues, evaluate
from hf_gmar._core.request import ForwardRequest
from hf_gmar._core.targets import TargetSpec
from hf_gmar._utils.stats import rank_correlations
from hf_gmar.comparison import MethodSpec
from hf_gmar.data import Example, ImageDataset, draw_scene, open_data
from hf_gmar.errors import (
    DataError,
    EvaluationError,
    HfGmarError,
    ImageFileError,
    ModelOutputError,
    OptionError,
    UnsupportedModelError,
)
from hf_gmar.evaluation import CHEAP
from hf_gmar.evaluation.run.plan import evenly_spaced
from hf_gmar.methods import METHODS, AttributionMethod
from hf_gmar.metrics import METRICS, ContextBuilder, Deletion, Insertion
from hf_gmar.models import LoadedModel, load_model
from hf_gmar.models.labels import labels_of
from hf_gmar.perturbations import Blur
from tests.reference.cell_models import saved
from tests.reference.models import scene_model
from tests.support import folders
from tests.support.limits import NEEDS_LIMITS, largest_file
from tests.support.state import unchanged

NAMES = ["gmar", "grad-sam", "random"]

pytestmark = pytest.mark.usefixtures("few_dots")


def by_method(found: Evaluation, index: int) -> dict[str, dict[str, Any]]:
    """The rows of one image."""
    return {row["method"]: row for row in found.rows if row["index"] == index}


def pixels_of(loaded: LoadedModel, image: Image.Image) -> Tensor:
    """What the model gets of an image."""
    pixels: Tensor = loaded.processor(images=image, return_tensors="pt").pixel_values
    return pixels


def probability(loaded: LoadedModel, pixels: Tensor, target: int) -> float:
    """Of a class; the bundled model has a sigmoid for each."""
    with torch.no_grad():
        return float(loaded.model(pixels).logits[0, target].double().sigmoid())


def plain_curve(
    loaded: LoadedModel, pixels: Tensor, order: Sequence[int], target: int, steps: int
) -> list[float]:
    """Scores while patches get the image's mean colour, one image at a time."""
    curve = []
    for step in range(steps + 1):
        changed = pixels.clone()
        for patch in order[: math.floor(step * len(order) / steps + 0.5)]:
            row, column = divmod(patch, 8)
            place = slice(12 * row, 12 * row + 12), slice(12 * column, 12 * column + 12)
            changed[0, :, place[0], place[1]] = pixels.mean((2, 3))[0][:, None, None]
        curve.append(probability(loaded, changed, target))
    return curve


def area(curve: Sequence[float]) -> float:
    """Under a curve of even steps from 0 to 1."""
    steps = itertools.pairwise(curve)
    return sum((left + right) / 2 for left, right in steps) / (len(curve) - 1)


STEPS = 5


@pytest.fixture(scope="module")
def measured(bundled: LoadedModel) -> Evaluation:
    """Faithfulness of three methods on two images."""
    metrics = ["deletion", "insertion", "srg", "average-drop:keep=0.25"]
    return evaluate(bundled, "scenes:2", NAMES, metrics, ["mean"], steps=STEPS)


@pytest.mark.parametrize("method", NAMES)
def test_rows_hold_what_plain_loops_find(
    bundled: LoadedModel, measured: Evaluation, method: str
) -> None:
    data = open_data("scenes:2", labels_of(bundled.model.config))
    chosen, steps = METHODS.build(method, bundled.model), STEPS
    for index in range(2):
        row = by_method(measured, index)[method]
        pixels = pixels_of(bundled, data[index].image)
        target = int(bundled.model(pixels).logits.argmax())
        patches = chosen.attribute_patches(pixels, target)[0].flatten().tolist()
        order = sorted(range(64), key=lambda patch: -patches[patch])
        most = plain_curve(bundled, pixels, order, target, steps)
        least = plain_curve(bundled, pixels, order[::-1], target, steps)
        assert (row["target"], row["predicted"], row["label"]) == (
            target,
            target,
            data[index].label,
        )
        assert row["before"] == pytest.approx(most[0], abs=1e-6)
        assert row["curves"]["mean"]["morf"] == pytest.approx(most, abs=1e-5)
        assert row["curves"]["mean"]["lerf"] == pytest.approx(least, abs=1e-5)
        assert row["fractions"] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
        values = row["values"]
        assert values["deletion:mean"] == pytest.approx(area(most), abs=1e-5)
        assert values["insertion:mean"] == pytest.approx(area(least[::-1]), abs=1e-5)
        gain = sum(b - a for a, b in zip(most, least, strict=True)) / (steps + 1)
        assert values["srg:mean"] == pytest.approx(gain, abs=1e-5)
        kept = plain_curve(bundled, pixels, order[16:], target, 1)[1]
        drop = 100 * max(0, most[0] - kept) / most[0]
        assert values["average-drop (keep=0.25):mean"] == pytest.approx(drop, abs=1e-3)


def test_places_are_measured_where_the_class_has_a_mask(bundled: LoadedModel) -> None:
    found = evaluate(bundled, "scenes:8", ["gmar"], ["relevance-mass", "pointing-game"])
    data = open_data("scenes:8", labels_of(bundled.model.config))
    gmar, measured = GMAR(bundled.model), 0
    for index, row in enumerate(found.rows):
        mask = data[index].masks.get(row["target"])
        if mask is None:  # the model sees a class that is not there
            assert row["values"] == {}
            continue
        patches = gmar.attribute_patches(pixels_of(bundled, data[index].image), row["target"])[0]
        cover = mask.reshape(8, 12, 8, 12).mean((1, 3))
        energy = float((patches.numpy() * cover).sum() / patches.sum())
        assert row["values"]["relevance-mass"] == pytest.approx(energy, abs=1e-5)
        inside = cover.flatten() >= 0.5
        hit = float(inside[int(patches.argmax())]) if inside.any() else None
        assert row["values"]["pointing-game"] == hit
        measured += 1
    assert measured > 4


def test_metrics_that_ask_again_are_measured_on_some_images(bundled: LoadedModel) -> None:
    metrics = ["class-sensitivity:images=2", "max-sensitivity:images=1,samples=2",
               "parameter-randomization:images=1,stages=2", "infidelity:images=1,samples=3",
               "grid-pointing:images=2", "head-ablation:images=1,steps=2"]  # fmt: skip
    methods = ["gmar", "random", Saliency(LogitsModel(bundled.model))]
    found = evaluate(bundled, "scenes:10", methods, metrics, seed=3)
    seen: dict[str, list[int]] = {name.partition(":")[0]: [] for name in metrics}
    for row in found.rows:
        for name, images in seen.items():
            values = [v for label, v in row["values"].items() if label.split(" (")[0] == name]
            if row["method"] == "gmar" and values and values[0] is not None:
                images.append(row["index"])
    assert {name: len(images) for name, images in seen.items()} == {
        "class-sensitivity": 2, "max-sensitivity": 1, "parameter-randomization": 1, "infidelity": 1,
        "grid-pointing": 2, "head-ablation": 1,
    }  # fmt: skip
    first = {label: row["values"] for label, row in by_method(found, 0).items()}
    lost, heads = "parameter-randomization (stages=2, seed=3)", "head-ablation (steps=2)"
    assert first["random"]["class-sensitivity"] == pytest.approx(1)
    assert first["random"][lost] == pytest.approx(1)
    # What is remembered of one class or one model is not taken for another.
    assert -1 <= first["Saliency"]["class-sensitivity"] < 0.99
    assert first["gmar"]["class-sensitivity"] < 1
    pixels = pixels_of(bundled, draw_scene(0).image)
    context = ContextBuilder(bundled.model).context(GMAR, pixels, found.rows[0]["target"])
    plain = METRICS.build("parameter-randomization", stages=2, seed=3).values(context)
    assert first["gmar"][lost] == pytest.approx(float(plain), abs=1e-5)
    # Captum's methods are built on one model, and have no heads.
    assert first["Saliency"][lost] is first["Saliency"][heads] is first["random"][heads] is None
    assert first["Saliency"]["class-sensitivity"] is not None


SHAPLEY = "shapley-correlation:samples=4,groups=[4, 4],images=1"
SHAPLEY_LABEL = "shapley-correlation (samples=4, groups=(4, 4))"


def test_the_correlation_with_shapley_values(bundled: LoadedModel, tmp_path: Path) -> None:
    methods = ["gmar", "shapley-values:samples=4,groups=[4,4]"]
    found = evaluate(bundled, "scenes:2", methods, [SHAPLEY], seed=3, output=tmp_path)
    assert all(SHAPLEY_LABEL not in row["values"] for row in found.rows[2:])
    plain, exact = (row["values"][SHAPLEY_LABEL] for row in found.rows[:2])
    assert exact == pytest.approx(1)
    pixels, target = pixels_of(bundled, draw_scene(0).image), found.rows[0]["target"]
    shapley = ShapleyValues(bundled.model, 4, (4, 4), seed=3)  # of the logit, as always
    maps = [one.attribute_patches(pixels, target) for one in (GMAR(bundled.model), shapley)]
    blocks = [one.unfold(1, 4, 4).unfold(2, 4, 4).mean((3, 4)) for one in maps]
    assert plain == pytest.approx(float(rank_correlations(blocks)[0, 1]))
    again = evaluate(bundled, "scenes:2", methods, [SHAPLEY], seed=3, output=tmp_path)
    assert again.rows == found.rows


def test_the_correlation_on_a_model_without_tokens(tmp_path: Path) -> None:
    """Cells get the mean colour there."""
    loaded = load_model(saved("resnet", tmp_path), device="cpu")
    metric = "shapley-correlation:samples=2,groups=[8, 8]"
    (row,) = evaluate(loaded, [draw_scene(0).image], ["attn-lrp"], [metric]).rows
    pixels, target = loaded.pixels(draw_scene(0).image), row["target"]
    shapley = ShapleyValues(loaded.model, 2, (8, 8))
    maps = [one.attribute_patches(pixels, target) for one in (AttnLRP(loaded.model), shapley)]
    blocks = [one.unfold(1, 8, 8).unfold(2, 8, 8).mean((3, 4)) for one in maps]
    expected = float(rank_correlations(blocks)[0, 1])
    assert list(row["values"].values()) == [pytest.approx(expected)]


def test_methods_share_the_shapley_values(bundled: LoadedModel) -> None:
    """Copies of no, 16, 32 and 48 patches run once, however many methods there are."""
    tokens: list[int] = []
    handle = bundled.model.vit.layernorm.register_forward_pre_hook(
        lambda _module, args: tokens.append(args[0].shape[1])
    )
    try:
        evaluate(bundled, "scenes:1", ["gmar", "random", "attn-lrp"], [SHAPLEY])
    finally:
        handle.remove()
    assert [count for count in tokens if count < 65] == [1, 17, 33, 49]


def test_copies_and_maps_are_made_once(bundled: LoadedModel) -> None:
    images = []
    handle = bundled.model.register_forward_pre_hook(
        lambda _m, args, kwargs: images.append(len(args[0] if args else kwargs["pixel_values"])),
        with_kwargs=True,
    )
    try:
        evaluate(bundled, "scenes:1", ["gmar"], ["deletion"], ["mean"], steps=4)
        alone = sum(images)
        images.clear()
        twice = {"one": "gmar", "two": "gmar", "three": ("gmar", {"norm": "l2"})}
        evaluate(bundled, "scenes:1", twice, ["deletion", "insertion", "aopc"], ["mean"], steps=4)
    finally:
        handle.remove()
    # The second norm asks for a few copies of its own, where it orders patches otherwise.
    assert alone <= sum(images) <= alone + 2 * 3


def test_what_is_there_is_not_measured_again(tiny: LoadedModel, tmp_path: Path) -> None:
    asked = ("scenes:4", ["gmar", "random"], ["deletion", "average-drop", "relevance-mass"])
    more: dict[str, Any] = {"steps": 3, "examples": 1}
    whole = evaluate(tiny, *asked, output=tmp_path / "whole", **more)
    part = tmp_path / "part"
    shutil.copytree(tmp_path / "whole", part)
    (part / "summary.json").unlink()
    lines = (part / "rows.jsonl").read_bytes().splitlines(keepends=True)
    # Killed in the middle of a line of the third image.
    (part / "rows.jsonl").write_bytes(b"".join(lines[:5]) + lines[5][:50])
    done: list[tuple[int, int]] = []
    again = evaluate(
        tiny, *asked, output=part, **more,
        progress=lambda count, total, _rows: done.append((count, total)),
    )  # fmt: skip
    assert done == [(0, 2), (1, 2), (2, 2)]
    assert again.rows == whole.rows
    assert again.summary == whole.summary
    for name in ("summary.json", "report.md"):
        assert (part / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    nothing: list[int] = []
    evaluate(tiny, *asked, output=part, **more, baseline="gmar",
             progress=lambda _count, total, _rows: nothing.append(total))  # fmt: skip
    assert nothing == [0]


FEW: dict[str, Any] = {
    "data": "scenes:2", "methods": NAMES, "metrics": ["average-gain"], "steps": 3, "examples": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tiny: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an evaluation, to be copied."""
    out = tmp_path_factory.mktemp("finished")
    evaluate(tiny, **FEW, output=out)
    return out


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 4},
        {"score": "logit", "metrics": ["deletion"]},
        {"methods": ["gmar", "random"]},
        {"methods": [("gmar", {"alpha": 0.5}), "grad-sam", "random"]},
        {"metrics": ["deletion"]},
        {"perturbations": ["blur:radius=3"]},
        {"data": "scenes:5"},
        {"explained_class": "label"},
        {"seed": 1},
        {"autocast": "bfloat16"},
        {"readout": "patches"},
        {"model": "other weights"},
        {"model": "other config"},
        {"model": "a function"},
    ],
    ids=lambda change: "-".join(map(str, next(iter(change.items())))).split("[")[0][:30],
)
def test_other_settings_never_mix(
    tiny: LoadedModel, finished: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    before = (out / "rows.jsonl").read_bytes()
    model = tiny
    if what := change.get("model"):
        model = scene_model()
        change = {}
        if what == "other weights":
            with torch.no_grad():
                next(model.model.parameters()).mul_(1.01)
        elif what == "other config":
            model.model.config.problem_type = None
        else:
            called = functools.partial(model.model, interpolate_pos_encoding=True)
            model = replace(model, model=called)
    with pytest.raises(EvaluationError, match="other settings"):
        evaluate(model, **{**FEW, **change}, output=out)
    assert (out / "rows.jsonl").read_bytes() == before


def test_the_same_settings_go_on(finished: Path, tmp_path: Path) -> None:
    """In another model object of the same weights: what is refused above is another setting."""
    shutil.copytree(finished, tmp_path / "out")
    totals: list[int] = []
    found = evaluate(scene_model(), **FEW, output=tmp_path / "out",
                     progress=lambda _count, total, _rows: totals.append(total))  # fmt: skip
    assert totals == [0]
    assert len(found.rows) == 2 * len(NAMES)


def test_starting_again_removes_the_rows(tiny: LoadedModel, tmp_path: Path) -> None:
    evaluate(tiny, "scenes:2", ["gmar"], ["average-drop"], output=tmp_path, examples=0)
    found = evaluate(tiny, "scenes:1", ["random"], ["average-gain"], output=tmp_path,
                     resume=False, examples=0)  # fmt: skip
    assert [row["method"] for row in found.rows] == ["random"]
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images, two of which are broken."""
    place = tmp_path / "images"
    place.mkdir()
    for number in range(5):
        draw_scene(number).image.save(place / f"{number}.png")
    (place / "1.png").write_bytes((place / "1.png").read_bytes()[:300])
    (place / "3.png").write_text("no image")
    return place


def test_broken_images_are_counted_and_skipped(
    tiny: LoadedModel, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    asked = (tiny, folder, NAMES, ["average-drop"])
    found = evaluate(*asked, output=out, examples=0)
    broken = [row for row in found.rows if row["method"] is None]
    assert [(row["index"], row["key"]) for row in broken] == [(1, "1.png"), (3, "3.png")]
    assert "broken" in broken[0]["error"]
    assert "not an image" in broken[1]["error"]
    assert found.summary.images == 3
    assert len(found.rows) == 2 + 3 * len(NAMES)
    assert "1.png" in (out / "report.md").read_text()
    # Other files are another data set.
    draw_scene(1).image.save(folder / "1.png")
    with pytest.raises(EvaluationError, match="data"):
        evaluate(*asked, output=out, examples=0)


class Unreliable(ImageDataset):
    """Scenes from a place that can't always be reached."""

    def __init__(self) -> None:
        """One of them is away."""
        super().__init__("unreliable", {})
        self.away = {1}

    def __len__(self) -> int:
        """Three."""
        return 3

    def key(self, index: int) -> str:
        """Its number."""
        return f"scene {index}"

    def __getitem__(self, index: int) -> Example:
        """A scene."""
        if index in self.away:
            raise ImageFileError("it can't be reached")
        return Example(self.key(index), draw_scene(index).image)


def test_images_that_could_not_be_read_are_tried_again(tiny: LoadedModel, tmp_path: Path) -> None:
    data, done = Unreliable(), list[int]()
    asked = (tiny, data, ["gmar", "random"], ["average-drop"])
    first = evaluate(*asked, output=tmp_path, examples=0)
    assert [row["error"] for row in first.rows if "error" in row] == ["it can't be reached"]
    data.away.clear()
    again = evaluate(*asked, output=tmp_path, examples=0,
                     progress=lambda _c, total, _r: done.append(total))  # fmt: skip
    assert set(done) == {1}
    assert again.summary.images == 3
    assert again.rows == evaluate(*asked).rows


class Failing(AttributionMethod):
    """Explains no image that is bright."""

    source, cost = "none", "forward"
    class_specific = False

    def _explain(self, request: ForwardRequest, target_specs: Sequence[TargetSpec]) -> list[Tensor]:
        if float(request.inputs.mean()) > self.limit:
            raise ModelOutputError("it is too bright")
        return [torch.rand(len(request.inputs), 8, 8) for _ in target_specs]

    limit: ClassVar[float] = 0.0


def test_a_method_fails_alone(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_data("scenes:4", labels_of(tiny.model.config))
    means = [float(pixels_of(tiny, one.image).mean()) for one in data]
    monkeypatch.setattr(Failing, "limit", float(np.median(means)))
    methods = ["gmar", MethodSpec(Failing(tiny.model), "dim")]
    found = evaluate(tiny, "scenes:4", methods, ["deletion", "class-sensitivity"], steps=2)
    failed = [row for row in found.rows if "error" in row]
    assert [row["index"] for row in failed] == [
        index for index, mean in enumerate(means) if mean > np.median(means)
    ]
    assert {(row["method"], row["error"]) for row in failed} == {("dim", "it is too bright")}
    assert sum(row["method"] == "gmar" and "error" not in row for row in found.rows) == 4


def test_the_model_comes_back_as_it_was(tmp_path: Path) -> None:
    loaded = scene_model()
    loaded.model.train()
    state = torch.get_rng_state()
    methods = [*NAMES, Saliency(LogitsModel(loaded.model))]
    metrics = ["deletion", "class-sensitivity", "parameter-randomization:stages=2,images=1",
               "max-sensitivity:samples=1,images=1"]  # fmt: skip
    perturbations = ["blur", "token-dropping", "attention-masking", "noise"]
    with unchanged(loaded.model):
        evaluate(loaded, "scenes:2", methods, metrics, perturbations, steps=2)
        evaluate(loaded, "scenes:1", ["gmar"], ["average-drop"], output=tmp_path)
    assert torch.equal(torch.get_rng_state(), state)


def test_logits_and_labels_can_be_measured(tiny: LoadedModel) -> None:
    found = evaluate(
        tiny, "scenes:3", ["gmar"], ["deletion"], score="logit", explained_class="label"
    )
    data = open_data("scenes:3", labels_of(tiny.model.config))
    for example, row in zip(data, found.rows, strict=True):
        logits = tiny.model(pixels_of(tiny, example.image)).logits[0].detach()
        assert row["target"] == example.label
        assert row["before"] == pytest.approx(float(logits[example.label]), abs=1e-4)


def test_an_image_without_a_label_has_no_label_to_explain(tiny: LoadedModel, folder: Path) -> None:
    found = evaluate(tiny, folder, ["gmar"], ["deletion"], explained_class="label")
    assert all(row["method"] is None for row in found.rows)
    assert "explained_class='predicted'" in found.rows[0]["error"]


def test_metrics_and_perturbations_of_ones_own(tiny: LoadedModel) -> None:
    class Half(Deletion):
        name = "half"

    found = evaluate(tiny, "scenes:1", ["gmar"], [Half(), Insertion()], [Blur(5), "noise"])
    assert set(found.rows[0]["values"]) == {
        "half:blur (radius=5)", "half:noise", "insertion:blur (radius=5)", "insertion:noise",
    }  # fmt: skip


def test_the_mean_colour_of_the_data_is_found(tiny: LoadedModel, folder: Path) -> None:
    found = evaluate(tiny, folder, ["gmar"], ["deletion"], ["dataset-mean"], steps=2)
    good = [pixels_of(tiny, draw_scene(number).image) for number in (0, 2, 4)]
    colour = torch.cat(good).mean((0, 2, 3)).tolist()
    said: Mapping[str, Any] = found.settings["perturbations"]["dataset-mean"]
    assert said["colour"] == pytest.approx(colour, abs=1e-5)


def test_nothing_is_written_without_a_folder(
    tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = evaluate(tiny, "scenes:1", ["gmar"], ["deletion"])
    assert list(tmp_path.iterdir()) == found.files == []
    assert found.records()[0]["method"] == "gmar"
    assert "deletion" in found.markdown()


def test_half_precision_of_copies_moves_little(tiny: LoadedModel) -> None:
    asked = (tiny, "scenes:2", ["gmar"], ["deletion"], ["blur", "token-dropping"])
    exact, half = (evaluate(*asked, steps=4, autocast=kind) for kind in (None, "bfloat16"))
    for left, right in zip(exact.rows, half.rows, strict=True):
        assert left["values"] != right["values"]
        for key, value in left["values"].items():
            assert right["values"][key] == pytest.approx(value, abs=0.03)


def test_a_measure_that_fails_is_named(bundled: LoadedModel, tmp_path: Path) -> None:
    metrics = ["average-drop", "grid-pointing"]
    found = evaluate(bundled, "scenes:4", ["gmar"], metrics, output=tmp_path, examples=0)
    failed = [row["undefined"]["mosaic"] for row in found.rows if "undefined" in row]
    assert failed
    assert "no mosaic for scene-" in failed[0]
    assert len([row for row in found.rows if "average-drop:blur" in row["values"]]) == 4
    assert "GMAR, mosaic" in (tmp_path / "report.md").read_text()


def test_a_model_needs_its_processor(tiny: LoadedModel) -> None:
    with pytest.raises(OptionError, match="processor"):
        evaluate(tiny.model, "scenes:1", ["gmar"])
    found = evaluate(tiny.model, "scenes:1", ["gmar"], ["deletion"], processor=tiny.processor)
    assert len(found.rows) == 1


WRONG: dict[str, tuple[dict[str, Any], type[HfGmarError], str]] = {
    "no such method": ({"methods": ["gmra"]}, OptionError, "gmra"),
    "no such option": ({"methods": ["gmar:beta=1"]}, OptionError, "beta"),
    "no such metric": ({"metrics": ["deletionn"]}, OptionError, "deletionn"),
    "no metric": ({"metrics": []}, OptionError, "metrics"),
    "a metric twice": ({"metrics": ["deletion", "deletion"]}, OptionError, "twice"),
    "metrics as text": ({"metrics": "deletion"}, OptionError, "list"),
    "a metric as number": ({"metrics": [3]}, OptionError, "3"),
    "no such perturbation": ({"perturbations": ["blurr"]}, OptionError, "blurr"),
    "no such score": ({"score": "margin"}, OptionError, "margin"),
    "no such explained class": ({"explained_class": "top"}, OptionError, "top"),
    "no such autocast": ({"autocast": "int8"}, OptionError, "int8"),
    "no steps": ({"steps": 0}, OptionError, "steps"),
    "half a step": ({"steps": 2.5}, OptionError, "steps"),
    "no memory": ({"memory": 0}, OptionError, "memory"),
    "a negative seed": ({"seed": -1}, OptionError, "seed"),
    "no such baseline": ({"baseline": "rollout"}, OptionError, "rollout"),
    "drop of logits": ({"score": "logit", "metrics": ["average-drop"]}, OptionError, "probabilit"),
    "tokens in part": (
        {"metrics": ["average-drop:form=soft"], "perturbations": ["token-dropping"]},
        OptionError,
        "token-dropping",
    ),
    "no such data": ({"data": "no/such/folder"}, DataError, "no/such/folder"),
    "mosaics of two classes": ({"metrics": ["grid-pointing"], "data": "scenes:2"}, DataError, "4"),
}


@pytest.mark.parametrize("wrong", WRONG, ids=[name.replace(" ", "-") for name in WRONG])
def test_what_is_wrong_is_said_before_anything_is_written(
    tiny: LoadedModel, tmp_path: Path, wrong: str
) -> None:
    change, kind, word = WRONG[wrong]
    asked = {"data": "scenes:2", "methods": ["gmar"], "output": tmp_path / "out", **change}
    with pytest.raises(kind, match=word):
        evaluate(tiny, **asked)
    rows = tmp_path / "out" / "rows.jsonl"
    assert not rows.exists()


def test_a_folder_that_is_a_file_is_refused(tiny: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(EvaluationError, match="another folder"):
        evaluate(tiny, "scenes:1", ["gmar"], output=path)
    assert path.read_text() == "mine"


def test_a_model_of_no_family_is_refused() -> None:
    with pytest.raises(UnsupportedModelError):
        evaluate(torch.nn.Linear(2, 2), "scenes:1", processor=scene_model().processor)


def test_cheap_metrics_are_the_default() -> None:
    assert set(CHEAP) < set(METRICS)
    assert {"deletion", "insertion", "average-drop", "pointing-game"} <= set(CHEAP)
    assert not {"infidelity", "parameter-randomization", "grid-pointing"} & set(CHEAP)


def test_settings_are_written_as_they_were_asked(tiny: LoadedModel, tmp_path: Path) -> None:
    evaluate(tiny, "scenes:1", ["gmar:alpha=0.5", GMAR(tiny.model, norm="l2")],
             ["average-drop"], output=tmp_path, steps=2, examples=0)  # fmt: skip
    settings = json.loads((tmp_path / "settings.json").read_text())
    first, second = settings["methods"].values()
    assert first["rule"]["alpha"] == 0.5
    assert second["rule"]["norm"] == "l2"
    assert settings["steps"] == 2
    assert settings["model"]["name"] == "tiny"


def test_methods_with_readouts_of_their_own_keep_them(tiny: LoadedModel) -> None:
    own = evaluate(tiny, "scenes:1", ["gmar:readout=patches"], ["parameter-randomization:stages=2"])
    run = evaluate(
        tiny, "scenes:1", ["gmar"], ["parameter-randomization:stages=2"], readout="patches"
    )
    assert list(own.rows[0]["values"].values()) == list(run.rows[0]["values"].values())


def test_more_scores_than_names(bundled: LoadedModel, tmp_path: Path) -> None:
    """Data may name a class by its number, also one that the config does not name."""
    model: Any = copy.deepcopy(bundled.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model.classifier = torch.nn.Linear(model.config.hidden_size, 11)
    draw_scene(1).image.save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("path,label\na.png,10\n")
    found = evaluate(
        replace(bundled, model=model), tmp_path / "labels.csv", ["gmar"], ["deletion"],
        explained_class="label", steps=1,
    )  # fmt: skip
    assert [row["target"] for row in found.rows] == [10]


def test_logits_have_defaults_of_their_own(tiny: LoadedModel) -> None:
    found = evaluate(tiny, "scenes:1", ["gmar"], score="logit", steps=2)
    names = {name.partition(":")[0] for name in found.rows[0]["values"]}
    assert "deletion" in names
    assert not names & {"average-drop", "average-gain"}


def test_the_seed_reaches_what_is_random(tiny: LoadedModel) -> None:
    asked = ("scenes:1", ["random"], ["deletion"], ["noise"])
    first, same, other = (evaluate(tiny, *asked, seed=seed, steps=3) for seed in (0, 0, 5))
    assert first.rows == same.rows != other.rows
    own = evaluate(tiny, "scenes:1", ["random:seed=0"], ["deletion"], ["noise:seed=0"], seed=5,
                   steps=3)  # fmt: skip
    (mine,), drawn = own.rows[0]["curves"].values(), first.rows[0]["curves"]["noise"]
    assert mine == drawn


def test_a_label_that_is_no_class_is_named(tiny: LoadedModel) -> None:
    class Wrong(Unreliable):
        def __getitem__(self, index: int) -> Example:
            return Example(self.key(index), draw_scene(index).image, 99)

    found = evaluate(tiny, Wrong(), ["gmar"], ["deletion"], explained_class="label")
    assert "99" in found.rows[0]["error"]


def test_results_in_the_folder_of_the_images_are_no_images(tiny: LoadedModel, folder: Path) -> None:
    first, again = (
        evaluate(tiny, folder, ["gmar"], ["average-drop"], output=folder / "out") for _ in range(2)
    )
    assert (folder / "out" / "examples.png").exists()
    assert first.rows == again.rows
    assert first.settings == again.settings


def test_an_empty_data_set_is_refused(tiny: LoadedModel) -> None:
    class Empty(Unreliable):
        def __len__(self) -> int:
            return 0

    with pytest.raises(EvaluationError, match="no images"):
        evaluate(tiny, Empty(), ["gmar"])


def test_old_examples_are_not_drawn(tiny: LoadedModel, tmp_path: Path) -> None:
    evaluate(tiny, "scenes:3", ["gmar"], ["average-drop"], output=tmp_path)
    assert (tmp_path / "examples.png").exists()
    found = evaluate(tiny, "scenes:3", ["random"], ["average-drop"], output=tmp_path,
                     resume=False, examples=0)  # fmt: skip
    assert "examples.png" not in {path.name for path in found.files}
    assert not (tmp_path / "examples.png").exists()
    assert not list(tmp_path.glob("examples/*"))


def test_damaged_examples_are_made_again(tiny: LoadedModel, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"data": "scenes:4", "methods": ["gmar"], "metrics": ["average-drop"],
                             "examples": 2, "output": tmp_path}  # fmt: skip
    whole = evaluate(tiny, **asked)
    paths = sorted(tmp_path.glob("examples/*.npz"))
    content = [path.read_bytes() for path in paths]
    with np.load(paths[0]) as archive:
        arrays = dict(archive)
    summary = (tmp_path / "summary.json").read_bytes()
    no_array, flat = io.BytesIO(), io.BytesIO()
    np.save(no_array, arrays["maps"])
    np.savez(flat, **{**arrays, "maps": arrays["maps"].ravel()})
    middle = len(content[0]) // 2
    for damaged in (b"", content[0][:middle], b"text", no_array.getvalue(), flat.getvalue(),
                    content[0].replace(b"picture", b"pixture")):  # fmt: skip
        paths[0].write_bytes(damaged)
        paths[1].unlink()  # as if another machine had it
        totals: list[int] = []
        found = evaluate(tiny, **asked, progress=lambda _, total, __: totals.append(total))  # noqa: B023
        assert totals[0] == 1
        assert found.rows == whole.rows
        assert (tmp_path / "summary.json").read_bytes() == summary
        assert not paths[1].exists()
        paths[1].write_bytes(content[1])
        with np.load(paths[0]) as archive:
            assert {name: archive[name].tolist() for name in archive} == {
                name: array.tolist() for name, array in arrays.items()
            }


@NEEDS_LIMITS
def test_on_a_full_disk_measured_rows_are_kept(tiny: LoadedModel, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"data": "scenes:4", "methods": ["gmar"], "metrics": ["deletion"],
                             "examples": 0}  # fmt: skip
    whole = evaluate(tiny, **asked, output=tmp_path / "whole")
    size = (tmp_path / "whole" / "rows.jsonl").stat().st_size
    out = tmp_path / "out"
    with largest_file(size * 5 // 8):  # in the middle of a line
        for _ in range(2):
            with pytest.raises(EvaluationError, match=r"File too large; what was measured is kept"):
                evaluate(tiny, **asked, output=out)
    assert (out / "rows.jsonl").read_bytes().count(b"\n") == 2
    totals: list[int] = []
    found = evaluate(tiny, **asked, output=out, progress=lambda _, total, __: totals.append(total))
    assert totals[0] == 2
    assert found.rows == whole.rows
    assert not list(out.glob(".*.part"))
    written = (tmp_path / "whole" / "rows.jsonl").read_bytes()
    with largest_file(size * 2), pytest.raises(EvaluationError, match="can't be written"):
        evaluate(tiny, **asked, output=out)  # the rows fit, the report does not
    assert (out / "rows.jsonl").read_bytes() == written


def test_records_are_flat(tiny: LoadedModel) -> None:
    found = evaluate(tiny, "scenes:2", ["gmar", "random"], ["deletion"], steps=2)
    assert not any(isinstance(value, dict) for one in found.records() for value in one.values())
    assert "difference_p" in found.records()[0]


def test_examples_are_spread_over_the_data() -> None:
    assert sorted(evenly_spaced(100, 4)) == [0, 25, 50, 75]
    assert sorted(evenly_spaced(3, 4)) == [0, 1, 2]
    assert evenly_spaced(5, 0) == set()


@pytest.mark.parametrize("way", ["./{}", "{}/", "{}/../{}", "link", "absolute", "copy"])
def test_other_paths_to_the_same_weights_and_images_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folders.copy(Path("model"))
    Path("images").mkdir()
    for number in range(2):
        draw_scene(number).image.save(Path("images") / f"{number}.png")
    paths = []
    for name in ("model", "images"):
        path = way.format(name, name)
        if way in ("link", "copy"):
            path = f"{way}/{name}"
            Path(way).mkdir(exist_ok=True)
            (os.symlink if way == "link" else shutil.copytree)(tmp_path / name, path)
        elif way == "absolute":
            path = str(tmp_path / name)
        paths.append(path)
    words = ["gmar"], ["deletion"]
    first = evaluate(load_model("model"), "images", *words, output="out", steps=2)
    measured = Path("out/rows.jsonl").read_bytes()
    again = evaluate(load_model(paths[0]), paths[1], *words, output="./out", steps=2)
    assert again.rows == first.rows
    assert Path("out/rows.jsonl").read_bytes() == measured  # nothing was measured anew
    assert json.loads(Path("out/settings.json").read_text())["model"]["name"] == paths[0]


def test_other_weights_under_the_same_path_do_not_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words: Any = "scenes:1", ["gmar"], ["deletion"]
    folders.variant(Path("model"), 0.5)
    evaluate(load_model("model"), *words, output="out", steps=2)
    shutil.rmtree("model")
    folders.variant(Path("model"), 0.25)
    with pytest.raises(EvaluationError, match=r"model\.weights: .* now"):
        evaluate(load_model("model"), *words, output="out", steps=2)


def test_a_split_is_its_subfolder(tmp_path: Path, bundled: LoadedModel) -> None:
    place = tmp_path / "images" / "test"
    place.mkdir(parents=True)
    draw_scene(1).image.save(place / "1.png")
    labels = labels_of(bundled.model.config)
    as_split = open_data(tmp_path / "images", labels, split="test")
    assert as_split.settings == open_data(place, labels).settings
