"""The methods on the tokens that enter a layer, against a second writing of each."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam, LayerGradientXActivation
from torch import Tensor, nn
from transformers import (
    Dinov2Config,
    Dinov2ForImageClassification,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ViTConfig,
    ViTModel,
)

from hf_gmar import GMAR, AttnLRP, InputXGradient, LogitsModel, TokenGradCAM
from hf_gmar._core.layers import layer_modules
from hf_gmar.errors import ModelOutputError, OptionError, TargetError, UnsupportedModelError
from hf_gmar.methods import METHODS, AttributionMethod
from tests.reference import oracle_tokens, oracles
from tests.reference.cases import (
    LAYERS,
    MODELS,
    MORE_MODELS,
    TARGETS,
    VIT,
    Around,
    ModelCase,
    every_model,
    shared,
)
from tests.reference.models import SIZES, OwnHead, build
from tests.reference.parity import relative_error, same
from tests.reference.tolerances import PATIENCE
from tests.support.state import PLACES, HalfWayError, fail_halfway, live_tensors, unchanged, used
from tests.support.threads import Halfway

TOKEN_METHODS: dict[str, Callable[..., AttributionMethod]] = {
    "token-grad-cam": TokenGradCAM,
    "input-x-gradient": InputXGradient,
    "attn-lrp": AttnLRP,
}
every_token_method = pytest.mark.parametrize(
    "method", TOKEN_METHODS.values(), ids=TOKEN_METHODS.keys()
)


def maps(
    method: Callable[..., AttributionMethod], case: ModelCase, model: Any = None, **options: Any
) -> Any:
    """A map of the case's images for its targets."""
    explain = method(case.build() if model is None else model, **case.options, **options)
    return explain.attribute_patches(case.images(), TARGETS, **case.forward_kwargs)


# Against the oracle


def wanted(
    case: ModelCase, layer: int, formula: Callable[[Any, Any], Any], model: Any
) -> np.typing.NDArray[np.float64]:
    """The maps that the oracle makes, image by image, from an eager model."""
    assert len(oracle_tokens.layers(model)) == LAYERS
    found = []
    for image, target in zip(case.images(torch.float64), TARGETS, strict=True):
        tokens, gradient = oracle_tokens.entering(
            model, image, target, layer, dict(case.forward_kwargs)
        )
        values = formula(tokens[case.prefix :], gradient[case.prefix :])
        found.append(values.reshape(case.grid))
    return np.stack(found)


FORMULAS: list[tuple[Callable[..., AttributionMethod], Callable[[Any, Any], Any], int | None]] = [
    (TokenGradCAM, oracle_tokens.grad_cam, None),
    (TokenGradCAM, oracle_tokens.grad_cam, 1),
    (InputXGradient, oracle_tokens.input_x_gradient, None),
    (InputXGradient, oracle_tokens.input_x_gradient, -2),
]
_DEFAULTS = {TokenGradCAM: LAYERS - 1, InputXGradient: 0}


@pytest.mark.parametrize("case", [*MODELS, *MORE_MODELS], ids=lambda case: case.name)
def test_equals_the_oracle(case: ModelCase) -> None:
    plain = case.build(attention="eager").double()
    for method, formula, layer in FORMULAS:
        place = _DEFAULTS[method] if layer is None else layer  # type: ignore[index]
        with oracles.unrounded_softmax():
            patches = wanted(case, place, formula, plain)
        options = dict(case.options) if layer is None else {**case.options, "layer": layer}
        explain = method(case.build().double(), **options)
        images = case.images(torch.float64)
        got = explain.attribute_patches(images, TARGETS, **case.forward_kwargs)
        assert patches.any()
        assert relative_error(got, patches) < 1e-10


RELEVANCE_CASES = [
    case for case in MODELS if case.name.startswith("vit") and "msn" not in case.name
]


