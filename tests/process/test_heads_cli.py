"""``hf-gmar heads``: the command and what it leaves on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    Data2VecVisionConfig,
    Data2VecVisionForImageClassification,
    ViTImageProcessorPil,
)

from hf_gmar import GMAR, ablate_heads, head_importance
from hf_gmar.data import open_image
from hf_gmar.heads.ablation import MORF
from hf_gmar.models import LoadedModel, sample_image
from tests.reference.models import PROMPTS, build
from tests.support import folders
from tests.support.command import run


def pixels_of(bundled: LoadedModel, path: Path) -> torch.Tensor:
    pixels: torch.Tensor = bundled.processor(
        images=open_image(path), return_tensors="pt"
    ).pixel_values
    return pixels


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*"))


IMPORTANCE = ["importance.json", "importance.npz", "importance.png"]
ABLATION = ["ablation.json", "ablation.npz", "ablation.png"]


def test_the_bundled_scene(tmp_path: Path, bundled: LoadedModel) -> None:
    done = run("heads", "--output", tmp_path / "out")
    assert done.code == 0, done.err
    assert "using bundled" in done.err
    assert names(tmp_path / "out") == [*IMPORTANCE, "scene.heads.npz"]
    pixels = pixels_of(bundled, sample_image())
    wanted = GMAR(bundled.model).head_importance(pixels)
    for name in ("importance.npz", "scene.heads.npz"):
        with np.load(tmp_path / "out" / name) as stored:
            assert np.allclose(stored["values"], wanted, atol=1e-6)
            assert stored["targets"].tolist() == [6]
    order = head_importance(bundled.model, pixels).rank()
    rows = [line for line in done.out.splitlines() if line.startswith("│")]
    assert len(rows) == 10
    first = [cell.strip() for cell in rows[0].strip("│").split("│")]
    layer, head = order[0]
    assert first == ["1", str(layer), str(head), f"{wanted[0, layer, head]:.1%}"]
    assert rows[-1].split("│")[1].strip() == "24"
    for name in IMPORTANCE:
        assert str(tmp_path / "out" / name) in done.out
    assert "heart" not in done.err


def test_a_folder_with_everything(photos: Path, tmp_path: Path, bundled: LoadedModel) -> None:
    done = run(
        "heads", photos, "--model", "bundled", "--norm", "l2", "--target", "cross",
        "--maps", "--ablate", "--output", tmp_path / "out",
    )  # fmt: skip
    assert done.code == 0, done.err
    stems = ["grey", "scene", "scene-2", "wide"]
    each = [f"{stem}.{ending}" for stem in stems for ending in ("heads.npz", "maps.png")]
    assert names(tmp_path / "out") == sorted([*IMPORTANCE, *ABLATION, *each])
    summary = json.loads((tmp_path / "out" / "importance.json").read_text())
    assert (summary["images"], summary["norm"]) == (4, "l2")
    assert [one["label"] for one in summary["classes"]] == ["cross"]
    found = [
        pixels_of(bundled, path) for path in sorted(photos.rglob("*.*")) if path.suffix != ".txt"
    ]
    wanted = head_importance(bundled.model, found, 4, norm="l2")
    assert np.allclose(summary["mean"], wanted.mean(), atol=1e-6)
    with np.load(tmp_path / "out" / "ablation.npz") as stored:
        assert stored["targets"].tolist() == [4] * 4
        curves = ablate_heads(bundled.model, found, wanted).curves[MORF]
        assert np.allclose(stored["most_important_first"].mean(0), curves.mean(0), atol=1e-4)
    assert "minus random order" in done.out
    with Image.open(tmp_path / "out" / "wide.maps.png") as picture:
        assert min(picture.size) > 400


def test_broken_images_are_said_and_left_out(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    done = run(
        "heads", tmp_path / "broken.png", sample_image(), tmp_path / "missing.png",
        "--model", "bundled", "--output", tmp_path / "out",
    )  # fmt: skip
    assert done.code == 1
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert any("broken.png" in line for line in errors)
    assert any("missing.png" in line for line in errors)
    assert names(tmp_path / "out") == [*IMPORTANCE, "scene.heads.npz"]


def test_nothing_but_broken_images(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    done = run("heads", tmp_path / "broken.png", "--model", "bundled", "--output", tmp_path / "o")
    assert done.code == 1
    assert "broken.png" in done.error
    assert names(tmp_path / "o") == []


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--norm", "l3"], 2, "norm must be one of 'l1', 'l2'"),
        (["--target", "dog"], 2, "no class is called 'dog'"),
        (["--target", "99"], 2, "out of range"),
        (["--model", "./nothing"], 1, "no model folder"),
        (["nothing.png"], 1, "no image file"),
        (["--prompts", "a dog"], 2, "--prompts need a model"),
    ],
)
def test_what_is_wrong_is_one_line(words: list[str], code: int, said: str, tmp_path: Path) -> None:
    done = run("heads", *words, "--output", tmp_path / "out")
    assert done.code == code
    assert said in done.error
    assert names(tmp_path / "out") == []


def test_what_can_not_be_masked_still_has_its_importance(tmp_path: Path) -> None:
    model = build(Data2VecVisionForImageClassification, Data2VecVisionConfig)
    model.save_pretrained(tmp_path / "model")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "model")
    done = run(
        "heads", sample_image(), "--model", tmp_path / "model", "--ablate",
        "--output", tmp_path / "out",
    )  # fmt: skip
    assert done.code == 1
    assert "can't be masked" in done.error
    assert names(tmp_path / "out") == [*IMPORTANCE, "scene.heads.npz"]


def test_text_prompts(tmp_path: Path) -> None:
    folder = folders.of_two(tmp_path / "clip")
    done = run(
        "heads", sample_image(), "--model", folder, "--target", PROMPTS[1], "--ablate",
        "--output", tmp_path / "out", "--prompts", *PROMPTS,
    )  # fmt: skip
    assert done.code == 0, done.err
    summary = json.loads((tmp_path / "out" / "importance.json").read_text())
    assert summary["classes"][0]["label"] == PROMPTS[1]
    assert set(ABLATION) <= set(names(tmp_path / "out"))


def test_effects(tmp_path: Path, bundled: LoadedModel, scene: Image.Image) -> None:
    done = run("heads", "--criterion", "taylor", "--target", "heart", "--output", tmp_path)
    assert done.code == 0
    assert "loss of score without it" in done.out
    assert "even share" not in done.out
    pixels = bundled.processor(images=scene, return_tensors="pt").pixel_values
    wanted = head_importance(bundled.model, pixels, 6, criterion="taylor")
    with np.load(tmp_path / "importance.npz") as stored:
        assert np.allclose(stored["values"], wanted.values, atol=1e-6)
    layer, head = wanted.rank()[0]
    assert f"{wanted.values[0, layer, head]:+.3f}" in done.out


def test_images_given_twice_and_what_is_written_beside(tmp_path: Path, photos: Path) -> None:
    scene = photos / "scene.png"
    done = run(
        "heads",
        "--model",
        "bundled",
        scene,
        photos / ".." / "photos" / "scene.png",
        "--output",
        tmp_path / "out",
    )
    assert done.code == 0
    assert "Head importance, heart: 1 image" in " ".join(done.out.split())
    assert str(tmp_path / "out" / "scene.heads.npz") in done.out
    summary = json.loads((tmp_path / "out" / "importance.json").read_text())
    assert summary["settings"] == {"model": "bundled", "images": [str(scene)]}
