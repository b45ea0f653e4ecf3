"""Methods without gradients on backbones without a class head, and from one patch."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BeitConfig,
    BeitModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    IJepaConfig,
    IJepaModel,
    PixioConfig,
    PixioModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTForMaskedImageModeling,
    ViTModel,
)

from hf_gmar import (
    GMAR,
    AttentionRollout,
    AttnLRP,
    RandomAttribution,
    RawAttention,
    TokenLayout,
    ablate_heads,
    attribute_jointly,
    compare,
    head_maps,
    register_layout,
)
from hf_gmar.errors import InputError, OptionError, TargetError, UnsupportedModelError
from tests.reference import oracles
from tests.reference.cases import VIT, Around, build
from tests.reference.models import of_two, state_of
from tests.reference.parity import near, same
from tests.reference.tolerances import PARITY

BACKBONES: dict[str, tuple[Any, int, str]] = {
    "dinov2": (functools.partial(build, Dinov2Model, Dinov2Config), 1, "cls"),
    "dinov3": (
        functools.partial(build, DINOv3ViTModel, DINOv3ViTConfig, num_register_tokens=2),
        3,
        "cls",
    ),
    "vit": (functools.partial(build, ViTModel, ViTConfig), 1, "cls"),
    "vit-masked": (functools.partial(build, ViTForMaskedImageModeling, ViTConfig), 1, "cls"),
    "beit": (functools.partial(build, BeitModel, BeitConfig), 1, "patches"),
    "ijepa": (functools.partial(build, IJepaModel, IJepaConfig), 0, "patches"),
    "pixio": (functools.partial(build, PixioModel, PixioConfig, n_cls_tokens=2), 2, "all prefix"),
    "clip-vision": (
        functools.partial(build, CLIPVisionModel, CLIPVisionConfig, sharper=12),
        1,
        "cls",
    ),
    "siglip-vision": (
        functools.partial(build, SiglipVisionModel, SiglipVisionConfig, sharper=3),
        0,
        "pooling",
    ),
    "clip": (
        functools.partial(build, CLIPModel, functools.partial(of_two, CLIPConfig), sharper=12),
        1,
        "cls",
    ),
    "siglip": (
        functools.partial(build, SiglipModel, functools.partial(of_two, SiglipConfig), sharper=3),
        0,
        "pooling",
    ),
}
"""Backbones with the number of prefix tokens, and the readout of their own embedding."""

WITHOUT_GRADIENTS = (RawAttention, AttentionRollout, RandomAttribution)
IMAGES = VIT.images()[:2]


def tower_of(model: Any) -> Any:
    """The part of a backbone that takes pixels."""
    return getattr(model, "vit", getattr(model, "vision_model", model))


def attentions(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """All attention maps (B, L, H, N, N) and the output tokens, by an eager copy in float64."""
    tower = copy.deepcopy(tower_of(model)).double()
    tower.set_attn_implementation("eager")
    with torch.no_grad():
        output = tower(images.double(), output_attentions=True)
    return torch.stack(output.attentions, dim=1), output.last_hidden_state


def start(model: Any, name: Any, prefix: int, tokens: Tensor) -> Tensor:
    """The readout (B, N) by name, or at a patch of the 4 x 4 grid."""
    row = torch.zeros(tokens.shape[:2], dtype=torch.float64)
    if name == "cls":
        row[:, 0] = 1
    elif name == "patches":
        row[:, prefix:] = 1 / 16
    elif name == "all prefix":
        row[:, :prefix] = 1 / prefix
    elif name == "pooling":
        head = copy.deepcopy(tower_of(model)).double().head
        weights = [oracles.pooling_attention(head, image) for image in tokens]
        row = torch.stack([torch.from_numpy(one) for one in weights])
    else:
        row[:, prefix + 4 * name[0] + name[1]] = 1
    return row


def rolled(maps: Tensor, row: Tensor, layers: range, alpha: float) -> Tensor:
    """The readout's row of the product of whole matrices, (B, N)."""
    result = torch.eye(maps.shape[-1], dtype=torch.float64).expand(len(maps), -1, -1)
    for layer in layers:
        fused = maps[:, layer].mean(1)
        result = (fused + alpha * torch.eye(maps.shape[-1])) / (1 + alpha) @ result
    return (row[:, None] @ result)[:, 0]


@pytest.mark.pairwise
@pytest.mark.parametrize("engine", ["streaming", "dense"])
@pytest.mark.parametrize("readout", [None, (0, 0), (3, 1)], ids=str)
@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_needs_no_scores(name: str, readout: Any, engine: str) -> None:
    make, prefix, own = BACKBONES[name]
    model = make()
    maps, tokens = attentions(model, IMAGES)
    row = start(model, readout or own, prefix, tokens)
    before = state_of(model)
    raw = RawAttention(model, readout=readout, engine=engine)
    rollout = AttentionRollout(model, readout=readout, engine=engine)
    heads = head_maps(model, IMAGES, readout=readout)
    wanted = rolled(maps, row, range(2, 3), 0)[:, prefix:].reshape(-1, 4, 4).numpy()
    assert near(raw.attribute_patches(IMAGES), wanted, PARITY)
    wanted = rolled(maps, row, range(3), 1)[:, prefix:].reshape(-1, 4, 4).numpy()
    assert near(rollout.attribute_patches(IMAGES), wanted, PARITY)
    wanted = torch.einsum("bq,blhqk->blhk", row, maps)[..., prefix:].unflatten(-1, (4, 4)).numpy()
    assert near(heads, wanted, PARITY)
    assert state_of(model) == before