def relevance(case: ModelCase, model: Any, gamma: float = 0.0) -> list[oracle_tokens.Relevance]:
    """What the oracle says of each image, from the weights."""
    propagate, found = oracle_tokens.VitRelevance(model, gamma), []
    for image, target in zip(case.images(torch.float64), TARGETS, strict=True):
        tokens, _ = oracle_tokens.entering(model, image, target, 0, dict(case.forward_kwargs))
        found.append(propagate.of(tokens, target))
    return found


@pytest.mark.parametrize("gamma", [0, 0.25, 10])
@pytest.mark.parametrize("case", RELEVANCE_CASES, ids=lambda case: case.name)
def test_relevance_equals_the_oracle(case: ModelCase, gamma: float) -> None:
    model = case.build().double()
    patches = [one.tokens[1:].reshape(case.grid) for one in relevance(case, model, gamma)]
    got = AttnLRP(model, gamma=gamma).attribute_patches(
        case.images(torch.float64), TARGETS, **case.forward_kwargs
    )
    assert relative_error(got, np.stack(patches)) < 1e-10


ACTIVATIONS: dict[str, tuple[nn.Module, Callable[[Any], Any]]] = {
    "tanh": (nn.Tanh(), np.tanh),
    "sigmoid": (nn.Sigmoid(), lambda x: 1 / (1 + np.exp(-x))),
    "softplus": (nn.Softplus(), lambda x: np.log1p(np.exp(x))),
    "silu": (nn.SiLU(), lambda x: x / (1 + np.exp(-x))),
    "prelu": (nn.PReLU(init=0.25).double(), lambda x: np.where(x > 0, x, x / 4)),
}


@pytest.mark.parametrize("gamma", [0, 0.25])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_relevance_through_an_activation_equals_the_oracle(name: str, gamma: float) -> None:
    model, (module, plain) = VIT.build().double(), ACTIVATIONS[name]
    for layer in model.vit.layers:
        layer.mlp.activation_fn = module
    images = VIT.images(torch.float64)
    with unchanged(model):
        got = AttnLRP(model, gamma).attribute_patches(images, TARGETS)
    oracle = oracle_tokens.VitRelevance(model, gamma, plain)
    for patches, image, target in zip(got, images, TARGETS, strict=True):
        one = oracle.of(oracle_tokens.entering(model, image, target, 0, {})[0], target)
        assert relative_error(patches, one.tokens[1:].reshape(VIT.grid)) < 1e-9
        spent = float(patches.sum()) + one.tokens[0] + one.biases + one.softmax
        assert spent == pytest.approx(one.logit, rel=1e-9)


@pytest.mark.parametrize("gamma", [0, 0.25])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_the_lower_half_of_the_layers_equals_the_oracle(depth: int, gamma: float) -> None:
    model, half = VIT.build(num_hidden_layers=depth).double(), {1: 1, 2: 1, 3: 2, 4: 2}[depth]
    patches = [
        np.mean(one.layers[:half], axis=0)[1:].reshape(VIT.grid)
        for one in relevance(VIT, model, gamma)
    ]
    images = VIT.images(torch.float64)
    with unchanged(model):
        got = AttnLRP(model, gamma, "lower").attribute_patches(images, TARGETS)
    assert relative_error(got, np.stack(patches)) < 1e-10


@every_model
def test_the_lower_half_of_every_family(case: ModelCase) -> None:
    """Several targets, and layers that are called by keyword."""
    explain = AttnLRP(shared(case), layers="lower")
    several = explain.attribute_targets(case.images(), [2, TARGETS], **case.forward_kwargs)
    alone = explain.attribute_patches(case.images(), TARGETS, **case.forward_kwargs)
    assert same(several[1], alone)
    assert not same(alone, maps(AttnLRP, case))


