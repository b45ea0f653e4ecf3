"""The rules of relevance, function by function: what goes down against what should."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN
from transformers.models.clip.modeling_clip import _get_vector_norm

from hf_gmar._core.threads import nested
from hf_gmar._engines.lrp import LRPMode
from hf_gmar._engines.lrp_rules import gamma_layer
from hf_gmar.errors import UnsupportedModelError

SHAPE = (2, 5, 6)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def propagated(
    function: Callable[..., Tensor], *inputs: Tensor, gamma: float = 0.0
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Value, relevance of the value, and what each input gets of it."""
    parts = [value.clone().requires_grad_() for value in inputs]
    mode: LRPMode | None = LRPMode(gamma)
    while mode is not None:
        with mode as rules:
            found = function(*parts)
        mode = rules.retry(found)
    rules.check(found)
    slopes = numbers(*found.shape, seed=9)
    gradients = torch.autograd.grad(found, parts, slopes, allow_unused=True)
    below = [
        part.detach() * (torch.zeros(()) if gradient is None else gradient)
        for part, gradient in zip(parts, gradients, strict=True)
    ]
    return found.detach(), found.detach() * slopes, below


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-10, atol=1e-12)


def _rms_by_hand(x: Tensor) -> Tensor:
    scaled: Tensor = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
    return scaled


PASSED_ON: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: ACT2FN[name] for name in ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")},
    **{name: ACT2FN[name] for name in ("quick_gelu", "gelu_accurate", "gelu_python", "silu")},
    **{name: ACT2FN[name] for name in ("relu", "mish", "leaky_relu", "swish")},
    "relu6": functional.relu6,
    "tanh": torch.tanh,
    "tanh module": nn.Tanh(),
    "tanh of tanh": lambda x: (3 * x.tanh()).tanh(),
    "prelu": nn.PReLU(5, 0.3).double(),
    "prelu of a vector": lambda x: torch.prelu(x, numbers(5, seed=2)),
    "overwriting": lambda x: functional.silu(x * 1, inplace=True),
    "relu by place": lambda x: functional.relu(x * 1, True),
    "hardswish by hand": lambda x: x * functional.hardsigmoid(x),
    "rms norm": lambda x: functional.rms_norm(x, (6,)),
    "rms norm by hand": _rms_by_hand,
    "norm": lambda x: x / x.norm(p=2, dim=-1, keepdim=True),
    "linalg norm": lambda x: x / torch.linalg.norm(x, dim=-1, keepdim=True),
    "linalg vector norm": lambda x: x / torch.linalg.vector_norm(x, dim=-1, keepdim=True),
    "CLIP's norm": lambda x: x / _get_vector_norm(x),
    "normalize": lambda x: functional.normalize(x, dim=-1),
    "normalize by 1": lambda x: functional.normalize(x, 1.0, 1),
    "std": lambda x: x / (x.std(-1, keepdim=True) + 1),
    "square": lambda x: x * x,
    "scaled": lambda x: 3 * x / 2,
}


@pytest.mark.parametrize("name", PASSED_ON)
def test_relevance_passes_as_it_is(name: str) -> None:
    value, relevance, (below,) = propagated(PASSED_ON[name], numbers(*SHAPE))
    assert close(value, PASSED_ON[name](numbers(*SHAPE)))
    assert relevance.any()
    assert close(below, relevance)


SHIFTED: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "sigmoid": (torch.sigmoid, 0.5),
    "sigmoid method": (lambda x: x.sigmoid(), 0.5),
    "sigmoid function": (functional.sigmoid, 0.5),
    "hardsigmoid": (functional.hardsigmoid, 0.5),
    "hardsigmoid by place": (lambda x: functional.hardsigmoid(x * 1, inplace=True), 0.5),
    "softplus": (functional.softplus, math.log(2)),
    "softplus module": (nn.Softplus(beta=3), math.log(2) / 3),
}


