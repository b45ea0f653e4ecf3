"""Rules of layer-wise relevance propagation: of linear functions, activations, norms and attention.

A rule calls a PyTorch function and gives it the gradient relevance / input. See
:mod:`hf_gmar._engines.lrp`, which has the table of rules.
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

Function: TypeAlias = Callable[..., Any]
FunctionRule: TypeAlias = Callable[..., Any]
"""Maps a function and its arguments to its value, with another gradient; or to ``NotImplemented``
if the rule does not apply to this call."""


IN_PLACE = {
    getattr(space, name)
    for space in (torch, Tensor, functional)
    for name in dir(space)
    if re.fullmatch(r"[a-z]\w*_|__i[a-z]+__|__setitem__", name)
}
"""Functions that write to their first argument."""


def tensors_in(*values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping):
            yield from tensors_in(*value.values())
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(*value)


def live_tensors(*values: Any) -> list[Tensor]:
    """List the tensors that depend on the tokens."""
    return [tensor for tensor in tensors_in(*values) if tensor.requires_grad]


def divide_gradient(value: Any, share: float) -> Any:
    """Return the value; only a share of its gradient passes down."""
    if not isinstance(value, Tensor) or not value.requires_grad:
        return value
    alias = value.view_as(value)
    alias.register_hook(functools.partial(torch.mul, other=share))
    return alias


def epsilon_rule(func: Function, *args: Any, **kwargs: Any) -> Any:
    """Keep the gradient of a linear function."""
    return func(*args, **kwargs)


def product_rule(func: Function, *args: Any, **kwargs: Any) -> Any:
    """Give half to each of two activations in which the function is linear (uniform rule)."""
    if len(live_tensors(args, kwargs)) < 2:
        return func(*args, **kwargs)
    if func in IN_PLACE or live_tensors(args[2:], kwargs):
        return NotImplemented
    return func(*(divide_gradient(value, 0.5) for value in args[:2]), *args[2:], **kwargs)


def einsum_rule(func: Function, equation: str, *operands: Any) -> Any:
    factors = list(tensors_in(operands))
    share = 1 / max(len(live_tensors(factors)), 1)
    return func(equation, *(divide_gradient(factor, share) for factor in factors))


def quotient_rule(func: Function, *args: Any, **kwargs: Any) -> Any:
    rounded = kwargs.get("rounding_mode") is not None
    return NotImplemented if rounded or live_tensors(args[1:], kwargs) else func(*args, **kwargs)


LinearLayer: TypeAlias = Callable[..., Tensor]
"""Maps a value, a weight and a bias, which may be left out, to the output."""


class GammaRules:
    """The gamma rule: terms of a layer that have the sign of its output count 1 + gamma times.

    Batch norm after a convolution or linear layer counts as a part of it, as the rule depends on
    which terms a layer sums: Hui and Binder, "BatchNorm Decomposition for Deep Neural Network
    Interpretation", IWANN 2019.
    """

    def __init__(self, gamma: float) -> None:
        self._gamma = gamma
        self._calls: Any = WeakTensorKeyDictionary()

    def layer(
        self,
        func: Function,
        value: Any,
        weight: Any,
        bias: Any = None,
        *options: Any,
        **kwargs: Any,
    ) -> Any:
        """Apply a linear layer or convolution, and note how, for a batch norm above it."""
        if not live_tensors(value) or live_tensors(weight, bias):
            return product_rule(func, value, weight, bias, *options, **kwargs)

        def layer(value: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            output: Tensor = func(value, weight, bias, *options, **kwargs)
            return output

        layer = func if func is functional.linear else layer
        output = gamma_layer(value, weight, bias, self._gamma, layer)
        if output.dim() == 2 or func is not functional.linear:  # its channels are in dimension 1
            self._calls[output] = value, weight, bias, layer
        return output

    def batch_norm(
        self,
        func: Function,
        value: Tensor,
        mean: Tensor | None,
        variance: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Any:
        """Apply a batch norm as a part of the layer below it, if there is one."""
        if training or mean is None or variance is None or value not in self._calls:
            return batch_norm_rule(
                func, value, mean, variance, weight, bias, training, momentum, eps
            )
        below, layer_weight, layer_bias, layer = self._calls[value]
        scale = (variance + eps).rsqrt() if weight is None else weight * (variance + eps).rsqrt()
        shift = -mean * scale if bias is None else bias - mean * scale
        shift = shift if layer_bias is None else shift + layer_bias * scale
        merged = layer_weight * scale.view(-1, *[1] * (layer_weight.dim() - 1))
        dtype = layer_weight.dtype
        return gamma_layer(below, merged.to(dtype), shift.to(dtype), self._gamma, layer)


def gamma_layer(
    value: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: float,
    layer: LinearLayer = functional.linear,
) -> Tensor:
    """Apply a linear layer; the gradient of its input is relevance / input."""
    output: Tensor = _GammaLayer.apply(value, weight, bias, gamma, layer)  # type: ignore[no-untyped-call]
    return output


class _GammaLayer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        value: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gamma: float,
        layer: LinearLayer,
    ) -> Tensor:
        output = layer(value, weight, bias)
        favoured = output + gamma * _agreeing(value, weight, bias, output, layer)
        factor = torch.where(favoured == 0, 0, output / favoured)
        ctx.save_for_backward(factor, output > 0, value > 0)
        ctx.weight, ctx.gamma, ctx.layer = weight, gamma, layer
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        factor, output_above, value_above = ctx.saved_tensors
        weight: Tensor = ctx.weight
        gradient = (gradient * factor).to(weight.dtype)
        above = gradient * output_above

        def below(gradient: Tensor, weight: Tensor) -> Tensor:
            return _transposed(ctx.layer, gradient, weight, value_above.shape)

        whole = below(gradient, weight)
        # Terms with the sign of the output: positive inputs use weights of that sign, negative
        # inputs use the other weights.
        agrees = below(above, weight.clamp(min=0)) + below(gradient - above, weight.clamp(max=0))
        more = torch.where(value_above, agrees, whole - agrees)
        return whole + ctx.gamma * more, None, None, None, None


def _agreeing(
    value: Tensor, weight: Tensor, bias: Tensor | None, output: Tensor, layer: LinearLayer
) -> Tensor:
    """Sum the terms that have the sign of the output."""
    above = layer(
        value.clamp(min=0), weight.clamp(min=0), None if bias is None else bias.clamp(min=0)
    ) + layer(value.clamp(max=0), weight.clamp(max=0))
    return torch.where(output > 0, above, output - above)


def _transposed(layer: LinearLayer, gradient: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
    """Apply the transpose of a linear layer; its gradient, which does not depend on the input."""
    if layer is functional.linear:
        return gradient @ weight
    with torch.enable_grad():
        zeros = gradient.new_zeros(shape).requires_grad_()
        (below,) = torch.autograd.grad(layer(zeros, weight), zeros, gradient)
    return below


def activation_rule(func: Function, value: Any, *options: Any, **kwargs: Any) -> Any:
    """Pass relevance on unchanged (identity rule), for an elementwise function that is 0 at 0."""
    return _activation(func, value, options, kwargs) if live_tensors(value) else NotImplemented


def shifted_activation_rule(func: Function, value: Any, *options: Any, **kwargs: Any) -> Any:
    """Pass relevance on, except the share of the constant f(0), which is like a bias.

    The identity rule itself would divide all relevance by values near 0.
    """
    if not live_tensors(value):
        return NotImplemented
    constant = func(value.detach().new_zeros(()), *options, **kwargs)
    return _activation(func, value, options, kwargs, constant)


def _activation(
    func: Function,
    value: Tensor,
    options: Sequence[Any],
    kwargs: Mapping[str, Any],
    constant: Tensor | float = 0.0,
) -> Tensor:
    # ``inplace`` is the only boolean option of an activation.
    if not any(option is True for option in (*options, *kwargs.values())):
        return _identity(value, lambda x: func(x, *options, **kwargs), constant)
    # The function would overwrite a value that the rule still needs.
    kept = _identity(value.clone(), lambda x: func(x.clone(), *options, **kwargs), constant)
    return value.copy_(kept)


def _identity(
    value: Tensor, function: Callable[[Tensor], Tensor], constant: Tensor | float
) -> Tensor:
    output: Tensor = _IdentityRule.apply(value, function, constant)  # type: ignore[no-untyped-call]
    return output


class _IdentityRule(torch.autograd.Function):
    """An elementwise function y of x with gradient (y - constant) / x, or 0 at x = 0."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, function: Callable[[Tensor], Tensor], constant: Tensor | float
    ) -> Tensor:
        output = function(value)
        ctx.save_for_backward(torch.where(value == 0, 0, (output - constant) / value))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (factor,) = ctx.saved_tensors
        return gradient * factor, None, None


