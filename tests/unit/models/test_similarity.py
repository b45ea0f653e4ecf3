"""The similarity to another image as a score."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    BeitConfig,
    BeitModel,
    CLIPConfig,
    CLIPForImageClassification,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Data2VecVisionConfig,
    Data2VecVisionForImageClassification,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    IJepaConfig,
    IJepaModel,
    PixioConfig,
    PixioModel,
    SiglipConfig,
    SiglipForImageClassification,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from hf_gmar import (
    GMAR,
    LogitsModel,
    SimilarityModel,
    TokenLayout,
    ZeroShotModel,
    register_layout,
)
from hf_gmar.errors import InputError, OptionError, UnsupportedModelError
from hf_gmar.methods import METHODS
from hf_gmar.models import ScoreKind
from tests.reference import oracles
from tests.reference.cases import VIT, Around, build
from tests.reference.models import PROMPTS, of_two, own_head, state_of, tokenizer
from tests.reference.parity import near, same
from tests.reference.tolerances import PARITY

IMAGES = VIT.images()
OTHER = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(9))


def _two(config: Any) -> Any:
    return functools.partial(of_two, config)


def _input_of_head(name: str) -> Callable[[Any, Tensor], Tensor]:
    """What enters a class head, by a hook."""

    def read(model: Any, pixels: Tensor) -> Tensor:
        seen: list[Tensor] = []
        head = model.get_submodule(name)
        handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        model(pixels)
        handle.remove()
        return seen[0]

    return read


def _both_heads(model: Any, pixels: Tensor) -> Tensor:
    return torch.cat(
        [_input_of_head(f"{one}_classifier")(model, pixels) for one in ("cls", "distillation")], 1
    )


def _features(model: Any, pixels: Tensor) -> Tensor:
    features: Tensor = model.get_image_features(pixels).pooler_output
    return features


def _pooler(model: Any, pixels: Tensor) -> Tensor:
    pooled: Tensor = model(pixels).pooler_output
    return pooled


def _token(model: Any, pixels: Tensor) -> Tensor:
    token: Tensor = model(pixels).last_hidden_state[:, 0]
    return token


def _mean(model: Any, pixels: Tensor) -> Tensor:
    mean: Tensor = model(pixels).last_hidden_state.mean(1)
    return mean


MODELS: dict[str, tuple[Any, Any, str, Callable[[Any, Tensor], Tensor]]] = {
    "dinov2": (Dinov2Model, Dinov2Config, "cls", _pooler),
    "dinov3": (DINOv3ViTModel, DINOv3ViTConfig, "cls", _pooler),
    "vit": (ViTModel, ViTConfig, "cls", _token),
    "beit": (BeitModel, BeitConfig, "patches", _pooler),
    "ijepa": (IJepaModel, IJepaConfig, "patches", _mean),
    "pixio": (PixioModel, PixioConfig, "cls", _pooler),
    "clip-vision": (CLIPVisionModel, CLIPVisionConfig, "cls", _pooler),
    "siglip-vision": (SiglipVisionModel, SiglipVisionConfig, "pooling", _pooler),
    "clip": (CLIPModel, _two(CLIPConfig), "cls", _features),
    "siglip": (SiglipModel, _two(SiglipConfig), "pooling", _features),
    "vit-classes": (ViTForImageClassification, ViTConfig, "cls", _input_of_head("classifier")),
    "dinov2-classes": (
        Dinov2ForImageClassification,
        Dinov2Config,
        "cls+patches",
        _input_of_head("classifier"),
    ),
    "registers-classes": (
        Dinov2WithRegistersForImageClassification,
        Dinov2WithRegistersConfig,
        "cls+patches",
        _input_of_head("classifier"),
    ),
    "data2vec-classes": (
        Data2VecVisionForImageClassification,
        Data2VecVisionConfig,
        "patches",
        _input_of_head("classifier"),
    ),
    "clip-classes": (
        CLIPForImageClassification,
        _two(CLIPConfig),
        "patches",
        _input_of_head("classifier"),
    ),
    "siglip-classes": (
        SiglipForImageClassification,
        _two(SiglipConfig),
        "patches",
        _input_of_head("classifier"),
    ),
    "deit-teacher": (
        DeiTForImageClassificationWithTeacher,
        DeiTConfig,
        "cls+distillation",
        _both_heads,
    ),
}
"""Class, config, the tokens that are pooled, and the embedding by the model's own outputs."""


def cosines(embed: Any, model: Any, images: Tensor, others: Tensor) -> Tensor:
    """The cosine of each image and each other image, by NumPy in float64."""
    with torch.no_grad():
        double = copy.deepcopy(model).double()
        left, right = (embed(double, pixels.double()).numpy() for pixels in (images, others))
    lengths = np.linalg.norm(left, axis=1)[:, None] * np.linalg.norm(right, axis=1)
    return torch.from_numpy(left @ right.T / lengths)


