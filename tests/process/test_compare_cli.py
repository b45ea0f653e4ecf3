"""``hf-gmar compare``, as a user runs it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from captum.attr import Saliency
from PIL import Image
from transformers import DeiTImageProcessorPil, ViTImageProcessorPil

from hf_gmar import GMAR, LogitsModel
from hf_gmar.data import draw_scene
from hf_gmar.methods import METHODS
from hf_gmar.models import LoadedModel, find_class, sample_image
from tests.reference.models import PROMPTS
from tests.support import folders
from tests.support.command import Done, run, run_elsewhere

FILES = ["comparison.json", "comparison.md", "comparison.png", "maps.npz"]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


def compared(output: Path, *words: object, model: object = "bundled") -> Done:
    return run("compare", *words, "--model", model, "--output", output)


def methods_of(output: Path) -> list[str]:
    rows = json.loads((output / "comparison.json").read_text())["methods"]
    return [row["method"] for row in rows]


def test_no_arguments_compare_all_methods_on_the_bundled_scene(tmp_path: Path) -> None:
    (done,) = run_elsewhere([["compare"]], tmp_path, HF_HUB_OFFLINE="1")
    assert done.code == 0, done.err
    assert "using bundled" in done.err
    assert "Warning" not in done.err
    assert sorted(path.name for path in (tmp_path / "comparison").iterdir()) == FILES
    names = [name for name, method in METHODS.items() if method.by_default]
    assert methods_of(tmp_path / "comparison") == names
    titles = [METHODS[name].title for name in names]
    for name in [*titles, "maps.npz", "time / forward"]:
        assert name in done.out


def test_the_files_hold_what_python_gives(output: Path, bundled: LoadedModel, photos: Path) -> None:
    done = compared(
        output, photos / "wide.jpg", photos / "scene.png",
        "--methods", "gmar", "gmar", "Saliency", "--captum", "Occlusion", "--target", "heart",
    )  # fmt: skip
    assert done.code == 0, done.err
    images = []
    for name in ("wide.jpg", "scene.png"):
        with Image.open(photos / name) as image:
            images.append(bundled.processor(images=image.convert("RGB"), return_tensors="pt"))
    pixels = torch.cat([one.pixel_values for one in images])
    heart = find_class(bundled.model.config, "heart")
    with np.load(output / "maps.npz") as stored:
        assert stored["methods"].tolist() == ["gmar", "gmar (2)", "Saliency", "Occlusion"]
        assert stored["names"].tolist() == ["wide.jpg", "scene.png"]
        assert stored["targets"].tolist() == [heart, heart]
        alone = GMAR(bundled.model).attribute_patches(pixels, heart)
        assert np.allclose(stored["maps"][0], alone, atol=1e-6)
        heat = Saliency(LogitsModel(bundled.model)).attribute(pixels.requires_grad_(), target=heart)
        by_patch = torch.nn.functional.avg_pool2d(heat, 12).sum(1) * 144
        assert np.allclose(stored["maps"][2], by_patch, rtol=1e-4, atol=1e-6)
        assert json.loads(str(stored["settings"]))["model"] == "bundled"


def test_a_contrast(output: Path, bundled: LoadedModel, scene: Image.Image) -> None:
    done = compared(output, "--methods", "gmar", "--captum", "Saliency",
                    "--target", "heart", "--contrast", "cross", "--no-measure")  # fmt: skip
    assert done.code == 0, done.err
    pixels = bundled.processor(images=scene, return_tensors="pt").pixel_values
    heart, cross = (find_class(bundled.model.config, name) for name in ("heart", "cross"))
    with np.load(output / "maps.npz") as stored:
        assert stored["methods"].tolist() == ["gmar"]
        alone = GMAR(bundled.model).attribute_patches(pixels, heart, contrast=cross)
        assert np.allclose(stored["maps"][0], alone, atol=1e-6)
    assert "Saliency failed: Captum's methods explain one score" in done.out


def test_without_measurement_there_are_no_costs(output: Path) -> None:
    for words, has_costs in (
        (["--no-measure", "--precision", "bfloat16", "--check"], False),
        ([], True),
    ):
        done = compared(output, "--methods", "gmar", "raw-attention", *words)
        assert done.code == 0, done.err
        stored = json.loads((output / "comparison.json").read_text())
        assert (stored["forward"] is not None) == has_costs
        assert ("precision" in stored["settings"]) == ("--precision" in words)
        for name in ("seconds", "time_to_forward", "peak_bytes"):
            assert all((name in row) == has_costs for row in stored["methods"])
        page = (output / "comparison.md").read_text()
        for text in (done.out, page):
            assert ("time" in text) == ("memory" in text) == has_costs
            assert "r with 2" in text
            assert ("than random" in text) == ("--check" in words)
        (row,) = (line for line in page.splitlines() if line.startswith("| 1 |"))
        assert row.count("|") == (7 if has_costs else 6)
        assert " - " not in row


def test_prompts_are_classes(output: Path, tmp_path: Path) -> None:
    folder = folders.of_two(tmp_path / "clip")
    done = compared(
        output, sample_image(), "--prompts", *PROMPTS, "--captum", "Saliency",
        "--target", PROMPTS[2], "--no-measure", model=folder,
    )  # fmt: skip
    assert done.code == 0, done.err
    stored = json.loads((output / "comparison.json").read_text())
    assert stored["images"][0]["label"] == PROMPTS[2]
    assert stored["settings"]["prompts"] == PROMPTS
    assert not any(row["failure"] for row in stored["methods"])


def test_the_figure_shows_what_the_model_saw(output: Path, tmp_path: Path) -> None:
    """The middle of a wide image, as DeiT's processor cuts it out: red, and not blue."""
    folder = folders.copy(tmp_path / "model")
    DeiTImageProcessorPil(
        size={"height": 128, "width": 128}, crop_size={"height": 96, "width": 96}
    ).save_pretrained(folder)
    image = Image.new("RGB", (400, 200), "blue")
    image.paste("red", (50, 25, 350, 175))
    image.save(tmp_path / "wide.png")
    done = compared(output, tmp_path / "wide.png", "--methods", "gmar", "--no-measure",
                    model=folder)  # fmt: skip
    assert done.code == 0, done.err
    with Image.open(output / "comparison.png") as picture:
        dots = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert (dots == [255, 0, 0]).all(axis=1).mean() > 0.05
    assert (dots == [0, 0, 255]).all(axis=1).sum() < 2000


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--methods", "gmarr"], "there is no method 'gmarr'; there are gmar"),
        (["--captum", "Salience"], "there are DeepLift, DeepLiftShap, "),
        (["--methods", "gmar", "{photos}/scene.png"], "put images before --methods"),
        (["--captum", "Saliency", "{photos}/scene.png"], "put images before --captum"),
        (["--prompts", "a cat"], "--prompts need a model"),
    ],
)
def test_what_is_typed_wrongly_is_said_before_the_model_is_loaded(
    words: list[str], said: str, photos: Path, output: Path
) -> None:
    words = [word.format(photos=photos) for word in words]
    more = [] if "--prompts" in words else ["--model", "/no/such/model"]
    done = run("compare", *words, *more, "--output", output)
    assert done.code == 2
    assert said in done.error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--target", "hart"], "similar: heart"),
        (["--target", "heart", "--contrast", "heart"], "the same class"),
        (["--contrast", "99"], "out of range"),
    ],
)
def test_a_class_that_does_not_exist(words: list[str], said: str, output: Path) -> None:
    done = compared(output, *words)
    assert done.code == 2
    assert said in done.error