@pytest.mark.parametrize("name", SHIFTED)
def test_the_value_at_zero_keeps_its_share(name: str) -> None:
    """As a bias does; what is left is of the sign of x, and finite where x is nearly 0."""
    function, at_zero = SHIFTED[name]
    x = torch.cat([numbers(*SHAPE), torch.full((2, 5, 1), 1e-9, dtype=torch.float64)], -1)
    value, relevance, (below,) = propagated(function, x)
    assert close(value, function(x))
    wanted = relevance - at_zero * numbers(*value.shape, seed=9)
    assert torch.allclose(below, wanted, rtol=1e-10, atol=1e-9)


def test_a_sigmoid_is_a_factor_or_an_activation_by_its_use() -> None:
    def both(x: Tensor) -> Tensor:
        gated = x * torch.sigmoid(1.7 * x)  # a factor: all relevance is x's
        return (2 * gated).tanh() + 3 * x.sigmoid()  # two activations, one of them of the gate

    x = numbers(*SHAPE)
    value, relevance, (below,) = propagated(both, x)
    assert close(value, both(x))
    first, second = (2 * x * torch.sigmoid(1.7 * x)).tanh(), 3 * x.sigmoid()
    shares = (first + (second - 1.5)) / (first + second)
    assert close(below, shares * relevance)


def test_an_activation_of_zero_gets_nothing() -> None:
    with LRPMode():
        zero = torch.zeros(3, requires_grad=True)
        found = functional.gelu(zero)
    assert torch.equal(torch.autograd.grad(found.sum(), zero)[0], torch.zeros(3))


@pytest.mark.parametrize("affine", [False, True])
def test_layer_norm(affine: bool) -> None:
    """Length and weight pass it on, the bias keeps its share, centring is a linear layer."""
    norm = nn.LayerNorm(6, elementwise_affine=affine).double()
    if affine:
        norm.weight.data, norm.bias.data = numbers(6, seed=3), numbers(6, seed=4)
    x = numbers(*SHAPE)
    value, relevance, (below,) = propagated(norm, x)
    assert close(value, norm(x).detach())
    kept = relevance * (value - norm.bias.detach()) / value if affine else relevance
    centring = torch.eye(6, dtype=torch.float64) - 1 / 6
    centred = x @ centring
    terms = x[..., None] * centring / centred[..., None, :] * kept[..., None, :]
    assert close(below, terms.sum(-1))


def test_linear_layers_and_their_bias() -> None:
    layer = nn.Linear(6, 4).double()
    x = numbers(*SHAPE)
    value, relevance, (below,) = propagated(layer, x)
    shares = x[..., None, :] * layer.weight.detach() / value[..., None]
    assert close(below, (shares * relevance[..., None]).sum(-2))
    bias = (layer.bias.detach() / value * relevance).sum()
    assert close(below.sum() + bias, relevance.sum())


PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gate": lambda x, y: functional.silu(x) * y,
    "multiply": torch.multiply,
    "einsum": lambda x, y: torch.einsum("bnc,bmc->bnm", x, y),
    "einsum of a list": lambda x, y: torch.einsum("bnc,bmc->bnm", [x, y]),
    "matmul": lambda x, y: x @ y.mT,
    "bmm": lambda x, y: torch.bmm(x, y.transpose(1, 2)),
    "weights of the image": lambda x, y: functional.linear(x, y[0]),
}


@pytest.mark.parametrize("gamma", [0.0, 0.5])
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_give_half_to_each(name: str, gamma: float) -> None:
    inputs = numbers(*SHAPE), numbers(*SHAPE, seed=1)
    _, relevance, below = propagated(PRODUCTS[name], *inputs, gamma=gamma)
    for part in below:
        assert close(part.sum(), relevance.sum() / 2)


def test_a_softmax_follows_its_formula() -> None:
    x = numbers(*SHAPE)
    shares, relevance, (below,) = propagated(lambda x: x.softmax(-1), x)
    assert close(below, x * (relevance - shares * relevance.sum(-1, keepdim=True)))


