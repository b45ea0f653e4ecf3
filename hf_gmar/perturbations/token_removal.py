"""Forwards that do without some patches: their tokens are dropped, or get no attention.

Both hold for the calling thread alone, and the model comes back as it was. Tokens are dropped
after their positions were added, so those that stay have the positions that they had.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hf_gmar._core.attention import masked_keys_here
from hf_gmar._core.layers import layer_modules
from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar._core.threads import hook_here, replaced_here
from hf_gmar.errors import InputError, ModelOutputError, UnsupportedModelError

_ROTARY = ("position_embeddings", "rope")
"""Names under which layers take rotary positions, (..., tokens or patches, numbers)."""

_ROTARY_BY_IMAGE = ("dinov3_vit",)
"""Families whose rotary positions may be others for each image: (B, 1, patches, numbers)."""

_BIASES = ("attention_mask", "attn_mask", "relative_position_bias", "shared_rel_pos_bias")
"""Names under which layers take what is added to attention, (..., N or 1, N)."""

_TABLE, _TIMM = "relative_position_bias_table", "_get_rel_pos_bias"
"""The weight of a module that makes biases of relative positions; what timm's attention calls."""


def reads_patches(adapter: ModelAdapter) -> bool:
    """Whether the class head reads other tokens than those of the prefix."""
    return sum(adapter.layout.readout) < 1 - 1e-6


def fewest_patches(adapter: ModelAdapter) -> int:
    """1 where nothing would be left to attend to, or to pool; else 0."""
    pools_patches = reads_patches(adapter) and adapter.layout.rest == "patches"
    return int(pools_patches or not adapter.layout.num_prefix_tokens)


@dataclass(frozen=True)
class Sites:
    """Where tokens of a model are dropped.

    Attributes:
        layers: the layers, lowest first.
        makers: modules that make biases of relative positions, by which method, and if that is
            inside a layer.
        one_by_one: images with other tokens can't share a forward, as they share rotary positions.
    """

    layers: list[nn.Module]
    makers: list[tuple[nn.Module, str, bool]]
    one_by_one: bool

    @classmethod
    def of(cls, adapter: ModelAdapter) -> Sites:
        """Find them.

        Raises:
            UnsupportedModelError: the layers can't be found.
        """
        layers = layer_modules(adapter)
        inside = {id(part) for layer in layers for part in layer.modules()}
        makers = [
            (part, _TIMM if hasattr(part, _TIMM) else "forward", id(part) in inside)
            for part in adapter.vision_model.modules()
            if isinstance(getattr(part, _TABLE, None), Tensor)
        ]
        rotary = any(name in _arguments(type(layers[0]).forward) for name in _ROTARY)
        kind = getattr(adapter.vision_model.config, "model_type", None)
        return cls(layers, makers, rotary and kind not in _ROTARY_BY_IMAGE)


@contextmanager
def drop_tokens(
    adapter: ModelAdapter, keep_mask: Tensor, sites: Sites | None = None
) -> Iterator[None]:
    """Inside, one forward of this thread runs without the tokens of missing patches.

    They are taken out of what enters the lowest layer, so all layers and the head above them have
    fewer tokens. Rotary positions and biases of relative positions are cut to match.

    Args:
        subject: the model.
        kept: bool (B, P), True for a patch that stays; as many for each image, and one image alone
            for a model that takes them one by one.
        sites: where that happens, if it is known already.

    Raises:
        InputError: other numbers of patches.
        UnsupportedModelError: the layers can't be found, or take what can't be cut.
        ModelOutputError: other tokens than the layout says, or layers that did not run once each.
    """
    sites, cut = sites or Sites.of(adapter), _Cut.of(adapter, keep_mask)
    with ExitStack() as stack:
        for module, name, inside in sites.makers:
            made = functools.partial(_bias, cut, inside, getattr(module, name))
            stack.enter_context(replaced_here(module, name, made))
        for index, layer in enumerate(sites.layers):
            hook = hook_here(functools.partial(_enters, cut, index))
            stack.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield
    cut.check(len(sites.layers))


@contextmanager
def mask_tokens(adapter: ModelAdapter, keep_mask: Tensor) -> Iterator[None]:
    """Inside, no token of one forward of this thread attends to missing patches, in any layer.

    Their own tokens run along. Where the head reads other tokens than the prefix, they are taken
    out of what leaves the top layer, so that it does not read them.

    Args:
        subject: the model.
        kept: bool (B, P), True for a patch that is there; as many for each image where the head
            :func:`reads_patches`.

    Raises:
        InputError: other numbers of patches.
        UnsupportedModelError: attention is not Transformers', or fixed when the model is built, or
            the layers can't be found.
        ModelOutputError: other tokens than the layout says, or not one call for each layer.
    """
    with ExitStack() as stack:
        if reads_patches(adapter):
            hook = hook_here(functools.partial(_leaves, _Cut.of(adapter, keep_mask)))
            stack.callback(layer_modules(adapter)[-1].register_forward_hook(hook).remove)
        hidden = _of_all_tokens(adapter, ~keep_mask, False)
        stack.enter_context(masked_keys_here(adapter.vision_model, adapter.layers, hidden))
        yield


def _of_all_tokens(adapter: ModelAdapter, patches: Tensor, prefix: bool) -> Tensor:
    """Flags of all tokens, (B, N), from those of the patches, (B, P)."""
    return nn.functional.pad(patches, (adapter.layout.num_prefix_tokens, 0), value=prefix)