def test_more_images_than_a_figure_has_room_for(photos: Path, output: Path) -> None:
    for number in range(13):
        shutil.copy(photos / "scene.png", photos / f"{number}.png")
    done = compared(output, photos)
    assert done.code == 2
    assert "17 images are too many" in done.error


def test_images_of_one_name_and_images_given_twice(photos: Path, output: Path) -> None:
    other = photos / "more" / "scene.png"
    shutil.copy(photos / "scene.png", other)
    (photos / "more" / "grey.png").unlink()
    done = compared(output, photos, other, photos, "--methods", "gmar", "--no-measure")
    assert done.code == 0
    with np.load(output / "maps.npz") as stored:
        names = stored["names"].tolist()
    assert names == [str(other), "scene.webp", str(photos / "scene.png"), "wide.jpg"]


def test_an_image_that_fails_does_not_harm_the_others(photos: Path, output: Path) -> None:
    (photos / "broken.png").write_bytes(b"no image")
    done = compared(output, photos, photos / "missing.png", "--methods", "gmar", "--no-measure")
    assert done.code == 1
    assert "broken.png" in done.err
    assert "missing.png" in done.err
    with np.load(output / "maps.npz") as stored:
        assert stored["names"].tolist() == ["grey.png", "scene.webp", "scene.png", "wide.jpg"]


@pytest.mark.parametrize("broken", [True, False])
def test_each_image_that_fails_counts(photos: Path, output: Path, broken: bool) -> None:
    bad = photos / "bad.png"
    if broken:
        bad.write_bytes(b"no image")
    done = compared(output, photos / "scene.png", bad, "--methods", "gmar", "--no-measure")
    assert done.code == 1
    assert (output / "maps.npz").exists()


def test_only_bad_images(tmp_path: Path, output: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    assert compared(output, tmp_path / "broken.png").code == 1
    assert compared(output, tmp_path / "missing.png").code == 1
    assert list(output.iterdir()) == []


def test_a_model_that_is_not_there(output: Path) -> None:
    done = compared(output, model=output / "nothing")
    assert done.code == 1
    assert "nothing" in done.error


def test_a_method_that_fails_is_said(output: Path) -> None:
    """Without any map there is nothing to compare."""
    words = ["--target", "heart", "--contrast", "ring", "--no-measure"]
    done = compared(output, "--captum", "Saliency", *words)
    assert done.code == 0
    assert "Saliency failed: " in done.out
    assert "Saliency failed: " in (output / "comparison.md").read_text()


def test_images_that_do_not_fit_together(tmp_path: Path, output: Path) -> None:
    folder = folders.copy(tmp_path / "model")
    ViTImageProcessorPil(do_resize=False).save_pretrained(folder)
    draw_scene(1).image.save(tmp_path / "a.png")
    draw_scene(1).image.resize((48, 96)).save(tmp_path / "b.png")
    done = compared(output, tmp_path / "a.png", tmp_path / "b.png", model=folder)
    assert done.code == 1
    assert "give images of one size" in done.error


def test_a_narrow_terminal_and_a_wide_one(tmp_path: Path) -> None:
    words = ["compare", "--methods", *["gmar"] * 7, "--no-measure"]
    for width, last in (("80", "r with 1"), ("160", "r with 7")):
        (done,) = run_elsewhere([words], tmp_path, HF_HUB_OFFLINE="1", COLUMNS=width)
        assert done.code == 0
        assert last in done.out
        assert ("r with 2" in done.out) == (width == "160")
