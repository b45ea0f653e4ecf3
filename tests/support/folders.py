"""Model folders for tests of loading: the bundled model with changes, and models for prompts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    MetaClip2Config,
    MetaClip2Model,
    PreTrainedModel,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from hf_gmar.models import bundled_folder, load_model
from tests.reference.models import prompted, tokenizer


def edit(file: Path, **values: object) -> None:
    """Change values in a file of JSON."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def copy(folder: Path, **config: object) -> Path:
    """The bundled model, with these values in its config."""
    shutil.copytree(bundled_folder(), folder)
    edit(folder / "config.json", **config)
    return folder


def variant(folder: Path, number: float = 0.5, **config: object) -> Path:
    """The bundled model, with a number of its own in the weights and in the processor."""
    copy(folder, **config)
    model: Any = load_model(folder).model
    with torch.no_grad():
        model.get_parameter("classifier.bias").fill_(number)
    model.save_pretrained(folder)
    edit(folder / "preprocessor_config.json", image_mean=[number] * 3)
    return folder


def pickled(folder: Path) -> Path:
    """The same weights as pytorch_model.bin alone."""
    model = load_model(folder).model
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def own_model(folder: Path, trace: Path) -> Path:
    """A model whose class is in the repository; running its code leaves a trace."""
    (folder / "modeling_own.py").write_text(
        "from pathlib import Path\n"
        "from transformers import ViTConfig, ViTForImageClassification\n"
        f"Path({str(trace)!r}).touch()\n"
        "class OwnConfig(ViTConfig):\n"
        "    model_type = 'own'\n"
        "class OwnViT(ViTForImageClassification):\n"
        "    config_class = OwnConfig\n"
    )
    places = {"AutoConfig": "OwnConfig", "AutoModelForImageClassification": "OwnViT"}
    auto_map = {key: f"modeling_own.{name}" for key, name in places.items()}
    edit(folder / "config.json", model_type="own", architectures=["OwnViT"], auto_map=auto_map)
    return folder


def own_processor(folder: Path, trace: Path) -> Path:
    """An image processor whose class is in the repository; its code leaves a trace."""
    (folder / "processing_own.py").write_text(
        "from pathlib import Path\n"
        "from transformers import ViTImageProcessorPil\n"
        f"Path({str(trace)!r}).touch()\n"
        "class OwnProcessor(ViTImageProcessorPil):\n"
        "    pass\n"
    )
    edit(
        folder / "preprocessor_config.json",
        image_processor_type="OwnProcessor",
        auto_map={"AutoImageProcessor": "processing_own.OwnProcessor"},
    )
    return folder


IMAGE_TEXT_MODEL: dict[str, tuple[type[PreTrainedModel], Any]] = {
    "clip": (CLIPModel, CLIPConfig),
    "metaclip2": (MetaClip2Model, MetaClip2Config),
    "siglip": (SiglipModel, SiglipConfig),
}
"""Models of image and text."""


def of_two(folder: Path, name: str = "clip") -> Path:
    """A tiny one with the tokenizer that knows the words of ``tests.reference.models.PROMPTS``."""
    prompted(*IMAGE_TEXT_MODEL[name]).model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    size = {"height": 32, "width": 32}
    if name == "siglip":
        SiglipImageProcessorPil(size=size).save_pretrained(folder)
    else:  # to the shortest edge, of which the middle
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    return folder