def _written_out(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    weights = (query @ key.mT / key.shape[-1] ** 0.5).softmax(-1)
    mixed: Tensor = weights @ value
    return mixed


def test_attention_is_two_products_and_a_softmax() -> None:
    inputs = [numbers(2, 3, 5, 4, seed=seed) for seed in range(3)]
    _, whole, wanted = propagated(_written_out, *inputs)
    _, relevance, below = propagated(functional.scaled_dot_product_attention, *inputs)
    assert close(whole, relevance)
    assert all(close(one, other) for one, other in zip(below, wanted, strict=True))
    assert close(below[2].sum(), relevance.sum() / 2)


def test_pooling_attention() -> None:
    head = nn.MultiheadAttention(6, 1, batch_first=True).double()
    nn.init.normal_(head.in_proj_bias)
    probe, tokens = numbers(2, 1, 6, seed=1), numbers(*SHAPE)

    def by_hand(x: Tensor) -> Tensor:
        parts = head.in_proj_weight.chunk(3), head.in_proj_bias.chunk(3)
        inputs = (probe, x, x)
        query, key, value = map(functional.linear, inputs, *parts)
        out: Tensor = head.out_proj(_written_out(query, key, value))
        return out

    for weights in (True, False):
        value, _, (below,) = propagated(
            lambda x, weights=weights: head(probe, x, x, need_weights=weights)[0], tokens
        )
        wanted, _, (by_parts,) = propagated(by_hand, tokens)
        assert close(value, wanted)
        assert close(below, by_parts)


LINEAR: dict[str, Callable[[Tensor], Tensor]] = {
    "batch norm": lambda x: functional.batch_norm(
        x, numbers(5), numbers(5, seed=1).square(), None, numbers(5, seed=2)
    ),
    "max pool": lambda x: functional.max_pool2d(x, (2, 3), padding=1),
    "adaptive max pool": lambda x: functional.adaptive_max_pool2d(x, 2),
    "pixel shuffle": lambda x: functional.pixel_shuffle(x[:, :4, None], 2),
    "transposed convolution": lambda x: functional.conv_transpose2d(
        x[:, None], numbers(1, 3, 2, 2), stride=2
    ),
    "in place": lambda x: (x * 2).mul_(3).add_(1).sub_(x),
    "by item": lambda x: _set(x * 2, x),
    "others": lambda x: torch.cat([x.flip(1).mean(1), -x[:, 0], x.amax(1)], dim=1),
}


def _set(x: Tensor, y: Tensor) -> Tensor:
    x[:, 0] = y[:, 1]
    return x


@pytest.mark.parametrize("name", LINEAR)
def test_linear_functions_keep_their_gradient(name: str) -> None:
    x = numbers(*SHAPE).requires_grad_()
    found = LINEAR[name](x)
    (wanted,) = torch.autograd.grad(found, x, numbers(*found.shape, seed=9))
    _, _, (below,) = propagated(LINEAR[name], x.detach())
    assert close(below, x.detach() * wanted)


NO_RULE: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": torch.exp,
    "abs": lambda x: 1 + 2 * x.abs().mean(-1),
    "log_softmax": lambda x: x.log_softmax(-1),
    "cumprod": lambda x: torch.stack([x.cumprod(1), x]),
    "rdiv": lambda x: 1 / x,
    "div": lambda x: x / x.sum(-1, keepdim=True),
    "divide": lambda x: torch.divide(x, 2, rounding_mode="floor") + x,
    "norm": lambda x: x.norm(dim=-1),
    "pow": lambda x: x**2,
    "square": lambda x: x - x.square().mean(),
    "relu": lambda x: (x * 1).relu_(),
    "mul": lambda x: (x * 1).mul_(x),
    "std": lambda x: _set(x * 1, x.std(-1, keepdim=True).expand_as(x)),
    "batch_norm": lambda x: functional.batch_norm(x, None, None, training=True),
    "linear": lambda x: functional.linear(x, x[0], x[0, :, 0]),
    "layer_norm": lambda x: functional.layer_norm(x, (6,), weight=x[0, 0]),
    "group_norm": lambda x: functional.group_norm(x, 1, weight=x[0, :, 0]),
    "rms_norm": lambda x: functional.rms_norm(x, (6,), weight=x[0, 0]),
    "scaled_dot_product_attention": lambda x: functional.scaled_dot_product_attention(
        x, x, x, attn_mask=x @ x.mT
    ),
    "sigmoid_": lambda x: (x * 1).sigmoid_(),
}


