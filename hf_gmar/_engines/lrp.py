"""Layer-wise relevance propagation as gradient x input: a rule for each PyTorch function.

The relevance of an activation x is x times its gradient, so a relevance rule changes the gradient
of a function. Linear functions keep their gradient: the epsilon rule, with an epsilon of zero.

The file has the mode that applies the rules; the rules of linear layers and products, activations,
normalisations and attention; and the tables of the functions that follow each rule.

Source: Achtibat et al., "AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for
Transformers", ICML 2024 (arXiv 2402.05602).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

from hf_gmar._core.frozen_weights import FrozenWeightsMode
from hf_gmar.errors import UnsupportedModelError

Function: TypeAlias = Callable[..., Any]
FunctionRule: TypeAlias = Callable[..., Any]
"""Maps a function and its arguments to its value, with another gradient; or to ``NotImplemented``
if the rule does not apply to this call."""


class LRPMode(FrozenWeightsMode):
    """Build a graph whose gradients are relevance / activation, for this thread's forward.

    A function labels its result with its name in two cases: it has no rule, or its result is a
    constant that must become a factor of an activation. A tensor inherits the labels of its
    operands, except of a constant factor. ``check`` raises an error if the scores have a label, so
    results of hooks that the scores do not use are harmless.

    Args:
        gamma: gamma of the gamma rule for linear layers; 0 is the epsilon rule.
    """

    def __init__(self, gamma: float = 0.0) -> None:
        super().__init__()
        self._labels: Any = WeakTensorKeyDictionary()
        self._rules = _RULES
        if gamma:
            rule = functools.partial(_gamma_rule, gamma)
            self._rules = _RULES | dict.fromkeys(_variants("linear"), rule)

    def call(self, func: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Call the function with its rule."""
        if not args and "input" in kwargs:
            args, kwargs = (kwargs["input"],), {k: v for k, v in kwargs.items() if k != "input"}
        live = _live(args, kwargs)
        if live and func in _FACTORS:
            with torch.no_grad():
                return self._labelled(func(*args, **kwargs), {_name(func)})
        operands = live if live and func in _PRODUCTS else _tensors(args, kwargs)
        labels = {label for tensor in operands for label in self._labels_of(tensor)}
        rule = self._rules.get(func)
        result = rule(func, *args, **kwargs) if rule else NotImplemented
        if result is NotImplemented:
            result = func(*args, **kwargs)
            if live and _live(result):
                labels.add(_name(func))
        return self._labelled(result, labels, *args[: func in _IN_PLACE])

    def check(self, scores: Tensor) -> None:
        """Raise an UnsupportedModelError if the scores depend on a function without a rule."""
        labels = sorted(self._labels.get(scores, ()))
        if labels:
            raise UnsupportedModelError(
                f"relevance can't be propagated through {', '.join(labels)} as the model uses it: "
                "AttnLRP has rules for linear functions, products, normalisations, activations "
                "and attention; use InputXGradient, or explain what the model gives before it"
            )

    def _labels_of(self, tensor: Tensor) -> set[str]:
        """Return the labels of a tensor, and of its base if it is a view."""
        labels = {*self._labels.get(tensor, ())}
        return labels if tensor._base is None else labels.union(self._labels.get(tensor._base, ()))

    def _labelled(self, result: Any, labels: set[str], *changed: Any) -> Any:
        for tensor in _tensors(result, changed) if labels else ():
            if tensor.is_floating_point():
                self._labels[tensor] = labels
        for tensor in _tensors(changed) if labels else ():
            if tensor._base is not None:  # other views of the base changed too
                self._labels[tensor._base] = labels.union(self._labels.get(tensor._base, ()))
        return result


def _name(func: Function) -> str:
    """Return a function's name in messages: ``exp`` for ``torch.exp`` and ``Tensor.exp_``."""
    return getattr(func, "__name__", str(func)).strip("_")


def _tensors(*values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping):
            yield from _tensors(*value.values())
        elif isinstance(value, (list, tuple)):
            yield from _tensors(*value)


def _live(*values: Any) -> list[Tensor]:
    """List the tensors that depend on the tokens."""
    return [tensor for tensor in _tensors(*values) if tensor.requires_grad]


def divide_gradient(value: Any, share: float) -> Any:
    """Return the value; only a share of its gradient passes down."""
    if not isinstance(value, Tensor) or not value.requires_grad:
        return value
    alias = value.view_as(value)
    alias.register_hook(functools.partial(torch.mul, other=share))
    return alias


def _epsilon_rule(func: Function, *args: Any, **kwargs: Any) -> Any:
    """Keep the gradient of a linear function."""
    return func(*args, **kwargs)


