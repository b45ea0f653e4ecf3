"""Models that are refused, or whose output is."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PatchTSTConfig,
    PatchTSTForClassification,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
    YolosConfig,
    YolosForObjectDetection,
)

from hf_gmar import (
    GMAR,
    AttentionRollout,
    AttnLRP,
    GradSAM,
    InputXGradient,
    LeGrad,
    RawAttention,
    TokenGradCAM,
    TokenLayout,
    register_layout,
)
from hf_gmar.errors import HfGmarError, ModelOutputError, UnsupportedModelError
from tests.reference import oracles
from tests.reference.cases import ENGINE_NAMES, ENGINE_OPTIONS, VIT, Around, build
from tests.reference.parity import near
from tests.reference.refused import Action, Refused, around, run
from tests.reference.tolerances import PARITY


def model(make: Callable[[], Any]) -> Action:
    """An attempt to explain another model."""
    return lambda engine: GMAR(make(), **ENGINE_OPTIONS[engine])


def without_gradient(vit: Any, pixels: Tensor) -> Any:
    with torch.no_grad():
        return vit(pixels).logits


def through_hidden_states(vit: Any, pixels: Tensor) -> Any:
    """Scores from below the top layer, which they therefore don't depend on."""
    return vit.classifier(vit(pixels, output_hidden_states=True).hidden_states[1][:, 0])


def overflowing(factor: float, part: str) -> Callable[[], Any]:
    def make() -> Any:
        vit = VIT.build()
        vit.get_submodule(part).weight.data *= factor
        return vit

    return make


class PatchMean(ViTForImageClassification):
    """ReadoutSpec its patches instead of CLS: the layout of its base would be wrong."""

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> Any:
        """Scores from the mean of the patches."""
        return self.classifier(self.vit(pixel_values, **kwargs).last_hidden_state[:, 1:].mean(1))


class Pair(nn.Module):
    """The similarity of two images: one body runs twice."""

    def __init__(self) -> None:
        """Keep the body."""
        super().__init__()
        self.body = VIT.build()

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """One score for each pair."""
        similarity: Tensor = (self.body(one).logits * self.body(other).logits).sum(1)
        return similarity


def _of_timm() -> nn.Module:
    """A module whose class is in timm, which need not be installed."""
    kind = type("VisionTransformer", (nn.Linear,), {"__module__": "timm.models.vision_transformer"})
    made: nn.Module = kind(3, 3)
    made.pretrained_cfg = {"architecture": "vit_tiny_patch16_224"}  # type: ignore[assignment]
    return made


class NewConfig(ViTConfig):
    """Of a family that nobody has heard of."""

    model_type = "new"


class NewForImageClassification(ViTForImageClassification):
    """A model of that family."""


