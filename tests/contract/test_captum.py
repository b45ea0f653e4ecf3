"""Captum's contract: what goes in, what comes out, and what Captum itself does with it."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import (
    FeatureAblation,
    GradientAttribution,
    GradientShap,
    InputXGradient,
    IntegratedGradients,
    NoiseTunnel,
    Occlusion,
    Saliency,
)
from captum.attr import visualization as captum_visualization
from captum.metrics import infidelity, sensitivity_max
from matplotlib import pyplot as plt
from torch import Tensor, nn

from hf_gmar import GMAR, LogitsModel
from tests.reference import oracles
from tests.reference.cases import (
    BATCH,
    ENGINE_NAMES,
    ENGINE_OPTIONS,
    MODELS,
    TARGETS,
    VIT,
    Around,
    MethodCase,
    ModelCase,
    every_engine,
    every_method,
    every_model,
    shared,
)
from tests.reference.parity import near, same
from tests.reference.tolerances import PARITY


def scores(change: Callable[[Tensor], Tensor]) -> Around:
    """The tiny ViT with other scores made of its logits."""
    return Around(VIT.build(), lambda vit, pixels: change(vit(pixels).logits))


def explain(model: Any = None, engine: str = ENGINE_NAMES[0]) -> GMAR:
    return GMAR(VIT.build() if model is None else model, **ENGINE_OPTIONS[engine])


@every_method
def test_it_is_a_gradient_attribution(method: MethodCase) -> None:
    gmar = method.made(VIT.build())
    assert isinstance(gmar, GradientAttribution)
    assert not gmar.has_convergence_delta()
    assert gmar.forward_func(VIT.images()).shape == (BATCH, 7)
    assert gmar.attribute.__wrapped__ is not None  # Captum's NoiseTunnel calls it


@pytest.mark.sampled(4)
@every_method
@every_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_output_is_like_the_inputs(case: ModelCase, method: MethodCase, dtype: torch.dtype) -> None:
    images = case.images(dtype)
    model = shared(case) if case.casts else shared(case, dtype=dtype)
    attribution = method.made(model).attribute(images, TARGETS, **case.forward_kwargs)
    assert (attribution.shape, attribution.dtype) == (images.shape, dtype)
    assert attribution.device == images.device
    assert attribution.is_contiguous()
    assert not attribution.requires_grad
    assert attribution.data_ptr() != images.data_ptr()


SAME_FOR_ALL: dict[str, Any] = {
    "int": 3,
    "0-d tensor": torch.tensor(3),
    "1-element tensor": torch.tensor([3]),
    "tuple": (3,),
    "numpy int": np.int64(3),
    "list": [3] * BATCH,
    "1-d tensor": torch.tensor([3] * BATCH),
    "int32 tensor": torch.tensor([3] * BATCH, dtype=torch.int32),
    "uint8 tensor": torch.tensor([3] * BATCH, dtype=torch.uint8),
    "list of tuples": [(3,)] * BATCH,
    "list of tensors": [torch.tensor(3)] * BATCH,
}


@every_engine
@pytest.mark.parametrize("form", SAME_FOR_ALL)
def test_target_for_all_images(form: str, engine: str) -> None:
    model = VIT.build()
    wanted = oracles.gmar(oracles.trace(model, VIT.images(), [3] * BATCH)).patches
    patches = explain(model, engine).attribute_patches(VIT.images(), SAME_FOR_ALL[form])
    assert near(patches, wanted, PARITY)


ONE_EACH: dict[str, Any] = {
    "list": TARGETS,
    "1-d tensor": torch.tensor(TARGETS),
    "list of tuples": [(target,) for target in TARGETS],
}


@every_engine
@pytest.mark.parametrize("form", ONE_EACH)
def test_target_for_each_image(form: str, engine: str) -> None:
    model = VIT.build()
    wanted = oracles.gmar(oracles.trace(model, VIT.images(), TARGETS)).patches
    patches = explain(model, engine).attribute_patches(VIT.images(), ONE_EACH[form])
    assert near(patches, wanted, PARITY)


@every_engine
def test_no_target_is_the_top_class(engine: str) -> None:
    model, images = VIT.build(), VIT.images()
    top = model(images).logits.argmax(dim=1)
    assert same(
        explain(model, engine).attribute(images), explain(model, engine).attribute(images, top)
    )


def _as_grid(logits: Tensor) -> Tensor:
    return logits[:, :6].reshape(-1, 2, 3)


@every_engine
@pytest.mark.parametrize("target", [(1, 0), [(1, 0)] * BATCH], ids=["tuple", "list of tuples"])
def test_scores_with_two_dimensions(target: Any, engine: str) -> None:
    got = explain(scores(_as_grid), engine).attribute(VIT.images(), target)
    assert same(got, explain(engine=engine).attribute(VIT.images(), 3))


def test_a_tuple_of_its_own_for_each_image() -> None:
    got = explain(scores(_as_grid)).attribute(VIT.images(), [(1, 2), (0, 0), (1, 0)])
    assert same(got, explain().attribute(VIT.images(), [5, 0, 3]))


@every_engine
@pytest.mark.parametrize("target", [None, 0, (0,)], ids=str)
@pytest.mark.parametrize("shape", [(-1,), (-1, 1)], ids=["(B,)", "(B, 1)"])
def test_one_score_for_each_image(shape: tuple[int, ...], target: Any, engine: str) -> None:
    model = scores(lambda logits: logits[:, 3].reshape(shape))
    got = explain(model, engine).attribute(VIT.images(), target)
    assert same(got, explain(engine=engine).attribute(VIT.images(), 3))


def test_tuple_in_tuple_out() -> None:
    gmar, images = explain(), VIT.images()
    got = gmar.attribute((images,), 3)
    assert isinstance(got, tuple)
    assert len(got) == 1
    assert torch.equal(got[0], gmar.attribute(images, 3))
    assert torch.equal(gmar.attribute_patches((images,), 3), gmar.attribute_patches(images, 3))
    assert torch.equal(gmar.head_importance((images,), 3), gmar.head_importance(images, 3))


INPUTS: dict[str, Callable[[], Tensor]] = {
    "requires_grad": lambda: VIT.images().requires_grad_(),
    "no leaf": lambda: VIT.images().requires_grad_() * 1,
    "transposed": lambda: VIT.images().transpose(2, 3).contiguous().transpose(2, 3),
    "channels last": lambda: VIT.images().contiguous(memory_format=torch.channels_last),
    "every second": lambda: VIT.images().repeat_interleave(2, dim=0)[::2],
    "expanded": lambda: VIT.images(batch=1).expand(BATCH, -1, -1, -1),
}


@every_engine
@pytest.mark.parametrize("form", INPUTS)
def test_inputs_of_any_kind(form: str, engine: str) -> None:
    images = INPUTS[form]()
    assert form in {"requires_grad", "no leaf"} or not images.is_contiguous()
    got = explain(engine=engine).attribute(images, TARGETS)
    wanted = explain(engine=engine).attribute(images.detach().clone().contiguous(), TARGETS)
    assert same(got, wanted)
    assert got.is_contiguous()
    assert not got.requires_grad


@pytest.mark.sampled(4)
@every_engine
@every_model
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inside_the_callers_grad_mode(case: ModelCase, mode: Any, engine: str) -> None:
    gmar = explain(shared(case), engine)
    wanted = gmar.attribute(case.images(), TARGETS, **case.forward_kwargs)
    with mode():
        images, target = case.images() * 1, torch.tensor(TARGETS)  # made inside as well
        assert images.is_inference() == (mode is torch.inference_mode)
        got = gmar.attribute(images, target, **case.forward_kwargs)
    assert same(got, wanted)
    # What was made in inference mode can be explained outside of it, too.
    assert same(gmar.attribute(images, target, **case.forward_kwargs), wanted)


@every_engine
@pytest.mark.parametrize("by_keyword", [False, True])
def test_forward_arguments_made_in_inference_mode(by_keyword: bool, engine: str) -> None:
    """Autograd can't save such a tensor: the model gets a copy of it."""

    class Scaled(nn.Module):
        """A user's module that takes a tensor besides the pixels."""

        def __init__(self) -> None:
            """Hold the tiny ViT."""
            super().__init__()
            self.model = VIT.build()

        def forward(self, pixels: Tensor, scale: Tensor) -> Any:
            """Scores from both."""
            return self.model(pixels).logits * scale

    with torch.inference_mode():
        scale = torch.full((BATCH, 7), 2.0)
    gmar = explain(Scaled(), engine)
    extra = {"scale": scale} if by_keyword else {"additional_forward_args": scale}
    got = gmar.attribute(VIT.images(), TARGETS, **extra)
    wanted = explain(engine=engine).attribute(VIT.images(), TARGETS)
    assert same(got, wanted)


