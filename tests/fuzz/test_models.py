"""Model folders whose files were changed: a model or an error, without network or much memory."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file

from hf_gmar import GMAR
from hf_gmar.cli.catalogue import describe
from hf_gmar.errors import HfGmarError
from hf_gmar.models import LoadedModel, bundled_folder, load_config, load_model
from hf_gmar.models.labels import find_class, labels_of
from tests.reference.models import PROMPTS
from tests.support import folders
from tests.support.mutations import as_a_user, bounded, changed_bytes, changed_json, no_network

pytestmark = pytest.mark.extended

MEGABYTES = 700  # the limit of a model of few weights is 400 MB

CONFIG = (
    "architectures", "model_type", "auto_map", "quantization_config", "dtype", "torch_dtype",
    "id2label", "label2id", "num_labels", "transformers_weights", "_name_or_path", "backbone",
    "backbone_config", "use_timm_backbone", "use_pretrained_backbone", "text_config",
    "vision_config", "_attn_implementation", "attn_implementation", "experts_implementation",
    "_commit_hash", "tie_word_embeddings", "problem_type", "return_dict", "output_attentions",
    "output_hidden_states", "configuration_files", "torchscript", "chunk_size_feed_forward",
    "is_encoder_decoder", "base_model_tp_plan", "name_or_path", "adapter_kwargs", "head_dim",
    "pruned_heads", "gradient_checkpointing", "rope_parameters", "layer_types",
)  # fmt: skip
PROCESSOR = (
    "image_processor_type", "feature_extractor_type", "processor_class", "auto_map", "do_pad",
    "crop_size", "do_center_crop", "do_convert_rgb", "pad_size", "size_divisor", "resample",
    "data_format", "input_data_format", "default_to_square", "do_resize", "image_processor",
    "device", "return_tensors", "_processor_class", "disable_grouping", "crop_pct",
)  # fmt: skip


def _json(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def _header(file: Path) -> tuple[Any, bytes]:
    """The header of a file of safetensors, and its numbers."""
    content = file.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def _fails_well(call: Callable[[], Any]) -> None:
    """A model that can be used, or an error of ours in few words."""
    with as_a_user(), bounded(MEGABYTES), no_network():
        try:
            loaded = call()
        except HfGmarError as error:
            assert len(str(error)) < 3000, str(error)[:3000]  # noqa: PT017
            return
        if isinstance(loaded, LoadedModel):
            config: Any = loaded.model.config
            labels = labels_of(config)
            assert set(labels) == set(range(len(labels)))
            assert find_class(config, 0) == 0
            with suppress(HfGmarError):
                pixels = loaded.pixels(Image.new("RGB", (20, 30)))
                maps = GMAR(loaded.model).attribute(pixels)
                assert maps.isfinite().all()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.copy(tmp_path_factory.mktemp("fuzz") / "model")


@given(changed_json(_json(bundled_folder(), "config.json"), CONFIG))
def test_any_config(model: Path, content: bytes) -> None:
    _with(model, "config.json", content, lambda: load_model(model))


@given(changed_json(_json(bundled_folder(), "config.json"), CONFIG))
def test_any_config_alone(model: Path, content: bytes) -> None:
    _with(model, "config.json", content, lambda: describe(load_config(model), "it"))


@given(changed_json(_json(bundled_folder(), "preprocessor_config.json"), PROCESSOR))
def test_any_processor(model: Path, content: bytes) -> None:
    _with(model, "preprocessor_config.json", content, lambda: load_model(model))


@given(changed_json(_header(bundled_folder() / "model.safetensors")[0], ("__metadata__",)))
def test_any_header_of_weights(model: Path, header: bytes) -> None:
    numbers = _header(bundled_folder() / "model.safetensors")[1]
    content = struct.pack("<Q", len(header)) + header + numbers
    _with(model, "model.safetensors", content, lambda: load_model(model))


@given(changed_bytes([(bundled_folder() / "model.safetensors").read_bytes()]))
def test_any_weights(model: Path, content: bytes) -> None:
    _with(model, "model.safetensors", content, lambda: load_model(model))


def _with(folder: Path, name: str, content: bytes, call: Callable[[], Any]) -> None:
    """Call with another content of a file, which is put back."""
    file = folder / name
    before = file.read_bytes()
    file.write_bytes(content)
    try:
        _fails_well(call)
    finally:
        file.write_bytes(before)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model in two files of weights and their index."""
    folder = folders.copy(tmp_path_factory.mktemp("fuzz") / "sharded")
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    places = {name: f"model-{index % 2}.safetensors" for index, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: weights[name] for name in names if places[name] == file}, folder / file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(INDEX | {"weight_map": places}))
    return folder


INDEX: dict[str, Any] = {
    "metadata": {"total_size": 1},
    "weight_map": {
        name: f"model-{index % 2}.safetensors"
        for index, name in enumerate(sorted(_header(bundled_folder() / "model.safetensors")[0]))
        if name != "__metadata__"
    },
}


@given(changed_json(INDEX, ("weight_map", "metadata", "all_checkpoint_keys")))
def test_any_index_of_weights(sharded: Path, content: bytes) -> None:
    name = "model.safetensors.index.json"
    _with(sharded, name, content, lambda: load_model(sharded))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "adapter"
    with as_a_user():
        tuned = get_peft_model(load_model("bundled").model, LoraConfig(target_modules=["q_proj"]))
        tuned.save_pretrained(str(folder))
    shutil.copytree(bundled_folder(), folder / "base")
    return folder


ADAPTER = vars(LoraConfig()) | {
    "base_model_name_or_path": "base", "target_modules": ["q_proj"],
    "peft_type": "LORA",
}  # fmt: skip
ADAPTER = {
    name: value
    for name, value in ADAPTER.items()
    if isinstance(value, str | int | float | list | dict | None)
}


@given(
    changed_json(ADAPTER, ("auto_mapping", "modules_to_save", "megatron_config", "rank_pattern"))
)
def test_any_adapter(adapter: Path, content: bytes) -> None:
    """Its base is on the Hub if it is said to be so; that is tested elsewhere."""
    try:
        base = json.loads(content)["base_model_name_or_path"]
    except (ValueError, TypeError, KeyError, RecursionError):
        base = "base"
    if base == "base":
        _with(adapter, "adapter_config.json", content, lambda: load_model(adapter))


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.of_two(tmp_path_factory.mktemp("fuzz") / "of_two")


@given(st.data())
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
def test_any_model_of_image_and_text(of_two: Path, name: str, data: st.DataObject) -> None:
    words = (
        "tokenizer_class",
        "auto_map",
        "added_tokens_decoder",
        "model_max_length",
        "chat_template",
        "vision_config",
        "text_config",
        "model",
        "extra_special_tokens",
    )
    content = data.draw(changed_json(_json(of_two, name), words))
    _with(of_two, name, content, lambda: load_model(of_two, prompts=PROMPTS))
