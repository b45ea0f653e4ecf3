"""Layer-wise relevance propagation as gradient x input: a rule for each PyTorch function.

The relevance of an activation x is x times its gradient, so a relevance rule changes the gradient
of a function. Linear functions keep their gradient: the epsilon rule, with an epsilon of zero.

The file has the mode that applies the rules, and the tables of the functions that follow each rule.
The rules are in :mod:`hf_gmar._engines.lrp_rules`.

Source: Achtibat et al., "AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for
Transformers", ICML 2024 (arXiv 2402.05602).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

from hf_gmar._core.frozen_weights import FrozenWeightsMode
from hf_gmar._engines.lrp_rules import (
    IN_PLACE,
    Function,
    FunctionRule,
    GammaRules,
    activation_rule,
    attention_rule,
    batch_norm_rule,
    einsum_rule,
    epsilon_rule,
    group_norm_rule,
    layer_norm_rule,
    live_tensors,
    normalize_rule,
    product_rule,
    quotient_rule,
    rms_norm_rule,
    shifted_activation_rule,
    tensors_in,
)
from hf_gmar.errors import UnsupportedModelError


class LRPMode(FrozenWeightsMode):
    """Build a graph whose gradients are relevance / activation, for this thread's forward.

    A function labels its result with its name in two cases: it has no rule, or its result is a
    constant that must become a factor of an activation. A tensor inherits the labels of its
    operands, except of a constant factor. ``check`` raises an error if the scores have a label, so
    results of hooks that the scores do not use are harmless.

    A sigmoid or tanh may be such a factor, as in x * sigmoid(x), or an activation, as in a pooler.
    Calls that turn out not to be factors are found in the labels of the scores. Another forward
    then treats these calls as activations, see :meth:`retry`.

    Args:
        gamma: gamma of the gamma rule for linear layers and convolutions; 0 is the epsilon rule.
        activations: numbers of the calls of sigmoids and tanhs that are activations, in the order
            of the forward.
    """

    def __init__(self, gamma: float = 0.0, activations: frozenset[int] = frozenset()) -> None:
        super().__init__()
        self._gamma, self._activations, self._calls = gamma, activations, 0
        self._labels: Any = WeakTensorKeyDictionary()
        self._rules = _RULES
        if gamma:
            rules = GammaRules(gamma)
            self._rules = {**_RULES, **dict.fromkeys(_LAYERS, rules.layer)}
            self._rules[functional.batch_norm] = rules.batch_norm

    def call(self, func: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Call the function with its rule."""
        if not args and "input" in kwargs:
            args, kwargs = (kwargs["input"],), {k: v for k, v in kwargs.items() if k != "input"}
        live = live_tensors(args, kwargs)
        operands = live if live and func in _PRODUCTS else tensors_in(args, kwargs)
        labels = {label for tensor in operands for label in self._labels_of(tensor)}
        rule, number = self._rules.get(func), None
        if func in _SIGMOIDS:  # in each forward, the same call has the same number
            number, self._calls = self._calls, self._calls + 1
        if number in self._activations:
            rule = _SIGMOIDS[func]
        elif live and func in _FACTORS:
            with torch.no_grad():
                return self._labelled(func(*args, **kwargs), {*labels, _Label(_name(func), number)})
        result = rule(func, *args, **kwargs) if rule else NotImplemented
        if result is NotImplemented:
            result = func(*args, **kwargs)
            if live and live_tensors(result):
                labels.add(_Label(_name(func)))
        return self._labelled(result, labels, *args[: func in IN_PLACE])

    def retry(self, scores: Tensor) -> LRPMode | None:
        """Return the mode for another forward, in which more calls are activations.

        ``None`` if no call must change, or if the scores depend on a function without a rule.
        """
        labels = self._labels.get(scores, ())
        calls = frozenset(label.call for label in labels if label.call is not None)
        resolved = len(calls) == len(labels)
        return LRPMode(self._gamma, self._activations | calls) if calls and resolved else None

    def check(self, scores: Tensor) -> None:
        """Raise an UnsupportedModelError if the scores depend on a function without a rule."""
        names = sorted({label.function for label in self._labels.get(scores, ())})
        if names:
            raise UnsupportedModelError(
                f"relevance can't be propagated through {', '.join(names)} as the model uses it: "
                "AttnLRP has rules for linear functions, products, normalisations, activations "
                "and attention; use InputXGradient, or explain what the model gives before it"
            )

    def _labels_of(self, tensor: Tensor) -> set[_Label]:
        """Return the labels of a tensor, and of its base if it is a view."""
        labels = {*self._labels.get(tensor, ())}
        return labels if tensor._base is None else labels.union(self._labels.get(tensor._base, ()))

    def _labelled(self, result: Any, labels: set[_Label], *changed: Any) -> Any:
        for tensor in tensors_in(result, changed) if labels else ():
            if tensor.is_floating_point():
                self._labels[tensor] = labels
        for tensor in tensors_in(changed) if labels else ():
            if tensor._base is not None:  # other views of the base changed too
                self._labels[tensor._base] = labels.union(self._labels.get(tensor._base, ()))
        return result


