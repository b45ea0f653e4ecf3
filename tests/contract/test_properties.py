"""What holds for every model and every method, and what is peculiar to GMAR."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_gmar import GMAR, TokenLayout, register_layout
from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar._core.request import ForwardRequest
from hf_gmar._core.targets import TargetSpec
from hf_gmar._engines.propagation import Block, LayerResult, Sums
from hf_gmar._engines.run import run_rules
from hf_gmar.errors import ModelOutputError, OptionError, ReadoutWarning
from tests.reference import oracles
from tests.reference.cases import (
    BATCH,
    ENGINE_OPTIONS,
    HEADS,
    LABELS,
    LAYERS,
    METHODS,
    MODELS,
    TARGETS,
    VIT,
    MethodCase,
    ModelCase,
    every_engine,
    every_method,
    every_method_and_engine,
    every_model,
    shared,
)
from tests.reference.parity import same

every_method_with_heads = pytest.mark.parametrize(
    "method", [method for method in METHODS if method.has_heads], ids=lambda method: method.name
)
every_class_specific_method_and_engine = pytest.mark.parametrize(
    ("method", "engine"),
    [
        pytest.param(method, engine, id=f"{method.name}-{engine}")
        for method in METHODS
        if method.about.class_specific
        for engine in method.engines
    ],
)


@pytest.mark.sampled(4)
@every_method_and_engine
@every_model
def test_maps_are_in_their_range(case: ModelCase, method: MethodCase, engine: str) -> None:
    patches = method.made(shared(case), engine).attribute_patches(
        case.images(), TARGETS, **case.forward_kwargs
    )
    assert patches.shape == (BATCH, *case.grid)
    assert torch.isfinite(patches).all()
    assert (patches.abs().sum(dim=(1, 2)) > 1e-6).all()
    assert (patches >= 0).all() or method.about.signed
    if method.shares:
        assert (patches.sum(dim=(1, 2)) <= 1 + 1e-6).all()
        assert (patches.sum(dim=(1, 2)) > 0.01).all()
    assert not patches.requires_grad


@pytest.mark.sampled(4)
@every_method
@every_model
def test_each_pixel_has_the_value_of_its_patch(case: ModelCase, method: MethodCase) -> None:
    explain, images = method.made(shared(case)), case.images()
    attribution = explain.attribute(images, TARGETS, **case.forward_kwargs)
    patches = explain.attribute_patches(images, TARGETS, **case.forward_kwargs)
    height, width = (size // cells for size, cells in zip(case.shape[1:], case.grid, strict=True))
    for row in range(case.grid[0]):
        for column in range(case.grid[1]):
            area = attribution[
                :, :, row * height : (row + 1) * height, column * width : (column + 1) * width
            ]
            value = patches[:, row, column].reshape(-1, 1, 1, 1)
            assert torch.equal(area, value.expand_as(area))


@pytest.mark.sampled(4)
@every_method
@every_model
def test_a_batch_is_its_images(case: ModelCase, method: MethodCase) -> None:
    explain, images = method.made(shared(case)), case.images()
    batch = explain.attribute_patches(images, TARGETS, **case.forward_kwargs)
    for index, target in enumerate(TARGETS):
        one = explain.attribute_patches(images[index : index + 1], target, **case.forward_kwargs)
        assert same(one[0], batch[index])
    order = [2, 0, 1]
    permuted = explain.attribute_patches(
        images[order], [TARGETS[i] for i in order], **case.forward_kwargs
    )
    assert same(permuted, batch[order])


@pytest.mark.sampled(4)
@every_class_specific_method_and_engine
@every_model
def test_classes_have_maps_of_their_own(case: ModelCase, method: MethodCase, engine: str) -> None:
    explain = method.made(shared(case), engine)
    image = case.images(batch=1)
    maps = [
        explain.attribute_patches(image, target, **case.forward_kwargs) for target in range(LABELS)
    ]
    for index, one in enumerate(maps):
        for other in maps[:index]:
            assert (one - other).abs().max() / one.abs().max() > 1e-4


@pytest.mark.sampled(4)
@every_method_and_engine
@every_model
def test_several_targets_are_one_after_another(
    case: ModelCase, method: MethodCase, engine: str
) -> None:
    explain = method.made(shared(case), engine)
    images, targets = case.images(), [TARGETS, None, 4, torch.tensor(TARGETS)]
    several = explain.attribute_targets(images, targets, **case.forward_kwargs)
    assert several.shape == (4, BATCH, *case.grid)
    for maps, target in zip(several, targets, strict=True):
        one = explain.attribute_patches(images, target, **case.forward_kwargs)
        assert same(maps, one)


TOGETHER: dict[str, Any] = {
    "range": range(2, 4),
    "tuple": (2, 3),
    "tensor of classes": torch.tensor([2, 3]),
    "tensor of images": torch.tensor([[2] * BATCH, [3] * BATCH]),
    "generator": (target for target in (2, 3)),
}


@pytest.mark.parametrize("form", TOGETHER)
def test_forms_of_several_targets(form: str) -> None:
    gmar = GMAR(VIT.build())
    several = gmar.attribute_targets(VIT.images(), TOGETHER[form])
    assert same(several, gmar.attribute_targets((VIT.images(),), [2, 3]))
    assert not same(several[0], several[1])


@every_engine
def test_several_targets_share_one_forward(engine: str) -> None:
    model = VIT.build()
    runs: list[None] = []
    model.register_forward_hook(lambda *_: runs.append(None))
    gmar = GMAR(model, **ENGINE_OPTIONS[engine])
    gmar.attribute_targets(VIT.images(), [1, 2, 3, None])
    assert len(runs) == 1


@pytest.mark.sampled(4)
@every_method_and_engine
@every_model
def test_frozen_weights_change_nothing(case: ModelCase, method: MethodCase, engine: str) -> None:
    """But the kernels: PyTorch has others for a pooling head whose weights need no gradient."""
    model, images = case.build().double(), case.images(torch.float64)
    explain = method.made(model, engine)
    with oracles.unrounded_softmax():
        wanted = explain.attribute_patches(images, TARGETS, **case.forward_kwargs)
        model.requires_grad_(False)
        frozen = explain.attribute_patches(images, TARGETS, **case.forward_kwargs)
    assert same(frozen, wanted)


@every_method_with_heads
@every_model
def test_each_layer_shares_out_its_heads(case: ModelCase, method: MethodCase) -> None:
    explain = method.made(shared(case))
    importance = explain.head_importance(case.images(), TARGETS, **case.forward_kwargs)
    assert importance.shape == (BATCH, LAYERS - explain.start_layer, HEADS)
    assert (importance >= 0).all()
    assert torch.allclose(importance.sum(dim=2), torch.ones(importance.shape[:2]), atol=1e-6)


@pytest.mark.sampled(4)
@every_engine
@every_model
def test_no_gradient_makes_heads_equal(case: ModelCase, engine: str) -> None:
    """A class whose weights are zero depends on no head; NaN would be the careless answer."""
    model = case.build()
    weights = [w for name, w in model.named_parameters() if re.search("classifier.*weight", name)]
    for weight in weights or [model.text]:
        weight.data[4] = 0
    gmar = GMAR(model, **ENGINE_OPTIONS[engine])
    importance = gmar.head_importance(case.images(), 4, **case.forward_kwargs)
    assert torch.equal(importance, torch.full((BATCH, LAYERS, HEADS), 1 / HEADS))
    patches = gmar.attribute_patches(case.images(), 4, **case.forward_kwargs)
    assert torch.isfinite(patches).all()
    # In one batch with an image that has gradients, each has its own weights.
    mixed = gmar.head_importance(case.images(), [4, 0, 4], **case.forward_kwargs)
    assert (mixed[[0, 2]] == 1 / HEADS).all()
    assert (mixed[1] != 1 / HEADS).any()


@pytest.mark.parametrize("head", range(HEADS))
def test_a_head_that_is_cut_off_loses_its_importance(head: int) -> None:
    model, images = VIT.build(), VIT.images()
    before = GMAR(model).head_importance(images, TARGETS)
    width = VIT.build().config.hidden_size // HEADS
    output = model.vit.layers[1].attention.o_proj.weight
    output.data[:, head * width : (head + 1) * width] = 0
    after = GMAR(model).head_importance(images, TARGETS)
    assert (before[:, 1, head] > 0.05).all()
    assert (after[:, 1, head] == 0).all()


@every_model
def test_the_residual_outweighs_all_as_alpha_grows(case: ModelCase) -> None:
    """Nothing leaves the tokens that the head reads; a patch has what the head reads of it."""
    model, images = shared(case), case.images()
    patches = GMAR(model, alpha=1e12).attribute_patches(images, TARGETS, **case.forward_kwargs)
    found = oracles.trace(model, images, TARGETS, case.forward_kwargs)
    read = torch.from_numpy(found.readout[:, case.prefix :]).reshape(patches.shape)
    assert torch.allclose(patches, read.float(), rtol=1e-5, atol=1e-9)


def test_start_layer_leaves_out_the_layers_below() -> None:
    model, images = VIT.build(), VIT.images()
    every = GMAR(model).head_importance(images, TARGETS)
    for start in range(LAYERS):
        upper = GMAR(model, start_layer=start).head_importance(images, TARGETS)
        assert same(upper, every[:, start:])


@every_model
def test_prefix_tokens_are_no_patches(case: ModelCase) -> None:
    """The map is the tokens after the prefix; with a wrong prefix there is no map at all."""
    model, images = shared(case), case.images()
    found = oracles.trace(model, images, TARGETS, case.forward_kwargs)
    weights = [oracles.head_weights(layer, "l1") for layer in found.gradient[0]]
    row = found.readout[0] @ oracles.rollout(found.attention[0], weights, 1.0)
    patches = GMAR(model).attribute_patches(images, TARGETS, **case.forward_kwargs)
    assert float(patches[0].sum()) == pytest.approx(1 - row[: case.prefix].sum(), rel=1e-5)
    for prefix in {0, 1, 2, 5, case.prefix + 1} - {case.prefix}:
        readout = (0.0,) * prefix
        gmar = GMAR(model)
        wrong = replace(gmar.adapter.tokens, readout=readout)
        gmar.adapter = replace(gmar.adapter, layout=wrong)
        with pytest.raises(ModelOutputError, match="register_layout"):
            gmar.attribute_patches(images, TARGETS, **case.forward_kwargs)


@pytest.mark.parametrize(
    "case", [case for case in MODELS if case.prefix], ids=lambda case: case.name
)
def test_the_readout_decides_the_map(case: ModelCase) -> None:
    model, images = shared(case), case.images()
    right = GMAR(model).attribute_patches(images, TARGETS, **case.forward_kwargs)
    gmar = GMAR(model)
    own = gmar.adapter.tokens
    # As if the head averaged the patches, or read the last prefix token alone.
    others = [0.0] * case.prefix, [0.0] * (case.prefix - 1) + [0.9]
    for readout in [tuple(other) for other in others if tuple(other) != own.readout]:
        other = replace(own, readout=readout)
        gmar.adapter = replace(gmar.adapter, layout=other)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReadoutWarning)  # where the head is not of Transformers
            wrong = gmar.attribute_patches(images, TARGETS, **case.forward_kwargs)
        assert (wrong - right).abs().max() / right.max() > 0.01


def test_registers_get_no_heat_on_the_image() -> None:
    """With residuals alone the readout itself is left: half of it, spread over the patches."""
    case = next(case for case in MODELS if case.name == "dinov2-registers")
    model, images = case.build(), case.images()
    readout = GMAR(model, alpha=1e12).attribute_patches(images, TARGETS)
    assert torch.allclose(readout, torch.full_like(readout, 0.5 / 16), rtol=1e-6)
    # A rule that says which token it saw: the map holds the patches, and they alone.
    adapter, rule = ModelAdapter.of(model), Numbered()
    request, spans = ForwardRequest(images), [(rule, range(LAYERS))]
    ((found,),) = run_rules(adapter, request, [TargetSpec(TARGETS)], spans, "streaming")
    wanted = torch.arange(case.prefix, case.prefix + 16.0).reshape(4, 4)
    assert torch.equal(found.patches, wanted.expand(BATCH, 4, 4))


class Numbered:
    """A rule that gives each token its number as relevance."""

    def accumulate(self, block: Block) -> Sums:
        """Nothing is needed of the attention."""
        return (block.gradient.new_zeros(len(block.gradient)),)

    def finish(self, sums: Sums, relevance: Tensor) -> LayerResult:
        """0, 1, 2, ... for the tokens."""
        numbers = torch.arange(relevance.shape[1], dtype=relevance.dtype)
        return LayerResult(numbers.expand_as(relevance), sums[0][:, None])


@pytest.mark.usefixtures("layouts")
def test_a_subclass_keeps_its_layout_and_a_class_goes_before_its_family() -> None:
    model = VIT.build()
    model.__class__ = type("Fork", (type(model),), {})
    assert ModelAdapter.of(model).tokens.readout == (1.0,)
    register_layout("vit", TokenLayout(readout=(0.0,)))  # a user's own word goes first
    assert ModelAdapter.of(model).tokens.readout == (0.0,)
    register_layout("Fork", TokenLayout(readout=(0.5,), patch_size=(4, 2)))
    assert ModelAdapter.of(model).layout == TokenLayout(readout=(0.5,), patch_size=(4, 2))


@pytest.mark.parametrize("readout", [(-0.1, 0.5), (1.1,), (0.6, 0.6), (float("nan"),)], ids=str)
def test_a_readout_is_shares(readout: tuple[float, ...]) -> None:
    with pytest.raises(OptionError, match="shares"):
        TokenLayout(readout=readout)


@pytest.mark.parametrize(
    "wrong", [{"readout": 1.0}, {"readout": [1.0]}, {"readout": (1.0,), "patch_size": 16}], ids=str
)
def test_a_layout_of_wrong_types(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="tuple"):
        TokenLayout(**wrong)
    with pytest.raises(OptionError, match="TokenLayout"):
        register_layout("mine", wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("readout", [(0.1,) * 10, (0.7, 0.2, 0.1), (1.0 + 5e-10,)], ids=str)
def test_rounding_in_a_readout_makes_nothing_negative(readout: tuple[float, ...]) -> None:
    row = TokenLayout(readout=readout).readout_row(5, torch.float64)
    assert (row >= 0).all()
    assert float(row.sum()) == pytest.approx(1, abs=1e-9)