@pytest.mark.parametrize("name", MODELS)
def test_scores_are_cosines_of_what_the_model_pools(name: str) -> None:
    kind, config, readout, embed = MODELS[name]
    model = build(kind, config)
    before = state_of(model)
    similarity = SimilarityModel(model, [IMAGES[:1], OTHER])
    assert similarity.readout == readout
    wanted = cosines(embed, model, IMAGES, torch.cat([IMAGES[:1], OTHER]))
    found = similarity(IMAGES).detach()
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-5)
    assert float(found[0, 0]) == pytest.approx(1, abs=1e-5)
    # Where the readout is wrong, a warning, which is an error here, says so.
    maps = GMAR(similarity).attribute_patches(IMAGES, target=1)
    assert maps.shape == (3, 4, 4)
    assert state_of(model) == before


@pytest.mark.parametrize("method", METHODS.built_in)
@pytest.mark.parametrize("name", ["dinov2", "siglip", "clip-classes"])
def test_every_method_explains_it(name: str, method: str) -> None:
    kind, config, *_ = MODELS[name]
    explain = METHODS.build(method, SimilarityModel(build(kind, config), OTHER))
    assert explain.attribute(IMAGES, target=0).shape == IMAGES.shape
    assert explain.attribute_patches(IMAGES).any()


@pytest.mark.parametrize("method", ["gmar", "attention_rollout", "gradient_rollout", "grad_sam"])
def test_maps_equal_the_oracle(method: str) -> None:
    model = build(Dinov2Model, Dinov2Config)
    target = _pooler(copy.deepcopy(model).double(), OTHER.double()).detach()
    cosine = Around(
        model,
        lambda inside, pixels: torch.nn.functional.cosine_similarity(
            _pooler(inside, pixels), target.to(pixels)
        )[:, None],
    )
    wanted = getattr(oracles, method)(oracles.trace(cosine, IMAGES, [0, 0, 0], reads="cls"))
    built = METHODS.build(method.replace("_", "-"), SimilarityModel(model, OTHER))
    assert near(built.attribute_patches(IMAGES, 0), wanted.patches, PARITY)


def test_a_contrast_of_two_references() -> None:
    model = build(Dinov2Model, Dinov2Config)
    both = SimilarityModel(model, torch.cat([OTHER, OTHER.flip(3)]), names=["a", "b"])
    assert both.config.id2label == {0: "similar to a", 1: "similar to b"}
    lrp = METHODS.build("attn-lrp", both)
    difference = lrp.attribute_patches(IMAGES, 0) - lrp.attribute_patches(IMAGES, 1)
    assert same(lrp.attribute_patches(IMAGES, 0, contrast=1), difference)


def test_scores_are_values() -> None:
    model = SimilarityModel(VIT.build(), OTHER)
    kind = ScoreKind.of(model.config, model(IMAGES))
    assert kind is ScoreKind.VALUE
    assert "%" not in kind.text(0.8349)


def test_a_module_around_the_model() -> None:
    vit, clip = VIT.build(), build(CLIPModel, _two(CLIPConfig))
    for inner, around in (
        (vit, LogitsModel(vit)),
        (clip, ZeroShotModel(clip, tokenizer(), PROMPTS)),
        (build(ViTModel, ViTConfig), own_head(ViTModel, ViTConfig, lambda tokens: tokens[:, 0])),
    ):
        expected = SimilarityModel(inner, OTHER)(IMAGES)
        assert torch.allclose(SimilarityModel(around, OTHER)(IMAGES), expected, atol=1e-6)


def test_other_sizes_with_a_keyword() -> None:
    keywords: Any = {"interpolate_pos_encoding": True}
    model = SimilarityModel(VIT.build(), torch.rand(1, 3, 40, 16), **keywords)
    assert GMAR(model).attribute_patches(torch.rand(1, 3, 24, 48), 0).shape == (1, 3, 6)


def test_references_are_made_in_evaluation_mode() -> None:
    model = build(Dinov2Model, Dinov2Config, hidden_dropout_prob=0.5).train()
    with torch.inference_mode():
        similarity = SimilarityModel(model, OTHER)
    assert model.training
    assert not similarity.references.requires_grad
    assert float(similarity.eval()(OTHER).detach()) == pytest.approx(1, abs=1e-5)
    assert GMAR(similarity).attribute_patches(IMAGES, 0).any()


@pytest.mark.usefixtures("layouts")
def test_what_has_no_similarity() -> None:
    with pytest.raises(InputError, match="pixel values of shape"):
        SimilarityModel(VIT.build(), OTHER[0])
    with pytest.raises(InputError, match="whole patches"):
        SimilarityModel(VIT.build(), torch.rand(1, 3, 33, 32))
    with pytest.raises(OptionError, match="2 names are given for 1 reference images"):
        SimilarityModel(VIT.build(), OTHER, names=["a", "b"])
    with pytest.raises(UnsupportedModelError, match="exactly one Transformers model"):
        SimilarityModel(torch.nn.Linear(1, 1), OTHER)

    class OtherConfig(ViTConfig):
        model_type = "other"

    register_layout("other", TokenLayout(readout=(1.0,)))
    with pytest.raises(UnsupportedModelError, match="not known how ViTModel embeds an image"):
        SimilarityModel(build(ViTModel, OtherConfig), OTHER)