@pytest.mark.parametrize("affine", [True, False])
def test_group_norm(affine: bool) -> None:
    weight, bias = (numbers(4, seed=1), numbers(4, seed=2)) if affine else (None, None)
    x = numbers(2, 4, 3, 5)
    value, _, (below,) = propagated(lambda x: functional.group_norm(x, 2, weight, bias), x)
    assert close(value, functional.group_norm(x, 2, weight, bias))
    slopes, expected = numbers(*x.shape, seed=9), torch.zeros_like(x)
    for image in range(2):
        for group in (slice(0, 2), slice(2, 4)):
            part = x[image, group]
            scale = torch.rsqrt(part.var(correction=0) + 1e-5) * slopes[image, group]
            scale = scale if weight is None else scale * weight[group, None, None]
            expected[image, group] = part * (scale - scale.mean())
    assert close(below, expected)


@pytest.mark.parametrize("name", NO_RULE)
def test_a_function_without_a_rule_does_not_pass_silently(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"through {name.strip('_')} as the model"):
        propagated(NO_RULE[name], numbers(*SHAPE))


@pytest.mark.parametrize("name", ["relu", "softmax", "linear", "sigmoid", "add_", "__get__"])
def test_a_rule_is_for_a_function_and_not_for_its_name(name: str) -> None:
    """Another library's function of the same name may compute what it likes."""

    def other(x: Tensor) -> Tensor:
        if torch.overrides.has_torch_function_unary(x):
            result: Tensor = torch.overrides.handle_torch_function(other, (x,), x)
            return result
        return x.exp()

    other.__name__ = name
    with pytest.raises(UnsupportedModelError, match=f"through {name.strip('_')} as the model"):
        propagated(lambda x: 2 * other(x), numbers(*SHAPE))


@pytest.mark.parametrize("change", ["x *= 2", "x /= 2", "x += x.detach()", "x -= 1"])
def test_operators_in_place(change: str) -> None:
    def changed(x: Tensor) -> Tensor:
        scope = {"x": x * 3}
        exec(change, {}, scope)  # noqa: S102  # the operator itself, not the method behind it
        return scope["x"]

    x = numbers(*SHAPE).requires_grad_()
    (wanted,) = torch.autograd.grad(changed(x), x, numbers(*SHAPE, seed=9))
    assert close(propagated(changed, x.detach())[2][0], x.detach() * wanted)


def test_what_the_result_does_not_depend_on_needs_no_rule() -> None:
    def watches(x: Tensor) -> Tensor:
        assert x.exp().sum() > x.detach().abs().min()
        return x * 2

    assert propagated(watches, numbers(*SHAPE))[2][0].any()


def test_weights_are_constants() -> None:
    weight = nn.Parameter(numbers(6))
    _, relevance, (below,) = propagated(lambda x: x * weight.exp() * weight, numbers(*SHAPE))
    assert close(below, relevance)


def test_low_precision_keeps_its_type() -> None:
    x = numbers(*SHAPE).to(torch.bfloat16).requires_grad_()
    with LRPMode(), torch.autocast("cpu", torch.bfloat16):
        found = functional.gelu(functional.layer_norm(x, (6,)))
    (below,) = torch.autograd.grad(found.sum(), x)
    assert below.dtype == torch.bfloat16
    assert below.any()


