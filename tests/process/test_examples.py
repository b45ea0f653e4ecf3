"""Every example runs as a user would run it."""

from __future__ import annotations

import colorsys
import json
import math
import random
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

from hf_gmar import AttnLRP, load_model
from hf_gmar.data import CLASSES, Scene, draw_scene
from hf_gmar.methods import METHODS
from tests.reference.tolerances import PATIENCE
from tests.support.interpreter import run_python

pytestmark = pytest.mark.example
EXAMPLES = Path(__file__).parents[2] / "examples"
HUES = {"red": 0, "yellow": 60, "green": 120, "cyan": 180, "blue": 240, "magenta": 300}
RUNS = {
    "captum_side_by_side.py": ["{output}"],
    "heads_of_a_class.py": ["{output}", "--scenes", "3"],
    "relevance_in_masks.py": ["--scenes", "4"],
    "measure_bundled_model.py": ["--scenes", "30"],
    "train_bundled_model.py": ["{output}", "--share", "0.0001", "--no-half"],
    "train_prompt_model.py": ["{output}", "--share", "0.0005", "--no-half"],
    "draw_scenes.py": ["{output}"],
    "own_method.py": ["--output", "{output}"],
    "own_family.py": [],
    "own_metric.py": ["--scenes", "4"],
    "videos_and_sound.py": ["{output}", "--share", "0.002", "--samples", "12"],
    "reproduce_paper.py": [
        "scenes:4",
        "--model",
        "bundled",
        "--output",
        "{output}",
        "--steps",
        "4",
    ],
}


def _run(name: str, output: Path) -> str:
    arguments = [word.format(output=output) for word in RUNS[name]]
    return run_python([EXAMPLES / name, *arguments], output).stdout


def test_every_example_is_run() -> None:
    assert set(RUNS) == {path.name for path in EXAMPLES.glob("*.py")}


def test_scenes_are_drawn_with_their_masks(tmp_path: Path) -> None:
    assert _run("draw_scenes.py", tmp_path).startswith(str(tmp_path / "18.png"))
    for name in ("18", "18.cross", "18.heart"):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.size == (96, 96)
            assert image.getextrema() not in ((0, 0), (255, 255))


def test_side_by_side_says_where_its_figure_is(tmp_path: Path) -> None:
    said = _run("captum_side_by_side.py", tmp_path)
    assert Path(said.split(":")[0]).stat().st_size > 50_000


def test_relevance_in_masks_prints_a_table(tmp_path: Path) -> None:
    lines = _run("relevance_in_masks.py", tmp_path).splitlines()
    assert sum(line.startswith("| l") for line in lines) == 4


def test_heads_of_a_class_says_which_and_where(tmp_path: Path) -> None:
    said = _run("heads_of_a_class.py", tmp_path).splitlines()
    assert sum(line.startswith("layer ") for line in said) == 3
    files = [Path(line) for line in said[3:]]
    assert {file.name for file in files} == {"heads.npz", "heads.json", "heads.png", "maps.png"}
    assert all(file.stat().st_size for file in files)


def test_measurement_prints_its_figures(tmp_path: Path) -> None:
    figures = json.loads(_run("measure_bundled_model.py", tmp_path))
    assert figures["scenes"] == 30
    assert figures["objects_found"] > 0.9


def test_training_writes_a_model_that_loads(tmp_path: Path) -> None:
    _run("train_bundled_model.py", tmp_path)
    words = [EXAMPLES / "measure_bundled_model.py", "--scenes", "2", "--model", tmp_path]
    said = run_python(words, tmp_path)
    assert json.loads(said.stdout)["scenes"] == 2
    assert (tmp_path / "training_log.jsonl").read_text()


