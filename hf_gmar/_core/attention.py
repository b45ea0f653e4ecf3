"""The only module that touches how Transformers computes attention.

A change to a model is a context manager that takes it back, whatever happens inside. It acts in the
calling thread alone, as all whose names end in ``_here`` do (:mod:`hf_gmar._core.threads`).
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

from hf_gmar.errors import ModelOutputError, OptionError, UnsupportedModelError

Implementation: TypeAlias = Literal["eager", "sdpa"]

_HERE = threading.local()


def loading(attention: str | None) -> dict[str, Any]:
    """The keyword of ``from_pretrained`` for that implementation; an OptionError if unknown."""
    # Other names are for serving text, or those of the routes below.
    known = ["eager", *(name for name in AttentionInterface().valid_keys() if name.isidentifier())]
    if attention is not None and attention not in known:
        raise OptionError(
            f"attn_implementation must be one of {', '.join(map(repr, sorted(known)))}, got "
            f"{attention!r}"
        )
    return {} if attention is None else {"attn_implementation": attention}


@contextmanager
def attention_here(model: PreTrainedModel, implementation: Implementation) -> Iterator[None]:
    """Inside, this thread's forwards of the model use that attention implementation.

    A model that uses it already is not touched. Another one's config names a function that asks
    which thread calls: other threads get the implementation that the model was loaded with.

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
    """Inside, one forward of the model in this thread runs with some heads' output set to zero.

    ``masked`` is bool, (images, layers, H), or (1, layers, H) for all images; True masks a head.
    The model keeps the attention implementation that it was loaded with; the output of a masked
    head is replaced before the output projection. The first attention call is the lowest layer's.

    Raises:
        UnsupportedModelError: the model fixes its attention when it is built.
        ModelOutputError: not one call for each layer, or of other heads or images.
    """
    _check_not_fixed(model, "heads can't be masked; use a model of another family")
    heads = _MaskedHeads(masked.shape[1], {id(module) for module in model.modules()}, masked=masked)
    with _switched(configs_of(model), None), routed_here(heads):
        yield
    heads.check("whose heads are masked")


@contextmanager
def masked_keys_here(model: PreTrainedModel, layers: int, masked: Tensor) -> Iterator[None]:
    """Inside, one forward of the model in this thread pays no attention to some tokens.

    ``masked`` is bool, (images, tokens); True for a token that gets no attention. Some token of
    each image must get it. Masked columns are taken out before the softmax of every layer, beside
    the model's own mask or bias. A model that was loaded with eager or SDPA attention keeps it;
    others run with SDPA, as not all attention functions honour a mask.

    Raises:
        UnsupportedModelError: the model fixes its attention when it is built, or can't switch.
        ModelOutputError: not one call for each layer, or of other tokens or images.
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
        layers: how many attention layers the model has.
        modules: ids of the modules whose attention is changed.
        calls: attention calls so far.
    """

    layers: int
    modules: set[int]
    calls: int = 0

    def call(self, function: Callable[..., Any], module: nn.Module, *args: Any, **kw: Any) -> Any:
        """A call of the model's attention function, with the change."""
        if id(module) not in self.modules:  # another model, called by a hook
            return function(module, *args, **kw)
        self.calls += 1
        if self.calls > self.layers:  # the check says it
            return function(module, *args, **kw)
        return self.changed(function, module, *args, **kw)

    @abstractmethod
    def changed(
        self, function: Callable[..., Any], module: nn.Module, *args: Any, **kw: Any
    ) -> Any:
        """The call of layer ``calls - 1`` with the change."""

    def check(self, done: str) -> None:
        """Raise a ModelOutputError unless each layer made one call."""
        if self.calls != self.layers:
            raise ModelOutputError(
                f"{self.layers} layers made {self.calls} calls of Transformers' attention, but one "
                f"for each layer is needed to tell {done}; call the model once, and "
                "use one whose attention is that of Transformers"
            )


