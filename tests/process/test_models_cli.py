"""``hf-gmar models``: the families, and what can be done with one model."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    CLIPConfig,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    PreTrainedConfig,
    SiglipConfig,
    ViTConfig,
    YolosConfig,
)

from hf_gmar._core.families import FAMILIES, UNSUPPORTED, UNTESTED
from hf_gmar.cli import options as shared
from hf_gmar.models import bundled_folder, sample_image
from tests.support import folders
from tests.support.command import Done, run, run_elsewhere
from tests.support.hub_server import serve_hub


@pytest.fixture(params=[100, 60])
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Columns of the terminal."""
    columns: int = request.param
    monkeypatch.setattr(shared.out, "_width", columns)
    return columns


def test_all_families_are_printed_whole(width: int) -> None:
    """Nothing is cut off, and what a user may copy is not broken."""
    done = run("models")
    assert (done.code, done.err) == (0, "")
    assert "…" not in done.out
    assert max(map(len, done.out.splitlines())) <= width
    words = set(re.findall(r"[\w-]+", done.out))
    titles = {word for family in FAMILIES.values() for word in re.findall(r"[\w-]+", family.title)}
    classes = {name for family in FAMILIES.values() for name in (*family.heads, *family.prompts)}
    assert titles | classes | set(UNSUPPORTED) | set(UNTESTED) <= words
    reasons = {word for reason in UNSUPPORTED.values() for word in re.findall(r"[\w-]+", reason)}
    assert reasons <= words


def test_each_family_is_there_once_with_what_its_heads_read() -> None:
    lines = [line.strip() for line in run("models").out.splitlines()]
    assert sum(line.startswith("DeiT (") for line in lines) == 1
    place = lines.index("DeiT (CLS, distillation)")
    assert lines[place + 1] == "DeiTForImageClassification (pooling: CLS)"
    assert any(line.startswith("CLIPModel, by prompts (pooling: CLS)") for line in lines)
    assert "'hf-gmar models MODEL'" in lines[-1] + lines[-2]


def test_what_a_release_of_transformers_brings_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_gmar.cli.catalogue.unlisted", lambda: ["new (NewHead)"])
    assert "also has new (NewHead)" in " ".join(run("models").out.split())


def saved(folder: Path, config: PreTrainedConfig, name: str | None) -> Path:
    """A folder with a config alone, as for a model of the class of that name."""
    config.save_pretrained(folder)
    folders.edit(folder / "config.json", architectures=name and [name])
    return folder


def facts(done: Done) -> dict[str, str]:
    """The rows of the table."""
    rows = [line.split("│")[1:3] for line in done.out.splitlines() if line.startswith("│")]
    return {key.strip(): value.strip() for key, value in rows}


EXPLAINED: dict[str, tuple[PreTrainedConfig, str | None, dict[str, str]]] = {
    "vit": (
        ViTConfig(image_size=(96, 64), patch_size=8, num_hidden_layers=5),
        "ViTForImageClassification",
        {
            "class": "ViTForImageClassification",
            "model type": "vit",
            "family": "ViT",
            "prefix tokens": "CLS",
            "grid, at the config's size": "12 x 8 patches of 8 x 8 pixels, in 96 x 64",
            "pooling": "CLS",
            "layers": "5",
            "heads": "12",
            "explained by": "streaming, dense",
        },
    ),
    "registers": (
        Dinov2WithRegistersConfig(num_register_tokens=3),
        "Dinov2WithRegistersForImageClassification",
        {
            "prefix tokens": "CLS, 3 x register",
            "pooling": "half CLS, half mean of the patches",
        },
    ),
    "no class": (
        ViTConfig(),
        None,
        {"class": "not named, loaded as ViTForImageClassification"},
    ),
}


@pytest.mark.parametrize("name", EXPLAINED)
def test_a_model_that_can_be_explained(tmp_path: Path, name: str) -> None:
    config, class_name, wanted = EXPLAINED[name]
    done = run("models", saved(tmp_path, config, class_name))
    assert (done.code, done.err) == (0, "")
    found = facts(done)
    assert {key: found[key] for key in wanted} == wanted
    assert found["can be explained"] == "yes"
    assert f"hf-gmar explain PHOTO --model {tmp_path}" in done.out.splitlines()


def test_the_command_that_is_shown_does_its_job(tmp_path: Path) -> None:
    """As it stands there, in a folder whose name needs quotes, in a narrow terminal too."""
    for name, folder in (
        ("class", folders.copy(tmp_path / "my model")),
        ("prompts", folders.of_two(tmp_path / "my [bold] clip")),
    ):
        shown = run("models", folder).out.splitlines()[-1]
        words = shlex.split(shown)
        assert words[:3] == ["hf-gmar", "explain", "PHOTO"]
        words[2] = str(sample_image())
        done = run(*words[1:], "--output", tmp_path / name)
        assert done.code == 0, done.err
        assert list((tmp_path / name).glob("*.png"))


