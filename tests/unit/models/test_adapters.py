"""Adapter folders, folders of training runs, and processors from elsewhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import IA3Config, LoraConfig, PeftConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoImageProcessor, ViTForImageClassification

import hf_gmar.pipeline  # noqa: F401  # registers the task
from hf_gmar import GMAR
from hf_gmar.data import draw_scene
from hf_gmar.errors import ModelLoadError
from hf_gmar.models import bundled_folder, label_of, load_model
from tests.support import folders
from tests.support.command import run

# PEFT asks Transformers for it, here and where the tests make adapters.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

pipeline: Any = transformers.pipeline
PIXELS = torch.linspace(-1, 1, 3 * 96 * 96).view(1, 3, 96, 96)
HEAD = ["classifier"]
ADAPTERS: dict[str, tuple[Callable[[], PeftConfig], int]] = {
    "lora": (lambda: LoraConfig(target_modules=["q_proj", "v_proj"]), 8),
    "lora with a new head": (
        lambda: LoraConfig(target_modules=["q_proj"], modules_to_save=HEAD), 5,
    ),
    "lora with a head of as many classes": (
        lambda: LoraConfig(target_modules=["q_proj"], modules_to_save=HEAD), 8,
    ),
    "lora with biases and norms": (
        lambda: LoraConfig(
            target_modules=["q_proj"], bias="all", modules_to_save=[*HEAD, "layernorm"]
        ), 3,
    ),
    "dora": (lambda: LoraConfig(target_modules="all-linear", use_dora=True), 8),
    "ia3": (
        lambda: IA3Config(
            target_modules=["k_proj", "fc2"], feedforward_modules=["fc2"], modules_to_save=HEAD
        ), 2,
    ),
}  # fmt: skip
CONFIG = "adapter_config.json"


def adapter(folder: Path, name: str = "lora", base: str | None = None) -> Tensor:
    """Save a trained adapter; the logits of its model."""
    make, classes = ADAPTERS[name]
    resized: Any = {"num_labels": classes, "ignore_mismatched_sizes": True} if classes != 8 else {}
    model: Any = get_peft_model(
        ViTForImageClassification.from_pretrained(bundled_folder(), **resized), make()
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
        logits: Tensor = model(PIXELS).logits
    model.save_pretrained(folder)
    if base is not None:
        folders.edit(folder / CONFIG, base_model_name_or_path=base)
    return logits


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_is_loaded_with_base_head_and_processor(tmp_path: Path, name: str) -> None:
    expected = adapter(tmp_path, name)
    loaded = load_model(tmp_path)
    model: Any = loaded.model
    assert torch.allclose(model(PIXELS).logits, expected, atol=1e-6)
    assert model.config.num_labels == expected.shape[1]
    own = AutoImageProcessor.from_pretrained(bundled_folder(), backend="pil")
    assert loaded.processor.to_dict() == own.to_dict()
    again: Any = load_model(tmp_path).model
    for (left, value), (right, same) in zip(
        model.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert left == right
        assert torch.equal(value, same), left  # nothing is initialised at random
    assert GMAR(model).attribute_patches(PIXELS, 1).shape == (1, 8, 8)


@pytest.mark.parametrize("name", ["lora with a new head", "dora"])
def test_the_pipeline_loads_an_adapter(tmp_path: Path, name: str) -> None:
    expected = adapter(tmp_path, name)
    loaded = load_model(tmp_path)
    explain = pipeline("image-attribution", model=str(tmp_path))
    assert torch.allclose(explain.model(PIXELS).logits, expected, atol=1e-6)
    whole = pipeline("image-attribution", model=loaded.model, image_processor=loaded.processor)
    image = draw_scene(18).image
    (result,), (same,) = explain(image), whole(image)
    assert (result["label"], result["score"]) == (same["label"], pytest.approx(same["score"]))
    assert torch.allclose(result["attribution"], same["attribution"], atol=1e-6)


def test_precision_reaches_the_adapter(tmp_path: Path) -> None:
    adapter(tmp_path, "lora with a new head")
    half = load_model(tmp_path, dtype="bfloat16").model
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


def test_names_of_transformers_4(tmp_path: Path) -> None:
    expected = adapter(tmp_path)
    old = {"vit.layers": "vit.encoder.layer", "q_proj": "attention.query",
           "v_proj": "attention.value"}  # fmt: skip
    weights = load_file(tmp_path / "adapter_model.safetensors")
    for new, name in old.items():
        weights = {key.replace(new, name): value for key, value in weights.items()}
    save_file(weights, tmp_path / "adapter_model.safetensors")
    folders.edit(tmp_path / CONFIG, target_modules=["query", "value"])
    model: Any = load_model(tmp_path).model
    assert torch.allclose(model(PIXELS).logits, expected, atol=1e-6)


def test_its_own_config_and_processor_come_first(tmp_path: Path) -> None:
    adapter(tmp_path, "lora with a new head")
    shutil.copy(bundled_folder() / "preprocessor_config.json", tmp_path)
    folders.edit(tmp_path / "preprocessor_config.json", image_mean=[0.25] * 3)
    labels = {str(number): f"kind {number}" for number in range(5)}
    shutil.copy(bundled_folder() / "config.json", tmp_path)
    folders.edit(tmp_path / "config.json", id2label=labels,
                 label2id={name: int(key) for key, name in labels.items()})  # fmt: skip
    loaded = load_model(tmp_path)
    assert label_of(loaded.model.config, 4) == "kind 4"
    processor: Any = loaded.processor
    assert list(processor.image_mean) == [0.25] * 3


def test_a_base_beside_it_and_one_without_head(tmp_path: Path) -> None:
    expected = adapter(tmp_path / "adapter", "lora with a new head", base="../plain-base")
    model: Any = ViTForImageClassification.from_pretrained(bundled_folder())
    model.vit.save_pretrained(tmp_path / "plain-base")
    shutil.copy(bundled_folder() / "preprocessor_config.json", tmp_path / "plain-base")
    loaded: Any = load_model(tmp_path / "adapter").model
    assert torch.allclose(loaded(PIXELS).logits, expected, atol=1e-6)


def _other_base(folder: Path) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    half = {name: value.chunk(2, dim=int("lora_A" in name))[0].clone() for name, value in
            weights.items()}  # fmt: skip
    save_file(half, folder / "adapter_model.safetensors")


def _pickled(folder: Path) -> None:
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda folder: folders.edit(folder / CONFIG, base_model_name_or_path=None),
         "names no base model; write its name"),
        (lambda folder: folders.edit(folder / CONFIG, base_model_name_or_path="/no/such"),
         "base model that can't be used: there is no model folder /no/such"),
        (lambda folder: (folder / CONFIG).write_text("{"), "is no JSON"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "has no weights"),
        (_pickled, "only pickled weights .adapter_model.bin.* --no-use-safetensors"),
        (_other_base, "does not fit its base model .*q_proj.lora_A.weight; it was trained on"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_adapter(
    tmp_path: Path, change: Callable[[Path], object], text: str
) -> None:
    adapter(tmp_path)
    change(tmp_path)
    with pytest.raises(ModelLoadError, match=text):
        load_model(tmp_path)


@pytest.mark.parametrize("names", ["a", "ab", "abc"])
def test_an_adapter_that_is_its_own_base_model_is_one_short_error(
    tmp_path: Path, names: str
) -> None:
    for name, base in zip(names, names[1:] + names[0], strict=True):
        (tmp_path / name).mkdir()
        values = {"base_model_name_or_path": str(tmp_path / base), "peft_type": "LORA"}
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(values))
    with pytest.raises(ModelLoadError, match="an adapter that is its own base model; write") as got:
        load_model(tmp_path / "a")
    assert len(str(got.value)) < 500 * (len(names) + 1)


def test_a_pickled_adapter(tmp_path: Path) -> None:
    expected = adapter(tmp_path)
    _pickled(tmp_path)
    model: Any = load_model(tmp_path, use_safetensors=False).model
    assert torch.allclose(model(PIXELS).logits, expected, atol=1e-6)


def test_weights_of_other_shapes_than_the_config_says(tmp_path: Path) -> None:
    labels = {str(number): str(number) for number in range(10)}
    folders.copy(tmp_path / "model", id2label=labels, label2id={"0": 0})
    with pytest.raises(ModelLoadError, match=r"classifier.bias has the shape \(8,\), and the .*10"):
        load_model(tmp_path / "model")


def test_the_folder_of_a_training_run(tmp_path: Path) -> None:
    for step in (9, 60, 120):
        folders.copy(tmp_path / f"checkpoint-{step}")
    shutil.move(tmp_path / "checkpoint-120" / "preprocessor_config.json", tmp_path)
    done = run("explain", "--model", tmp_path, "--output", tmp_path / "out")
    assert done.code == 1
    assert "it holds checkpoint-9, checkpoint-60, checkpoint-120: name one, such as" in done.error
    assert done.error.endswith("/checkpoint-120")
    done = run("explain", "--model", tmp_path / "checkpoint-120", "--output", tmp_path / "out")
    assert done.code == 1
    assert done.error.endswith(f"on the command line --processor {tmp_path.resolve()}")
    words = "--model", tmp_path / "checkpoint-120", "--processor", tmp_path
    done = run("explain", *words, "--output", tmp_path / "out")
    assert done.code == 0, done.err


def test_a_processor_from_elsewhere(tmp_path: Path) -> None:
    folders.variant(tmp_path / "other", 0.25)
    loaded = load_model("bundled", processor=tmp_path / "other")
    processor: Any = loaded.processor
    assert list(processor.image_mean) == [0.25] * 3
    same = load_model(tmp_path / "other", processor="bundled").processor
    assert same.to_dict() == load_model("bundled").processor.to_dict()
    with pytest.raises(ModelLoadError, match=r"there is no model folder \./none"):
        load_model("bundled", processor="./none")
