"""Configs that ask for absurd sizes are refused before they take time or memory."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import ViTConfig, ViTForImageClassification

from hf_gmar.errors import ModelLoadError
from hf_gmar.models import bundled_folder, load_config, load_model, size_limits
from hf_gmar.models.size_limits import check_sizes, limited_sizes
from tests.support import folders

HUGE = 10**9

LARGE: dict[str, dict[str, Any]] = {
    "ViT-22B": {
        "num_hidden_layers": 48,
        "hidden_size": 6144,
        "intermediate_size": 24576,
        "num_attention_heads": 48,
    },
    "EVA-CLIP-18B": {"vision_config": {"num_hidden_layers": 48, "hidden_size": 5120}},
    "ImageNet-21k": {"num_labels": 21843, "image_size": 1024},
    "faces": {"num_labels": 360_232},
    "a language tower": {
        "text_config": {
            "num_hidden_layers": 126,
            "vocab_size": 256_000,
            "max_position_embeddings": 10_485_760,
            "rope_theta": 10_000_000,
        }
    },
    "ResNet-1001": {"depths": [3, 4, 36, 333]},
}


@pytest.mark.parametrize("name", LARGE)
def test_large_models_pass(name: str) -> None:
    check_sizes(LARGE[name], name)


@pytest.mark.parametrize(
    "config",
    [
        {"num_hidden_layers": 10**7},
        {"num_hidden_layers": 10**400},
        {"num_labels": HUGE},
        {"num_labels": HUGE, "id2label": None},
        {"depths": [2, HUGE]},
        {"vision_config": {"num_hidden_layers": HUGE}},
        {"backbone_config": {"text_config": {"n_layers": HUGE}}},
    ],
    ids=str,
)
@pytest.mark.parametrize("load", [load_config, load_model])
def test_what_python_would_make_one_by_one(
    tmp_path: Path, load: Callable[..., Any], config: dict[str, Any]
) -> None:
    folder = folders.copy(tmp_path / "model", **config)
    with pytest.raises(ModelLoadError) as caught:
        load(folder)
    said = str(caught.value)
    assert repr(str(folder)) in said
    assert "are built; no such model is known" in said
    assert "\n" not in said
    assert len(said) < 600


@pytest.mark.parametrize(
    "config",
    [
        {"hidden_size": HUGE},
        {"intermediate_size": HUGE},
        {"image_size": 10**7},
        {"image_size": 10**5, "patch_size": 1},
        {"num_channels": HUGE},
        {"num_labels": 1000, "hidden_size": 10**6, "id2label": None},
        {"num_hidden_layers": 1000, "hidden_size": 4096},
    ],
    ids=str,
)
def test_what_the_files_of_weights_can_not_hold(tmp_path: Path, config: dict[str, Any]) -> None:
    folder = folders.copy(tmp_path / "model", **config)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelLoadError, match=r"of [\d,]+ numbers or more, and its files of") as it:
        load_model(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # KB
    assert repr(str(folder)) in str(it.value)
    assert "\n" not in str(it.value)
    load_model("bundled")  # nothing is left that counts


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # of PEFT
def test_the_rank_of_an_adapter(tmp_path: Path) -> None:
    base = folders.copy(tmp_path / "base")
    tuned = get_peft_model(load_model(base).model, LoraConfig(target_modules=["q_proj"]))
    tuned.save_pretrained(str(tmp_path / "adapter"))
    file = tmp_path / "adapter" / "adapter_config.json"
    folders.edit(file, base_model_name_or_path=str(base))
    load_model(tmp_path / "adapter")
    folders.edit(file, r=10**7)
    with pytest.raises(ModelLoadError, match=r"adapter_config.json of .* numbers or more"):
        load_model(tmp_path / "adapter")


def test_large_weights_in_large_files(tmp_path: Path) -> None:
    """A model of 22 billion numbers passes if its files have the bytes."""
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(22 * 10**9)  # a hole of the file system
    config = ViTConfig(**LARGE["ViT-22B"])
    with limited_sizes(tmp_path, "config.json", "large"), torch.device("meta"):
        model: Any = ViTForImageClassification(config)
    assert sum(weight.numel() for weight in model.parameters()) > 2e10


def test_a_great_many_small_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They take no memory, but minutes."""
    monkeypatch.setattr(size_limits, "_MOST_WEIGHTS", 100)
    folder = folders.copy(tmp_path / "model", num_hidden_layers=50)
    with pytest.raises(ModelLoadError, match=r"config.json of .* asks for more than 100 weights"):
        load_model(folder)


@pytest.mark.parametrize("depth", [60, 400, 100_000])
@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "adapter_config.json"])
def test_files_that_are_nested_too_deeply(tmp_path: Path, file: str, depth: int) -> None:
    """Python can't read, copy or print them."""
    folder = tmp_path / "model"
    shutil.copytree(bundled_folder(), folder)
    text = json.dumps({"base_model_name_or_path": "bundled"})
    if (folder / file).is_file():
        text = (folder / file).read_text()
    deep = "[" * depth + "]" * depth
    (folder / file).write_text(text.rstrip().removesuffix("}") + f', "more": {deep}}}')
    with pytest.raises(ModelLoadError) as caught:
        load_model(folder)
    assert any(word in str(caught.value) for word in ("levels", "nested too deeply", "recursion"))
    assert file in str(caught.value) or depth > 1000
    assert "\n" not in str(caught.value)