def test_training_by_captions_writes_a_model_that_explains_prompts(tmp_path: Path) -> None:
    _run("train_prompt_model.py", tmp_path)
    words = ["a photo of a cross", "there is a heart", "a red ring and a disc"]
    loaded = load_model(tmp_path, prompts=words)
    scene = draw_scene(18).image
    method = AttnLRP(loaded.model)
    first, second = (method.attribute_patches(loaded.pixels(scene), kind)[0] for kind in range(2))
    assert first.shape == (8, 8)
    assert not torch.equal(first, second)
    processor = AutoProcessor.from_pretrained(tmp_path, backend="pil")
    model = AutoModel.from_pretrained(tmp_path)
    inputs = processor(text=words, images=scene, padding=True, return_tensors="pt")
    assert processor.tokenizer.unk_token_id not in inputs.input_ids
    with torch.no_grad():
        expected = model(**inputs).logits_per_image
        torch.testing.assert_close(loaded.model(inputs.pixel_values), expected)
    log = (tmp_path / "training_log.jsonl").read_text().splitlines()
    assert {"present_first", "colour_right"} < set(json.loads(log[-1]))
    said = run_python(["-m", "benchmarks.prompts", tmp_path, "--scenes", "2"], EXAMPLES.parent)
    for kind in dict(METHODS.items()).values():
        assert said.stdout.count(f"| {kind.title} |") == 2 * kind.by_default


def test_captions_are_true_of_what_the_scene_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    names = runpy.run_path(str(EXAMPLES / "train_prompt_model.py"))
    scenes = [draw_scene(seed) for seed in range(20)]
    images = torch.from_numpy(np.stack([np.asarray(scene.image) for scene in scenes]))
    maps = torch.zeros(len(scenes), 96, 96, dtype=torch.uint8)
    for place, scene in enumerate(scenes):
        for kind, mask in zip(scene.classes, scene.masks, strict=True):
            maps[place][torch.from_numpy(mask)] = kind + 1
    stage = replace(names["STAGE"], hide=0.0)
    monkeypatch.setitem(names["Batch"].draw.__globals__, "augment", lambda *parts: parts[:2])
    chance = random.Random(0)  # noqa: S311  # only captions
    batch = names["Batch"].draw(images.permute(0, 3, 1, 2), maps, stage, chance)
    sure = 0
    for caption, column in zip(batch.captions, batch.truth.T.tolist(), strict=True):
        for scene, value in zip(scenes, column, strict=True):
            if not math.isnan(value):
                assert value == all(_shows(scene, words) for words in _things(caption.text))
                sure += 1
    assert sure > 0.9 * batch.truth.numel()


def _things(text: str) -> list[list[str]]:
    """Return the colours and shapes that a caption names, by thing."""
    parts = text.split(" and ")
    return [[word for word in part.split() if word in (*HUES, *CLASSES)] for part in parts]


def _shows(scene: Scene, words: list[str]) -> bool:
    if words[-1] not in scene.names:
        return False
    mask = scene.masks[scene.names.index(words[-1])]
    red, green, blue = (np.asarray(scene.image, float)[mask].mean(0) / 255).tolist()
    hue = colorsys.rgb_to_hsv(red, green, blue)[0] * 360
    return len(words) == 1 or abs((hue - HUES[words[0]] + 180) % 360 - 180) < 30


def test_a_method_of_ones_own(tmp_path: Path) -> None:
    lines = _run("own_method.py", tmp_path).splitlines()
    assert float(lines[0].split()[-1]) > 0 > float(lines[1].split()[-1])
    assert Path(lines[2]).stat().st_size > 10_000


def test_a_metric_and_a_perturbation_of_ones_own(tmp_path: Path) -> None:
    lines = [line.split() for line in _run("own_metric.py", tmp_path).splitlines()]
    found = {(measure, method): float(value) for measure, method, value in lines}
    assert len(found) == 2 * 2 * 3
    assert found["half-life:black", "grad-sam"] < found["half-life:black", "random"]


def test_a_family_of_ones_own(tmp_path: Path) -> None:
    before, after = _run("own_family.py", tmp_path).splitlines()
    assert "not a known family" in before
    assert "a map of (2, 4, 4)" in after


