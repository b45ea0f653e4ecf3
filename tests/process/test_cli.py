"""The installed command, as a user runs it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import (
    Data2VecVisionConfig,
    Data2VecVisionForImageClassification,
    DeiTImageProcessorPil,
    ViTImageProcessorPil,
)
from typer.testing import CliRunner

from hf_gmar import GMAR, AttentionRollout, AttnLRP, GradSAM, __version__
from hf_gmar.cli import app
from hf_gmar.explainer import Explainer
from hf_gmar.methods import METHODS
from hf_gmar.models import LoadedModel, bundled_folder, label_of, load_model, sample_image
from tests.reference.models import build
from tests.reference.tolerances import PATIENCE
from tests.support import command, folders
from tests.support.command import Done, run_elsewhere
from tests.support.hub_server import commit_of, serve_hub
from tests.support.interpreter import run_python

Run = Callable[..., SimpleNamespace]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """The command in this process: exit code, output and errors, line breaks taken out."""

    def call(*arguments: object, output: Path = tmp_path / "out") -> SimpleNamespace:
        words = [str(argument) for argument in arguments]
        done = CliRunner().invoke(app, ["explain", *words, "--output", str(output)])
        assert done.exception is None or isinstance(done.exception, SystemExit)
        return SimpleNamespace(code=done.exit_code, out=done.stdout, err=done.stderr, folder=output)

    return call


INSTALLED = Path(sys.executable).with_name("hf-gmar")


def _installed(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    words = [INSTALLED, *arguments]
    return run_python(words, cwd, {"COLUMNS": "160", **environment}, check=False)


def test_no_arguments_explains_the_bundled_scene(tmp_path: Path) -> None:
    done = subprocess.run(
        [INSTALLED, "explain"], cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "using bundled" in done.stderr
    names = sorted(path.suffix for path in (tmp_path / "explanations").iterdir())
    assert names == [".npz", ".npz", ".png"]  # of GMAR and AttnLRP
    assert "bundled scene" in done.stdout
    assert "Warning" not in done.stderr


def test_module_form_and_version(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hf_gmar", "--version"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == f"hf-gmar {__version__}"


def test_images_without_a_model_take_the_default_from_the_hub(tmp_path: Path) -> None:
    with serve_hub({"google/vit-base-patch16-224": bundled_folder()}) as (address, requests):
        done = _installed(
            "explain", str(sample_image()), cwd=tmp_path,
            HF_ENDPOINT=address, HF_HOME=str(tmp_path / "cache"), HF_HUB_OFFLINE="0",
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "google/vit-base-patch16-224 from the Hub" in done.stderr
    assert requests


def test_the_hub_unreachable_is_one_clear_line(tmp_path: Path) -> None:
    done = _installed(
        "explain", str(sample_image()), cwd=tmp_path,
        HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1",
    )  # fmt: skip
    assert done.returncode == 1
    assert "--model bundled" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: the Hub can't be reached")


def test_the_archive_holds_what_python_gives(
    run: Run, bundled: LoadedModel, scene: Image.Image
) -> None:
    done = run("--method", "gmar", "--norm", "l2", "--alpha", "0.5", "--target", "3")
    assert done.code == 0
    (archive,) = done.folder.glob("*.npz")
    with np.load(archive) as stored:
        settings = json.loads(str(stored["settings"]))
        pixels = bundled.processor(images=scene, return_tensors="pt").pixel_values
        expected = GMAR(bundled.model, norm="l2", alpha=0.5).attribute_patches(pixels, target=3)[0]
        assert np.allclose(stored["patches"], expected, atol=1e-7)
        assert stored["target"] == 3
        assert str(stored["label"]) == label_of(bundled.model.config, 3)
        score = bundled.model(pixels).logits[0, 3].detach()
        assert float(stored["score"]) == pytest.approx(score.sigmoid().item(), abs=1e-6)
        assert str(stored["version"]) == __version__
    assert settings == {
        "model": "bundled", "method": "gmar", "norm": "l2", "alpha": 0.5, "start_layer": 0,
        "engine": "streaming", "checkpoint": False, "resolution": "patch",
    }  # fmt: skip


DEFAULT_METHODS: list[tuple[list[str], tuple[int, ...] | None, tuple[int, ...] | None]] = [
    ([], None, (96, 96)),
    (["--alpha", "0.5"], None, (96, 96)),
    (["--option", "resolution=patch"], None, None),
    (["--option", "resolution=3"], (24, 24), (24, 24)),
    (["--option", "layers=lower"], None, None),
    (["--method", "gmar", "attn-lrp"], None, None),
]


@pytest.mark.parametrize(("words", "gmar", "lrp"), DEFAULT_METHODS, ids=str)
def test_a_first_look_is_by_pixels(run: Run, words: list[str], gmar: Any, lrp: Any) -> None:
    """Of AttnLRP alone, unless options or methods say otherwise."""
    done = run("--target", "3", "--no-check", *words)
    assert done.code == 0, done.err
    shapes = {}
    for archive in done.folder.glob("*.npz"):
        with np.load(archive) as stored:
            settings = json.loads(str(stored["settings"]))
            fine = stored["fine_map"].shape if "fine_map" in stored else None
            shapes[settings["method"]] = fine
            assert stored["patches"].shape == (8, 8)
    assert shapes == {"gmar": gmar, "attn-lrp": lrp}
    assert ("AttnLRP (pixels)" in done.out) == (lrp == (96, 96))


def test_pixels_of_a_first_look_are_those_of_python(
    run: Run, bundled: LoadedModel, scene: Image.Image
) -> None:
    (archive,) = run("--target", "3", "--no-check").folder.glob("*attn-lrp*.npz")
    pixels = bundled.processor(images=scene, return_tensors="pt").pixel_values
    expected = AttnLRP(bundled.model, resolution="pixel").attribute(pixels, target=3)[0].sum(0)
    with np.load(archive) as stored:
        assert np.allclose(stored["fine_map"], expected, atol=1e-7)
        sums = expected.unflatten(1, (8, 12)).unflatten(0, (8, 12)).sum((1, 3))
        assert np.allclose(stored["patches"], sums, atol=1e-6)


def test_a_method_with_its_options(run: Run, bundled: LoadedModel, scene: Image.Image) -> None:
    options = "--option", "head_fusion=max", "--option", "discard_ratio=0.5", "--alpha", "0.5"
    done = run("--method", "attention-rollout", *options, "--target", "3")
    assert done.code == 0
    (archive,) = done.folder.glob("*.npz")
    pixels = bundled.processor(images=scene, return_tensors="pt").pixel_values
    rollout = AttentionRollout(bundled.model, "max", 0.5, 0.5)
    with np.load(archive) as stored:
        assert np.allclose(stored["patches"], rollout.attribute_patches(pixels)[0], atol=1e-7)
        settings = json.loads(str(stored["settings"]))
    assert (settings["method"], settings["head_fusion"]) == ("attention-rollout", "max")


def test_a_contrast(run: Run, bundled: LoadedModel, scene: Image.Image) -> None:
    done = run("--method", "grad-sam", "--target", "heart", "--contrast", "cross")
    assert done.code == 0
    (archive,) = done.folder.glob("*.npz")
    assert archive.name.endswith(".6-heart-not-4-cross.grad-sam.npz")
    assert archive.with_suffix(".png").is_file()
    pixels = bundled.processor(images=scene, return_tensors="pt").pixel_values
    wanted = GradSAM(bundled.model).attribute_patches(pixels, 6, contrast=4)[0]
    with np.load(archive) as stored:
        assert np.allclose(stored["patches"], wanted, atol=1e-7)
        assert json.loads(str(stored["settings"]))["contrast"] == "cross"


def test_the_methods_are_listed() -> None:
    done = command.run("methods")
    assert done.code == 0
    for name, method in METHODS.items():
        assert name in done.out
        assert method.source.split()[0] in done.out


def test_engines_give_the_same(run: Run, tmp_path: Path) -> None:
    maps = []
    for engine in ("streaming", "dense"):
        words = "--method", "gmar", "--engine", engine, "--target", "3"
        done = run(*words, output=tmp_path / engine)
        with np.load(next(done.folder.glob("*.npz"))) as stored:
            assert json.loads(str(stored["settings"]))["engine"] == engine
            maps.append(stored["patches"])
    assert np.allclose(maps[0], maps[1], atol=1e-6)


def test_the_attention_is_what_the_model_is_loaded_with(run: Run, tmp_path: Path) -> None:
    """Data2VecVision fixes its attention when it is built, so that each engine needs its own."""
    build(Data2VecVisionForImageClassification, Data2VecVisionConfig).save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    for attention, engine, code in (
        ("sdpa", "streaming", 0), ("sdpa", "dense", 1), ("eager", "dense", 0),
        ("eager", "streaming", 1),
    ):  # fmt: skip
        words = "--method", "gmar", "--attn-implementation", attention, "--engine", engine
        done = run("--model", tmp_path, *words)
        assert done.code == code, (attention, engine, done.err)
        assert "Traceback" not in done.err


def test_the_dtype_is_what_the_model_is_loaded_in(run: Run, tmp_path: Path) -> None:
    shares = []
    for dtype in ("float32", "bfloat16"):
        done = run("--dtype", dtype, "--target", "3", "--method", "gmar", output=tmp_path / dtype)
        with np.load(next(done.folder.glob("*.npz"))) as stored, Image.open(sample_image()) as file:
            image = file.convert("RGB")
            wanted = Explainer(load_model(dtype=dtype))(image, target=3)
            assert float(stored["score"]) == wanted.score
            assert np.array_equal(stored["patches"], wanted.patches)
        shares.append(wanted.score)
    assert shares[0] != shares[1]


def test_where_a_model_looked_on_a_wide_photo(run: Run, tmp_path: Path, scene: Image.Image) -> None:
    """As DeiT's processor: to 128 x 128, of which the middle 96 x 96."""
    folder = folders.copy(tmp_path / "model")
    DeiTImageProcessorPil(
        size={"height": 128, "width": 128}, crop_size={"height": 96, "width": 96}
    ).save_pretrained(folder)
    scene.resize((400, 200)).save(tmp_path / "wide.png")
    for image, size in ((tmp_path / "wide.png", (200, 400)), (sample_image(), scene.size[::-1])):
        done = run(image, "--model", folder, output=tmp_path / "out" / Path(image).stem)
        assert done.code == 0
        with np.load(next(done.folder.glob("*.npz"))) as stored:
            assert tuple(stored["size"]) == size
            wanted = [size[0] / 8, size[1] / 8, size[0] * 7 / 8, size[1] * 7 / 8]
            assert np.allclose(stored["box"], wanted, atol=0.2)
            assert stored["patches"].shape == (8, 8)


