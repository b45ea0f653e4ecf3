"""Several classes and methods of one image: their list, picture, files and failures."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hf_gmar import Explainer, Explanation, Explanations, compare, explain
from hf_gmar.data import draw_scene
from hf_gmar.errors import InputError, ModelOutputError, OptionError, UnsupportedModelError
from hf_gmar.methods import GMAR, METHODS, AttnLRP
from hf_gmar.methods.registry import with_options
from hf_gmar.models import LoadedModel
from hf_gmar.models.image_view import ImageView
from hf_gmar.visualization.explanation_grid import Cell, Column, draw_grid
from tests.support.command import run
from tests.support.hostile import HOSTILE

SCENE = draw_scene(18).image
METHOD_NAMES = ["gmar", "attn-lrp"]


@pytest.fixture(scope="module")
def results(bundled: LoadedModel) -> Explanations:
    found = explain(SCENE, bundled, ["heart", "cross"], method=METHOD_NAMES, check=True)
    assert isinstance(found, Explanations)
    return found


def test_each_method_explains_the_same_classes(bundled: LoadedModel) -> None:
    results = Explainer(bundled, METHOD_NAMES)(SCENE, top_k=3)
    assert [each.method for each in results] == METHOD_NAMES * 3
    for method in METHOD_NAMES:
        alone = Explainer(bundled, method)(SCENE, top_k=3)
        mine = [each for each in results if each.method == method]
        for left, right in zip(mine, alone, strict=True):
            assert (left.target, left.label) == (right.target, right.label)
            assert torch.allclose(left.patches, right.patches, atol=1e-5)
            assert left.score == pytest.approx(right.score, abs=1e-5)


def test_a_list_of_one_method_is_a_list(bundled: LoadedModel) -> None:
    assert isinstance(explain(SCENE, bundled, method="gmar"), Explanation)
    assert isinstance(explain(SCENE, bundled, method=["gmar"]), Explanations)
    (pairs,) = explain([SCENE], bundled, method=METHOD_NAMES)
    assert [each.method for each in pairs] == METHOD_NAMES


@pytest.mark.parametrize(
    ("methods", "options", "wanted"),
    [
        ("gmar", {"norm": "l2"}, [("gmar", {"norm": "l2"})]),
        (["gmar", "attn-lrp"], {"alpha": 2}, [("gmar", {"alpha": 2}), ("attn-lrp", {})]),
        (
            ["gmar:norm=l2", "gmar"], {"alpha": 2},
            [("gmar", {"norm": "l2", "alpha": 2}), ("gmar", {"alpha": 2})],
        ),
    ],
)  # fmt: skip
def test_options_go_to_the_methods_that_have_them(methods: Any, options: Any, wanted: Any) -> None:
    assert with_options(methods, options) == wanted


@pytest.mark.parametrize(
    ("methods", "options", "text"),
    [
        ([], {}, "name a method; there are gmar, "),
        ("gmra", {}, "there is no method 'gmra'"),
        (["gmar", "gmar"], {}, "the method gmar is named twice"),
        (["gmar", "gmar:norm=l1"], {}, r"the method gmar \(norm=l1\) is named twice"),
        (["gmar:norm=l2", "gmar:norm=l2,alpha=1"], {}, "is named twice"),
        (["gmar", "attn-lrp"], {"head_fusion": "max"}, "none of the methods gmar, attn-lrp has an"),
        (["gmar:norm=l2"], {"norm": "l1"}, "the option norm is given twice"),
        ("attn-lrp", {"norm": "l1"}, "the method 'attn-lrp' has no option norm"),
    ],
)
def test_methods_and_options_that_are_refused(methods: Any, options: Any, text: str) -> None:
    with pytest.raises(OptionError, match=text):
        with_options(methods, options)


def test_the_picture_has_a_row_for_each_class_and_a_column_for_each_method(
    results: Explanations,
) -> None:
    pair = Explanations(results[:2])
    assert results.picture().width == pair.picture().width
    assert 1.8 < results.picture().height / pair.picture().height < 2.1
    page = results._repr_html_()
    assert page.count("<img") == 1
    for each in results:
        assert f"{' '.join(each.title.split())}, {each.method_title}" in page


NAMES = ("heart", "a very long label " * 9, *HOSTILE)


@pytest.mark.parametrize("size", [(3000, 1), (1, 3000)])
def test_a_line_of_pixels_is_drawn(bundled: LoadedModel, size: tuple[int, int]) -> None:
    results = explain(Image.new("RGB", size), bundled, method=["raw-attention"])
    assert results.picture().height > 1
    assert results[0].picture().height > 1


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("size", [(96, 96), (400, 100), (60, 300), (1, 900), (4000, 1)], ids=str)
def test_no_text_of_the_picture_is_cut_or_lies_on_another(
    size: tuple[int, int], count: int
) -> None:
    image, names = Image.new("RGB", size), itertools.cycle(NAMES)
    texts = ("Better than all 9 random choices.", "Its top 20% alone: 99.4% (random 32.1%)")
    columns = [Column(next(names), next(names)) for _ in range(count)]
    cells = {
        (row, column): Cell(torch.rand(3, 5) - 0.5, next(names), "better", (*texts, next(names)))
        for row, column in itertools.product(range(2), range(count))
    }
    cells[1, 0] = Cell(None, texts=("failed: " + "no such layer; " * 40,))
    rows = [f"{next(names)}  99.9%" for _ in range(2)]
    canvas = draw_grid(image, ImageView.whole(image), rows, columns, cells, next(names) * 5, "max")
    width, height = canvas.image.size
    for text, (left, top, right, bottom) in canvas.boxes:
        assert 0 <= left <= right <= width, text
        assert 0 <= top <= bottom <= height, text
    for (one, a), (other, b) in itertools.combinations(canvas.boxes, 2):
        apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] + 1 or b[3] <= a[1] + 1
        assert apart, (one, other)


@pytest.mark.parametrize("size", [(1, 900), (4000, 1)], ids=str)
def test_strips_have_a_picture(results: Explanations, size: tuple[int, int]) -> None:
    image = Image.new("RGB", size)
    strips = [replace(each, image=image, view=ImageView.whole(image)) for each in results]
    assert min(strips[0].picture().size) > 100
    assert min(Explanations(strips).picture().size) > 100


def test_lists_of_options_are_the_same_after_a_file(tmp_path: Path) -> None:
    methods = ["shapley-values:samples=2,groups=[4,4]", "raw-attention"]
    for result in explain(SCENE, "bundled", method=methods):
        _, archive = result.save(tmp_path / result.method)
        loaded = Explanation.load(archive)
        assert loaded.method_title == result.method_title
        assert loaded.file_name("a") == result.file_name("a")
        assert loaded.settings == result.settings
    assert loaded.method_title == "Raw attention"
    shapley = Explanation.load(tmp_path / "shapley-values")
    assert shapley.method_title == "Shapley values (samples 2, groups (4, 4))"


def test_explanations_of_several_images_are_not_checked_as_one(results: Explanations) -> None:
    other = explain(draw_scene(3).image, "bundled")
    with pytest.raises(InputError, match="are of several images"):
        Explanations([results[0], other]).check()


def test_methods_of_one_title_have_a_column_each(
    results: Explanations, monkeypatch: pytest.MonkeyPatch
) -> None:
    width = results.picture().width
    monkeypatch.setattr(AttnLRP, "title", GMAR.title)
    assert results.picture().width == width


def test_files(results: Explanations, tmp_path: Path) -> None:
    picture, *archives = results.save(tmp_path, "scene")
    assert picture.name == "scene.6-heart+4-cross.gmar+attn-lrp.png"
    assert [path.name for path in archives] == [
        "scene.6-heart.npz", "scene.6-heart.attn-lrp.npz", "scene.4-cross.npz",
        "scene.4-cross.attn-lrp.npz",
    ]  # fmt: skip
    for archive, each in zip(archives, results, strict=True):
        loaded = Explanation.load(archive)
        assert np.array_equal(loaded.patches, each.patches)
        assert loaded.faithfulness == each.faithfulness
    with Image.open(picture) as drawn:
        assert drawn.size == results.picture().size


def test_names_of_other_classes_and_methods_are_different(bundled: LoadedModel) -> None:
    names = []
    for methods, count in itertools.product((["gmar"], ["gmar:norm=l2"], METHOD_NAMES), (1, 2, 8)):
        found = Explainer(bundled, methods)(SCENE, list(range(count)))
        names.append(found.file_name("a"))
    assert len(set(names)) == len(names)
    assert all(len(name.encode()) <= 246 for name in names)


def test_all_files_or_none(
    results: Explanations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(Explanations, "picture", fail)
    with pytest.raises(OSError, match="the disk is full"):
        results.save(tmp_path, "scene")
    assert not list(tmp_path.iterdir())


Break = Callable[[pytest.MonkeyPatch], None]


def when_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise UnsupportedModelError("it has an unknown activation")

    monkeypatch.setattr(AttnLRP, "__init__", refuse)


def when_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ModelOutputError("it has an unknown activation")

    monkeypatch.setattr(AttnLRP, "_explain", refuse)


@pytest.mark.parametrize("broken", [when_built, when_run])
def test_a_method_that_fails_leaves_the_others(
    broken: Break, bundled: LoadedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken(monkeypatch)
    explainer = Explainer(bundled, METHOD_NAMES)
    for found in explainer.stream([SCENE, draw_scene(3).image], batch_size=2):
        assert [each.method for each in found] == ["gmar"]
        assert [(title, str(error)) for title, error in found.failures.items()] == [
            ("AttnLRP", "it has an unknown activation")
        ]
        assert found.checked().failures == found.failures
    picture, archive = found.save(tmp_path, "scene")
    with Image.open(picture) as drawn:
        assert drawn.width > 900  # the image and two columns
    assert Explanation.load(archive).method == "gmar"
    with pytest.raises((UnsupportedModelError, ModelOutputError), match="unknown activation"):
        Explainer(bundled, "attn-lrp")(SCENE)


@pytest.mark.parametrize(("words", "code"), [([], 0), (["--method", "gmar", "attn-lrp"], 1)])
def test_a_method_that_fails_on_the_command_line(
    words: list[str], code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A method that nobody named may not fit the model."""
    when_built(monkeypatch)
    done = run("explain", *words, "--output", tmp_path)
    assert done.code == code
    title = "AttnLRP" if words else "AttnLRP (pixels)"
    assert f"{title} failed: it has an unknown activation" in done.out
    assert "better" in done.out
    assert len(list(tmp_path.glob("*.npz"))) == 1