MODELS_REFUSED = (
    Refused(
        "unknown family",
        model(lambda: build(NewForImageClassification, NewConfig)),
        UnsupportedModelError,
        ("NewForImageClassification", "'new'", "hf-gmar models", "register_layout"),
    ),
    Refused(
        "windows",
        model(
            lambda: SwinForImageClassification(
                SwinConfig(
                    image_size=32,
                    patch_size=4,
                    embed_dim=8,
                    depths=[1, 1],
                    num_heads=[1, 1],
                    window_size=2,
                )
            )
        ),
        UnsupportedModelError,
        ("SwinForImageClassification", "windows", "hf-gmar models"),
    ),
    Refused(
        "no attention",
        model(
            lambda: ResNetForImageClassification(
                ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])
            )
        ),
        UnsupportedModelError,
        ("ResNetForImageClassification", "no attention", "hf-gmar models"),
    ),
    Refused(
        "no head",
        model(lambda: build(ViTModel, ViTConfig)),
        UnsupportedModelError,
        ("ViTModel", "ViTForImageClassification"),
    ),
    Refused(
        "no classes",
        model(lambda: build(ViTForMaskedImageModeling, ViTConfig)),
        UnsupportedModelError,
        ("ViTForMaskedImageModeling", "ViTForImageClassification"),
    ),
    Refused(
        "two models",
        model(lambda: nn.ModuleList([VIT.build(), VIT.build()])),
        UnsupportedModelError,
        ("exactly one", "ModuleList", "2"),
    ),
    Refused(
        "no model",
        model(lambda: nn.Linear(3, 3)),
        UnsupportedModelError,
        ("exactly one", "Linear", "none"),
    ),
    Refused(
        "lambda",
        model(lambda: lambda pixels: pixels.sum()),
        UnsupportedModelError,
        ("exactly one", "none", "nn.Module"),
    ),
    Refused(
        "partial of a function",
        model(lambda: functools.partial(torch.sum, dim=1)),
        UnsupportedModelError,
        ("exactly one", "none", "nn.Module"),
    ),
    Refused(
        "text",
        model(lambda: build(BertForSequenceClassification, BertConfig)),
        UnsupportedModelError,
        ("explains images", "BertForSequenceClassification takes text (input_ids)"),
    ),
    Refused(
        "time series",
        model(
            lambda: PatchTSTForClassification(
                PatchTSTConfig(d_model=8, num_hidden_layers=1, num_attention_heads=2, ffn_dim=8)
            )
        ),
        UnsupportedModelError,
        ("explains images", "takes time series (past_values)"),
    ),
    Refused(
        "tokens for objects",
        model(
            lambda: build(
                YolosForObjectDetection, YolosConfig, image_size=[32, 32], num_detection_tokens=5
            )
        ),
        UnsupportedModelError,
        ("YolosForObjectDetection", "objects after the patches"),
    ),
    Refused(
        "timm",
        model(_of_timm),
        UnsupportedModelError,
        (
            "VisionTransformer is a model of timm",
            "TimmWrapperForImageClassification",
            "architecture='vit_tiny_patch16_224'",
            "load_state_dict",
        ),
    ),
    Refused(
        "timm inside a module",
        model(lambda: nn.Sequential(nn.Identity(), _of_timm())),
        UnsupportedModelError,
        ("Sequential holds none", "VisionTransformer is a model of timm"),
    ),
    Refused(
        "another library",
        model(lambda: nn.TransformerEncoderLayer(8, 2)),
        UnsupportedModelError,
        ("TransformerEncoderLayer holds none; pass a model of Transformers",),
    ),
    Refused("None", model(lambda: None), UnsupportedModelError, ("exactly one", "NoneType")),
    Refused("name", model(lambda: "vit"), UnsupportedModelError, ("exactly one", "str")),
)

OUTPUTS_REFUSED = (
    Refused(
        "no_grad in the forward",
        run(lambda: around(without_gradient)),
        ModelOutputError,
        ("gradient", "no_grad()", "detach()"),
    ),
    Refused(
        "detached scores",
        run(lambda: around(lambda vit, pixels: vit(pixels).logits.detach())),
        ModelOutputError,
        ("gradient", "no_grad()", "detach()"),
    ),
    Refused(
        "scores that skip layers",
        run(lambda: around(through_hidden_states)),
        ModelOutputError,
        ("gradient", "1 of 3", "every layer"),
    ),
    Refused(
        "two runs",
        run(lambda: around(lambda vit, pixels: vit(pixels).logits + vit(-pixels).logits)),
        ModelOutputError,
        ("must run once", "ran 2 times", "features of the other image", "pass a module"),
    ),
    Refused(
        "two images",
        lambda engine: GMAR(Pair(), **ENGINE_OPTIONS[engine]).attribute(
            VIT.images(), 0, VIT.images().flip(3)
        ),
        ModelOutputError,
        ("must run once", "ran 2 times", "features of the other image of a pair", "one image"),
    ),
    Refused(
        "another size inside",
        run(
            lambda: around(lambda vit, pixels: vit(pixels.reshape(3, 3, 32, 32)).logits),
            pixels=torch.ones(3, 3, 16, 64),
        ),
        ModelOutputError,
        ("(3, 3, 16, 64)", "(3, 3, 32, 32)", "number, order and size"),
    ),
    Refused(
        "more images inside",
        run(lambda: around(lambda vit, pixels: vit(pixels.repeat(2, 1, 1, 1)).logits[:3])),
        ModelOutputError,
        ("(3, 3, 32, 32)", "(6, 3, 32, 32)", "number, order and size"),
    ),
    Refused(
        "one score for all images",
        run(lambda: around(lambda vit, pixels: vit(pixels).logits.mean(0, keepdim=True))),
        ModelOutputError,
        ("(3, 3, 32, 32)", "(1, 7)", "number, order and size"),
    ),
    Refused(
        "subclass with a head of its own",
        model(lambda: build(PatchMean, ViTConfig)),
        UnsupportedModelError,
        ("PatchMean", "register_layout"),
    ),
    Refused(
        "no run",
        run(lambda: around(lambda _, pixels: pixels.mean((2, 3)))),
        ModelOutputError,
        ("must run once", "ran 0 times"),
    ),
    Refused(
        "no scores",
        run(lambda: around(lambda vit, pixels: {"loss": vit(pixels).logits.sum()})),
        ModelOutputError,
        ("class scores", "dict", "loss"),
    ),
    Refused(
        "one number",
        run(lambda: around(lambda vit, pixels: vit(pixels).logits.sum())),
        ModelOutputError,
        ("class scores", "Tensor"),
    ),
    Refused(
        "attention overflows",
        run(overflowing(1e38, "vit.layers.1.mlp.fc2")),
        ModelOutputError,
        ("finite", "float()"),
    ),
    Refused(
        "gradient overflows",
        run(overflowing(1e38, "classifier")),
        ModelOutputError,
        ("finite", "float()"),
    ),
)