@pytest.mark.parametrize("gamma", [0, 0.25])
@pytest.mark.parametrize("biases", [False, True])
def test_relevance_is_conserved(biases: bool, gamma: float) -> None:
    """Map, prefix tokens, biases and the constant parts of the softmaxes are the whole logit."""
    model = VIT.build().double()
    if not biases:
        _without_biases(model)
    got = AttnLRP(model, gamma).attribute_patches(VIT.images(torch.float64), TARGETS)
    for patches, one in zip(got, relevance(VIT, model, gamma), strict=True):
        assert (one.biases != 0) == biases
        assert one.softmax != 0
        spent = float(patches.sum()) + one.tokens[0] + one.biases + one.softmax
        assert spent == pytest.approx(one.logit, rel=1e-9)


def _without_biases(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith("bias") and "embedding" not in name:
            parameter.data.zero_()


def test_all_relevance_lands_on_patches_where_no_attention_and_no_bias_takes_it() -> None:
    """I-JEPA reads the mean of its patches and has no other tokens."""
    case = next(case for case in MODELS if case.name == "ijepa")
    model, images = case.build().double(), case.images(torch.float64)
    _without_biases(model)
    for name, parameter in model.named_parameters():
        if name.endswith("o_proj.weight"):
            parameter.data.zero_()
    got = AttnLRP(model).attribute_patches(images, TARGETS).sum((1, 2))
    logits = model(images).logits.detach()
    assert torch.allclose(got, logits[range(3), TARGETS], rtol=1e-10)


# Against Captum


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("case", [VIT, *MODELS[4:8]], ids=lambda case: case.name)
def test_input_x_gradient_is_captums(case: ModelCase, layer: int) -> None:
    """What enters a layer is what the one below it gives."""
    model = case.build()
    captum = LayerGradientXActivation(LogitsModel(model), oracle_tokens.layers(model)[layer - 1])
    products = captum.attribute(case.images(), TARGETS)
    products = products[0] if isinstance(products, tuple) else products
    patches = products.sum(-1)[:, case.prefix :].reshape(-1, *case.grid)
    assert same(maps(InputXGradient, case, layer=layer), patches.detach())


def test_captums_grad_cam_is_not_for_tokens() -> None:
    """It takes tokens for channels: mean over the channels, sum over the tokens."""
    model = VIT.build()
    captum = LayerGradCam(LogitsModel(model), oracle_tokens.layers(model)[1])
    assert captum.attribute(VIT.images(), TARGETS).shape == (3, 1, SIZES["hidden_size"])


# What holds for all


@every_token_method
@every_model
def test_every_model(case: ModelCase, method: Callable[..., AttributionMethod]) -> None:
    model = used(case)
    with unchanged(model):
        whole = maps(method, case, model)
    assert whole.shape == (3, *case.grid)
    assert torch.isfinite(whole).all()
    assert whole.flatten(1).any(1).all()
    explain = method(model, **case.options)
    assert explain.signed == bool((whole < 0).any())
    one = explain.attribute_patches(case.images()[1:2], TARGETS[1], **case.forward_kwargs)
    assert same(one, whole[1:2])
    several = explain.attribute_targets(case.images(), [2, TARGETS], **case.forward_kwargs)
    assert same(several[1], whole)
    assert not same(several[0], whole)
    contrast = explain.attribute_patches(case.images(), TARGETS, contrast=2, **case.forward_kwargs)
    if explain.signed:  # both are linear in the gradient
        assert same(contrast, several[1] - several[0])


@pytest.mark.parametrize("case", MORE_MODELS, ids=lambda case: case.name)
@pytest.mark.parametrize("gamma", [0, 0.1])
def test_relevance_for_other_sizes_and_readouts(case: ModelCase, gamma: float) -> None:
    found = maps(AttnLRP, case, gamma=gamma)
    assert torch.isfinite(found).all()
    assert found.flatten(1).any(1).all()


@every_model
def test_relevance_does_not_depend_on_the_loading(case: ModelCase) -> None:
    model = case.build(attention="eager")
    with unchanged(model):
        assert same(maps(AttnLRP, case, model), maps(AttnLRP, case))


def test_opposite_contrasts_of_grad_cam_do_not_overlap() -> None:
    cam = TokenGradCAM(VIT.build())
    one = cam.attribute_patches(VIT.images(), 3, contrast=2)
    other = cam.attribute_patches(VIT.images(), 2, contrast=3)
    assert one.any()
    assert other.any()
    assert not (one * other).any()


GATED: dict[str, Callable[[], Any]] = {
    "dinov2": lambda: build(Dinov2ForImageClassification, Dinov2Config, use_swiglu_ffn=True),
    "dinov3": lambda: OwnHead(
        build(DINOv3ViTModel, DINOv3ViTConfig, use_gated_mlp=True, num_register_tokens=2),
        lambda tokens: tokens[:, 0],
        SIZES["hidden_size"],  # type: ignore[arg-type]
    ),
    "tanh gelu": lambda: VIT.build(hidden_act="gelu_new"),
    "drop path": lambda: build(
        Dinov2ForImageClassification, Dinov2Config, drop_path_rate=0.3, layerscale_value=0.5
    ).train(),
}


@pytest.mark.parametrize("name", GATED)
def test_relevance_through_gates(name: str) -> None:
    readout = "cls" if name == "dinov3" else None
    found = AttnLRP(GATED[name](), readout=readout).attribute_patches(VIT.images(), TARGETS)
    assert found.flatten(1).any(1).all()


def test_attribute_spreads_the_map_over_the_pixels() -> None:
    explain = METHODS.build("token-grad-cam", VIT.build(), layer=-2)
    spread = explain.attribute(VIT.images(), TARGETS)
    assert spread.shape == VIT.images().shape
    assert torch.equal(spread[:, 0, ::8, ::8], explain.attribute_patches(VIT.images(), TARGETS))


def test_layers_count_from_either_end() -> None:
    for method in (TokenGradCAM, InputXGradient):
        one, other = (maps(method, VIT, layer=layer) for layer in (1, -2))
        assert torch.equal(one, other)
        assert not same(one, maps(method, VIT, layer=2))
    assert TokenGradCAM(VIT.build()).layer == LAYERS - 1
    assert InputXGradient(VIT.build()).layer == 0


@pytest.mark.parametrize("layer", [3, -4, 0.5, True, None])
def test_a_layer_that_does_not_exist(layer: Any) -> None:
    for method in (TokenGradCAM, InputXGradient):
        with pytest.raises(OptionError, match="layer must be a whole number from -3 to 2"):
            method(VIT.build(), layer=layer)


@pytest.mark.parametrize("gamma", [-0.1, float("nan"), float("inf"), "0.1", True])
def test_a_gamma_out_of_range(gamma: Any) -> None:
    with pytest.raises(OptionError, match="gamma must be"):
        AttnLRP(VIT.build(), gamma=gamma)


@pytest.mark.parametrize("layers", ["upper", 0, None])
def test_layers_that_do_not_exist(layers: Any) -> None:
    with pytest.raises(OptionError, match="layers must be one of 'input', 'lower'"):
        AttnLRP(VIT.build(), layers=layers)


# Modes, precision and threads


@every_token_method
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inside_a_callers_mode(
    method: Callable[..., AttributionMethod], mode: Callable[[], Any]
) -> None:
    model = VIT.build().requires_grad_(False)
    before = maps(method, VIT)
    with mode(), unchanged(model):
        assert same(maps(method, VIT, model), before)  # of images that are made in that mode


@every_token_method
def test_dropout_is_off(method: Callable[..., AttributionMethod]) -> None:
    dropout = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
    model = VIT.build(**dropout).train()
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    with unchanged(model):
        assert same(maps(method, VIT, model), maps(method, VIT))


@every_token_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(method: Callable[..., AttributionMethod], dtype: torch.dtype) -> None:
    exact = maps(method, VIT)
    with torch.autocast("cpu", dtype):
        mixed = maps(method, VIT)
    low = method(VIT.build().to(dtype)).attribute_patches(VIT.images(dtype), TARGETS)
    for found in (mixed, low):
        assert found.dtype == torch.float32
        assert relative_error(found, exact.double().numpy()) < 0.2
    assert not torch.equal(mixed, exact)


@every_token_method
def test_mixed_precision_is_for_the_forward_alone(method: Callable[..., AttributionMethod]) -> None:
    seen = []

    def watched(vit: Any, pixels: Tensor) -> Tensor:
        logits: Tensor = vit(pixels).logits
        seen.append(torch.is_autocast_enabled("cpu"))
        logits.register_hook(lambda _: seen.append(torch.is_autocast_enabled("cpu")))
        return logits

    with torch.autocast("cpu", torch.bfloat16):
        maps(method, VIT, Around(VIT.build(), watched))
    assert seen == [True, False]


@every_token_method
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_other_threads_go_on_meanwhile(
    method: Callable[..., AttributionMethod], attention: str
) -> None:
    model, halfway = VIT.build(attention=attention), Halfway()
    before, scores = maps(method, VIT, model), model(VIT.images()).logits
    model.vit.layers[1].register_forward_hook(halfway)
    with ThreadPoolExecutor(1) as pool:
        explained = halfway.during(lambda: maps(method, VIT, model), pool)
        meanwhile = model(VIT.images()).logits
        halfway.go_on.set()
        assert same(explained.result(PATIENCE), before)
    assert torch.equal(meanwhile, scores)
    assert meanwhile.requires_grad  # its weights are no constants


@every_token_method
@pytest.mark.parametrize(
    "inner", [*TOKEN_METHODS.values(), GMAR, functools.partial(GMAR, engine="dense")]
)
def test_an_explanation_inside_a_hook(
    method: Callable[..., AttributionMethod], inner: Callable[..., AttributionMethod]
) -> None:
    model = VIT.build()
    found: list[Tensor] = []
    outside, inside = maps(method, VIT, model), maps(inner, VIT, model)

    def explain(*_: Any) -> None:
        handle.remove()
        found.append(maps(inner, VIT, model))

    handle = model.vit.layers[1].register_forward_hook(explain)
    assert same(maps(method, VIT, model), outside)
    assert same(found[0], inside)


@every_token_method
def test_calls_keep_nothing(method: Callable[..., AttributionMethod]) -> None:
    """With the garbage collector off: nothing waits for it."""
    explain, images = method(VIT.build()), VIT.images()
    explain.attribute(images, TARGETS)
    gc.collect()
    gc.disable()
    try:
        before = live_tensors()
        for _ in range(5):
            explain.attribute_targets(images, [1, 2])
            with pytest.raises(TargetError):
                explain.attribute(images, 99)
        assert live_tensors() == before
    finally:
        gc.enable()


# What goes wrong


@every_token_method
@pytest.mark.parametrize("place", PLACES)
def test_a_model_that_raises_half_way(place: str, method: Callable[..., AttributionMethod]) -> None:
    model = used(VIT, "eager")
    handle = PLACES[place](model).register_forward_hook(fail_halfway)
    with unchanged(model), pytest.raises(HalfWayError):
        maps(method, VIT, model)
    handle.remove()
    assert same(maps(method, VIT, model), maps(method, VIT))


@every_token_method
def test_values_that_are_not_finite(method: Callable[..., AttributionMethod]) -> None:
    model = used(VIT)
    with unchanged(model), pytest.raises(TargetError):
        method(model).attribute(VIT.images(), 99)
    model.vit.layers[1].mlp.fc2.weight.data *= 1e38
    with unchanged(model), pytest.raises(ModelOutputError, match="not finite"):
        maps(method, VIT, model)


@every_token_method
def test_a_gradient_that_is_not_finite(method: Callable[..., AttributionMethod]) -> None:
    model = Around(VIT.build(), lambda vit, pixels: vit(pixels).logits)
    with pytest.raises(ModelOutputError, match="product of the tokens or its gradient"):
        maps(method, VIT, _overflowing(model))


def _overflowing(model: Around) -> Around:
    """Scores that are finite, and whose gradient is not."""

    def spoil(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return output + (output - output.detach()) * 1e38 * 10

    model.model.classifier.register_forward_hook(spoil)
    return model


DETACHED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "no graph": lambda vit, pixels: vit(pixels).logits.detach(),
    "another graph": lambda vit, pixels: (
        vit(pixels).logits.detach() + torch.zeros(7, requires_grad=True)
    ),
}


@every_token_method
@pytest.mark.parametrize("name", DETACHED)
def test_scores_that_no_gradient_reaches(
    method: Callable[..., AttributionMethod], name: str
) -> None:
    with pytest.raises(ModelOutputError, match="does not reach the tokens that enter layer"):
        maps(method, VIT, Around(VIT.build(), DETACHED[name]))


@every_token_method
def test_scores_of_other_images(method: Callable[..., AttributionMethod]) -> None:
    model = Around(VIT.build(), lambda vit, pixels: vit(pixels[:2]).logits.repeat(2, 1)[:3])
    with unchanged(model), pytest.raises(ModelOutputError, match="must keep number, order"):
        maps(method, VIT, model)


@every_token_method
def test_a_layer_that_runs_twice(method: Callable[..., AttributionMethod]) -> None:
    model = VIT.build()
    for layer in model.vit.layers:
        layer.forward = functools.partial(_twice, layer, layer.forward)
    with pytest.raises(ModelOutputError, match=r"layer \d must run once .*; it ran [24] times"):
        maps(method, VIT, model)


def _twice(layer: nn.Module, forward: Callable[..., Any], tokens: Tensor, *args: Any) -> Any:
    layer.forward = forward  # the second run is an ordinary one
    return layer(forward(tokens, *args), *args)


@every_token_method
def test_other_tokens_than_the_layout_says(method: Callable[..., AttributionMethod]) -> None:
    explain = method(VIT.build())
    with (
        patch.object(type(explain.adapter.layout), "grid", lambda *_: (2, 4)),
        pytest.raises(ModelOutputError, match="17 tokens, but its layout says 1 before"),
    ):
        explain.attribute_patches(VIT.images(), 3)


NO_RULE: dict[str, tuple[str, Callable[[Any, Tensor], Tensor]]] = {
    "exponentials": ("exp", lambda vit, pixels: vit(pixels).logits.exp()),
    "both": ("exp, sigmoid", lambda vit, pixels: vit(pixels).logits.exp().sigmoid()),
    "logs": ("log_softmax", lambda vit, pixels: vit(pixels).logits.log_softmax(-1)),
}


@pytest.mark.parametrize("name", NO_RULE)
def test_scores_through_a_function_without_a_rule(name: str) -> None:
    function, scores = NO_RULE[name]
    model = Around(VIT.build(), scores)
    with unchanged(model), pytest.raises(UnsupportedModelError, match=f"through {function} as"):
        maps(AttnLRP, VIT, model)
    assert maps(InputXGradient, VIT, model).any()


def test_a_hook_that_watches_does_no_harm() -> None:
    model, seen = VIT.build(), []
    model.vit.layers[1].register_forward_hook(
        lambda _module, _inputs, output: seen.append(output.exp().amax())
    )
    assert same(maps(AttnLRP, VIT, model), maps(AttnLRP, VIT))
    assert seen


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "quick_gelu"])
def test_a_pooler_with_a_tanh(activation: str) -> None:
    """It passes on what it gets; the tanh or sigmoid in each GELU is still a factor."""
    inside = build(ViTModel, ViTConfig, hidden_act=activation).double()
    images = VIT.images(torch.float64)
    pooled = Around(inside, lambda vit, pixels: vit(pixels).pooler_output)
    flat = Around(inside, lambda vit, pixels: vit.pooler.dense(vit(pixels).last_hidden_state[:, 0]))
    with unchanged(pooled):
        found = AttnLRP(pooled, readout="cls").attribute_patches(images, TARGETS)
    below = AttnLRP(flat, readout="cls").attribute_patches(images, TARGETS)
    values = flat(images).detach()[range(3), TARGETS]
    assert same(found, below * (values.tanh() / values)[:, None, None])