def _product_rule(func: Function, *args: Any, **kwargs: Any) -> Any:
    """Give half to each of two activations in which the function is linear (uniform rule)."""
    if len(_live(args, kwargs)) < 2:
        return func(*args, **kwargs)
    if func in _IN_PLACE or _live(args[2:], kwargs):
        return NotImplemented
    return func(*(divide_gradient(value, 0.5) for value in args[:2]), *args[2:], **kwargs)


def _einsum_rule(func: Function, equation: str, *operands: Any) -> Any:
    factors = list(_tensors(operands))
    share = 1 / max(len(_live(factors)), 1)
    return func(equation, *(divide_gradient(factor, share) for factor in factors))


def _quotient_rule(func: Function, *args: Any, **kwargs: Any) -> Any:
    rounded = kwargs.get("rounding_mode") is not None
    return NotImplemented if rounded or _live(args[1:], kwargs) else func(*args, **kwargs)


def _gamma_rule(gamma: float, func: Function, value: Any, weight: Any, bias: Any = None) -> Any:
    if not _live(value) or _live(weight, bias):
        return _product_rule(func, value, weight, bias)
    return gamma_linear(value, weight, bias, gamma)


def gamma_linear(value: Tensor, weight: Tensor, bias: Tensor | None, gamma: float) -> Tensor:
    """Apply a linear layer; the gradient of its input is relevance / input."""
    output: Tensor = _GammaLinear.apply(value, weight, bias, gamma)  # type: ignore[no-untyped-call]
    return output


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
        # Terms with the sign of the output: positive inputs use weights of that sign, negative
        # inputs use the other weights.
        agrees = above @ weight.clamp(min=0) + (gradient - above) @ weight.clamp(max=0)
        more = torch.where(value_above, agrees, whole - agrees)
        return whole + ctx.gamma * more, None, None, None


def _agreeing(value: Tensor, weight: Tensor, bias: Tensor | None, output: Tensor) -> Tensor:
    """Sum the terms that have the sign of the output."""
    above = functional.linear(
        value.clamp(min=0), weight.clamp(min=0), None if bias is None else bias.clamp(min=0)
    ) + functional.linear(value.clamp(max=0), weight.clamp(max=0))
    return torch.where(output > 0, above, output - above)


def _activation_rule(func: Function, value: Any, *options: Any, **kwargs: Any) -> Any:
    """Pass relevance on unchanged (identity rule), for an elementwise function that is 0 at 0."""
    if not _live(value):
        return NotImplemented
    # ``inplace`` is the only boolean option of an activation.
    if not any(option is True for option in (*options, *kwargs.values())):
        return _identity(value, lambda x: func(x, *options, **kwargs))
    # The function would overwrite a value that the rule still needs.
    return value.copy_(_identity(value.clone(), lambda x: func(x.clone(), *options, **kwargs)))


