"""Loading: from the package, a folder, and a server that answers as the Hub does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import SwinConfig, SwinForImageClassification, ViTModel

from hf_gmar import GMAR, LogitsModel
from hf_gmar.errors import (
    HubUnreachableError,
    ModelLoadError,
    OptionError,
    UnsupportedModelError,
)
from hf_gmar.hub import LoadedModel, bundled_folder, load_model, pick_device
from tests.hub_server import serve_hub

# What a user's machine would do, in a process of its own: the Hub's settings are read at import.
_LOAD = """
import sys
from hf_gmar import load_model
from hf_gmar.errors import HfGmarError
try:
    print(type(load_model(sys.argv[1]).model).__name__)
except HfGmarError as error:
    print(type(error).__name__, error)
"""


def _load_elsewhere(name: str, cache: Path, **environment: str) -> str:
    settings = {"HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", **environment}
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, name],
        env={**clean, **settings},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


def test_the_bundled_model_loads(bundled: LoadedModel) -> None:
    assert type(bundled.model).__name__ == "ViTForImageClassification"
    assert not bundled.model.training


def test_a_local_folder_loads(tmp_path: Path) -> None:
    shutil.copytree(bundled_folder(), tmp_path / "model")
    loaded = load_model(str(tmp_path / "model"))
    assert loaded.model.config.num_labels == 8


def test_the_hub_then_the_cache(tmp_path: Path) -> None:
    with serve_hub({"owner/scenes": bundled_folder()}) as (address, requests):
        fresh = _load_elsewhere("owner/scenes", tmp_path, HF_ENDPOINT=address)
        assert any("model.safetensors" in request for request in requests)
    assert fresh.strip() == "ViTForImageClassification"
    # The server is gone now; the cache is enough, with and without the offline switch.
    for settings in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": address}):
        cached = _load_elsewhere("owner/scenes", tmp_path, **settings)
        assert cached.strip() == "ViTForImageClassification"


def test_no_such_model_on_the_hub(tmp_path: Path) -> None:
    with serve_hub({}) as (address, _):
        said = _load_elsewhere("owner/nothing", tmp_path, HF_ENDPOINT=address)
    assert said.startswith("ModelLoadError there is no model 'owner/nothing'")


@pytest.mark.parametrize(
    "settings", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}]
)
def test_unreachable_and_not_cached(tmp_path: Path, settings: dict[str, str]) -> None:
    said = _load_elsewhere("google/vit-base-patch16-224", tmp_path, **settings)
    assert said.startswith(HubUnreachableError.__name__)
    assert "--model bundled" in said
    assert "--model FOLDER" in said


def test_only_pickled_weights_are_refused(tmp_path: Path, bundled: LoadedModel) -> None:
    bundled.model.config.save_pretrained(tmp_path)
    torch.save(bundled.model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match="could not be loaded"):
        load_model(str(tmp_path))


def test_a_model_without_a_trained_head_is_refused(tmp_path: Path, bundled: LoadedModel) -> None:
    config: Any = bundled.model.config
    backbone = ViTModel(config, add_pooling_layer=False)
    backbone.save_pretrained(tmp_path)
    shutil.copy(bundled_folder() / "preprocessor_config.json", tmp_path)
    with pytest.raises(ModelLoadError, match=r"lack classifier\.bias, classifier\.weight"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "a/b/c", "~/nothing-here"])
def test_a_missing_folder_is_said_to_be_missing(name: str) -> None:
    with pytest.raises(ModelLoadError, match="there is no model folder"):
        load_model(name)


def test_weights_of_other_shapes_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(bundled_folder(), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 100}))
    with pytest.raises(ModelLoadError):
        load_model(str(folder))


def test_a_path_and_a_home_folder_are_local(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(bundled_folder(), tmp_path / "model")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (tmp_path / "model", "~/model"):
        assert load_model(name).model.config.num_labels == 8


@pytest.mark.parametrize("damage", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_damaged_files_are_an_error_of_ours(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(bundled_folder(), folder)
    (folder / damage).write_bytes((folder / damage).read_bytes()[:50])
    with pytest.raises(ModelLoadError):
        load_model(str(folder))


def test_a_text_model_is_no_image_classifier(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelLoadError, match="image classifier"):
        load_model(str(tmp_path))


def test_swin_loads_but_is_not_explained(tmp_path: Path) -> None:
    config = SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1], num_heads=[2], window_size=4
    )
    SwinForImageClassification(config).save_pretrained(tmp_path)
    shutil.copy(bundled_folder() / "preprocessor_config.json", tmp_path)
    with pytest.raises(UnsupportedModelError, match="windows"):
        GMAR(load_model(str(tmp_path)).model)


@pytest.mark.parametrize("name", ["tpu9", "cuda:99", "", "meta"])
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(OptionError, match="device"):
        pick_device(name)


def test_auto_is_a_device_that_works() -> None:
    assert torch.zeros(1, device=pick_device("auto")).item() == 0


def test_auto_asks_whether_the_accelerator_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build of torch for CUDA on a machine without a GPU."""

    def current(check_available: bool = False) -> torch.device | None:
        return None if check_available else torch.device("cuda")

    monkeypatch.setattr(torch.accelerator, "current_accelerator", current)
    assert pick_device("auto") == torch.device("cpu")


def test_logits_model_shares_the_model_and_its_mode(bundled: LoadedModel) -> None:
    logits = LogitsModel(bundled.model)
    pixels = torch.rand(2, 3, 96, 96)
    assert torch.equal(logits(pixels), bundled.model(pixels).logits)
    assert logits.model is bundled.model
    assert logits.training == bundled.model.training
    assert {id(p) for p in logits.parameters()} == {id(p) for p in bundled.model.parameters()}


def test_logits_model_passes_keywords_on(bundled: LoadedModel) -> None:
    pixels = torch.rand(1, 3, 96, 144)
    fixed = LogitsModel(bundled.model, interpolate_pos_encoding=True)
    given = LogitsModel(bundled.model)(pixels, interpolate_pos_encoding=True)
    assert torch.equal(fixed(pixels), given)
    with pytest.raises(ValueError, match="size"):
        fixed(pixels, interpolate_pos_encoding=False)