def test_the_whole_image_is_the_box_of_a_processor_without_a_crop(run: Run) -> None:
    with np.load(next(run().folder.glob("*.npz"))) as stored:
        assert stored["box"].tolist() == [0, 0, *stored["size"]]


# In one process, as the Hub's settings are read when it starts. Labels tell the revisions apart.
HUB: dict[str, list[str]] = {
    "main": ["--model", "owner/scenes"],
    "tag": ["--model", "owner/scenes", "--revision", "v2", "--cache-dir", "kept"],
    "no such tag": ["--model", "owner/scenes", "--revision", "v9"],
    "private, no token": ["--model", "owner/private"],
    "private": ["--model", "owner/private", "--token", "hf_private"],
    "pickled, off": ["--model", "owner/pickled"],
    "pickled, on": ["--model", "owner/pickled", "--no-use-safetensors"],
    "code, off": ["--model", "owner/own"],
    "code, on": ["--model", "owner/own", "--trust-remote-code"],
    "no such model": ["--model", "owner/nothing"],
    "prompts": [
        "--model", "owner/clip", "--top-k", "2", "--prompts", "a photo of a dog", "a photo",
    ],
    "no prompts": ["--model", "owner/clip"],
}  # fmt: skip


@pytest.fixture(scope="module")
def of_the_hub(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Done]]:
    """The folder in which the commands of HUB ran, and what came of them."""
    root = tmp_path_factory.mktemp("hub")
    repositories: dict[str, Path | dict[str, Path]] = {
        "owner/scenes": {
            "main": bundled_folder(),
            "v2": folders.copy(root / "v2", id2label={str(n): f"crane {n}" for n in range(8)}),
        },
        "owner/private": bundled_folder(),
        "owner/pickled": folders.pickled(folders.copy(root / "pickled")),
        "owner/own": folders.own_processor(folders.copy(root / "own"), root / "ran"),
        "owner/clip": folders.of_two(root / "clip"),
    }
    calls = [["explain", str(sample_image()), *words, "--output", row]
             for row, words in HUB.items()]  # fmt: skip
    with serve_hub(repositories, {"owner/private": "hf_private"}) as (address, _):
        home = str(root / "home")
        done = run_elsewhere(calls, root, HF_ENDPOINT=address, HF_HOME=home)
    return root, dict(zip(HUB, done, strict=True))


