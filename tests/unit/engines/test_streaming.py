"""What the streaming engine keeps, skips and refuses, beside giving the right numbers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from hf_gmar import GMAR
from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar._core.request import ForwardRequest
from hf_gmar._core.targets import TargetSpec
from hf_gmar._engines import streaming
from hf_gmar._engines.propagation import Block, LayerResult, Sums
from hf_gmar._engines.run import run_rules
from hf_gmar.errors import ModelOutputError, UnsupportedModelError
from tests.reference import oracles
from tests.reference.cases import (
    BATCH,
    ENGINE_OPTIONS,
    LAYERS,
    TARGETS,
    VIT,
    Around,
    ModelCase,
    every_engine,
    every_model,
)
from tests.reference.parity import relative_error, same

every_streaming = pytest.mark.parametrize(
    "engine", [name for name in ENGINE_OPTIONS if name != "dense"]
)


def same_as_dense(model: Any, engine: str, images: Tensor | None = None) -> bool:
    """Map and heads of the engine are those of the dense one."""
    images = VIT.images() if images is None else images
    both = [GMAR(model, **ENGINE_OPTIONS[name]) for name in (engine, "dense")]
    maps = [gmar.attribute_patches(images, TARGETS) for gmar in both]
    heads = [gmar.head_importance(images, TARGETS) for gmar in both]
    return same(*maps) and same(*heads)


MASK = torch.ones(BATCH, 17)
MASK[0, 3:9], MASK[1, 16] = 0, 0


@every_streaming
@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention"])
def test_masks(attention: str, engine: str) -> None:
    """A mask function must go with the attention function, or the mask is lost in silence."""
    model = VIT.build(attention=attention)
    masked = Around(model, lambda vit, pixels: vit(pixels, attention_mask=MASK).logits)
    assert same_as_dense(masked, engine)
    whole, part = (
        GMAR(each, **ENGINE_OPTIONS[engine]).attribute_patches(VIT.images(), TARGETS)
        for each in (model, masked)
    )
    assert relative_error(part, whole.double().numpy()) > 0.01
    hidden = part[0].flatten()[2:8]
    # Only its own residual connection leads to a hidden patch: none, from CLS.
    assert (hidden == 0).all()
    assert (whole > 0).all()


@contextmanager
def watched(see: Callable[[Any, Any], None]) -> Iterator[None]:
    """Show each operator and what it returned, in the forward and in the backward."""

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            see(func, result)
            return result

    with Watch():  # type: ignore[no-untyped-call]
        yield


def largest(engine: str, **options: Any) -> int:
    """The most numbers in one tensor that an explanation of 257 tokens makes."""
    model = VIT.build(image_size=128, intermediate_size=32)
    sizes = [0]
    with watched(lambda _, made: sizes.append(made.numel() if isinstance(made, Tensor) else 0)):
        GMAR(model, engine=engine, **options).attribute_patches(torch.randn(1, 3, 128, 128), 3)
    return max(sizes)


def test_no_attention_map_is_ever_made() -> None:
    tokens_, heads = 257, 4
    assert largest("dense") == heads * tokens_**2
    for options in ({}, {"checkpoint": True}):
        assert largest("streaming", chunk_size=16, **options) < heads * tokens_**2 / 4


def saved(model: Any, images: Tensor, **options: Any) -> int:
    """Bytes that the graph of an explanation holds, beside the weights."""
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            held[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    gmar = GMAR(model, **options)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        gmar.attribute_patches(images, 3)
    return sum(held.values())


def test_nothing_is_kept_for_gradients_of_weights() -> None:
    model, images = VIT.build(), VIT.images()
    wanted = saved(model, images)
    assert all(parameter.requires_grad for parameter in model.parameters())
    plain = VIT.build().requires_grad_(False)
    assert saved(plain, images) == wanted
    # A linear layer that keeps its input for its weight would hold each layer's five inputs more.
    assert wanted < LAYERS * BATCH * 17 * (7 * 32 + 48) * 4


def test_a_higher_start_keeps_less() -> None:
    model, images = VIT.build(num_hidden_layers=6), VIT.images()
    held = [saved(model, images, start_layer=start) for start in range(6)]
    steps = [one - other for one, other in itertools.pairwise(held)]
    assert min(steps) > 0
    assert max(steps) == min(steps)


def test_checkpoint_keeps_the_inputs_of_layers() -> None:
    model, images = VIT.build(num_hidden_layers=12), VIT.images()
    one_layer = saved(model, images, start_layer=10) - saved(model, images, start_layer=11)
    fewer = saved(model, images) - saved(model, images, checkpoint=True)
    # All but the top layer keep their input alone; the lowest has less to keep anyway.
    layer_input = BATCH * 17 * 32 * 4
    assert one_layer > 5 * layer_input
    assert 10 * (one_layer - layer_input) < fewer < 11 * (one_layer - layer_input)


def test_checkpoint_runs_layers_twice() -> None:
    model, images = VIT.build(num_hidden_layers=5), VIT.images()
    runs = [0] * 5
    for index, layer in enumerate(model.vit.layers):

        def count(*_: Any, index: int = index) -> None:
            runs[index] += 1

        layer.attention.register_forward_hook(count)
    GMAR(model).attribute_patches(images, TARGETS)
    assert runs == [1] * 5
    GMAR(model, checkpoint=True, start_layer=1).attribute_patches(images, TARGETS)
    assert runs == [2, 3, 3, 3, 2]


class Rows:
    """A rule that notes the rows that it got in each layer, and moves relevance to all tokens."""

    def __init__(self) -> None:
        """No layer yet."""
        self.rows = [0]

    def accumulate(self, block: Block) -> Sums:
        """Count."""
        self.rows[-1] += block.relevance.shape[1]
        return (block.relevance.sum(1),)

    def finish(self, sums: Sums, relevance: Tensor) -> LayerResult:
        """Next layer."""
        self.rows.append(0)
        return LayerResult(torch.ones_like(relevance), sums[0][:, None])


@every_model
def test_the_top_layer_is_its_readout(case: ModelCase) -> None:
    rule = Rows()
    request = ForwardRequest(case.images(batch=1), kwargs=case.forward_kwargs)
    model, images = case.build(), case.images(batch=1)
    adapter = ModelAdapter.of(model)
    run_rules(adapter, request, [TargetSpec(3)], [(rule, range(adapter.layers))], "streaming")
    whole = case.prefix + case.grid[0] * case.grid[1]
    # One image: its own gradient decides.
    read = oracles.trace(model, images, [3], case.forward_kwargs).readout[0] > 0
    read[0] = True  # a rule gets at least one block: the first row is never left out
    assert rule.rows == [read.sum(), whole, whole, 0]


@pytest.mark.parametrize("live", [[], [0], [0, 3], [0, 1, 2, 3, 4]])
def test_linear_layers_skip_tokens_without_gradient(live: list[int]) -> None:
    draw = torch.Generator().manual_seed(1)
    inputs = torch.randn(2, 5, 4, generator=draw).requires_grad_()
    weight, bias = torch.randn(6, 4, generator=draw), torch.randn(6, generator=draw)
    above = torch.zeros(2, 5, 6)
    above[:, live] = torch.randn(2, len(live), 6, generator=draw)
    plain = functional.linear(inputs, weight, bias)
    few = streaming._linear(inputs, weight, bias)
    assert same(few, plain)
    products = []
    with watched(lambda func, made: products.append(made.shape[0]) if "mm" in str(func) else None):
        (got,) = torch.autograd.grad(few, inputs, above)
    (wanted,) = torch.autograd.grad(plain, inputs, above)
    assert torch.allclose(got, wanted, atol=1e-6)
    assert products == [2 * len(live)]


def test_a_weight_that_depends_on_the_image_keeps_its_gradient() -> None:
    def how(vit: Any, pixels: Tensor) -> Tensor:
        logits: Tensor = vit(pixels).logits
        mixing = logits.mean(0).softmax(0).diag()
        return functional.linear(logits, mixing, logits[0])

    assert same_as_dense(Around(VIT.build(), how), "streaming")


def test_attention_of_the_users_own_around_the_model() -> None:
    """Attention outside the model is no layer of it, and its gradient is PyTorch's own."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = VIT.build()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(4)
                self.mixer = nn.Linear(7, 7)

        def forward(self, pixels: Tensor) -> Tensor:
            scores: Tensor = self.mixer(self.model(pixels).logits)[:, None, :, None]
            mixed = functional.scaled_dot_product_attention(scores, scores, scores)
            return scores[:, 0, :, 0] + mixed[:, 0, :, 0]

    model = Pooled()
    assert same_as_dense(model, "streaming")
    assert all(parameter.grad is None for parameter in model.parameters())


