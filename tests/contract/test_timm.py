"""timm models in Transformers' wrapper, where timm is installed with a torchvision that works."""

from __future__ import annotations

import copy
import importlib
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

from hf_gmar import GMAR
from hf_gmar._core.head_masking import scores_with_masked_heads
from hf_gmar.errors import InputError, ModelOutputError, UnsupportedModelError
from hf_gmar.methods import METHODS
from tests.reference import oracles
from tests.reference.cases import LABELS, TARGETS, VIT
from tests.reference.parity import near
from tests.reference.timm_models import ARCHITECTURES, build
from tests.reference.tolerances import PARITY

try:
    importlib.import_module("timm")
except (ImportError, RuntimeError) as reason:
    pytest.skip(f"timm can't be imported: {reason}", allow_module_level=True)


def wanted(model: Any, image: Tensor, target: int, readout: list[float]) -> Any:
    """GMAR by whole matrices, from attention that timm computes step by step."""
    model = copy.deepcopy(model)
    maps = _maps(model)
    model(image[None]).logits[0, target].backward()
    attention, gradient = (
        np.stack([part[0].detach().double().numpy() for part in parts])
        for parts in (maps, [cast("Tensor", one.grad) for one in maps])
    )
    patches = attention.shape[-1] - len(readout)
    row = np.array(readout + [(1 - sum(readout)) / patches] * patches)
    weights = [oracles.head_weights(layer, "l1") for layer in gradient]
    return (row @ oracles.rollout(attention, weights, 1.0))[len(readout) :].reshape(4, 4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_equals_the_oracle(name: str) -> None:
    architecture, settings, readout = ARCHITECTURES[name]
    model, images = build(architecture, **settings), VIT.images()
    maps = GMAR(model).attribute_patches(images, TARGETS)
    for image, target, patches in zip(images, TARGETS, maps, strict=True):
        assert near(patches, wanted(model, image, target, readout), PARITY)


def test_no_attention_maps_for_the_dense_engine() -> None:
    with pytest.raises(UnsupportedModelError, match=r"no attention maps.*engine=.streaming"):
        GMAR(build("vit_tiny_patch16_224"), engine="dense")


def test_no_layers_to_recompute() -> None:
    gmar = GMAR(build("vit_tiny_patch16_224"), checkpoint=True)
    with pytest.raises(UnsupportedModelError, match="checkpoint=False"):
        gmar.attribute(VIT.images(), 3)


def test_another_size() -> None:
    with pytest.raises(InputError, match="refused images of 40 x 16"):
        GMAR(build("vit_tiny_patch16_224")).attribute(torch.randn(1, 3, 40, 16), 3)


def test_other_poolings_and_models() -> None:
    labels: dict[str, Any] = {"num_labels": LABELS}
    with pytest.raises(UnsupportedModelError, match="pools its tokens by 'map'"):
        GMAR(build("vit_base_patch16_siglip_224"))
    config = TimmWrapperConfig(architecture="resnet18", **labels)
    with pytest.raises(UnsupportedModelError, match=r"resnet18 is a ResNet; .*VisionTransformer"):
        GMAR(TimmWrapperForImageClassification(config))


def test_heads_of_timm_models_are_not_masked() -> None:
    """They compute attention past Transformers."""
    masked = torch.ones(3, 4, dtype=torch.bool)
    with pytest.raises(ModelOutputError, match="made 0 calls"):
        scores_with_masked_heads(build("vit_tiny_patch16_224"), VIT.images(), masked)


@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.parametrize("architecture", ["vit", "deit-distilled", "eva"])
def test_every_method_explains_it(architecture: str, name: str) -> None:
    """Those that need layers find timm's blocks; what LeGrad gives is that of cut-off models."""
    model_name, settings, readout = ARCHITECTURES[architecture]
    model, images = build(model_name, **settings), torch.randn(2, 3, 32, 32)
    patches = METHODS.build(name, model).attribute_patches(images, 3)
    assert patches.shape == (2, 4, 4)
    assert patches.abs().sum() > 0
    if name != "legrad":
        return
    found = torch.zeros_like(patches)
    for kept in (1, 2, 3):
        cut = copy.deepcopy(model)
        cut.timm_model.blocks = cut.timm_model.blocks[:kept]
        maps = _maps(cut)
        cut(images).logits[:, 3].sum().backward()
        gradient = maps[-1].grad
        assert gradient is not None
        columns = gradient.clamp(min=0).mean((1, 2))[:, len(readout) :]
        found += columns.reshape(found.shape) / 3
    assert torch.allclose(patches, found, rtol=1e-4, atol=1e-7)


def _maps(model: Any) -> list[Tensor]:
    """The attention of each block, once the model has run."""
    maps: list[Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Tensor) -> None:
        output.retain_grad()
        maps.append(output)

    for block in model.timm_model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(keep)
    return maps
