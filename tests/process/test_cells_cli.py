"""The commands on models without a fixed grid of patches, with their defaults."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hf_gmar.methods import METHODS
from tests.reference.cell_models import saved
from tests.support.command import Done, run

APPLY = ["token-grad-cam", "input-x-gradient", "attn-lrp", "random"]
LEFT_OUT = "GMAR, Attention rollout, Raw attention, Gradient rollout, LeGrad, Grad-SAM are left out"
WHY = {
    "swin": (
        "SwinForImageClassification has no fixed grid of patch tokens: it attends within windows "
        "and merges patches, so each stage has other tokens"
    ),
    "resnet": (
        "ResNetForImageClassification has no fixed grid of patch tokens: it has no attention at all"
    ),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two images."""
    folder = tmp_path_factory.mktemp("images")
    for name in ("a", "b"):
        Image.effect_noise((80, 64), 90).convert("RGB").save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of a Swin and a ResNet."""
    return {kind: saved(kind, tmp_path_factory.mktemp(kind)) for kind in WHY}


def evaluated(images: Path, model: Path, output: Path, *words: object) -> Done:
    fixed = ["--steps", 1, "--examples", 0, "--output", output]
    return run("evaluate", images, "--model", model, *words, *fixed)


def rows_in(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "rows.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("few_dots")
@pytest.mark.parametrize("kind", WHY)
def test_evaluate_measures_the_methods_that_apply(
    kind: str, images: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    """All defaults on Swin; ResNet with one metric, as drawing a report takes seconds."""
    metrics = [] if kind == "swin" else ["--metrics", "deletion"]
    done = evaluated(images, models[kind], tmp_path, *metrics)
    assert done.code == 0, done.err
    sentence = f"{LEFT_OUT}: {WHY[kind]}"
    assert f"note: {sentence}" in done.err.splitlines()
    for name in APPLY:
        assert METHODS[name].title in done.out
    assert "GMAR" not in done.out
    rows = rows_in(tmp_path)
    assert [row["method"] for row in rows] == 2 * APPLY
    for row in rows:
        assert all(map(math.isfinite, row["values"].values()))
        assert ("average-drop:blur" in row["values"]) == (kind == "swin")
        assert "deletion:blur" in row["values"]
    for name in ("report.md", "report.html"):
        assert sentence.replace(": ", "") in (tmp_path / name).read_text().replace(": ", "")
    # Named, the same methods go on with the rows.
    again = evaluated(images, models[kind], tmp_path, *metrics, "--methods", *APPLY)
    assert again.code == 0, again.err
    assert "left out" not in again.err
    assert rows_in(tmp_path) == rows


@pytest.mark.usefixtures("few_dots")
def test_evaluate_hides_pixels(images: Path, models: dict[str, Path], tmp_path: Path) -> None:
    words = ["--methods", "attn-lrp", "--metrics", "deletion", "--perturbations"]
    done = evaluated(images, models["swin"], tmp_path, *words, "mean", "noise", "dataset-mean")
    assert done.code == 0, done.err
    for row in rows_in(tmp_path):
        values = row["values"]
        assert list(values) == ["deletion:mean", "deletion:noise", "deletion:dataset-mean"]
        assert len({round(value, 6) for value in values.values()}) == 3


WRONG: dict[str, tuple[list[object], str]] = {
    "a method of attention": (["--methods", "random", "gmar"], WHY["swin"].partition(": ")[2]),
    "tokens that are dropped": (
        ["--perturbations", "token-dropping"],
        "take a perturbation of pixels: mean, blur, noise or dataset-mean",
    ),
    "a baseline that is left out": (
        ["--baseline", "gmar"],
        f"the baseline 'gmar' is none of the methods; there are {', '.join(APPLY)}",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_evaluate_is_told_is_an_error(
    name: str, images: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    words, text = WRONG[name]
    done = evaluated(images, models["swin"], tmp_path, *words)
    assert done.code > 0
    assert text in done.error
    assert not (tmp_path / "rows.jsonl").exists()


@pytest.mark.usefixtures("few_dots")
def test_compare_shows_the_methods_that_apply(
    images: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    words = ["compare", images, "--model", models["swin"], "--no-measure", "--output", tmp_path]
    done = run(*words)
    assert done.code == 0, done.err
    result = json.loads((tmp_path / "comparison.json").read_text())
    assert [row["method"] for row in result["methods"]] == APPLY
    assert f"{LEFT_OUT}: {WHY['swin']}" in done.out.splitlines()
    assert "failed" not in done.out
    assert WHY["swin"] in (tmp_path / "comparison.md").read_text()
    done = run(*words, "--methods", "gmar", "random")
    assert done.code == 0  # as for any method that fails
    assert "GMAR failed: attention rollout does not apply to Swin" in done.out


def test_explain_draws_cells(images: Path, models: dict[str, Path], tmp_path: Path) -> None:
    """Not pixels, as of a model with patches."""
    done = run("explain", images / "a.png", "--model", models["resnet"], "--output", tmp_path)
    assert done.code == 0, done.err
    (archive,) = tmp_path.glob("*.npz")
    with np.load(archive) as stored:
        assert "fine_map" not in stored
        assert stored["patches"].shape == (32, 32)
        assert json.loads(str(stored["settings"]))["resolution"] == "patch"


@pytest.mark.usefixtures("few_dots")
@pytest.mark.parametrize("command", ["report", "card"])
def test_pages_of_explanations(
    command: str, images: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    model = models["swin"]
    words = [images, "--model", model] if command == "report" else [model, images]
    done = run(command, *words, "--output", tmp_path)
    assert done.code == 0, done.err
    assert f"GMAR failed: attention rollout does not apply to {WHY['swin'][:26]}" in done.out
    page = tmp_path / {"report": "report.html", "card": "explanations.md"}[command]
    assert "AttnLRP" in page.read_text()