def test_the_probability_of_a_class() -> None:
    """It is one half plus what the logit makes of it, in the logit's own proportions."""
    model, images = VIT.build().double(), VIT.images(torch.float64)
    probabilities = Around(model, lambda vit, pixels: vit(pixels).logits.sigmoid())
    found = AttnLRP(probabilities).attribute_patches(images, TARGETS)
    logits = model(images).logits.detach()[range(3), TARGETS]
    share = ((logits.sigmoid() - 0.5) / logits)[:, None, None]
    assert same(found, AttnLRP(model).attribute_patches(images, TARGETS) * share)


def test_a_model_that_fixes_another_attention() -> None:
    model = VIT.build(attention="eager")
    with patch.object(type(model.vit), "_can_set_attn_implementation", lambda *_: False):
        with pytest.raises(UnsupportedModelError, match='attn_implementation="sdpa"'):
            maps(AttnLRP, VIT, model)
        assert maps(InputXGradient, VIT, model).any()


# Layers that are not of Transformers


class Foreign(nn.Module):
    """A tower with blocks of its own, as timm's models have."""

    def __init__(self, *lists: nn.Module) -> None:
        """Keep the blocks."""
        super().__init__()
        self.lists = nn.ModuleDict({str(place): one for place, one in enumerate(lists)})


