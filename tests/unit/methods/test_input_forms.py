"""Inputs as a processor gives them, and models as ``load_model`` and a Trainer hold them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import NoiseTunnel, Saliency
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from transformers import BatchFeature, Trainer, TrainingArguments, pipeline

from hf_gmar import (
    GMAR,
    GradSAM,
    LogitsModel,
    ablate_heads,
    attribute_jointly,
    compare,
    explain,
    head_importance,
    head_maps,
    load_model,
)
from hf_gmar.data import draw_scene
from hf_gmar.errors import HfGmarError, InputError, TargetError, UnsupportedModelError
from hf_gmar.methods import METHODS, AttributionMethod
from hf_gmar.metrics import METRICS, ContextBuilder
from hf_gmar.models import LoadedModel
from tests.reference.cases import TARGETS, VIT


def target_of(method: AttributionMethod, target: Any) -> Any:
    """None for a method whose map is the same for every class."""
    return target if method.class_specific else None


QUICK: dict[str, dict[str, Any]] = {"shapley-values": {"samples": 2, "groups": (2, 2)}}


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_takes_what_a_processor_gives(name: str) -> None:
    method, pixels = METHODS.build(name, VIT.build(), **QUICK.get(name, {})), VIT.images()
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
        "got list of ndarray; .*return_tensors='pt'",
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
    options = QUICK.get(name, {})
    method = METHODS.build(name, bundled, **options)
    target = target_of(method, 6)
    plain = METHODS.build(name, bundled.model, **options)
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


HOLDERS = ("pipeline", "Trainer", "PEFT model")


@pytest.fixture(scope="module", params=HOLDERS)
def holder(
    request: pytest.FixtureRequest, bundled: Any, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """What other libraries make of a model."""
    if request.param == "pipeline":
        parts: dict[str, Any] = {"model": bundled.model, "image_processor": bundled.processor}
        return pipeline("image-classification", **parts)
    own: Any = load_model("bundled").model  # the Trainer changes its config, PEFT its layers
    if request.param == "Trainer":
        folder = str(tmp_path_factory.mktemp("trainer"))
        settings = TrainingArguments(folder, report_to=[], use_cpu=True)
        return Trainer(model=own, args=settings)
    return get_peft_model(own, LoraConfig(target_modules=["q_proj"]))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_what_holds_a_model(holder: Any, bundled: Any, pixels: Tensor) -> None:
    wanted = GMAR(bundled.model).attribute(pixels, 6)
    assert torch.allclose(GMAR(holder).attribute(pixels, 6), wanted, atol=1e-6)
    found = compare(holder, pixels, ["attn-lrp", "Saliency"], 6, measure=False)
    assert not found.failures
    importance = head_importance(holder, pixels, 6)
    assert torch.allclose(importance.values, head_importance(bundled, pixels, 6).values, atol=1e-6)
    assert ablate_heads(holder, pixels, importance).curves.keys()


def test_a_name_is_no_model_yet() -> None:
    name: Any = "google/vit-base-patch16-224"
    with pytest.raises(UnsupportedModelError, match=rf"hf_gmar\.load_model\('{name}'\)$"):
        GMAR(name)


# images instead of pixel values: the error says what takes them


SCENE = Image.new("RGB", (96, 96), "red")
WAYS: dict[str, tuple[Any, str]] = {
    "an image": (SCENE, r"got Image; hf_gmar.explain\(image, model\) .* loaded.pixels\(image\)"),
    "images": ([SCENE, SCENE], r"list of Image; hf_gmar.explain\(images, .*torch.cat\(\["),
    "a path": ("a.png", r"got str; hf_gmar.explain\(image, model\)"),
    "paths": ([Path("a.png")], r"Path; hf_gmar.explain\(images, model\)"),
    "an array image": (np.asarray(SCENE), r"ndarray; hf_gmar.explain\(image, model\)"),
    "array images": ([np.asarray(SCENE)], r"list of ndarray; hf_gmar.explain\(images, model\)"),
    "an array": (np.zeros((1, 3, 96, 96)), r"torch.from_numpy\(pixel_values\).float\(\)"),
    "tensors": ([torch.zeros(3, 96, 96)], r"list of Tensor; torch.stack\(images\)"),
}


@pytest.mark.parametrize("name", WAYS)
def test_the_error_says_what_takes_such_images(name: str, bundled: Any) -> None:
    given, words = WAYS[name]
    for call in (GMAR(bundled).attribute, GMAR(bundled).attribute_patches):
        with pytest.raises(InputError, match=words):
            call(given, target=3)


def test_the_ways_work(bundled: Any) -> None:
    """What the errors name, done."""
    images, loaded = [SCENE, SCENE], bundled
    wanted = torch.cat([loaded.pixels(image) for image in images])
    assert len(explain(images, loaded)) == 2
    assert GMAR(loaded).attribute(wanted, 3).shape == (2, 3, 96, 96)
    pixel_values = wanted.numpy().astype(np.float64)
    assert torch.equal(torch.from_numpy(pixel_values).float(), wanted)
    assert torch.equal(torch.stack(list(wanted)), wanted)


# batches of data sets


def test_batches_of_a_data_set_with_a_transform(bundled: Any, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    scenes, targets = [draw_scene(seed).image for seed in range(4)], [6, 1, 2, 3]
    columns = {"image": scenes, "label": targets}
    rows = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())

    def transform(batch: dict[str, Any]) -> dict[str, Any]:
        pixels = torch.cat([bundled.pixels(image) for image in batch["image"]])
        return {"pixel_values": pixels, "label": batch["label"]}

    rows = rows.with_transform(transform)
    settings = TrainingArguments(
        str(tmp_path), report_to=[], use_cpu=True, remove_unused_columns=False,
        per_device_eval_batch_size=3,
    )  # fmt: skip
    trainer: Any = Trainer(load_model("bundled").model, settings, eval_dataset=rows)
    pixels = torch.cat([bundled.pixels(scene) for scene in scenes])
    wanted = head_importance(bundled, pixels, targets)
    curves = ablate_heads(bundled, pixels, wanted, steps=2, random_orders=1).curves
    loaders: list[Callable[[], Any]] = [
        trainer.get_eval_dataloader,
        lambda: DataLoader(rows, batch_size=3),
        lambda: rows.iter(batch_size=3),
    ]
    for loader in loaders:
        found = head_importance(bundled, loader())
        assert found.targets.tolist() == targets
        assert torch.allclose(found.values, wanted.values, atol=1e-5)
        ablation = ablate_heads(bundled, loader(), wanted, steps=2, random_orders=1)
        for order, curve in ablation.curves.items():
            assert np.allclose(curve, curves[order], atol=1e-3)
    single: list[Any] = [rows, TensorDataset(pixels, torch.tensor(targets)), list(pixels)]
    for data in single:
        with pytest.raises(InputError, match=r"DataLoader\(data, batch_size=8\) makes batches"):
            head_importance(bundled, data)