def test_one_bad_image_of_a_batch_leaves_the_methods_of_the_others(
    bundled: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = GMAR._explain

    def refuse_black(self: GMAR, request: Any, specs: Any) -> Any:
        if (request.inputs.amax((1, 2, 3)) <= request.inputs.amin((1, 2, 3))).any():
            raise ModelOutputError("black")
        return plain(self, request, specs)

    monkeypatch.setattr(GMAR, "_explain", refuse_black)
    images = [SCENE, Image.new("L", (96, 96)).convert("RGB"), SCENE]
    good, bad, last = Explainer(bundled, METHOD_NAMES).stream(images, batch_size=3)
    assert [each.method for each in good] == [each.method for each in last] == METHOD_NAMES
    assert [each.method for each in bad] == ["attn-lrp"]
    assert list(bad.failures) == ["GMAR"]


@pytest.mark.parametrize(
    ("words", "checked"),
    [([], False), (["--check"], True), (["--no-check"], False)],
)
def test_many_images_are_checked_if_asked_for(
    words: list[str], checked: bool, tmp_path: Path
) -> None:
    for seed in (18, 3):
        draw_scene(seed).image.save(tmp_path / f"{seed}.png")
    done = run(
        "explain", tmp_path, "--model", "bundled", "--method", "attn-lrp", *words,
        "--output", tmp_path / "out",
    )  # fmt: skip
    assert done.code == 0
    assert ("than random" in done.out) == checked
    archives = sorted((tmp_path / "out").glob("*.npz"))
    assert [Explanation.load(path).faithfulness is not None for path in archives] == [checked] * 2


def test_images_may_follow_the_methods(tmp_path: Path) -> None:
    SCENE.save(tmp_path / "a.png")
    words = ["--model", "bundled", "--output", tmp_path / "out", "--no-check"]
    done = run("explain", *words, "--method", "gmar", "attn-lrp", tmp_path / "a.png")
    assert done.code == 0
    assert len(list((tmp_path / "out").iterdir())) == 3
    assert run("explain", "--method", "gmra", "--model", "bundled").code == 2


def test_a_comparison_asks_the_model_too(bundled: LoadedModel, tmp_path: Path) -> None:
    images = [SCENE, draw_scene(3).image]
    comparison = compare(
        bundled, images, ["gmar", "attn-lrp", "Saliency"], contrast=2, check=True, measure=False
    )
    for label in METHOD_NAMES:
        for image, check in zip(images, comparison.checks[label], strict=True):
            alone = Explainer(bundled, label)(image, check.label.split(" rather")[0], contrast=2)
            assert check.label == alone.check().label
            assert np.allclose(check.keep, alone.check().keep, atol=1e-4)
            assert np.allclose(check.random_remove, alone.check().random_remove, atol=1e-4)
    record = comparison.records()[0]
    verdicts = [check.verdict for check in comparison.checks["gmar"]]
    assert (record["better_than_random"], record["checked"]) == (verdicts.count("better"), 2)
    assert "better than random" in comparison.table()
    assert "of 2" in comparison.table()
    texts = [text.get_text() for axes in comparison.figure().axes for text in axes.texts]
    assert texts.count(f"{verdicts[0]} than random") >= 1
    comparison.save(tmp_path)
    done = run(
        "compare", "--methods", "gmar", "--no-measure", "--check", "--output", tmp_path / "out"
    )
    assert done.code == 0
    assert "1 of 1" in done.out
    assert METHODS["gmar"].title in done.out