def test_forward_arguments() -> None:
    case = next(case for case in MODELS if case.name == "vit-interpolated")
    gmar = explain(case.build())
    wanted = gmar.attribute(case.images(), 3, interpolate_pos_encoding=True)
    assert torch.equal(gmar.attribute(case.images(), 3, (None, True)), wanted)
    assert same(gmar.attribute(case.images(), 3, additional_forward_args=(None, True)), wanted)
    # One value that is no tuple is one argument, as in Captum.
    assert same(
        explain().attribute(VIT.images(), 3, torch.tensor([1, 2, 3])),
        explain().attribute(VIT.images(), 3),
    )


@pytest.mark.parametrize("kind", ["smoothgrad", "smoothgrad_sq", "vargrad"])
@pytest.mark.parametrize("chunk", [None, 1, 3])
@pytest.mark.parametrize("as_tuple", [False, True])
def test_noise_tunnel(kind: str, chunk: int | None, as_tuple: bool) -> None:
    """The mean, mean square or variance over noisy copies, as computed here by hand."""
    gmar, images = explain(), VIT.images(batch=2)
    options = {"nt_samples": 4, "nt_samples_batch_size": chunk, "stdevs": 0.2}
    torch.manual_seed(5)
    got = NoiseTunnel(gmar).attribute(
        (images,) if as_tuple else images, nt_type=kind, target=[5, 0], **options
    )
    assert isinstance(got, tuple) == as_tuple
    torch.manual_seed(5)
    sizes = [4] if chunk is None else [1] * 4 if chunk == 1 else [3, 1]
    maps = []
    for size in sizes:
        copies = images.repeat_interleave(size, dim=0)
        noisy = copies + torch.normal(0, torch.full_like(copies, 0.2))
        targets = [5] * size + [0] * size
        maps.append(gmar.attribute(noisy, targets).reshape(2, size, *images.shape[1:]))
    samples = torch.cat(maps, dim=1).double()
    wanted = {
        "smoothgrad": samples.mean(1),
        "smoothgrad_sq": samples.square().mean(1),
        "vargrad": samples.var(1, correction=0),
    }[kind]
    result = got[0] if as_tuple else got
    assert torch.allclose(result.double(), wanted, rtol=1e-3, atol=1e-8)
    assert float(wanted.max()) > 1e-6