@dataclass
class _MaskedHeads(_AttentionChange):
    """Heads whose output is set to zero.

    Attributes:
        masked: (images or 1, layers, H).
    """

    masked: Tensor = field(kw_only=True)

    def changed(
        self, function: Callable[..., Any], module: nn.Module, *args: Any, **kw: Any
    ) -> Any:
        """The call, with zeros for masked heads in (images, tokens, H, numbers)."""
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
    """Tokens to which no token attends.

    Attributes:
        masked: (images, tokens).
    """

    masked: Tensor = field(kw_only=True)

    def changed(
        self, function: Callable[..., Any], module: nn.Module, *args: Any, **kw: Any
    ) -> Any:
        """The call, with a mask in which masked columns are minus infinity."""
        query, key, value, *rest = args
        if (len(key), key.shape[2]) != tuple(self.masked.shape):
            raise ModelOutputError(
                f"{self.masked.shape[0]} images of {self.masked.shape[1]} tokens are needed, but "
                "the keys of attention have (images, heads, tokens, numbers) = "
                f"{tuple(key.shape)}; correct the layout with hf_gmar.register_layout"
            )
        bias = rest.pop(0) if rest else kw.pop("attention_mask", None)  # the model's own
        bias = query.new_zeros(1, 1, 1, 1) if bias is None else bias
        never = False if bias.dtype == torch.bool else -torch.inf
        mask = torch.where(self.masked[:, None, None].to(bias.device), never, bias)
        mask = mask.expand(-1, -1, query.shape[2], -1)
        return function(module, query, key, value, mask, *rest, **kw)

    def check(self, done: str) -> None:
        """Raise an error unless each layer made one call."""
        if not self.calls:
            raise UnsupportedModelError(
                "the model does not call Transformers' attention functions, so its tokens can't be "
                "hidden from attention; use token-dropping, which gives the same scores"
            )
        super().check(done)


@contextmanager
def _switched(
    configs: list[PreTrainedConfig], implementation: Implementation | None
) -> Iterator[None]:
    """Inside, the configs name functions that ask for the thread; ``None`` keeps what they do."""
    before = [(config, config._attn_implementation) for config in configs]
    try:
        for config, original in before:
            # The property's setter would also write into sub-configs; each is in the list itself.
            config._attn_implementation_internal = _route(implementation or original, original)
        yield
    finally:
        for config, original in before:
            config._attn_implementation_internal = original


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
    # Such a model computes more than attention in its own function, which would be lost.
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    if implementation == "sdpa" and not all(part._supports_sdpa for part in parts):
        raise UnsupportedModelError(
            f"{type(model).__name__} has no SDPA attention, which is needed; use "
            'engine="dense" (of the methods that read attention)'
        )


@contextmanager
def routed_here(change: _AttentionChange | None = None) -> Iterator[None]:
    """Inside, this thread gets the switched attention; autograd may need it in its own threads."""
    before = getattr(_HERE, "active", False), getattr(_HERE, "change", None)
    _HERE.active, _HERE.change = True, change
    try:
        yield
    finally:
        _HERE.active, _HERE.change = before


def configs_of(model: PreTrainedModel) -> list[PreTrainedConfig]:
    """Every config that says how some part of the model computes attention, each once."""
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
    """The attention implementations that parts of the model use."""
    return tuple(config._attn_implementation for config in configs_of(model))


def _route(switched: str | None, original: str | None) -> str:
    """The name of an attention function, and of its mask function, that asks for the thread."""
    # The original is part of the name, as some models look for "flash" in it.
    name = f"hf_gmar:{switched}:{original}"

    def chosen() -> str | None:
        return switched if getattr(_HERE, "active", False) else original

    def attention(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        function = _attention_function(module, chosen())
        # A function of this kind may be inside this one: a change is made once.
        change, _HERE.change = getattr(_HERE, "change", None), None
        try:
            if change is None:
                return function(module, *args, **kwargs)
            return change.call(function, module, *args, **kwargs)
        finally:
            _HERE.change = change

    def mask(*args: Any, **kwargs: Any) -> Any:
        # Without a function of its own an implementation gets no mask.
        functions = AttentionMaskInterface()
        return functions[chosen()](*args, **kwargs) if chosen() in functions else None

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, mask)
    return name


def _attention_function(module: nn.Module, name: str | None) -> Callable[..., Any]:
    """The function that the module would look up under that name: eager is one of its file."""
    files = [vars(sys.modules[kind.__module__]) for kind in type(module).__mro__]
    home = next((file for file in files if "ALL_ATTENTION_FUNCTIONS" in file), {})
    functions = home.get("ALL_ATTENTION_FUNCTIONS", AttentionInterface())
    eager = home.get("eager_attention_forward")
    function: Callable[..., Any] = functions.get_interface(name, eager)
    return function
