"""Configs alone, and what a config can make a load do: kernels, adapters, other families."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import CLIPConfig, CLIPVisionConfig, ViTConfig

from hf_gmar.errors import HfGmarError, ModelLoadError, OptionError
from hf_gmar.models import bundled_folder, load_config, load_model
from tests.reference.models import PROMPTS
from tests.support import folders


def test_the_bundled_config(bundled: Any) -> None:
    assert load_config().to_dict() == bundled.model.config.to_dict()


def test_a_folder_needs_no_weights(tmp_path: Path) -> None:
    """Nor any other file."""
    ViTConfig(num_hidden_layers=7).save_pretrained(tmp_path)
    found = load_config(tmp_path)
    assert isinstance(found, ViTConfig)
    assert found.num_hidden_layers == 7


BAD: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "absent": (None, ("has no config.json", "folder made by save_pretrained")),
    "damaged": ('{"model_type": "v', ("a model of Transformers", "not a valid JSON")),
    "no model type": ("{}", ("has no model_type", "save_pretrained")),
    "unknown": (
        '{"model_type": "zorro"}',
        ("of the model type 'zorro'", "Transformers 5.", "pip install --upgrade transformers"),
    ),
    **{
        f"architectures {names}": (
            f'{{"model_type": "vit", "architectures": {names}}}',
            (f"has the architectures {shown}", "list with the name"),
        )
        for names, shown in {
            '"ViT"': "'ViT'",
            "16": "16",
            "true": "True",
            "[[1]]": "[[1]]",
            '{"a": 1}': "{'a': 1}",
        }.items()
    },
    "of another type": ('{"model_type": "vit", "patch_size": "large"}', ("patch_size", "'large'")),
}


@pytest.mark.parametrize("name", BAD)
def test_configs_that_are_none(tmp_path: Path, name: str) -> None:
    content, words = BAD[name]
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    for load in (load_config, load_model):
        with pytest.raises(ModelLoadError) as caught:
            load(tmp_path)
        said = str(caught.value).replace("an image classifier", "a model of Transformers")
        assert repr(str(tmp_path)) in said
        assert [word for word in words if word not in said] == [], said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "bundled", "revision": "v2"}, "is a local folder, which has no revisions"),
        ({"name": "owner/model", "token": "a b"}, "the token is empty or has characters"),
    ],
)
def test_options_that_can_not_be_right(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        load_config(**options)


def test_a_folder_that_is_not_there() -> None:
    with pytest.raises(ModelLoadError, match=r"there is no model folder \./nowhere"):
        load_config("./nowhere")


def test_code_beside_a_config_runs_only_where_it_is_trusted(tmp_path: Path) -> None:
    folder, trace = folders.copy(tmp_path / "model"), tmp_path / "ran"
    folders.own_model(folder, trace)
    with pytest.raises(ModelLoadError, match=r"trust_remote_code=True.*--trust-remote-code"):
        load_config(folder)
    assert not trace.exists()
    assert type(load_config(folder, trust_remote_code=True)).__name__ == "OwnConfig"
    assert trace.exists()


def test_a_family_without_image_classifiers(tmp_path: Path) -> None:
    CLIPVisionConfig().save_pretrained(tmp_path)
    words = "as an image classifier: Transformers has none for its CLIPVisionConfig; 'hf-gmar mod"
    with pytest.raises(ModelLoadError, match=words):
        load_model(tmp_path)


# Transformers would fetch and run the kernel if the package "kernels" were there. As it is not, it
# would complain; that nothing is said shows that the config's word is not heard.
KERNEL = "owner/kernel"
SAYING: dict[str, dict[str, Any]] = {
    "in public": {"attn_implementation": KERNEL},
    "in private": {"_attn_implementation": KERNEL},
    "for each part": {"attn_implementation": {"": KERNEL}},
    "by a fallback": {"attn_implementation": "flash_attention_2"},
    "not at all": {},
}


@pytest.mark.parametrize("said", SAYING)
@pytest.mark.parametrize("attention", [None, "eager"])
def test_a_kernel_that_a_config_names_is_not_fetched(
    tmp_path: Path, said: str, attention: str | None
) -> None:
    folder = folders.copy(tmp_path / "model", **SAYING[said])
    model: Any = load_model(folder, attn_implementation=attention).model
    assert model.config._attn_implementation == (attention or "sdpa")


@pytest.mark.parametrize("said", SAYING)
@pytest.mark.parametrize("part", ["vision_config", "text_config"])
def test_a_kernel_for_a_part_is_not_fetched(tmp_path: Path, said: str, part: str) -> None:
    folder = folders.of_two(tmp_path / "clip")
    config = json.loads((folder / "config.json").read_text())
    folders.edit(folder / "config.json", **SAYING[said], **{part: {**config[part], **SAYING[said]}})
    model: Any = load_model(folder, prompts=PROMPTS).model
    for found in (model.model, model.model.vision_model, model.model.text_model):
        assert found.config._attn_implementation == "sdpa"


def test_the_kernel_would_be_looked_for(tmp_path: Path) -> None:
    """By Transformers itself: what the tests above rest on."""
    from transformers import AutoModelForImageClassification

    for said in ("in public", "in private", "for each part"):
        folder = folders.copy(tmp_path / said, **SAYING[said])
        with pytest.raises(ImportError, match="kernels"):
            AutoModelForImageClassification.from_pretrained(folder)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A folder with an adapter of a model that is in another folder, with labels of its own."""
    base = folders.copy(tmp_path / "base", id2label={str(n): f"class {n}" for n in range(8)})
    model: Any = load_model(base).model
    lora = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(str(tmp_path / "adapter"))
    shutil.copy(bundled_folder() / "preprocessor_config.json", tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_an_adapter_has_the_config_of_what_it_adapts(adapter: Path) -> None:
    config: Any = load_config(adapter)
    assert config.id2label[3] == "class 3"
    folders.edit(adapter.parent / "base" / "config.json", **SAYING["in private"])
    adapted = load_model(adapter).model
    names = [name for name, _ in adapted.named_parameters()]
    assert any("lora" in name for name in names)
    assert adapted.config._attn_implementation == "sdpa"
    plain = load_model(adapter.parent / "base").model
    pixels = torch.rand(1, 3, 96, 96)
    assert not torch.allclose(adapted(pixels).logits, plain(pixels).logits)


def test_errors_are_ours(tmp_path: Path) -> None:
    """Also where a config names a class of another kind."""
    CLIPConfig(architectures=["AltCLIPModel"]).save_pretrained(tmp_path)
    with pytest.raises(HfGmarError):
        load_model(tmp_path)
