"""Change how Transformers computes attention; no other module does.

Each change is a context manager that always restores the model. It acts in the calling thread
alone, as every context manager named ``..._here`` does (:mod:`hf_gmar._core.threads`).
"""

from __future__ import annotations

import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PreTrainedConfig,
    PreTrainedModel,
)

from hf_gmar._core.threads import undoing
from hf_gmar.errors import ModelOutputError, OptionError, UnsupportedModelError

Implementation: TypeAlias = Literal["eager", "sdpa"]

_HERE = threading.local()


def loading(attention: str | None) -> dict[str, Any]:
    """Return the keyword of ``from_pretrained`` for an implementation."""
    # Other names are for text generation, or belong to the routes below.
    known = ["eager", *(name for name in AttentionInterface().valid_keys() if name.isidentifier())]
    if attention is not None and attention not in known:
        raise OptionError(
            f"attn_implementation must be one of {', '.join(map(repr, sorted(known)))}, got "
            f"{attention!r}"
        )
    return {} if attention is None else {"attn_implementation": attention}


@contextmanager
def attention_here(model: PreTrainedModel, implementation: Implementation) -> Iterator[None]:
    """Switch the attention implementation of the model for this thread.

    If the model already has it, nothing changes. Otherwise the configs name a function that checks
    the calling thread: other threads get the implementation that the model was loaded with.

    Raises:
        UnsupportedModelError: the model can't switch and was loaded with another implementation.
    """
    others = [part for part in configs_of(model) if part._attn_implementation != implementation]
    if others:
        _check_can_switch(model, implementation)
    with _switched(others, implementation), routed_here():
        yield


@contextmanager
def masked_heads_here(model: PreTrainedModel, masked: Tensor) -> Iterator[None]:
    """Set the output of some heads to zero, for one forward of the model in this thread.

    ``masked`` is bool, (images, layers, H), or (1, layers, H) for all images; True masks a head.
    The attention implementation stays; the output of a masked head is zero before the output
    projection. The first attention call is the lowest layer's.

    Raises:
        UnsupportedModelError: the model fixes its attention implementation when it is built.
        ModelOutputError: not one call for each layer, or other numbers of heads or images.
    """
    _check_not_fixed(model, "heads can't be masked; use a model of another family")
    heads = _MaskedHeads(masked.shape[1], {id(module) for module in model.modules()}, masked=masked)
    with _switched(configs_of(model), None), routed_here(heads):
        yield
    heads.check("whose heads are masked")


@contextmanager
def masked_keys_here(model: PreTrainedModel, layers: int, masked: Tensor) -> Iterator[None]:
    """Mask keys, for one forward of the model in this thread: no token attends to them.

    ``masked`` is bool, (images, tokens); True masks a token. Each image needs an unmasked token.
    Masked keys get minus infinity before the softmax of every layer, in addition to the model's own
    mask or bias. Eager and SDPA models keep their implementation; others run with SDPA, as not all
    attention functions honour a mask.

    Raises:
        UnsupportedModelError: the model fixes its attention implementation, or can't switch.
        ModelOutputError: not one call for each layer, or other numbers of tokens or images.
    """
    _check_not_fixed(
        model, "tokens can't be masked; use token-dropping, which gives the same scores"
    )
    honours_masks = {*implementations_of(model)} <= {"eager", "sdpa"}
    if not honours_masks:
        _check_can_switch(model, "sdpa")
    keys = _MaskedKeys(layers, {id(module) for module in model.modules()}, masked=masked)
    with _switched(configs_of(model), None if honours_masks else "sdpa"), routed_here(keys):
        yield
    keys.check("where tokens are masked")


def _check_not_fixed(model: PreTrainedModel, consequence: str) -> None:
    if not model._can_set_attn_implementation():
        raise UnsupportedModelError(
            f"{type(model).__name__} fixes its attention implementation when it is built, so its "
            f"{consequence}"
        )


@dataclass
class _AttentionChange(ABC):
    """A change of the attention calls of one forward.

    Attributes:
        layers: number of the model's attention layers.
        modules: ids of the modules whose attention is changed.
        calls: number of attention calls so far.
    """

    layers: int
    modules: set[int]
    calls: int = 0

    def call(self, function: Callable[..., Any], module: nn.Module, *args: Any, **kw: Any) -> Any:
        """Call the model's attention function with the change."""
        if id(module) not in self.modules:  # a hook calls another model
            return function(module, *args, **kw)
        self.calls += 1
        if self.calls > self.layers:  # reported by ``check``
            return function(module, *args, **kw)
        return self.changed(function, module, *args, **kw)

    @abstractmethod
    def changed(
        self, function: Callable[..., Any], module: nn.Module, *args: Any, **kw: Any
    ) -> Any:
        """Call the attention of layer ``calls - 1`` with the change."""

    def check(self, purpose: str) -> None:
        """Raise a ModelOutputError unless each layer made one call."""
        if self.calls != self.layers:
            raise ModelOutputError(
                f"{self.layers} layers made {self.calls} calls of Transformers' attention, but one "
                f"for each layer is needed to tell {purpose}; call the model once, and "
                "use one whose attention is that of Transformers"
            )


@dataclass
class _MaskedHeads(_AttentionChange):
    """Set the output of heads to zero.

    Attributes:
        masked: bool, (images or 1, layers, H).
    """

    masked: Tensor = field(kw_only=True)

    def changed(
        self, function: Callable[..., Any], module: nn.Module, *args: Any, **kw: Any
    ) -> Any:
        """Set masked heads to zero in the output (images, tokens, H, numbers)."""
        index = self.calls - 1
        output, *rest = function(module, *args, **kw)
        images, _, heads = self.masked.shape
        if output.dim() != 4 or output.shape[2] != heads or images not in (1, len(output)):
            raise ModelOutputError(
                f"the mask is for {images} images with {heads} heads in each layer, but attention "
                f"gave (images, tokens, heads, numbers) = {tuple(output.shape)}; give one flag for "
                "each head of the model"
            )
        return output.masked_fill(self.masked[:, index, None, :, None].to(output.device), 0), *rest