def layer_norm_rule(
    func: Function,
    value: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Any:
    return _normalised(func, value, normalized_shape, eps, weight=weight, bias=bias)


def rms_norm_rule(
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
    if live_tensors(parameters):
        return NotImplemented
    dims, centred = tuple(range(-len(shape), 0)), "bias" in parameters
    precise = value.detach().to(torch.promote_types(value.dtype, torch.float32))
    precise = precise - precise.mean(dims, keepdim=True) if centred else precise
    epsilon = torch.finfo(value.dtype).eps if eps is None else eps
    factor = (precise.square().mean(dims, keepdim=True) + epsilon).rsqrt()
    function = functools.partial(func, normalized_shape=tuple(shape), eps=eps, **parameters)
    inputs = value, factor, parameters["weight"], dims if centred else None, function
    return _NormRule.apply(*inputs)  # type: ignore[no-untyped-call]


def group_norm_rule(
    _: Function,
    value: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    if live_tensors(weight, bias):
        return NotImplemented
    precise = value.to(torch.promote_types(value.dtype, torch.float32))
    groups = precise.reshape(len(value), num_groups, -1)
    centred = groups - groups.mean(-1, keepdim=True)
    factor = (centred.detach().square().mean(-1, keepdim=True) + eps).rsqrt()
    output, channels = (centred * factor).reshape(value.shape), (-1, *(1,) * (value.dim() - 2))
    output = output if weight is None else output * weight.view(channels)
    output = output if bias is None else output + bias.view(channels)
    return output.to(value.dtype)


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


def normalize_rule(
    _: Function, value: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None
) -> Any:
    if out is not None:
        return NotImplemented
    return value / value.detach().norm(p, dim, keepdim=True).clamp_min(eps)


def batch_norm_rule(func: Function, *args: Any, **kwargs: Any) -> Any:
    training = kwargs.get("training", args[5] if len(args) > 5 else False)
    return NotImplemented if training else func(*args, **kwargs)


def attention_rule(
    func: Function, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any
) -> Any:
    """Treat attention as two products: of weights and values, and of queries and keys.

    A factor that is no activation, such as a pooling head's learned query, gets no relevance.
    """
    if live_tensors(args, kwargs):
        return NotImplemented
    of_weights = 0.5 if live_tensors(value) and live_tensors(query, key) else 1.0
    of_query = of_weights / max(len(live_tensors(query, key)), 1)
    shares = ((query, of_query), (key, of_query), (value, of_weights))
    return func(*(divide_gradient(*pair) for pair in shares), *args, **kwargs)