def test_maps_of_videos_and_of_sound_are_measured_and_drawn(tmp_path: Path) -> None:
    printed = _run("videos_and_sound.py", tmp_path)
    assert printed == (tmp_path / "videos_and_sound.md").read_text(encoding="utf-8")
    *table, _, summary = printed.splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table[2:]]
    names = ("gmar", "legrad", "attn-lrp", "input-x-gradient", "random")
    methods = ["spread evenly", *(METHODS[name].title for name in names)]
    shares = {(model, method): [_percent(cell) for cell in cells] for model, method, *cells in rows}
    assert list(shares) == [(model, method) for model in ("VideoMAE", "AST") for method in methods]
    for model in ("VideoMAE", "AST"):
        random, even = shares[model, "Random"], shares[model, "spread evenly"]
        assert random == pytest.approx(even, abs=0.05)  # random relevance knows no event
        assert all(0.02 < share < 0.4 for share in even)
    assert summary.count("% of 12 events") == 2
    for picture in ("film_strip.png", "spectrogram.png"):
        with Image.open(tmp_path / picture) as image:
            assert image.width > 900


def _percent(cell: str) -> float:
    return float(cell.partition("%")[0]) / 100


def test_the_event_of_a_clip_or_spectrogram_is_where_it_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    names = runpy.run_path(str(EXAMPLES / "videos_and_sound.py"))
    rng = np.random.default_rng(0)
    for _ in range(20):
        moving, sounding = names["draw_clip"](rng), names["draw_spectrogram"](rng)
        assert np.array_equal((moving.values != moving.without).any(1), moving.event)
        assert np.array_equal(sounding.values != sounding.without, sounding.event)
        for sample in (moving, sounding):
            assert bool(sample.label) == bool(sample.event.any())
            assert not (sample.event & sample.other).any()
    clip, spectrogram = np.zeros((8, 48, 48), dtype=bool), np.zeros((64, 32), dtype=bool)
    clip[5, 47, 8] = spectrogram[13, 5] = True
    assert names["touched"]([clip]).nonzero().tolist() == [[0, 2, 5, 1]]
    assert names["touched"]([spectrogram]).nonzero().tolist() == [[0, 1, 0], [0, 2, 0]]
    maps = torch.tensor([[[3.0, -5.0], [1.0, 0.0]]])
    share = names["share_on"](maps, torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]))
    assert share == pytest.approx(0.25)


def test_every_notebook_is_run() -> None:
    assert [path.name for path in EXAMPLES.glob("*.ipynb")] == ["tour.ipynb"]


def test_each_cell_of_the_tour_shows_a_picture_or_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And none prints numbers: a text is short, and beside something better."""
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # the kernel inherits it
    notebook = nbformat.read(EXAMPLES / "tour.ipynb", nbformat.current_nbformat)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)
    NotebookClient(
        notebook,
        timeout=PATIENCE,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    for cell in cells:
        assert any(map(_is_shown, cell.outputs)), cell.source
        for output in cell.outputs:
            assert output.output_type != "error"
            text = output.get("text") or output.data["text/plain"]
            assert len(text) < 400, text


def _is_shown(output: Any) -> bool:
    data = output.get("data", {})
    page = data.get("text/html", "")
    return "image/png" in data or "<img" in page or "<table" in page


def test_the_papers_evaluation_goes_on_where_it_stopped(tmp_path: Path) -> None:
    printed = _run("reproduce_paper.py", tmp_path)
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert table in printed
    rows = [line.split("|")[1:-1] for line in table.splitlines()[2:]]
    assert [row[1].strip() for row in rows] == [
        "GMAR, L1 norm", "GMAR, L2 norm", "Attention rollout", "Grad-CAM on tokens", "Random",
    ]  # fmt: skip
    shard = next((tmp_path / "bundled").rglob("*.jsonl"))
    lines = shard.read_text(encoding="utf-8").splitlines(keepends=True)
    shard.write_text("".join(lines[: len(lines) // 2]), encoding="utf-8")
    assert _run("reproduce_paper.py", tmp_path) == printed
    assert len(shard.read_text(encoding="utf-8").splitlines()) == len(lines)
