"""What an explanation gives on a GPU: the same values, on the device of the model.

Each test also runs on the CPU, so that it works when a GPU is there: python -m benchmarks.gpu.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_gmar import GMAR, Explainer, evaluate, load_model
from hf_gmar.models import sample_image
from hf_gmar.perturbations import PERTURBATIONS
from tests.reference import oracles
from tests.reference.cases import (
    LAYERS,
    MODELS,
    TARGETS,
    VIT,
    MethodCase,
    ModelCase,
    every_method_and_engine,
    shared,
)
from tests.reference.models import state_of
from tests.reference.parity import relative_error

# Matrix products on a GPU round otherwise than those of a CPU.
CLOSE = 1e-3

DEVICES = pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
            ],
        ),
    ],
)


@pytest.fixture(autouse=True)
def exact_convolutions() -> Iterator[None]:
    """By default, PyTorch rounds the inputs of convolutions on a GPU to ten bits."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def on(device: str, case: ModelCase = VIT) -> Any:
    """A copy of a tiny model on a device."""
    return copy.deepcopy(shared(case)).to(device)


@DEVICES
@every_method_and_engine
def test_maps_are_those_of_the_oracle(device: str, method: MethodCase, engine: str) -> None:
    images = VIT.images()
    found = method.made(on(device), engine).attribute_patches(images.to(device), TARGETS)
    assert found.device.type == device
    if method.reference:
        wanted = method.reference(method.trace(shared(VIT), images, TARGETS)).patches
    else:
        wanted = method.made(shared(VIT), engine).attribute_patches(images, TARGETS).numpy()
    assert relative_error(found.cpu(), wanted) < CLOSE


@DEVICES
@pytest.mark.parametrize("case", MODELS, ids=lambda case: case.name)
def test_every_family_gives_the_oracles_map(device: str, case: ModelCase) -> None:
    images = case.images()
    traced = oracles.trace(case.build(), images, TARGETS, case.forward_kwargs)
    found = GMAR(on(device, case)).attribute_patches(
        images.to(device), TARGETS, **case.forward_kwargs
    )
    assert relative_error(found.cpu(), oracles.gmar(traced).patches) < CLOSE


@DEVICES
@pytest.mark.parametrize("options", [{"checkpoint": True}, {"chunk_size": 5}], ids=str)
def test_ways_of_streaming_agree(device: str, options: dict[str, Any]) -> None:
    model, images = on(device), VIT.images().to(device)
    plain = GMAR(model).attribute_patches(images, TARGETS)
    other = GMAR(model, **options).attribute_patches(images, TARGETS)
    assert relative_error(other.cpu(), plain.double().cpu().numpy()) < CLOSE


@DEVICES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_keeps_the_shape_of_the_map(device: str, dtype: torch.dtype) -> None:
    images = VIT.images().to(device)
    exact = GMAR(on(device)).attribute_patches(images, TARGETS)
    half = GMAR(on(device).to(dtype)).attribute_patches(images.to(dtype), TARGETS)
    assert half.dtype == torch.float32
    both = torch.stack([exact.flatten(), half.flatten()]).double()
    assert torch.corrcoef(both)[0, 1] > 0.9


@DEVICES
def test_the_model_comes_back_as_it_was(device: str) -> None:
    model = on(device)
    before = state_of(model)
    GMAR(model, checkpoint=True).attribute_patches(VIT.images().to(device), TARGETS)
    assert state_of(model) == before


@DEVICES
def test_other_threads_run_the_model_meanwhile(device: str) -> None:
    """On CUDA, the backward runs in a thread of PyTorch."""
    model, images = on(device), VIT.images().to(device)
    wanted = model(images).logits
    results: list[Tensor] = []

    def predict() -> None:
        with torch.no_grad():
            results.extend(model(images).logits for _ in range(20))

    expected = GMAR(model).attribute_patches(images, TARGETS)
    thread = threading.Thread(target=predict)
    thread.start()
    maps = [GMAR(model).attribute_patches(images, TARGETS) for _ in range(5)]
    thread.join()
    assert len(results) == 20
    for logits in results:
        assert torch.allclose(logits, wanted, atol=CLOSE)
    for each in maps:
        assert relative_error(each.cpu(), expected.double().cpu().numpy()) < CLOSE


@DEVICES
def test_the_heads_of_each_layer(device: str) -> None:
    heads: Tensor = GMAR(on(device)).head_importance(VIT.images().to(device), TARGETS)
    assert heads.device.type == device
    assert heads.shape[1] == LAYERS
    assert torch.allclose(heads.sum(-1).cpu(), torch.ones(heads.shape[:2]), atol=1e-5)


@DEVICES
def test_an_image_is_explained_and_checked(device: str) -> None:
    loaded = load_model("bundled", device)
    result = Explainer(loaded, "attn-lrp", precision="bfloat16")(sample_image())
    wanted = Explainer("bundled", "attn-lrp")(sample_image(), result.target)
    both = torch.stack([torch.as_tensor(one.patches).cpu() for one in (result, wanted)])
    assert torch.corrcoef(both.flatten(1))[0, 1] > 0.9
    assert Explainer(loaded)(sample_image()).check() is not None


@DEVICES
def test_an_evaluation_gives_the_numbers_of_the_cpu(device: str) -> None:
    names = list(PERTURBATIONS)
    found, wanted = (
        evaluate(load_model("bundled", each), "scenes:2", ["gmar"], perturbations=names, steps=3)
        for each in (device, "cpu")
    )
    records = list(zip(found.records(), wanted.records(), strict=True))
    assert len(records) > len(names)
    for on_device, on_cpu in records:
        assert on_device["metric"] == on_cpu["metric"]
        assert on_device["mean"] == pytest.approx(on_cpu["mean"], abs=0.01)