@pytest.mark.parametrize("engine", ENGINE_NAMES)
@pytest.mark.parametrize("row", MODELS_REFUSED + OUTPUTS_REFUSED, ids=str)
def test_refused(row: Refused, engine: str) -> None:
    row.check(engine)


def test_an_error_of_the_model_itself_is_not_dressed_up() -> None:
    """A ValueError that has nothing to do with the image's size arrives as it was raised."""

    def raising(_: Any, pixels: Tensor) -> Any:  # noqa: ARG001
        raise ValueError("of my own")

    with pytest.raises(ValueError, match=r"^of my own$") as raised:
        GMAR(around(raising)).attribute(VIT.images(), 3)
    assert not isinstance(raised.value, HfGmarError)


def test_the_other_image_embedded_first() -> None:
    """What the message about pairs says can be done: the map is that of the first image's score."""
    pair, images = Pair(), VIT.images()
    with torch.no_grad():
        other = pair.body(images[:1].flip(3)).logits
    one_image = Around(pair.body, lambda vit, pixels: (vit(pixels).logits * other).sum(1, True))
    got = GMAR(one_image).attribute_patches(images, 0)
    traced = oracles.trace(one_image, images, [0, 0, 0], reads="cls")
    assert near(got, oracles.gmar(traced).patches, PARITY)


def _quantised(*names: str) -> Any:
    kinds: Any = set(names) or {nn.Linear}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        return torch.ao.quantization.quantize_dynamic(VIT.build(), kinds, dtype=torch.qint8)


@pytest.mark.parametrize("names", [(), ("vit.layers.1.mlp.fc1",), ("classifier",)])
@pytest.mark.parametrize("method", [GMAR, GradSAM, LeGrad, AttnLRP, InputXGradient, TokenGradCAM])
def test_quantised_weights_are_named(method: Any, names: tuple[str, ...]) -> None:
    """Even one layer, beside which the residual connection would pass on half of the gradient."""
    explain = method(_quantised(*names))
    first = names[0] if names else "vit.layers.0.attention.q_proj"
    with pytest.raises(UnsupportedModelError, match="quantised weights") as raised:
        explain.attribute(VIT.images(), 3)
    message = str(raised.value)
    assert first in message
    assert f"{1 if names else 19} layers of ViTForImageClassification" in message
    assert "AttentionRollout" in message
    assert "no_grad" not in message


@pytest.mark.parametrize("method", [AttentionRollout, RawAttention])
def test_quantised_weights_need_no_gradient(method: Any) -> None:
    got = method(_quantised()).attribute_patches(VIT.images())
    wanted = method(VIT.build()).attribute_patches(VIT.images())
    assert torch.allclose(got, wanted, rtol=0.2, atol=0.01)


@pytest.mark.usefixtures("layouts")
def test_tokens_after_the_patches() -> None:
    """Registered all the same."""
    register_layout("yolos", TokenLayout(readout=(1.0,), patch_size=(8, 8)))
    objects = build(
        YolosForObjectDetection, YolosConfig, image_size=[32, 32], num_detection_tokens=5
    )
    with pytest.raises(ModelOutputError, match=r"22 tokens, .*after the patches"):
        GMAR(objects).attribute(VIT.images(), (0, 0))
