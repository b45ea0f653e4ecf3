"""Models that take no images: refused at once, wherever images are needed, with the same reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from transformers import (
    ClapConfig,
    ClapModel,
    VideoPrismForVideoClassification,
    VideoPrismVisionConfig,
    VJEPA2Config,
    VJEPA2ForVideoClassification,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
    WhisperConfig,
    WhisperForAudioClassification,
    XCLIPConfig,
    XCLIPModel,
    XCLIPVisionModel,
)

from hf_gmar import GMAR, RawAttention, TokenLayout, explain, load_model, register_layout
from hf_gmar._core.media import check_takes_images
from hf_gmar.errors import ModelLoadError, UnsupportedModelError
from hf_gmar.models import sample_image
from tests.reference.cases import VIT
from tests.reference.media_models import MEDIA, MediaCase
from tests.support.command import run

TINY: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
ONE_LAYER = {**TINY, "num_hidden_layers": 1}
FRAMES = {**ONE_LAYER, "image_size": 32, "patch_size": 16, "num_frames": 2, "projection_dim": 16}


class Other(NamedTuple):
    """A tiny model without images, and what it takes."""

    make: Callable[[], Any]
    takes: str


def _xclip(kind: Any = XCLIPModel) -> Any:
    temporal = {f"mit_{name}": value for name, value in ONE_LAYER.items()}
    config = XCLIPConfig(
        text_config={**ONE_LAYER, "vocab_size": 50, "projection_dim": 16},
        vision_config={**FRAMES, **temporal},
        projection_dim=16,
        prompt_num_attention_heads=2,
    )
    return kind(config.vision_config if kind is XCLIPVisionModel else config)


def _clap() -> Any:
    audio: dict[str, Any] = {
        "spec_size": 64, "num_mel_bins": 32, "patch_embeds_hidden_size": 16, "hidden_size": 32,
        "depths": [1, 1], "num_attention_heads": [2, 2], "window_size": 4, "projection_dim": 16,
    }  # fmt: skip
    text: dict[str, Any] = {**ONE_LAYER, "vocab_size": 50, "projection_dim": 16}
    return ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=16))


def _wav2vec2() -> Any:
    convolutions: dict[str, Any] = {"conv_dim": (8,), "conv_stride": (2,), "conv_kernel": (3,)}
    positions: dict[str, Any] = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    config = Wav2Vec2Config(**ONE_LAYER, **convolutions, **positions)
    return Wav2Vec2ForSequenceClassification(config)


def _whisper() -> Any:
    sizes: dict[str, Any] = {}
    for part in ("encoder", "decoder"):
        sizes |= {f"{part}_layers": 1, f"{part}_attention_heads": 2, f"{part}_ffn_dim": 16}
    return WhisperForAudioClassification(WhisperConfig(d_model=16, vocab_size=50, **sizes))


def _vjepa2() -> Any:
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    predictor = {f"pred_{name}": size for name, size in sizes.items()}
    config = VJEPA2Config(
        crop_size=32, frames_per_clip=2, num_pooler_layers=1, **sizes, **predictor
    )
    return VJEPA2ForVideoClassification(config)


def _videoprism() -> Any:
    layers: dict[str, Any] = {
        f"num_{part}_layers": 1 for part in ("spatial", "temporal", "auxiliary")
    }
    config = VideoPrismVisionConfig(image_size=36, num_frames=2, **layers, **TINY)
    return VideoPrismForVideoClassification(config)


MODELS = {
    "CLAP": Other(_clap, "sound (input_features)"),
    "VideoPrism": Other(_videoprism, "videos"),
    "V-JEPA 2": Other(_vjepa2, "videos"),
    "wav2vec 2": Other(_wav2vec2, "sound (input_values)"),
    "Whisper": Other(_whisper, "sound (input_features)"),
    "X-CLIP": Other(_xclip, "videos"),
    "X-CLIP's frames": Other(lambda: _xclip(XCLIPVisionModel), "videos"),
}


@pytest.mark.usefixtures("layouts")
@pytest.mark.parametrize("name", MODELS)
def test_a_model_without_images_is_refused_everywhere(name: str, tmp_path: Path) -> None:
    model = MODELS[name].make()
    medium = MODELS[name].takes
    others = {"videos": "VideoMAE, ViViT, TimeSformer", "sound": "AST"}[medium.split()[0]]
    reason = (
        f"hf_gmar explains images, and {type(model).__name__} takes {medium}; of these it explains "
        f"{others}"
    )
    register_layout(type(model).__name__, TokenLayout(readout=(1.0,), patch_size=(8, 8)))
    for refused in (
        lambda: GMAR(model),
        lambda: GMAR(model, readout="patches"),
        lambda: GMAR(nn.Sequential(model), readout="cls"),
        lambda: RawAttention(model),
        lambda: explain(sample_image(), model),
    ):
        with pytest.raises(UnsupportedModelError) as caught:
            refused()
        assert str(caught.value) == reason

    model.save_pretrained(tmp_path)
    for head in (True, None):
        with pytest.raises(ModelLoadError) as failed:
            load_model(tmp_path, head=head)
        assert str(failed.value) == f"{str(tmp_path)!r} can't be explained: {reason}"
    described = run("models", tmp_path)
    assert described.code == 1
    assert reason in " ".join(described.out.split())
    explained = run("explain", sample_image(), "--model", tmp_path)
    assert explained.code == 1
    assert f"can't be explained: {reason}" in explained.error


@pytest.mark.parametrize("case", MEDIA, ids=lambda case: case.name)
def test_what_begins_with_an_image_says_that_methods_explain_it(
    case: MediaCase, tmp_path: Path
) -> None:
    model = case.make("sdpa")
    takes = "sound" if case.name == "AST" else "videos"
    reason = f"images are needed here, and {type(model).__name__} takes {takes}; in Python, methods"
    with pytest.raises(UnsupportedModelError, match=reason):
        explain(sample_image(), model)
    model.save_pretrained(tmp_path)
    for head in (True, None):
        with pytest.raises(ModelLoadError, match=reason):
            load_model(tmp_path, head=head)
    described = run("models", tmp_path)
    text = " ".join(described.out.split())
    assert described.code == 0
    assert f"takes │ {takes}" in text
    assert ("GMAR" if case.has_attention else "AttnLRP") + "(model).attribute(inputs)" in text
    explained = run("explain", sample_image(), "--model", tmp_path)
    assert explained.code == 1
    assert reason in explained.error


def test_models_with_images_and_something_else_are_not_refused() -> None:
    """A tower of images counts, however the model around it names its inputs."""

    class WithTexts(type(VIT.build())):  # type: ignore[misc]
        def forward(self, input_ids: torch.Tensor) -> Any:
            return super().forward(input_ids)

    around = WithTexts(VIT.build().config)
    around.tower = VIT.build()
    check_takes_images(around)