def test_an_explanation_inside_another_has_its_own_rules() -> None:
    x = numbers(*SHAPE).requires_grad_()
    with LRPMode(), nested(), LRPMode():
        inner = functional.gelu(x)
    assert close(torch.autograd.grad(inner.sum(), x)[0] * x.detach(), inner.detach())


def _kept(change: Callable[[Tensor], object]) -> Callable[[Tensor], Tensor]:
    """Change a tensor, then read it."""

    def function(x: Tensor) -> Tensor:
        changed = x * 1
        change(changed)
        return changed * 2

    return function


OVERWRITTEN: dict[str, Callable[[Tensor], object]] = {
    "a whole": lambda x: functional.relu(x, inplace=True),
    "a module": nn.ReLU(inplace=True),
    "a part": lambda x: functional.relu(x[:, :2], inplace=True),
    "by keyword": lambda x: functional.silu(input=x, inplace=True),
}


@pytest.mark.parametrize("name", OVERWRITTEN)
def test_what_is_overwritten_is_read_as_it_is_then(name: str) -> None:
    x = numbers(*SHAPE)
    function = _kept(OVERWRITTEN[name])
    value, above, (below,) = propagated(function, x)
    assert close(value, function(x))
    assert close(below, torch.where(value == 0, 0, above))


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x[:, :2].exp_(),
        lambda x: x.view(2, -1).tanh_(),
        lambda x: torch.sigmoid_(x[:, :2]),
        lambda x: x[:, 0][:, :2].exp_(),
    ],
)
def test_a_view_changed_without_a_rule_does_not_pass_silently(
    change: Callable[[Tensor], object],
) -> None:
    with pytest.raises(UnsupportedModelError, match="can't be propagated through"):
        propagated(_kept(change), numbers(*SHAPE))