def _identity(value: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    output: Tensor = _IdentityRule.apply(value, function)  # type: ignore[no-untyped-call]
    return output


class _IdentityRule(torch.autograd.Function):
    """An elementwise function y of x with gradient y / x, or 0 at x = 0."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        output = function(value)
        ctx.save_for_backward(torch.where(value == 0, 0, output / value))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (factor,) = ctx.saved_tensors
        return gradient * factor, None


def _layer_norm_rule(
    func: Function,
    value: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Any:
    return _normalised(func, value, normalized_shape, eps, weight=weight, bias=bias)


def _rms_norm_rule(
    func: Function,
    value: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Any:
    return _normalised(func, value, normalized_shape, eps, weight=weight)


def _normalised(
    func: Function, value: Tensor, shape: Sequence[int], eps: float | None, **parameters: Any
) -> Any:
    """Apply layer norm, or RMS norm, which has no bias and no centring."""
    if _live(parameters):
        return NotImplemented
    dims, centred = tuple(range(-len(shape), 0)), "bias" in parameters
    precise = value.detach().to(torch.promote_types(value.dtype, torch.float32))
    precise = precise - precise.mean(dims, keepdim=True) if centred else precise
    epsilon = torch.finfo(value.dtype).eps if eps is None else eps
    factor = (precise.square().mean(dims, keepdim=True) + epsilon).rsqrt()
    function = functools.partial(func, normalized_shape=tuple(shape), eps=eps, **parameters)
    inputs = value, factor, parameters["weight"], dims if centred else None, function
    return _NormRule.apply(*inputs)  # type: ignore[no-untyped-call]


class _NormRule(torch.autograd.Function):
    """A normalisation with the gradient of x * stop_gradient(factor), centred or not."""

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


def _normalize_rule(
    _: Function, value: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None
) -> Any:
    if out is not None:
        return NotImplemented
    return value / value.detach().norm(p, dim, keepdim=True).clamp_min(eps)


def _batch_norm_rule(func: Function, *args: Any, **kwargs: Any) -> Any:
    training = kwargs.get("training", args[5] if len(args) > 5 else False)
    return NotImplemented if training else func(*args, **kwargs)


def _attention_rule(
    func: Function, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any
) -> Any:
    """Treat attention as two products: of weights and values, and of queries and keys.

    A factor that is no activation, such as a pooling head's learned query, gets no relevance.
    """
    if _live(args, kwargs):
        return NotImplemented
    of_weights = 0.5 if _live(value) and _live(query, key) else 1.0
    of_query = of_weights / max(len(_live(query, key)), 1)
    shares = ((query, of_query), (key, of_query), (value, of_weights))
    return func(*(divide_gradient(*pair) for pair in shares), *args, **kwargs)


def _variants(names: str, *forms: str) -> set[Function]:
    """Find PyTorch's functions and tensor methods of these names.

    A form adds a way to call each of them: ``"__i{}__"`` is the in-place operator.
    """
    spaces = (torch, Tensor, functional, torch.linalg)
    spelled = {form.format(name) for name in names.split() for form in ("{}", *forms)}
    functions = (getattr(space, name, None) for space in spaces for name in spelled)
    return {function for function in functions if callable(function)}


_OPERATORS = ("__{}__", "{}_", "__i{}__")  # both in place and not

# Functions that are linear in all their activations together. A maximum passes all relevance to the
# largest activation. For softmax the paper keeps the linear part of the Taylor expansion, which is
# the plain gradient.
_RESHAPES = """
    as_strided broadcast_tensors broadcast_to cat chunk clone concat concatenate contiguous
    diagonal expand expand_as flatten flip gather getitem hstack index_select movedim narrow
    permute repeat repeat_interleave reshape reshape_as roll select setitem split squeeze stack
    swapaxes swapdims t take_along_dim tensor_split tile transpose unbind unflatten unfold
    unsqueeze view view_as vstack
"""
_CASTS = "bfloat16 cpu cuda detach double float half requires_grad to type type_as"
_SUMS = """
    adaptive_avg_pool1d adaptive_avg_pool2d add avg_pool1d avg_pool2d cumsum dropout dropout1d
    dropout2d feature_dropout interpolate masked_fill mean neg negative pad pos positive radd
    rsub sub subtract sum where
"""
_LINEAR = _variants(f"{_RESHAPES} {_CASTS} {_SUMS} amax max maximum softmax", *_OPERATORS) | {
    getattr(Tensor, name).__get__ for name in ("T", "mT", "H", "mH", "data", "real")
}
_MULTIPLICATIONS = _variants(
    "bmm conv1d conv2d linear matmul mm mul multiply rmul rmatmul", *_OPERATORS
)
_DIVISIONS = _variants("div divide true_divide truediv", *_OPERATORS)

_PRODUCTS = _MULTIPLICATIONS | _DIVISIONS
"""Functions that multiply or divide: their constants become factors."""

_FACTORS = _variants("erf hardsigmoid norm pow sigmoid square std tanh var vector_norm", "__{}__")
"""Functions whose value is a constant that must become a factor of an activation, such as the
sigmoid in x * sigmoid(x) or the norm in x / x.norm(): all relevance goes to the other factor."""

_ACTIVATIONS = "celu elu gelu hardswish leaky_relu mish relu relu6 selu silu softsign tanhshrink"
_ATTENTIONS = "scaled_dot_product_attention multi_head_attention_forward"

_RULES: dict[Function, FunctionRule] = {
    function: rule
    for rule, functions in (
        (_epsilon_rule, _LINEAR),
        (_product_rule, _MULTIPLICATIONS),
        (_quotient_rule, _DIVISIONS),
        (_einsum_rule, _variants("einsum")),
        (_activation_rule, _variants(_ACTIVATIONS)),
        (_layer_norm_rule, _variants("layer_norm")),
        (_rms_norm_rule, _variants("rms_norm")),
        (_normalize_rule, _variants("normalize")),
        (_batch_norm_rule, _variants("batch_norm")),
        (_attention_rule, _variants(_ATTENTIONS)),
    )
    for function in functions
}
"""The rule of each function; a function without a rule labels its result."""

_IN_PLACE = {
    getattr(space, name)
    for space in (torch, Tensor, functional)
    for name in dir(space)
    if re.fullmatch(r"[a-z]\w*_|__i[a-z]+__|__setitem__", name)
}
"""Functions that write to their first argument."""