@pytest.mark.parametrize("config_class", [CLIPConfig, SiglipConfig])
def test_a_model_that_takes_prompts(tmp_path: Path, config_class: Any) -> None:
    name = config_class.__name__.replace("Config", "Model")
    done = run("models", saved(tmp_path, config_class(), name))
    assert done.code == 0
    assert facts(done)["can be explained"] == "yes"
    assert done.out.splitlines()[-1].endswith(' --prompts "a photo of a dog" "a photo of a cat"')


NOT_EXPLAINED: dict[str, tuple[PreTrainedConfig, str, str]] = {
    "yolos": (YolosConfig(), "YolosForObjectDetection", "it has tokens for objects"),
    "headless": (DINOv3ViTConfig(), "DINOv3ViTModel", "a head of your own"),
    "body": (ViTConfig(), "ViTModel", "ViTForImageClassification"),
}


@pytest.mark.parametrize("name", NOT_EXPLAINED)
def test_a_model_that_can_not_be_explained(tmp_path: Path, name: str) -> None:
    config, class_name, words = NOT_EXPLAINED[name]
    done = run("models", saved(tmp_path, config, class_name))
    assert (done.code, done.err) == (1, "")
    assert facts(done) == {
        "class": class_name, "model type": config.model_type, "can be explained": "no",
    }  # fmt: skip
    assert words in " ".join(done.out.split())
    assert "hf-gmar explain" not in done.out


def test_the_bundled_model() -> None:
    found = facts(run("models", "bundled"))
    assert found["grid, at the config's size"] == "8 x 8 patches of 12 x 12 pixels, in 96 x 96"


def test_one_model_in_a_narrow_terminal(width: int, tmp_path: Path) -> None:
    folder = folders.of_two(tmp_path / "clip")
    done = run("models", folder)
    assert "…" not in done.out
    name, *table, command = done.out.splitlines()
    assert name == str(folder)
    assert command.startswith("hf-gmar explain")  # whole, to be copied
    assert max(map(len, table)) <= width


def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "zorro"}))
    (tmp_path / "empty").mkdir()
    for name, words in (
        (str(tmp_path), "of the model type 'zorro', which Transformers"),
        (str(tmp_path / "empty"), "has no config.json"),
        ("./nowhere", "there is no model folder ./nowhere"),
    ):
        done = run("models", name)
        assert (done.code, done.out) == (1, "")
        assert words in done.error


def test_a_revision_of_a_folder_is_a_mistake() -> None:
    done = run("models", "bundled", "--revision", "v2")
    assert done.code == 2
    assert "a local folder, which has no revisions" in done.error


HUB: dict[str, list[str]] = {
    "main": ["owner/scenes"],
    "tag": ["owner/scenes", "--revision", "v2", "--cache-dir", "kept"],
    "no such tag": ["owner/scenes", "--revision", "v9"],
    "private, no token": ["owner/private"],
    "private": ["owner/private", "--token", "hf_private"],
    "code, off": ["owner/own"],
    "code, on": ["owner/own", "--trust-remote-code"],
}


@pytest.fixture(scope="module")
def of_the_hub(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Done]]:
    """The folder in which the commands of HUB ran, and what came of them."""
    root = tmp_path_factory.mktemp("hub")
    yolos = saved(root / "yolos", YolosConfig(), "YolosForObjectDetection")
    repositories: dict[str, Path | dict[str, Path]] = {
        "owner/scenes": {"main": bundled_folder(), "v2": yolos},
        "owner/private": bundled_folder(),
        "owner/own": folders.own_model(folders.copy(root / "own"), root / "ran"),
    }
    with serve_hub(repositories, {"owner/private": "hf_private"}) as (address, requests):
        done = run_elsewhere(
            [["models", *words] for words in HUB.values()],
            root, HF_ENDPOINT=address, HF_HOME=str(root / "home"),
        )  # fmt: skip
    assert not any("model.safetensors" in request for request in requests)
    return root, dict(zip(HUB, done, strict=True))


def test_models_of_the_hub(of_the_hub: tuple[Path, dict[str, Done]]) -> None:
    root, done = of_the_hub
    assert [done[row].code for row in ("main", "tag", "private")] == [0, 1, 0]
    assert facts(done["main"])["class"] == "ViTForImageClassification"
    assert facts(done["tag"])["class"] == "YolosForObjectDetection"
    assert [path.name for path in (root / "kept").rglob("snapshots/*/*")] == ["config.json"]
    assert "hf-gmar explain PHOTO --model owner/private" in done["private"].out


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("no such tag", "has no revision 'v9'"),
        ("private, no token", "--token"),
        ("code, off", "--trust-remote-code"),
    ],
)
def test_what_the_hub_refuses(
    of_the_hub: tuple[Path, dict[str, Done]], row: str, words: str
) -> None:
    _, done = of_the_hub
    assert (done[row].code, done[row].out) == (1, "")
    assert words in done[row].error


def test_code_of_a_repository_is_asked_what_it_is(
    of_the_hub: tuple[Path, dict[str, Done]],
) -> None:
    root, done = of_the_hub
    assert (root / "ran").exists()
    assert facts(done["code, on"])["class"] == "OwnViT"
    assert "OwnViT (model_type 'own') is not a known family" in done["code, on"].out