class _Label(NamedTuple):
    """A function whose result is not propagated, and the number of its call if that may change."""

    function: str
    call: int | None = None


def _name(func: Function) -> str:
    """Return a function's name in messages: ``exp`` for ``torch.exp`` and ``Tensor.exp_``."""
    return getattr(func, "__name__", str(func)).strip("_")


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
    permute pixel_shuffle pixel_unshuffle repeat repeat_interleave reshape reshape_as roll select
    setitem split squeeze stack swapaxes swapdims t take_along_dim tensor_split tile transpose
    unbind unflatten unfold unsqueeze view view_as vstack
"""
_CASTS = "bfloat16 cpu cuda detach double float half requires_grad to type type_as"
_SUMS = """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d add avg_pool1d avg_pool2d cumsum
    dropout dropout1d dropout2d feature_dropout fold interpolate masked_fill max_pool1d max_pool2d
    mean neg negative pad pos positive radd rsub sub subtract sum where
"""
_LINEAR = _variants(f"{_RESHAPES} {_CASTS} {_SUMS} amax max maximum softmax", *_OPERATORS) | {
    getattr(Tensor, name).__get__ for name in ("T", "mT", "H", "mH", "data", "real")
}
_LAYERS = _variants("conv1d conv2d conv_transpose2d linear")
_MULTIPLICATIONS = _LAYERS | _variants("bmm matmul mm mul multiply rmul rmatmul", *_OPERATORS)
_DIVISIONS = _variants("div divide true_divide truediv", *_OPERATORS)

_PRODUCTS = _MULTIPLICATIONS | _DIVISIONS
"""Functions that multiply or divide: their constants become factors."""

_FACTORS = _variants("erf hardsigmoid norm pow sigmoid square std tanh var vector_norm", "__{}__")
"""Functions whose value is a constant that must become a factor of an activation, such as the
sigmoid in x * sigmoid(x) or the norm in x / x.norm(): all relevance goes to the other factor."""

_SIGMOIDS: dict[Function, FunctionRule] = {
    **dict.fromkeys(_variants("tanh"), activation_rule),
    **dict.fromkeys(_variants("hardsigmoid sigmoid"), shifted_activation_rule),
}
"""Factors that may be activations instead, with their rule as activations."""

_ACTIVATIONS = """
    celu elu gelu hardswish hardtanh leaky_relu mish prelu relu relu6 selu silu softsign tanhshrink
"""
_ATTENTIONS = "scaled_dot_product_attention multi_head_attention_forward"

_RULES: dict[Function, FunctionRule] = {
    function: rule
    for rule, functions in (
        (epsilon_rule, _LINEAR),
        (product_rule, _MULTIPLICATIONS),
        (quotient_rule, _DIVISIONS),
        (einsum_rule, _variants("einsum")),
        (activation_rule, _variants(_ACTIVATIONS)),
        (shifted_activation_rule, _variants("softplus")),
        (layer_norm_rule, _variants("layer_norm")),
        (group_norm_rule, _variants("group_norm")),
        (rms_norm_rule, _variants("rms_norm")),
        (normalize_rule, _variants("normalize")),
        (batch_norm_rule, _variants("batch_norm")),
        (attention_rule, _variants(_ATTENTIONS)),
    )
    for function in functions
}
"""The rule of each function; a function without a rule labels its result."""