@dataclass
class _Cut:
    """Which tokens stay in a forward, and how far it is.

    Attributes:
        places: of the tokens that stay, (B, M), in their order.
        num_prefix_tokens: how many tokens stand before the patches.
        tokens: how many tokens there are before any is dropped.
        entered: indices of the layers that ran, in their order.
    """

    places: Tensor
    num_prefix_tokens: int
    tokens: int
    entered: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, adapter: ModelAdapter, keep_mask: Tensor) -> _Cut:
        """Places from flags (B, P)."""
        counts = keep_mask.sum(1)
        if (counts != counts[0]).any():
            raise InputError(
                f"images in one forward must have as many patches each, got {counts.tolist()}"
            )
        stay = _of_all_tokens(adapter, keep_mask, True)
        places = stay.nonzero()[:, 1].reshape(len(stay), -1)
        return cls(places, adapter.layout.num_prefix_tokens, stay.shape[1])

    def from_tokens(self, tokens: Tensor) -> Tensor:
        """Those that stay of (B, N, numbers).

        Raises:
            ModelOutputError: there are others.
        """
        if tokens.shape[:-1] != (len(self.places), self.tokens):
            raise ModelOutputError(
                f"{len(self.places)} images of {self.tokens} tokens are needed, but the layers "
                f"have (images, tokens, numbers) = {tuple(tokens.shape)}; correct the layout with "
                "hf_gmar.register_layout, or take a perturbation of pixels"
            )
        return torch.take_along_dim(tokens, self.places.to(tokens.device)[..., None], 1)

    def argument(self, name: str, value: Any) -> Any:
        """What a layer is given beside the tokens, cut to those that stay.

        Raises:
            UnsupportedModelError: it is not known how.
        """
        several = isinstance(value, (tuple, list))
        parts = list(value) if several else [value]
        if not any(map(self._is_of_tokens, parts)):
            return value
        if name in _ROTARY and all(one.shape[-2] in self._sizes for one in parts):
            return type(value)(map(self._rotary, parts)) if several else self._rotary(value)
        if name in _BIASES and not several and value.dim() > 2 and value.shape[-1] == self.tokens:
            return self.from_bias(value)
        raise UnsupportedModelError(
            f"the layers take {name!r}, which may have numbers for each token, and it is not known "
            "how to take tokens out of it; use attention-masking or a perturbation of pixels"
        )

    @property
    def _sizes(self) -> tuple[int, int]:
        """How many tokens and patches there are."""
        return self.tokens, self.tokens - self.num_prefix_tokens

    def _is_of_tokens(self, value: Any) -> bool:
        return isinstance(value, Tensor) and any(size in self._sizes for size in value.shape)

    def _rotary(self, positions: Tensor) -> Tensor:
        """Those that stay of (..., N or P, numbers)."""
        places = self.places.to(positions.device)
        if positions.shape[-2] != self.tokens:  # they are of patches alone
            places = places[:, self.num_prefix_tokens :] - self.num_prefix_tokens
        if len(places) == 1:
            return positions.index_select(-2, places[0])
        return positions[places][:, None]

    def from_bias(self, bias: Tensor) -> Tensor:
        """Those that stay of (..., heads, N or 1, N): (B, heads, M or 1, M)."""
        places = self.places.to(bias.device)[:, None]
        bias = bias if bias.dim() == 4 else bias[None]
        if bias.shape[-2] == self.tokens:
            bias = torch.take_along_dim(bias, places[..., None], 2)
        return torch.take_along_dim(bias, places[..., None, :], 3)

    def check(self, layers: int) -> None:
        """Check that each layer ran once, from the lowest to the top.

        Raises:
            ModelOutputError: they did not.
        """
        if self.entered != list(range(layers)):
            raise ModelOutputError(
                f"each of the {layers} layers must run once in a forward pass, the lowest "
                f"first; they ran in the order {self.entered}"
            )


@functools.cache
def _arguments(forward: Callable[..., Any]) -> tuple[str, ...]:
    """What the forward of a layer takes, by name: the tokens first."""
    return tuple(inspect.signature(forward).parameters)[1:]


def _enters(cut: _Cut, index: int, layer: nn.Module, args: Any, kwargs: Any) -> Any:
    """The hook of what enters a layer."""
    named = dict(zip(_arguments(type(layer).forward), args, strict=False))
    given = {**named, **kwargs}
    tokens = next(iter(given))
    cut.entered.append(index)
    for name, value in given.items():
        if name != tokens:
            given[name] = cut.argument(name, value)
        elif index == 0:
            given[name] = cut.from_tokens(value)
    return tuple(given[name] for name in named), {name: given[name] for name in kwargs}


def _leaves(cut: _Cut, _layer: nn.Module, _inputs: Any, output: Any) -> Any:
    """The hook of what leaves the top layer."""
    if isinstance(output, tuple):
        return cut.from_tokens(output[0]), *output[1:]
    return cut.from_tokens(output)


def _bias(
    cut: _Cut, inside: bool, made: Callable[..., Tensor], *args: Any, **kwargs: Any
) -> Tensor:
    """The bias that a module makes: of all tokens, which a layer gets, or inside it of the rest."""
    # Transformers would stretch it to as many tokens as there are, which are too few.
    whole = {"dim_size": cut.tokens} if "dim_size" in kwargs else {}
    bias = made(*args, **{**kwargs, **whole})
    return cut.from_bias(bias) if inside else bias