def test_noise_tunnel_passes_forward_arguments_on() -> None:
    case = next(case for case in MODELS if case.name == "vit-interpolated")
    tunnel = NoiseTunnel(explain(case.build()))
    options = {"nt_samples": 2, "stdevs": 1e-6, "target": torch.tensor(TARGETS)}
    wanted = explain(case.build()).attribute(case.images(), TARGETS, (None, True))
    got = tunnel.attribute(case.images(), additional_forward_args=(None, True), **options)
    assert torch.allclose(got, wanted, rtol=1e-2, atol=1e-5)
    got = tunnel.attribute(case.images(), interpolate_pos_encoding=True, **options)
    assert torch.allclose(got, wanted, rtol=1e-2, atol=1e-5)


def test_infidelity_and_sensitivity() -> None:
    model, images = VIT.build(), VIT.images(batch=2)
    gmar = explain(model)
    attribution = gmar.attribute(images, target=3)

    def perturb(pixels: Tensor) -> tuple[Tensor, Tensor]:
        noise = 0.1 * torch.randn_like(pixels)
        return noise, pixels - noise

    torch.manual_seed(0)
    far = infidelity(
        LogitsModel(model), perturb, images, attribution, target=3, n_perturb_samples=4
    )
    assert far.shape == (2,)
    assert (far > 0).all()
    moved = sensitivity_max(gmar.attribute, images, target=3, n_perturb_samples=2)
    assert moved.shape == (2,)
    assert (moved > 0).all()
    still = sensitivity_max(
        gmar.attribute, images, target=3, n_perturb_samples=2, perturb_radius=0.0
    )
    assert (still < 1e-4).all()


def test_captums_pictures() -> None:
    plt.switch_backend("Agg")
    images = VIT.images(batch=1)
    attribution = explain().attribute(images, target=3)
    figure, _ = captum_visualization.visualize_image_attr(
        attribution[0].permute(1, 2, 0).numpy(),
        images[0].sigmoid().permute(1, 2, 0).numpy(),
        method="blended_heat_map",
        sign="positive",
        use_pyplot=False,
    )
    file = io.BytesIO()
    figure.savefig(file, format="png")
    file.seek(0)
    assert plt.imread(file).std() > 0.01
    plt.close(figure)


OTHERS: dict[str, tuple[Callable[[Any], Any], dict[str, Any]]] = {
    "IntegratedGradients": (IntegratedGradients, {"n_steps": 4}),
    "Saliency": (Saliency, {}),
    "Occlusion": (Occlusion, {"sliding_window_shapes": (3, 8, 8), "strides": (3, 8, 8)}),
    "GradientShap": (GradientShap, {"baselines": torch.zeros(1, 3, 32, 32), "n_samples": 2}),
    "InputXGradient": (InputXGradient, {}),
    "FeatureAblation": (
        FeatureAblation,
        {
            "feature_mask": torch.arange(16)
            .reshape(1, 1, 4, 4)
            .repeat_interleave(8, 2)
            .repeat_interleave(8, 3)
        },
    ),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("target", [3, TARGETS], ids=["int", "list"])
def test_captums_methods_on_the_logits(name: str, target: Any) -> None:
    method, options = OTHERS[name]
    images = VIT.images().requires_grad_()
    got = method(LogitsModel(VIT.build())).attribute(images, target=target, **options)
    assert got.shape == images.shape
    assert torch.isfinite(got).all()
    assert got.std() > 0


def test_integrated_gradients_on_the_logits_is_complete() -> None:
    model, images = VIT.build().double(), VIT.images(torch.float64, batch=1)
    found = IntegratedGradients(LogitsModel(model)).attribute(images, target=3, n_steps=200)
    wanted = (model(images).logits - model(torch.zeros_like(images)).logits)[:, 3]
    assert found.sum().item() == pytest.approx(wanted.item(), rel=0.02)