@pytest.mark.parametrize("name", ["dinov2", "clip"])
@pytest.mark.parametrize("method", WITHOUT_GRADIENTS)
def test_there_are_no_scores_and_no_classes(method: Any, name: str) -> None:
    explain = method(BACKBONES[name][0]())
    found = explain.attribute_with_scores(IMAGES, top_k=3)
    assert found.scores.shape == (2, 0)
    assert found.classes.tolist() == [[-1, -1]]
    assert torch.equal(found.maps[0], explain.attribute_patches(IMAGES))
    with pytest.raises(TargetError, match=r"no class head.*leave target out"):
        explain.attribute(IMAGES, target=3)


def test_a_model_with_a_head_from_one_patch() -> None:
    model = VIT.build()
    maps, tokens = attentions(model.vit, IMAGES)
    row = start(model, (2, 3), 1, tokens)
    wanted = rolled(maps, row, range(3), 1)[:, 1:].reshape(-1, 4, 4).numpy()
    for around in (model, Around(model, lambda vit, pixels: vit(pixels).logits)):
        rollout = AttentionRollout(around, readout=(2, 3))
        assert near(rollout.attribute_patches(IMAGES), wanted, PARITY)
        assert near(rollout.attribute_patches(IMAGES, target=3), wanted, PARITY)
        assert rollout.attribute_with_scores(IMAGES).scores.shape == (2, 7)


def test_a_module_that_returns_no_scores() -> None:
    model = Around(BACKBONES["vit"][0](), lambda vit, pixels: vit(pixels, return_dict=False))
    expected = RawAttention(model.model).attribute_patches(IMAGES)
    assert same(RawAttention(model, readout="cls").attribute_patches(IMAGES), expected)
    with pytest.raises(UnsupportedModelError, match="it is not known which tokens"):
        RawAttention(model)


def test_places_share_no_pass() -> None:
    model = VIT.build()
    methods = [
        GMAR(model),
        RawAttention(model),
        *(RawAttention(model, readout=(0, column)) for column in (0, 1)),
    ]
    for found, method in zip(attribute_jointly(methods, IMAGES), methods, strict=True):
        assert same(found, method.attribute_patches(IMAGES))


@pytest.mark.parametrize(
    ("readout", "error", "words"),
    [
        ((4, 0), InputError, "outside of the images' grid of 4 x 4 patches"),
        ((0, 4), InputError, r"readout=\(0, 4\) is a place outside"),
        ((-1, 0), OptionError, "before the first patch"),
        ((1, 0.5), OptionError, "has a whole number and a fraction"),
        ((3, 5, 1), OptionError, "the row and column of a patch"),
        ((True, False), OptionError, "the row and column of a patch"),
        ([3, 5], OptionError, "the row and column of a patch"),
    ],
)
def test_places_that_can_not_be(readout: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        RawAttention(VIT.build(), readout=readout).attribute(IMAGES)


@pytest.mark.parametrize("method", [GMAR, AttnLRP])
def test_gradients_need_a_score(method: Any) -> None:
    with pytest.raises(OptionError, match=r"at one patch.*RawAttention.*floats.*target=\(class"):
        method(VIT.build(), readout=(1, 0))
    with pytest.raises(UnsupportedModelError, match=r"SimilarTo"):
        method(BACKBONES["dinov2"][0]())


def test_other_questions_need_a_class_head() -> None:
    model = BACKBONES["dinov2"][0]()
    for ask in (
        lambda: compare(model, IMAGES, ["raw-attention"]),
        lambda: ablate_heads(model, IMAGES, torch.zeros(1, 3, 4)),
    ):
        with pytest.raises(UnsupportedModelError, match="class scores of Dinov2Model"):
            ask()


@pytest.mark.usefixtures("layouts")
def test_a_registered_family_from_one_patch() -> None:
    register_layout("ViTModel", TokenLayout(readout=(0.5,)))
    model = BACKBONES["vit"][0]()
    assert RawAttention(model).adapter.tokens.readout == (0.5,)
    maps, tokens = attentions(model, IMAGES)
    wanted = rolled(maps, start(model, (1, 1), 1, tokens), range(2, 3), 0)[:, 1:].reshape(2, 4, 4)
    found = RawAttention(model, readout=(1, 1)).attribute_patches(IMAGES)
    assert near(found, wanted.numpy(), PARITY)