def _attention_dropout(vit: Any, pixels: Tensor) -> Any:
    vit.vit.layers[1].attention.training = True
    try:
        return vit(pixels).logits
    finally:
        vit.vit.layers[1].attention.training = False


def _hidden_attention(vit: Any, pixels: Tensor) -> Any:
    with patch.object(functional, "scaled_dot_product_attention", _slow_attention):
        return vit(pixels).logits


def _slow_attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **keywords: Any) -> Tensor:
    scale = keywords["scale"]
    mixed: Tensor = (scale * query @ key.mT).softmax(-1) @ value
    return mixed


@every_streaming
def test_attention_dropout_that_stays_on(engine: str) -> None:
    model = Around(VIT.build(attention_probs_dropout_prob=0.5), _attention_dropout)
    with pytest.raises(ModelOutputError, match=r"dropout of 0.5 is active.*turn it off"):
        GMAR(model, **ENGINE_OPTIONS[engine]).attribute(VIT.images(), 3)


def test_dropout_that_stays_on_with_checkpoint() -> None:
    """A layer that runs again would draw other numbers."""

    def on(module: nn.Module, _: Any) -> None:
        module.train()

    always = nn.Dropout(0.5)
    always.register_forward_pre_hook(on)
    model = VIT.build()
    model.vit.layers[1].dropout = always
    with pytest.raises(ModelOutputError, match=r"dropout of 0.5 is active.*checkpoint=False"):
        GMAR(model, checkpoint=True).attribute(VIT.images(), 3)
    assert torch.isfinite(GMAR(model).attribute(VIT.images(), 3)).all()


