"""A model with values instead of probabilities: no percentage anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from hf_gmar import GMAR, LogitsModel, compare, evaluate, load_model
from hf_gmar.errors import OptionError
from hf_gmar.explainer import Explainer
from hf_gmar.metrics import ContextBuilder
from hf_gmar.models import LoadedModel
from tests.support.command import run

pytestmark = pytest.mark.usefixtures("few_dots")

BIAS = 58.25
ROWS: dict[str, dict[str, Any]] = {
    "regression": {"num_labels": 1, "problem_type": "regression"},
    "one output": {"num_labels": 1},
    "regression of three": {"num_labels": 3, "problem_type": "regression"},
}


def of_values(config: dict[str, Any]) -> LoadedModel:
    """The bundled model with a head for values near 58."""
    loaded = load_model("bundled")
    loaded.model.config.update({"problem_type": None, **config})
    head = torch.nn.Linear(loaded.model.config.hidden_size, config["num_labels"])
    torch.nn.init.normal_(head.weight, std=0.02)
    torch.nn.init.constant_(head.bias, BIAS)
    loaded.model.classifier = head
    return loaded


@pytest.fixture(scope="module", params=ROWS)
def model(request: pytest.FixtureRequest) -> LoadedModel:
    torch.manual_seed(0)
    return of_values(ROWS[request.param])


@pytest.fixture(scope="module")
def folder(model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    model.model.save_pretrained(path)
    model.processor.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pixels(model: LoadedModel, scene: Image.Image) -> torch.Tensor:
    return torch.as_tensor(model.processor(images=scene, return_tensors="pt").pixel_values)


def value_of(model: LoadedModel, pixels: torch.Tensor) -> float:
    """The largest value that the model gives."""
    with torch.no_grad():
        return float(model.model(pixels).logits.max())


def test_explain(model: LoadedModel, folder: Path, pixels: torch.Tensor, tmp_path: Path) -> None:
    words = "--method", "gmar", "--no-check"  # the heading of a check names a share of patches
    done = run("explain", "--model", folder, "--output", tmp_path, *words)
    assert done.code == 0, done.err
    value = value_of(model, pixels)
    assert f"{value:.4g}" in done.out
    assert "%" not in done.out
    assert "probability" not in done.out
    assert "values, not probabilities" in done.out
    (archive,) = tmp_path.glob("*.npz")
    with np.load(archive) as stored:
        assert float(stored["score"]) == pytest.approx(value, rel=1e-5)
        assert str(stored["score_kind"]) == "value"


def test_the_picture(model: LoadedModel, scene: Image.Image, pixels: torch.Tensor) -> None:
    result = Explainer(model)(scene)
    title = result.figure().axes[1].get_title()
    assert title.endswith(f" {value_of(model, pixels):.4g}")


def test_compare(model: LoadedModel, folder: Path, pixels: torch.Tensor, tmp_path: Path) -> None:
    done = run(
        "compare", "--model", folder, "--methods", "gmar", "random", "--no-measure",
        "--output", tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "%" not in done.out
    summary = json.loads((tmp_path / "comparison.json").read_text())
    assert summary["score_kind"] == "value"
    assert summary["images"][0]["score"] == pytest.approx(value_of(model, pixels), rel=1e-5)
    assert "%" not in (tmp_path / "comparison.md").read_text()
    found = compare(model.model, pixels, ["gmar"], measure=False)
    texts = [text.get_text() for axes in found.figure().axes for text in axes.texts]
    assert any(f" {value_of(model, pixels):.4g}" in text for text in texts)
    assert not any("%" in text for text in texts)


def test_the_pipeline(model: LoadedModel, scene: Image.Image, pixels: torch.Tensor) -> None:
    explain: Any = pipeline("image-attribution", model=model.model, image_processor=model.processor)  # type: ignore[call-overload]
    (result,) = explain(scene)
    assert result["score"] == pytest.approx(value_of(model, pixels), rel=1e-5)


def test_evaluate(folder: Path, tmp_path: Path) -> None:
    done = run(
        "evaluate", "scenes:2", "--model", folder, "--methods", "gmar", "random", "--steps", "2",
        "--output", tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "values, not probabilities" in done.out
    page = (tmp_path / "report.md").read_text()
    assert "- Score: the model's value, as it gives no probabilities\n" in page
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert all(row["before"] > 50 for row in rows if "before" in row)
    with np.load(next((tmp_path / "examples").glob("*.npz"))) as stored:
        assert float(str(stored["title"]).splitlines()[0].split()[-1]) > 50


def test_evaluate_takes_no_probability(model: LoadedModel) -> None:
    with pytest.raises(OptionError, match=r"leave score out to measure its value"):
        evaluate(model, "scenes:1", ["gmar"], ["deletion"], score="probability")
    with pytest.raises(OptionError, match="average-drop is defined for probabilities alone"):
        evaluate(model, "scenes:1", ["gmar"], ["average-drop"])
    result = evaluate(model, "scenes:1", ["gmar"], ["deletion"], score="logit", steps=2)
    assert result.settings["score"] == "value"
    assert result.rows[0]["values"]["deletion:blur"] > 50


def test_metrics_measure_the_value(model: LoadedModel, pixels: torch.Tensor) -> None:
    scores = ContextBuilder(model.model).scores(pixels)
    assert torch.equal(scores, LogitsModel(model.model)(pixels).detach())
    with pytest.raises(OptionError, match="leave score out"):
        ContextBuilder(model.model, score="probability").context(GMAR, pixels, 0)


def test_a_head_of_one_output_in_place_of_the_classifier(scene: Image.Image) -> None:
    """The config still says eight classes, and each class a sigmoid of its own."""
    loaded = load_model("bundled")
    loaded.model.config.problem_type = None
    loaded.model.classifier = torch.nn.Linear(loaded.model.config.hidden_size, 1)
    torch.nn.init.constant_(loaded.model.classifier.bias, BIAS)
    result = Explainer(loaded)(scene)
    assert result.score > 50
    found = evaluate(loaded, "scenes:1", ["gmar"], ["deletion"], steps=2)
    assert found.settings["score"] == "value"


def test_classes_that_are_independent_say_so(tmp_path: Path) -> None:
    done = run("explain", "--top-k", "2", "--output", tmp_path)
    assert "Each class is judged on its own: probabilities need not sum to 100%." in done.out
    result = Explainer(load_model("bundled"))(Image.new("RGB", (96, 96)))
    texts = [text.get_text() for text in result.figure().texts]
    assert any("class is judged on its own" in text.replace("\n", " ") for text in texts)


def test_classes_that_share_one_probability_need_no_word(scene: Image.Image) -> None:
    loaded = load_model("bundled")
    loaded.model.config.problem_type = None
    result = Explainer(loaded)(scene)
    texts = [text.get_text() for text in result.figure().texts]
    assert not any("independent" in text or "values" in text for text in texts)