@pytest.mark.parametrize(
    ("row", "label"),
    [
        ("main", "heart"),
        ("tag", "crane 6"),
        ("private", "heart"),
        ("pickled, on", "heart"),
        ("code, on", "heart"),
        ("prompts", "a photo"),
    ],
)
def test_options_for_the_hub(
    of_the_hub: tuple[Path, dict[str, Done]], row: str, label: str
) -> None:
    root, done = of_the_hub
    assert (done[row].code, done[row].err) == (0, "")
    assert label in done[row].out
    assert list((root / row).glob("*.png"))


def test_the_cache_folder_is_the_one_that_is_named(
    of_the_hub: tuple[Path, dict[str, Done]],
) -> None:
    root, _ = of_the_hub
    assert list((root / "kept").rglob("model.safetensors"))
    commit = commit_of("owner/scenes", "v2")
    assert not list((root / "home").rglob(f"snapshots/{commit}/*"))


@pytest.mark.parametrize(
    ("row", "code", "words"),
    [
        ("no such tag", 1, "has no revision 'v9'"),
        ("private, no token", 1, "--token"),
        ("pickled, off", 1, "--no-use-safetensors"),
        ("code, off", 1, "--trust-remote-code"),
        ("no such model", 1, "there is no model 'owner/nothing'"),
        ("no prompts", 2, "--prompts"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    of_the_hub: tuple[Path, dict[str, Done]], row: str, code: int, words: str
) -> None:
    root, done = of_the_hub
    assert done[row].code == code
    assert words in done[row].error
    assert "hf_" not in done[row].err
    assert not list((root / row).iterdir())


def test_code_ran_where_it_was_trusted(of_the_hub: tuple[Path, dict[str, Done]]) -> None:
    assert (of_the_hub[0] / "ran").exists()


def test_top_k_gives_the_most_probable_first(run: Run) -> None:
    done = run("--top-k", "3", "--method", "gmar")
    assert done.code == 0
    assert len(list(done.folder.glob("*.png"))) == 1
    shares = [
        float(np.load(path)["score"])
        for path in sorted(done.folder.glob("*.npz"), key=lambda path: path.stat().st_mtime_ns)
    ]
    assert shares == sorted(shares, reverse=True)


def test_more_classes_than_there_are(run: Run) -> None:
    assert len(list(run("--top-k", "99").folder.glob("*.npz"))) == 2 * 8


def test_folders_and_bad_files_side_by_side(run: Run, photos: Path) -> None:
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing more")
    done = run(photos, photos / "missing.png", "--model", "bundled")
    assert done.code == 1
    assert len(list(done.folder.glob("*.png"))) == 4
    errors = [line for line in done.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 2
    assert any("broken.jpg" in line for line in errors)
    assert any("missing.png" in line for line in errors)


def test_images_of_one_name_do_not_overwrite_each_other(run: Run, photos: Path) -> None:
    done = run(photos, "--model", "bundled", "--target", "0")
    assert {path.name.split(".")[0] for path in done.folder.glob("*.npz")} == {
        "grey", "scene", "scene-2", "wide",
    }  # fmt: skip


def test_results_are_written_one_by_one(
    run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was ready before a crash is on disk."""
    calls = iter([None, None, KeyboardInterrupt])
    plain = GMAR.attribute_with_scores

    def sometimes(self: GMAR, *args: Any, **kwargs: Any) -> Any:
        if (error := next(calls)) is not None:
            raise error
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(GMAR, "attribute_with_scores", sometimes)
    done = run(photos, "--model", "bundled", "--batch-size", "1", "--method", "gmar")
    assert done.code != 0
    assert len(list(done.folder.glob("*.npz"))) == len(list(done.folder.glob("*.png"))) == 2
    assert not list(done.folder.glob("*.part"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--target", "zebra"], "no class is called 'zebra'"),
        (["--target", "99"], "0 to 7"),
        (["--norm", "l3"], "'l1', 'l2'"),
        (["--alpha", "-1"], "alpha must be"),
        (["--alpha", "nan"], "alpha must be"),
        (["--method", "magic"], "there are gmar, attention-rollout"),
        (["--method", "random", "--norm", "l1"], "'random' has no option norm; it has seed"),
        (["--option", "alpha"], "--option takes NAME=VALUE"),
        (["--option", "=1"], "--option takes NAME=VALUE"),
        (["--option", "alpha=1", "--alpha", "2"], "the option alpha is given twice"),
        (["--option", "norm=7"], "'l1', 'l2'"),
        (["--method", "raw-attention", "--option", "layer=9"], "from -6 to 5, got 9"),
        (["--method", "random", "--contrast", "heart"], "same map for every class"),
        (["--target", "6", "--contrast", "heart"], "are the same class"),
        (["--contrast", "zebra"], "no class is called 'zebra'"),
        (["--engine", "steam"], "engine must be one of 'streaming', 'dense'"),
        (["--dtype", "fp16"], "dtype must be one of 'auto', 'float32'"),
        (["--attn-implementation", "sdp"], "attn_implementation must be one of 'eager'"),
        (["--revision", "v2"], "'bundled' is a local folder, which has no revisions"),
        (["--token", "hf_a b", "--model", "owner/model"], "the token is empty or has characters"),
        (["--device", "cuda:99"], "can't be used here"),
        (["--top-k", "0"], "top-k"),
        (["--target", "0", "--top-k", "2"], "either"),
        (["--target", "-1"], "target -1 is out of range"),
        (["--target", "9" * 5000], "out of range"),
        (["--device", "meta"], "can't be used here"),
    ],
)
def test_bad_options_say_what_is_allowed(run: Run, arguments: list[str], said: str) -> None:
    done = run(*arguments)
    assert done.code == 2
    assert said in " ".join(done.err.replace("│", " ").split())
    assert not done.folder.exists() or not list(done.folder.iterdir())


@pytest.mark.parametrize("place", ["file", "/proc"])
def test_an_output_that_cannot_be_written(run: Run, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    done = run(output=tmp_path / place)
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith("error: nothing can be written to --output")


def test_classes_of_one_name_have_results_of_their_own(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(bundled_folder(), folder)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(index): "crane" for index in range(8)}
    (folder / "config.json").write_text(json.dumps(config))
    done = run("--model", folder, "--top-k", "8", "--method", "gmar")
    assert done.code == 0
    assert len(list(done.folder.glob("*.png"))) == 1
    assert len(list(done.folder.glob("*.npz"))) == 8


def test_a_processor_that_does_not_fit_fails_each_image(
    run: Run, tmp_path: Path, photos: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(bundled_folder(), folder)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings["size"] = {"height": 48, "width": 48}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    done = run(photos, "--model", folder)
    assert done.code == 1
    errors = [line for line in done.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 4
    assert all("48 x 48" in line for line in errors)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_an_unexpected_error_is_one_line_and_the_others_go_on(
    run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    """A batch that fails is explained image by image."""
    error = RuntimeError("out of\nmemory")
    calls = iter([error, *[error] * (batch_size > 1), None, None, None])
    plain = GMAR.attribute_with_scores

    def sometimes(self: GMAR, *args: Any, **kwargs: Any) -> Any:
        if (error := next(calls)) is not None:
            raise error
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(GMAR, "attribute_with_scores", sometimes)
    done = run(photos, "--model", "bundled", "--batch-size", str(batch_size))
    assert done.code == 1
    assert [line.endswith("RuntimeError: out of memory") for line in done.err.splitlines()
            if line.startswith("error:")] == [True]  # fmt: skip
    assert len(list(done.folder.glob("*.png"))) == 3


def test_results_below_the_images_are_not_explained_again(run: Run, photos: Path) -> None:
    for _ in range(2):
        done = run(photos, "--model", "bundled", "--target", "0", output=photos / "results")
        assert done.code == 0
    assert len(list((photos / "results").glob("*.png"))) == 4


def test_missing_images_are_said_before_the_model_is_looked_for(run: Run, tmp_path: Path) -> None:
    done = run(tmp_path / "typo.jpg", "--model", "./nowhere")
    assert done.code == 1
    assert "no image file" in done.err
    assert "nowhere" not in done.err


def test_file_names_are_whole_in_a_narrow_terminal(tmp_path: Path) -> None:
    done = _installed("explain", cwd=tmp_path, COLUMNS="60", HF_HUB_OFFLINE="1")
    (picture,) = (tmp_path / "explanations").glob("*.png")
    assert "…" not in done.stdout
    assert str(picture.relative_to(tmp_path)) in done.stdout.splitlines()


def test_a_missing_model_folder(run: Run) -> None:
    done = run("--model", "./nowhere")
    assert done.code == 1
    assert "there is no model folder ./nowhere" in done.err


def test_the_picture_looks_right(run: Run) -> None:
    """Image on the left, heat on the right, a colour bar at the edge: not blank, in colour."""
    done = run("--target", "0")
    (picture,) = done.folder.glob("*.png")
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    height, width = pixels.shape[:2]
    assert width > height
    for part in (pixels[:, : width // 2], pixels[:, width // 2 :]):
        assert len(np.unique(part.reshape(-1, 3), axis=0)) > 1000