class BiasFromQueries(nn.Module):
    """Attention with a position bias that is made from the tokens, as SAM has it."""

    def __init__(self, plain: nn.Module) -> None:
        """Take the place of the plain attention."""
        super().__init__()
        self.plain = plain

    def forward(self, tokens: Tensor, *_: Any, **__: Any) -> Any:
        """Attend with the tokens' products as a bias."""
        return self.plain(tokens, (tokens @ tokens.mT)[:, None])


@every_streaming
def test_a_bias_that_depends_on_the_image(engine: str) -> None:
    model = VIT.build()
    model.vit.layers[1].attention = BiasFromQueries(model.vit.layers[1].attention)
    with pytest.raises(ModelOutputError, match=r'bias depends on the image.*engine="dense"'):
        GMAR(model, **ENGINE_OPTIONS[engine]).attribute(VIT.images(), 3)


@every_streaming
def test_a_model_without_sdpa(engine: str) -> None:
    """Its own attention function computes more than SDPA would."""
    model = VIT.build(attention="eager")
    with patch.object(type(model.vit), "_supports_sdpa", new=False):
        with pytest.raises(UnsupportedModelError, match=r'no SDPA.*engine="dense"'):
            GMAR(model, **ENGINE_OPTIONS[engine]).attribute(VIT.images(), 3)
        assert GMAR(model, engine="dense").attribute(VIT.images(), 3).any()


@pytest.mark.parametrize(
    ("loaded", "engine", "said"),
    [
        ("eager", "streaming", r'implementation="sdpa"\) or use engine="dense"'),
        ("sdpa", "dense", r'implementation="eager"\)$'),
    ],
)
def test_a_model_that_fixes_its_attention(loaded: str, engine: str, said: str) -> None:
    model = VIT.build(attention=loaded)
    with patch.object(type(model.vit), "_can_set_attn_implementation", lambda *_: False):
        with pytest.raises(UnsupportedModelError, match=said):
            GMAR(model, engine=engine).attribute(VIT.images(), 3)
        other = "dense" if engine == "streaming" else "streaming"
        assert GMAR(model, engine=other).attribute(VIT.images(), 3).any()