@dataclass
class _MaskedKeys(_AttentionChange):
    """Mask keys, so that no token attends to them.

    Attributes:
        masked: bool, (images, tokens).
    """

    masked: Tensor = field(kw_only=True)

    def changed(
        self, function: Callable[..., Any], module: nn.Module, *args: Any, **kw: Any
    ) -> Any:
        """Add a mask with minus infinity, or False, at masked keys."""
        query, key, value, *rest = args
        if (len(key), key.shape[2]) != tuple(self.masked.shape):
            raise ModelOutputError(
                f"{self.masked.shape[0]} images of {self.masked.shape[1]} tokens are needed, but "
                "the keys of attention have (images, heads, tokens, numbers) = "
                f"{tuple(key.shape)}; correct the layout with hf_gmar.register_layout"
            )
        bias = rest.pop(0) if rest else kw.pop("attention_mask", None)  # the model's own
        bias = query.new_zeros(1, 1, 1, 1) if bias is None else bias
        blocked = False if bias.dtype == torch.bool else -torch.inf
        mask = torch.where(self.masked[:, None, None].to(bias.device), blocked, bias)
        mask = mask.expand(-1, -1, query.shape[2], -1)
        return function(module, query, key, value, mask, *rest, **kw)

    def check(self, purpose: str) -> None:
        """Raise an error unless each layer made one call."""
        if not self.calls:
            raise UnsupportedModelError(
                "the model does not call Transformers' attention functions, so its tokens can't be "
                "hidden from attention; use token-dropping, which gives the same scores"
            )
        super().check(purpose)


@contextmanager
def _switched(
    configs: list[PreTrainedConfig], implementation: Implementation | None
) -> Iterator[None]:
    """Let the configs name functions that check the thread; ``None`` keeps the implementation."""
    before = [(config, config._attn_implementation) for config in configs]

    def restore() -> None:
        for config, original in before:
            # The property's setter would also write into sub-configs, which the list has too.
            config._attn_implementation_internal = original

    with undoing(restore):
        for config, original in before:
            config._attn_implementation_internal = _route(implementation or original, original)
        yield


def _check_can_switch(model: PreTrainedModel, implementation: Implementation) -> None:
    dense = (
        ' or use engine="dense" (of the methods that read attention)'
        if implementation == "sdpa"
        else ""
    )
    if not model._can_set_attn_implementation():
        raise UnsupportedModelError(
            f"{type(model).__name__} fixes its attention implementation when it is built; load it "
            f'with from_pretrained(..., attn_implementation="{implementation}"){dense}'
        )
    # Without SDPA support, a model's own attention function computes more than attention.
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    if implementation == "sdpa" and not all(part._supports_sdpa for part in parts):
        raise UnsupportedModelError(
            f"{type(model).__name__} has no SDPA attention, which is needed; use "
            'engine="dense" (of the methods that read attention)'
        )


@contextmanager
def routed_here(change: _AttentionChange | None = None) -> Iterator[None]:
    """Give this thread the switched attention; autograd's own threads may enter it too."""
    before = getattr(_HERE, "active", False), getattr(_HERE, "change", None)
    _HERE.active, _HERE.change = True, change
    try:
        yield
    finally:
        _HERE.active, _HERE.change = before


def configs_of(model: PreTrainedModel) -> list[PreTrainedConfig]:
    """List the configs that set the attention of some part of the model, each once."""
    stack: list[PreTrainedConfig | None]
    stack = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    configs: dict[int, PreTrainedConfig] = {}
    while stack:
        config = stack.pop()
        if config is not None and id(config) not in configs:
            configs[id(config)] = config
            stack.extend(getattr(config, name, None) for name in config.sub_configs)
    return list(configs.values())


def implementations_of(model: PreTrainedModel) -> tuple[str | None, ...]:
    """Return the attention implementations of the parts of the model."""
    return tuple(config._attn_implementation for config in configs_of(model))


def _route(switched: str | None, original: str | None) -> str:
    """Register attention and mask functions that check the thread; return their name."""
    # The name contains the original one, as some models look for "flash" in it.
    name = f"hf_gmar:{switched}:{original}"

    def current() -> str | None:
        return switched if getattr(_HERE, "active", False) else original

    def attention(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        function = _attention_function(module, current())
        # A route may call another route: the change is made once.
        change, _HERE.change = getattr(_HERE, "change", None), None
        try:
            if change is None:
                return function(module, *args, **kwargs)
            return change.call(function, module, *args, **kwargs)
        finally:
            _HERE.change = change

    def mask(*args: Any, **kwargs: Any) -> Any:
        # An implementation without a mask function gets no mask.
        functions = AttentionMaskInterface()
        return functions[current()](*args, **kwargs) if current() in functions else None

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, mask)
    return name


def _attention_function(module: nn.Module, name: str | None) -> Callable[..., Any]:
    """Look up an attention function as the module does: eager is defined in its own file."""
    namespaces = [vars(sys.modules[kind.__module__]) for kind in type(module).__mro__]
    namespace = next((names for names in namespaces if "ALL_ATTENTION_FUNCTIONS" in names), {})
    functions = namespace.get("ALL_ATTENTION_FUNCTIONS", AttentionInterface())
    eager = namespace.get("eager_attention_forward")
    function: Callable[..., Any] = functions.get_interface(name, eager)
    return function
