"""The command with questions without a class."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

from hf_gmar import Explanation, RawAttention, SimilarTo, explain, load_model
from hf_gmar.data import draw_scene
from hf_gmar.models import ScoreKind, bundled_folder
from tests.reference.models import build, of_two
from tests.support.command import Done, run


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name in ("one.png", "other.png")]
    for seed, path in zip((18, 3), paths, strict=True):
        draw_scene(seed).image.save(path)
    return paths


def saved(folder: Path, model: Any) -> Path:
    model.save_pretrained(folder)
    shutil.copy(bundled_folder() / "preprocessor_config.json", folder)
    return folder


@pytest.fixture
def body(tmp_path: Path) -> Path:
    return saved(tmp_path / "body", build(Dinov2Model, Dinov2Config, image_size=96))


def the_result(done: Done, folder: Path) -> Explanation:
    assert done.code == 0, done.err
    (archive,) = folder.glob("*.npz")
    assert archive.with_suffix(".png").is_file()
    assert archive.name in done.out.replace("\n", "")
    return Explanation.load(archive)


def test_similarity_on_the_command_line(images: list[Path], body: Path, tmp_path: Path) -> None:
    one, other = images
    folder = tmp_path / "out"
    for model in (body, "bundled"):
        shutil.rmtree(folder, ignore_errors=True)
        words = "--method", "gmar", "--no-check", "--similar-to", other, "--model", model
        done = run("explain", one, *words, "--output", folder)
        result = the_result(done, folder)
        wanted = explain(one, str(model), SimilarTo(other))
        assert result.label == wanted.label == "similar to other.png"
        assert result.score == pytest.approx(wanted.score, abs=1e-5)
        assert result.title in f"similar to other.png  {result.score:.4g}"
        assert "%" not in done.out
        assert "similar to other.png" in done.out


def test_similarity_of_image_and_text(images: list[Path], tmp_path: Path) -> None:
    config = functools.partial(of_two, CLIPConfig)
    model = saved(tmp_path / "clip", build(CLIPModel, config, image_size=96))
    words = ("--model", model, "--similar-to", images[0], "--method", "attn-lrp")
    done = run("explain", images[0], *words, "--output", tmp_path / "out")
    result = the_result(done, tmp_path / "out")
    assert result.score == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("method", [None, "attention-rollout"])
def test_from_a_patch(images: list[Path], body: Path, tmp_path: Path, method: str | None) -> None:
    chosen = () if method is None else ("--method", method)
    words = (images[0], "--from-patch", "3,5", "--model", body, *chosen)
    done = run("explain", *words, "--output", tmp_path / "out")
    result = the_result(done, tmp_path / "out")
    assert (result.label, result.score_kind) == ("attention from patch (3, 5)", ScoreKind.NONE)
    assert result.method == (method or "raw-attention")
    assert "nan" not in done.out
    if method is None:
        loaded = load_model(body, head=False)
        pixels = loaded.pixels(draw_scene(18).image)
        wanted = RawAttention(loaded.model, readout=(3, 5)).attribute_patches(pixels)
        assert result.patches.numpy() == pytest.approx(wanted[0].numpy(), abs=1e-6)


def test_a_backbone_by_a_method_without_gradients(
    images: list[Path], body: Path, tmp_path: Path
) -> None:
    words = (images[0], "--model", body, "--output", tmp_path / "out")
    done = run("explain", *words, "--method", "raw-attention")
    assert the_result(done, tmp_path / "out").label == "attention from CLS"
    done = run("explain", *words)
    assert done.code == 1
    assert "--similar-to and --from-patch" in done.error


OTHER = "other.png"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--similar-to", OTHER, "--from-patch", "0,0"], "either --similar-to or --from-patch"),
        (
            ["--similar-to", OTHER, "--target", "heart"],
            "--similar-to is a question",
        ),
        (["--similar-to", OTHER, "--contrast", "heart"], "leave out --contrast"),
        (["--similar-to", OTHER, "--top-k", "2"], "leave out --top-k"),
        (["--from-patch", "0,0", "--target", "heart"], "--from-patch is a question without"),
        (["--from-patch", "0,0", "--prompts", "a dog"], "leave out --prompts"),
        (["--from-patch", "0,0", "--method", "gmar"], "attention-rollout, raw-attention, random"),
        (["--from-patch", "0,0", "--option", "readout=cls"], "readout is given twice"),
        (["--from-patch", "0"], "takes ROW,COLUMN"),
        (["--from-patch=-1,0"], "takes ROW,COLUMN"),
        (["--similar-to", "nowhere.png"], "--similar-to needs an image file"),
        (["--from-patch", "0,0", "--method", "zebra"], "zebra"),
    ],
)
def test_questions_that_can_not_be(
    images: list[Path], monkeypatch: pytest.MonkeyPatch, words: list[str], text: str
) -> None:
    monkeypatch.chdir(images[0].parent)
    done = run("explain", "one.png", "--model", "bundled", *words)
    assert done.code == 2
    assert text in done.error


def test_a_place_or_an_image_that_is_wrong(images: list[Path], tmp_path: Path) -> None:
    words = (images[0], "--model", "bundled", "--output", tmp_path / "out")
    done = run("explain", *words, "--from-patch", "8,0")
    assert done.code == 1
    assert "outside of the images' grid of 8 x 8 patches" in done.error
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    done = run("explain", *words, "--similar-to", broken)
    assert done.code == 1
    assert "broken.png" in done.error