@every_streaming
def test_a_gradient_that_the_users_module_takes_itself(engine: str) -> None:
    """Only weights are constants: the module may differentiate by what it likes."""

    def how(vit: Any, pixels: Tensor) -> Any:
        leaf = pixels.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(leaf.square().sum(), leaf)
        return vit(slope / 2).logits

    assert same_as_dense(Around(VIT.build(), how), engine)


def test_a_part_of_a_weight_is_a_constant_too() -> None:
    """Or what it is multiplied with would be kept for its gradient, below the start as well."""
    made: list[bool] = []

    def how(vit: Any, pixels: Tensor) -> Any:
        logits, weight = vit(pixels).logits, vit.classifier.weight
        assert weight.requires_grad
        assert isinstance(weight.to("cpu"), nn.Parameter)
        parts = (weight.T, weight.mT, weight.double(), weight.to(torch.float64))
        made.extend(part.requires_grad for part in parts)
        return logits @ weight @ weight.T

    model = Around(VIT.build(), how)
    assert same_as_dense(model, "streaming")
    made.clear()
    GMAR(model).attribute_patches(VIT.images(), 3)
    assert made == [False] * 4


@every_streaming
def test_attention_that_is_not_pytorchs(engine: str) -> None:
    model = Around(VIT.build(), _hidden_attention)
    with pytest.raises(ModelOutputError, match=r'3 layers made 0 calls.*engine="dense"'):
        GMAR(model, **ENGINE_OPTIONS[engine]).attribute(VIT.images(), 3)


def test_checkpoint_of_layers_that_can_not_be_told_apart() -> None:
    with patch.object(streaming, "GradientCheckpointingLayer", nn.Bilinear):
        gmar = GMAR(VIT.build(), checkpoint=True)
        with pytest.raises(UnsupportedModelError, match=r"ViTModel.*checkpoint=F"):
            gmar.attribute(VIT.images(), 3)


def shaped(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


ARGUMENTS: dict[str, tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]] = {
    "default scale": ((shaped(2, 4, 5, 3),) * 3, {}),
    "causal": ((shaped(2, 4, 5, 3),) * 3, {"is_causal": True, "scale": 0.3}),
    "grouped heads": (
        (shaped(2, 4, 5, 3), shaped(2, 2, 5, 3), shaped(2, 2, 5, 3)),
        {"enable_gqa": True},
    ),
    "wider values": ((shaped(2, 4, 5, 3), shaped(2, 4, 5, 3), shaped(2, 4, 5, 7)), {}),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_of_attention(name: str) -> None:
    tensors, options = ARGUMENTS[name]
    layer = streaming._layer_of(*tensors, **options)
    wanted = functional.scaled_dot_product_attention(*tensors, **options)
    assert torch.allclose(streaming._attend(layer), wanted, atol=1e-6)
    scores = layer.scale * layer.query @ layer.key.mT
    if layer.mask is not None:
        scores = scores.masked_fill(~layer.mask, -torch.inf)
    assert torch.allclose(scores.softmax(-1) @ layer.value, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("query", "key"), [((2, 5, 3), (2, 5, 3)), ((2, 4, 1, 3), (2, 4, 5, 3))], ids=str
)
def test_what_is_no_self_attention(query: tuple[int, ...], key: tuple[int, ...]) -> None:
    with pytest.raises(ModelOutputError, match=r"self-attention.*\(2, "):
        streaming._layer_of(shaped(*query), shaped(*key), shaped(*key))


def test_layers_of_different_size() -> None:
    layer = streaming._layer_of(*(shaped(2, 4, 5, 3),) * 3)
    assert streaming._same_tokens(layer, 0) == streaming._same_tokens(layer, 5) == 5
    with pytest.raises(ModelOutputError, match="6 and 5 tokens"):
        streaming._same_tokens(layer, 6)


@every_engine
def test_autocast_of_the_caller(engine: str) -> None:
    """Mixed precision around the call: sums are kept in float32 all the same."""
    gmar = GMAR(VIT.build(), **ENGINE_OPTIONS[engine])
    wanted = gmar.attribute_patches(VIT.images(), TARGETS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = gmar.attribute_patches(VIT.images(), TARGETS)
    assert got.dtype == torch.float32
    assert 0 < relative_error(got, wanted.double().numpy()) < 0.1
