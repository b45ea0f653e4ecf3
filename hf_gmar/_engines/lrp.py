"""Layer-wise relevance propagation as gradient x input: a rule for each PyTorch function.

The relevance of an activation x is x times its gradient. So a rule of relevance is a rule of what
a function hands down as gradient. Functions that are linear keep theirs: the epsilon rule, with an
epsilon of zero. The others are in the tables below.

Source: Achtibat et al., "AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for
Transformers", ICML 2024 (arXiv 2402.05602).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

from hf_gmar._core.constant_weights import FrozenWeightsMode
from hf_gmar.errors import UnsupportedModelError

Rule: TypeAlias = Callable[..., Any]
"""Takes a function and the arguments of a call; gives its value with another gradient, or
``NotImplemented`` if the rule does not hold for this call."""

# Linear in all their activations together. A maximum hands all on to the one that it takes. Of a
# softmax the paper takes the linear part of its Taylor expansion, which is the plain gradient.
_RESHAPES = (
    *("as_strided", "broadcast_tensors", "broadcast_to", "cat", "chunk", "clone", "concat"),
    *("concatenate", "contiguous", "diagonal", "expand", "expand_as", "flatten", "flip", "gather"),
    *("get", "getitem", "hstack", "index_select", "movedim", "narrow", "permute", "repeat"),
    *(
        "repeat_interleave",
        "reshape",
        "reshape_as",
        "roll",
        "select",
        "setitem",
        "split",
        "squeeze",
    ),
    *("stack", "swapaxes", "swapdims", "t", "take_along_dim", "tensor_split", "tile"),
    *("transpose", "unbind", "unflatten", "unfold", "unsqueeze", "view", "view_as", "vstack"),
)
_CASTS = (
    *("bfloat16", "cpu", "cuda", "detach", "double", "float", "half", "requires_grad", "to"),
    *("type", "type_as"),
)
_SUMS = (
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "add", "avg_pool1d", "avg_pool2d", "cumsum"),
    *("dropout", "dropout1d", "dropout2d", "feature_dropout", "iadd", "interpolate", "isub"),
    *("masked_fill", "mean", "neg", "negative", "pad", "positive", "radd", "rsub", "sub"),
    *("subtract", "sum", "where"),
)
_LINEAR = frozenset((*_RESHAPES, *_CASTS, *_SUMS, "amax", "max", "maximum", "softmax"))

# Linear in each of their activations: relevance is split evenly (the uniform rule).
_PRODUCTS = ("bmm", "conv1d", "conv2d", "linear", "matmul", "mm", "mul", "multiply", "rmul")
_QUOTIENTS = ("div", "divide", "true_divide", "truediv")

# Elementwise and 0 at 0: relevance passes as it is (the identity rule).
_ACTIVATIONS = (
    *("celu", "elu", "gelu", "hardswish", "leaky_relu", "mish", "relu", "relu6", "selu", "silu"),
    *("softsign", "tanhshrink"),
)

# What they give is taken as a constant and must become a factor of an activation, as the sigmoid
# in x * sigmoid(x) and the length in x / x.norm(): all relevance goes to the other factor.
_FACTORS = (
    *(
        "erf",
        "hardsigmoid",
        "linalg_norm",
        "linalg_vector_norm",
        "norm",
        "pow",
        "sigmoid",
        "square",
    ),
    *("std", "tanh", "var"),
)


class LRPMode(FrozenWeightsMode):
    """Inside, this thread's forward builds a graph whose gradients are relevance / activation.

    What has no rule, or is a constant that must become a factor, leaves its name on all that is
    made of it, and ``check`` looks whether a name came to the scores. So what a hook of the model
    computes for itself does no harm.

    Args:
        gamma: of the gamma rule for linear layers; 0 is the epsilon rule.
    """

    def __init__(self, gamma: float = 0.0) -> None:
        super().__init__()
        self._names: Any = WeakTensorKeyDictionary()
        self._rules: dict[str, Rule] = dict(_RULES)
        if gamma:
            self._rules["linear"] = functools.partial(_linear, gamma)

    def call(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Call the function by its rule."""
        if not args and "input" in kwargs:
            args, kwargs = (kwargs["input"],), {k: v for k, v in kwargs.items() if k != "input"}
        name, live = _name(func), _live(args, kwargs)
        if live and name in _FACTORS and not _is_in_place(func):
            with torch.no_grad():
                found = func(*args, **kwargs)
            return self._noted(found, {name})
        names = self._names_on(name, live or list(_tensors(args, kwargs)), args, kwargs)
        rule = self._rules.get(name)
        found = rule(func, *args, **kwargs) if rule else NotImplemented
        if found is NotImplemented:
            found = func(*args, **kwargs)
            if live and name not in _LINEAR and _live(found):
                names.add(name)
        return self._noted(found, names, *args[: _is_in_place(func)])

    def check(self, scores: Tensor) -> None:
        """Check that all on which the scores depend had a rule.

        Raises:
            UnsupportedModelError: something had none.
        """
        names = sorted(self._names.get(scores, ()))
        if names:
            raise UnsupportedModelError(
                f"relevance can't be propagated through {', '.join(names)} as the model uses it: "
                "AttnLRP has rules for linear functions, products, normalisations, activations "
                "and attention; use InputXGradient, or explain what the model gives before it"
            )

    def _names_on(
        self, name: str, live: list[Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> set[str]:
        """The names on what a call is made of; a factor of an activation has done its duty."""
        scales = name in _PRODUCTS or name in _QUOTIENTS
        made_of = live if scales else _tensors(args, kwargs)
        return {one for tensor in made_of for one in self._names_of(tensor)}

    def _names_of(self, tensor: Tensor) -> set[str]:
        """Its own, and those of the tensor of which it is a view."""
        found = {*self._names.get(tensor, ())}
        return found if tensor._base is None else found.union(self._names.get(tensor._base, ()))

    def _noted(self, found: Any, names: set[str], *changed: Any) -> Any:
        for tensor in _tensors(found, changed) if names else ():
            if tensor.is_floating_point():
                self._names[tensor] = names
        for tensor in _tensors(changed) if names else ():
            if tensor._base is not None:  # what is read through another view has changed as well
                self._names[tensor._base] = names.union(self._names.get(tensor._base, ()))
        return found


def _name(func: Callable[..., Any]) -> str:
    """``add`` of ``torch.add``, ``Tensor.add_`` and ``Tensor.__add__``."""
    return getattr(func, "__name__", str(func)).strip("_")


def _is_in_place(func: Callable[..., Any]) -> bool:
    name = getattr(func, "__name__", "")
    if name.startswith("__"):
        return name.startswith("__i") or name == "__setitem__"
    return bool(name.endswith("_"))


def _tensors(*values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping):
            yield from _tensors(*value.values())
        elif isinstance(value, (list, tuple)):
            yield from _tensors(*value)


def _live(*values: Any) -> list[Tensor]:
    """The tensors that depend on the tokens."""
    return [tensor for tensor in _tensors(*values) if tensor.requires_grad]


def _share(value: Any, share: float) -> Any:
    """The value; of its gradient, that share goes down."""
    if not isinstance(value, Tensor) or not value.requires_grad:
        return value
    alias = value.view_as(value)
    alias.register_hook(functools.partial(torch.mul, other=share))
    return alias


def _product(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if len(_live(args, kwargs)) < 2:
        return func(*args, **kwargs)
    if _is_in_place(func) or _live(args[2:], kwargs):
        return NotImplemented
    return func(*(_share(value, 0.5) for value in args[:2]), *args[2:], **kwargs)


def _linear(
    gamma: float, func: Callable[..., Any], value: Any, weight: Any, bias: Any = None
) -> Any:
    if not _live(value) or _live(weight, bias):
        return _product(func, value, weight, bias)
    return gamma_linear(value, weight, bias, gamma)


def _einsum(func: Callable[..., Any], equation: str, *operands: Any) -> Any:
    parts = list(_tensors(operands))
    share = 1 / max(len(_live(parts)), 1)
    return func(equation, *(_share(part, share) for part in parts))


def _quotient(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    rounded = kwargs.get("rounding_mode") is not None
    return NotImplemented if rounded or _live(args[1:], kwargs) else func(*args, **kwargs)


def _activation(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not _live(args[:1]) or _is_in_place(func):
        return NotImplemented
    value, *options = args
    applied = functools.partial(_applied, func, options, kwargs)
    if not _overwrites(options, kwargs):
        return _Identity.apply(value, applied)  # type: ignore[no-untyped-call]
    return value.copy_(_Identity.apply(value.clone(), applied))  # type: ignore[no-untyped-call]


def _applied(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], value: Tensor
) -> Any:
    # A value that is asked to be overwritten is still needed.
    return func(value.clone() if _overwrites(args, kwargs) else value, *args, **kwargs)


def _overwrites(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether ``inplace`` is said, the only option of an activation that is true or false."""
    return any(one is True for one in (*args, *kwargs.values()))


class _Identity(torch.autograd.Function):
    """An elementwise function y of x whose gradient is y / x; 0 where x is."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        found = function(value)
        ctx.save_for_backward(torch.where(value == 0, 0, found / value))
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (factor,) = ctx.saved_tensors
        return gradient * factor, None


def _layer_norm(
    func: Callable[..., Any],
    value: Tensor,
    normalized_shape: tuple[int, ...],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Any:
    if _live(weight, bias):
        return NotImplemented
    shape = tuple(normalized_shape)
    found = functools.partial(func, normalized_shape=shape, weight=weight, bias=bias, eps=eps)
    return _normalised(value, len(shape), weight, eps, centred=True, function=found)


def _rms_norm(
    func: Callable[..., Any],
    value: Tensor,
    normalized_shape: tuple[int, ...],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Any:
    if _live(weight):
        return NotImplemented
    shape = tuple(normalized_shape)
    found = functools.partial(func, normalized_shape=shape, weight=weight, eps=eps)
    small = torch.finfo(value.dtype).eps if eps is None else eps
    return _normalised(value, len(shape), weight, small, centred=False, function=found)


def _normalised(
    value: Tensor,
    dims: int,
    weight: Tensor | None,
    eps: float,
    *,
    centred: bool,
    function: Callable[[Tensor], Tensor],
) -> Any:
    places = tuple(range(-dims, 0))
    wide = value.detach().to(torch.promote_types(value.dtype, torch.float32))
    wide = wide - wide.mean(places, keepdim=True) if centred else wide
    factor = (wide.square().mean(places, keepdim=True) + eps).rsqrt()
    mean_over = places if centred else None
    return _Norm.apply(value, factor, weight, mean_over, function)  # type: ignore[no-untyped-call]


class _Norm(torch.autograd.Function):
    """A normalisation whose gradient takes the length as a constant."""

    @staticmethod
    def forward(
        ctx: Any,
        value: Tensor,
        factor: Tensor,
        weight: Tensor | None,
        mean_over: tuple[int, ...] | None,
        function: Callable[[Tensor], Tensor],
    ) -> Tensor:
        ctx.save_for_backward(factor)
        ctx.weight, ctx.mean_over = weight, mean_over
        return function(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (factor,) = ctx.saved_tensors
        below = gradient * factor if ctx.weight is None else gradient * ctx.weight * factor
        if ctx.mean_over is not None:
            below = below - below.mean(ctx.mean_over, keepdim=True)
        return below, None, None, None, None


def _normalize(
    _: Callable[..., Any],
    value: Tensor,
    p: float = 2.0,
    dim: int = 1,
    eps: float = 1e-12,
    out: None = None,
) -> Any:
    if out is not None:
        return NotImplemented
    return value / value.detach().norm(p, dim, keepdim=True).clamp_min(eps)


def _batch_norm(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    training = kwargs.get("training", args[5] if len(args) > 5 else False)
    return NotImplemented if training else func(*args, **kwargs)


def _attention(
    func: Callable[..., Any], query: Any, key: Any, value: Any, *args: Any, **kwargs: Any
) -> Any:
    """Two products: the weights with the values, and in the weights queries with keys.

    What is no activation, as the query that a pooling head learns, makes its product linear.
    """
    if _live(args, kwargs):
        return NotImplemented
    of_weights = 0.5 if _live(value) and _live(query, key) else 1.0
    of_query = of_weights / max(len(_live(query, key)), 1)
    parts = _share(query, of_query), _share(key, of_query), _share(value, of_weights)
    return func(*parts, *args, **kwargs)


def _rules(rule: Rule, names: Iterable[str]) -> dict[str, Rule]:
    return dict.fromkeys(names, rule)


_RULES: dict[str, Rule] = {
    **_rules(_product, _PRODUCTS),
    **_rules(_quotient, _QUOTIENTS),
    **_rules(_activation, _ACTIVATIONS),
    **_rules(_attention, ("scaled_dot_product_attention", "multi_head_attention_forward")),
    "einsum": _einsum,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "normalize": _normalize,
    "batch_norm": _batch_norm,
}


def gamma_linear(value: Tensor, weight: Tensor, bias: Tensor | None, gamma: float) -> Tensor:
    """A linear layer with constant weights; the gradient of its input is relevance / input."""
    found: Tensor = _GammaLinear.apply(value, weight, bias, gamma)  # type: ignore[no-untyped-call]
    return found


class _GammaLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value: Tensor, weight: Tensor, bias: Tensor | None, gamma: float
    ) -> Tensor:
        output = functional.linear(value, weight, bias)
        favoured = output + gamma * _agreeing(value, weight, bias, output)
        factor = torch.where(favoured == 0, 0, output / favoured)
        ctx.save_for_backward(factor, output > 0, value > 0)
        ctx.weight, ctx.gamma = weight, gamma
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        factor, output_above, value_above = ctx.saved_tensors
        weight: Tensor = ctx.weight
        gradient = (gradient * factor).to(weight.dtype)
        above = gradient * output_above
        whole = gradient @ weight
        # Weights by which a value above zero agrees with the output; one below does by the others.
        agrees = above @ weight.clamp(min=0) + (gradient - above) @ weight.clamp(max=0)
        more = torch.where(value_above, agrees, whole - agrees)
        return whole + ctx.gamma * more, None, None, None


def _agreeing(value: Tensor, weight: Tensor, bias: Tensor | None, output: Tensor) -> Tensor:
    """The sum of the contributions that have the sign of the output."""
    above = functional.linear(
        value.clamp(min=0), weight.clamp(min=0), None if bias is None else bias.clamp(min=0)
    ) + functional.linear(value.clamp(max=0), weight.clamp(max=0))
    return torch.where(output > 0, above, output - above)
