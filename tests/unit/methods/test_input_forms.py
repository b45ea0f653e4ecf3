"""Inputs as a processor gives them, and models as ``load_model`` and a Trainer hold them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from captum.attr import NoiseTunnel, Saliency
from torch import Tensor
from transformers import BatchFeature, Trainer, TrainingArguments, pipeline

from hf_gmar import (
    GMAR,
    GradSAM,
    LogitsModel,
    ablate_heads,
    attribute_jointly,
    compare,
    head_importance,
    head_maps,
)
from hf_gmar.errors import HfGmarError, InputError, TargetError, UnsupportedModelError
from hf_gmar.methods import METHODS, AttributionMethod
from hf_gmar.metrics import METRICS, ContextBuilder
from hf_gmar.models import LoadedModel
from tests.reference.cases import TARGETS, VIT


def target_of(method: AttributionMethod, target: Any) -> Any:
    """None for a method whose map is the same for every class."""
    return target if method.class_specific else None


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_takes_what_a_processor_gives(name: str) -> None:
    method, pixels = METHODS.build(name, VIT.build()), VIT.images()
    target = target_of(method, TARGETS)
    wanted = method.attribute(pixels, target)
    given = BatchFeature({"pixel_values": pixels})
    assert torch.equal(method.attribute(given, target), wanted)
    assert torch.equal(method.attribute({"pixel_values": pixels}, target), wanted)
    assert torch.equal(method.attribute(**given, target=target), wanted)
    patches = method.attribute_patches(pixels, target)
    assert torch.equal(method.attribute_patches(**given, target=target), patches)
    several = method.attribute_targets(**given, targets=[target, target])
    assert torch.equal(several, torch.stack([patches, patches]))
    assert torch.equal(method.scores(given), method.scores(pixels))
    assert torch.equal(method.scores(**given), method.scores(pixels))


def test_functions_take_what_a_processor_gives() -> None:
    model, pixels = VIT.build(), VIT.images()
    given: Any = BatchFeature({"pixel_values": pixels})
    methods = [GMAR(model), GradSAM(model)]
    wanted = attribute_jointly(methods, pixels, TARGETS)
    for found in (
        attribute_jointly(methods, given, TARGETS),
        attribute_jointly(methods, **given, target=TARGETS),
    ):
        assert all(map(torch.equal, found, wanted))
    for comparison in (
        compare(model, given, ["gmar"], TARGETS, measure=False),
        compare(model, **given, methods=["gmar"], target=TARGETS, measure=False),
    ):
        assert torch.equal(comparison.maps["gmar"], wanted[0])
    heads = GMAR(model).head_importance(pixels, TARGETS)
    assert torch.equal(GMAR(model).head_importance(**given, target=TARGETS), heads)
    assert torch.equal(head_importance(model, given, TARGETS).values, heads)
    batches: Any = [{"pixel_values": pixels, "labels": torch.tensor(TARGETS)}]  # as a Trainer's
    assert torch.equal(head_importance(model, batches).values, heads)
    assert torch.equal(head_maps(model, **given), head_maps(model, pixels))


IMAGES = VIT.images()
REFUSED: dict[str, tuple[dict[str, Any], type[HfGmarError], str]] = {
    "labels too": (
        {"inputs": {"pixel_values": IMAGES, "labels": 1}},
        InputError,
        r"got dict with pixel_values, labels; .*inputs\['pixel_values'\]",
    ),
    "text too": (
        {"inputs": BatchFeature({"input_ids": IMAGES, "pixel_values": IMAGES})},
        InputError,
        r"BatchFeature with input_ids, pixel_values; .*inputs\['pixel_values'\]",
    ),
    "text alone": (
        {"inputs": {"input_ids": IMAGES}},
        InputError,
        "got dict with input_ids; pass its 'pixel_values'",
    ),
    "nothing": ({}, InputError, "got NoneType"),
    "an empty dict": ({"inputs": {}}, InputError, "got dict with nothing"),
    "twice": ({"inputs": IMAGES, "pixel_values": IMAGES}, InputError, "given twice"),
    "lists": (
        {"inputs": BatchFeature({"pixel_values": [image.numpy() for image in IMAGES]})},
        InputError,
        "got list; .*return_tensors='pt'",
    ),
    "a mask too": (
        {"pixel_values": IMAGES, "pixel_mask": IMAGES},
        HfGmarError,
        "unknown keyword pixel_mask",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_inputs_that_say_too_much_or_too_little(name: str) -> None:
    given, error, words = REFUSED[name]
    for call in (GMAR(VIT.build()).attribute, GMAR(VIT.build()).attribute_patches):
        with pytest.raises(error, match=words):
            call(**given, target=3)


def test_several_targets_that_are_missing() -> None:
    with pytest.raises(TargetError, match="a list of one or more targets is needed"):
        GMAR(VIT.build()).attribute_targets(VIT.images())


@pytest.fixture
def pixels() -> Tensor:
    """An image for the bundled model."""
    return torch.linspace(-1, 1, 3 * 96 * 96).reshape(1, 3, 96, 96)


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_takes_a_loaded_model(name: str, bundled: LoadedModel, pixels: Tensor) -> None:
    method = METHODS.build(name, bundled)
    target = target_of(method, 6)
    plain = METHODS.build(name, bundled.model)
    assert method.model is bundled.model
    assert torch.equal(method.attribute(pixels, target), plain.attribute(pixels, target))


def test_every_function_takes_a_loaded_model(bundled: LoadedModel, pixels: Tensor) -> None:
    loaded: Any = bundled
    importance = head_importance(loaded, pixels, 6)
    assert importance.names == {6: "heart"}
    assert torch.equal(importance.values, head_importance(bundled.model, pixels, 6).values)
    assert torch.equal(head_maps(loaded, pixels), head_maps(bundled.model, pixels))
    assert ablate_heads(loaded, pixels, importance).curves.keys()
    live = pixels.clone().requires_grad_()
    saliency = Saliency(LogitsModel(loaded)).attribute(live, target=6)
    assert torch.equal(saliency, Saliency(LogitsModel(bundled.model)).attribute(live, target=6))
    found = compare(loaded, pixels, ["gmar", Saliency(LogitsModel(loaded))], 6, measure=False)
    assert not found.failures
    assert found.labels == ("heart",)
    context = ContextBuilder(loaded).context(GMAR, pixels, target=6)
    assert METRICS.build("class-sensitivity").values(context).isfinite().all()
    noise = NoiseTunnel(GMAR(loaded)).attribute(pixels, target=6, nt_samples=1, stdevs=0.0)
    assert torch.allclose(noise, GMAR(bundled.model).attribute(pixels, 6))


def test_a_trainer_has_a_model_and_a_pipeline_says_where(
    bundled: LoadedModel, pixels: Tensor, tmp_path: Path
) -> None:
    settings = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True)
    trainer: Any = Trainer(model=copy.deepcopy(bundled.model), args=settings)
    wanted = GMAR(bundled.model).attribute(pixels, 6)
    assert torch.equal(GMAR(trainer).attribute(pixels, 6), wanted)
    parts: dict[str, Any] = {"model": bundled.model, "image_processor": bundled.processor}
    classify: Any = pipeline("image-classification", **parts)
    with pytest.raises(
        UnsupportedModelError, match=r"Pipeline holds none; pass its model, \.model"
    ):
        GMAR(classify)