def _blocks(*sizes: int) -> nn.Sequential:
    return nn.Sequential(*[nn.Linear(size, size) for size in sizes])


def _found(*lists: nn.Module) -> list[nn.Module]:
    adapter: Any = SimpleNamespace(vision_model=Foreign(*lists), layers=3)
    return layer_modules(adapter)


def test_blocks_of_other_libraries_are_found() -> None:
    blocks = _blocks(2, 2, 2)
    mixed = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    assert _found(blocks, _blocks(2, 2), mixed) == list(blocks)
    assert _found(nn.ModuleList(blocks)) == list(blocks)


@pytest.mark.parametrize("lists", [(), ((2, 2),), ((2, 2, 2), (2, 2, 2))])
def test_blocks_that_can_not_be_told(lists: tuple[tuple[int, ...], ...]) -> None:
    count = sum(len(one) == 3 for one in lists)
    with pytest.raises(UnsupportedModelError, match=f"{count} lists of modules are as long"):
        _found(*(_blocks(*one) for one in lists))


def test_a_layer_called_with_keywords() -> None:
    model = VIT.build()
    model.vit.layers = nn.ModuleList([ByKeyword(layer) for layer in model.vit.layers])
    for method in TOKEN_METHODS.values():
        assert same(maps(method, VIT, model), maps(method, VIT))


class ByKeyword(nn.Module):
    """Calls a layer with its tokens by name."""

    def __init__(self, layer: nn.Module) -> None:
        """Keep the layer."""
        super().__init__()
        self.layer = layer

    def forward(self, tokens: Tensor, *_: Any, **kwargs: Any) -> Any:
        """What the layer gives."""
        return self.layer(hidden_states=tokens, **kwargs)


@pytest.mark.parametrize("method", [TokenGradCAM, InputXGradient, AttnLRP])
def test_a_layer_that_overwrites_its_input(method: Any) -> None:
    """It may, as it may outside of an explanation."""
    maps = []
    for in_place in (False, True):
        model = VIT.build()
        for layer in model.vit.layers:
            plain = layer.forward
            layer.forward = functools.partial(_shifted, plain, in_place)
        maps.append(method(model).attribute_patches(VIT.images(), TARGETS))
    assert same(maps[0], maps[1])


def _shifted(plain: Any, in_place: bool, tokens: Tensor, *args: Any) -> Any:
    return plain(tokens.add_(0.5) if in_place else tokens + 0.5, *args)
