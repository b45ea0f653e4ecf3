"""Models that are refused, or whose output is."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
)

from hf_gmar import GMAR
from hf_gmar.errors import HfGmarError, ModelOutputError, UnsupportedModelError
from tests.reference.cases import ENGINE_NAMES, ENGINE_OPTIONS, VIT, build
from tests.reference.refused import Action, Refused, around, run


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
        ("must run once", "ran 2 times"),
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