def test_arguments_by_keyword() -> None:
    x, weight, bias = numbers(*SHAPE), numbers(4, 6, seed=1), numbers(4, seed=2)
    kernel = numbers(4, 5, 3, seed=3)
    forms: list[tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = [
        (lambda x: functional.gelu(input=x), functional.gelu),
        (
            lambda x: functional.layer_norm(x, normalized_shape=[6]),
            lambda x: functional.layer_norm(x, (6,)),
        ),
        (
            lambda x: functional.rms_norm(input=x, normalized_shape=[6]),
            lambda x: functional.rms_norm(x, (6,)),
        ),
        (
            lambda x: functional.linear(x, weight=weight, bias=bias),
            lambda x: functional.linear(x, weight, bias),
        ),
        (
            lambda x: functional.conv1d(input=x, weight=kernel, bias=bias, padding=1),
            lambda x: functional.conv1d(x, kernel, bias, 1, 1),
        ),
        (
            lambda x: functional.scaled_dot_product_attention(query=x, key=x, value=x),
            lambda x: functional.scaled_dot_product_attention(x, x, x),
        ),
    ]
    for by_keyword, by_place in forms:
        value, _, (below,) = propagated(by_keyword, x, gamma=0.5)
        wanted_value, _, (wanted,) = propagated(by_place, x, gamma=0.5)
        assert close(value, wanted_value)
        assert close(below, wanted)


def test_gamma_by_hand() -> None:
    """Contributions 6, -2 and a bias of 1 make 5; those above zero count twice with a gamma of 1.

    The second output is -3, of -4 and 1 without a bias: there the one below zero counts twice.
    """
    x = torch.tensor([[2.0, -1.0]], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([[3.0, 2.0], [-2.0, -1.0]], dtype=torch.float64)
    bias = torch.tensor([1.0, 0.0], dtype=torch.float64)
    found = gamma_layer(x, weight, bias, 1.0)
    assert found.tolist() == [[5.0, -3.0]]
    for output, wanted in enumerate([[12 / 12 * 5, -2 / 12 * 5], [-8 / -7 * -3, 1 / -7 * -3]]):
        (gradient,) = torch.autograd.grad(found[0, output], x, retain_graph=True)
        assert (x * gradient)[0].tolist() == pytest.approx(wanted)


def test_gamma_without_a_bias_and_at_zero() -> None:
    x = torch.zeros(2, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(gamma_layer(x, torch.ones(4, 3), None, 0.5).sum(), x)
    assert torch.equal(gradient, torch.zeros(2, 3))


def _batch_norm(kind: type[nn.Module], channels: int, affine: bool = True) -> Any:
    """A batch norm in evaluation, with statistics, weights and biases of its own."""
    norm: Any = kind(channels, affine=affine)
    for tensor in (norm.running_mean, norm.running_var, *norm.parameters()):
        tensor.data.uniform_(0.5, 2)
    return norm.eval()


LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "of one dimension": (nn.Conv1d(4, 6, 3, stride=2, padding=1), (5,)),
    "of two": (nn.Conv2d(4, 6, (3, 2), stride=(1, 2), dilation=(2, 1), bias=False), (5, 5)),
    "of each channel": (nn.Conv2d(4, 4, 3, padding="same", groups=4), (5, 5)),
    "transposed": (nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), (3, 3)),
    "with a norm": (
        nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), _batch_norm(nn.BatchNorm2d, 6)), (4, 4),
    ),
    "with a plain norm": (
        nn.Sequential(nn.Conv1d(4, 4, 3, groups=2), _batch_norm(nn.BatchNorm1d, 4, False)), (5,),
    ),
    "linear with a norm": (nn.Sequential(nn.Linear(4, 6), _batch_norm(nn.BatchNorm1d, 6)), ()),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_gamma_of_a_layer_is_that_of_its_matrix(name: str) -> None:
    """With the batch norm after it."""
    layer, size = LAYERS[name]
    layer.double().requires_grad_(False)
    x = numbers(2, 4, *size)
    bias = layer(torch.zeros_like(x[:1])).flatten()
    units = torch.eye(x[0].numel(), dtype=x.dtype).reshape(-1, *x.shape[1:])
    matrix = (layer(units).flatten(1) - bias).mT
    value, relevance, (below,) = propagated(layer, x, gamma=0.5)
    flat = x.flatten(1).requires_grad_()
    as_matrix = gamma_layer(flat, matrix, bias, 0.5)
    (gradient,) = torch.autograd.grad(as_matrix, flat, (relevance / value).flatten(1))
    assert close(value, layer(x))
    assert close(below.flatten(1), flat.detach() * gradient)
    assert not close(below, propagated(layer, x)[2][0])


def test_a_batch_norm_of_other_channels_is_a_layer_of_its_own() -> None:
    """Of tokens (images, tokens, channels), it normalises each token, not each channel."""
    linear, norm = nn.Linear(6, 5).double(), _batch_norm(nn.BatchNorm1d, 5).double()
    x = numbers(2, 5, 6)
    value, relevance, (below,) = propagated(lambda x: norm(linear(x)), x, gamma=0.5)
    assert close(value, norm(linear(x)))
    hidden = linear(x).detach().requires_grad_()
    (slopes,) = torch.autograd.grad(norm(hidden), hidden, relevance / value)
    start = x.clone().requires_grad_()
    layer = gamma_layer(start, linear.weight.detach(), linear.bias.detach(), 0.5)
    assert close(below, x * torch.autograd.grad(layer, start, slopes)[0])


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Conv1d(5, 4, 3)], ids=["linear", "conv"])
def test_gamma_in_low_precision(layer: nn.Module) -> None:
    x = numbers(*SHAPE).to(torch.bfloat16).requires_grad_()
    with LRPMode(0.5), torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    (below,) = torch.autograd.grad(found.sum(), x)
    assert below.dtype == torch.bfloat16
    assert below.any()


@pytest.fixture(autouse=True)
def _no_mode_is_left() -> Iterator[None]:
    yield
    assert torch.overrides._get_current_function_mode_stack() == []
