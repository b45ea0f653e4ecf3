"""Forwards that do without some patches: their tokens are dropped, or get no attention.

Both hold for the calling thread alone, and the model comes back as it was. Tokens are dropped after
their positions were added, so the other tokens keep their positions.
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
class DropSites:
    """Where tokens of a model are dropped.

    Attributes:
        layers: the layers, lowest first.
        biases: modules that make biases of relative positions, the name of the method that does,
            and whether the module is inside a layer.
        one_by_one: images with other tokens can't share a forward, as they share rotary positions.
    """

    layers: list[nn.Module]
    biases: list[tuple[nn.Module, str, bool]]
    one_by_one: bool

    @classmethod
    def of(cls, adapter: ModelAdapter) -> DropSites:
        """Find the sites; an UnsupportedModelError if the layers can't be found."""
        layers = layer_modules(adapter)
        inside = {id(part) for layer in layers for part in layer.modules()}
        biases = [
            (part, _TIMM if hasattr(part, _TIMM) else "forward", id(part) in inside)
            for part in adapter.vision_model.modules()
            if isinstance(getattr(part, _TABLE, None), Tensor)
        ]
        rotary = any(name in _arguments(type(layers[0]).forward) for name in _ROTARY)
        kind = getattr(adapter.vision_model.config, "model_type", None)
        return cls(layers, biases, rotary and kind not in _ROTARY_BY_IMAGE)


@contextmanager
def drop_tokens(
    adapter: ModelAdapter, keep_mask: Tensor, sites: DropSites | None = None
) -> Iterator[None]:
    """Run one forward of this thread without the tokens of missing patches.

    They are taken out of the input of the lowest layer, so all layers and the head above them have
    fewer tokens. Rotary positions and biases of relative positions are cut to match.

    Args:
        adapter: the model.
        keep_mask: bool (B, P), True for a patch that stays; equally many for each image, and one
            image alone for a model that takes images one by one.
        sites: where tokens are dropped, if that is known already.

    Raises:
        InputError: images with different numbers of patches.
        UnsupportedModelError: the layers can't be found, or take what can't be cut.
        ModelOutputError: other tokens than the layout says, or layers that did not run once each.
    """
    sites, kept = sites or DropSites.of(adapter), _KeptTokens.of(adapter, keep_mask)
    with ExitStack() as stack:
        for module, name, inside in sites.biases:
            make_bias = functools.partial(_cut_bias, kept, inside, getattr(module, name))
            stack.enter_context(replaced_here(module, name, make_bias))
        for index, layer in enumerate(sites.layers):
            hook = hook_here(functools.partial(_cut_input, kept, index))
            stack.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield
    if kept.layers_run != list(range(len(sites.layers))):
        raise ModelOutputError(
            f"each of the {len(sites.layers)} layers must run once in a forward pass, the lowest "
            f"first; they ran in the order {kept.layers_run}"
        )


@contextmanager
def mask_tokens(adapter: ModelAdapter, keep_mask: Tensor) -> Iterator[None]:
    """Let no token of one forward of this thread attend to missing patches, in any layer.

    Their own tokens run along. A head that reads other tokens than the prefix gets the output of
    the top layer without them.

    Args:
        adapter: the model.
        keep_mask: bool (B, P), True for a patch that is there; equally many for each image where
            the head :func:`reads_patches`.

    Raises:
        InputError: images with different numbers of patches.
        UnsupportedModelError: attention is not Transformers', or fixed when the model is built, or
            the layers can't be found.
        ModelOutputError: other tokens than the layout says, or not one call for each layer.
    """
    with ExitStack() as stack:
        if reads_patches(adapter):
            hook = hook_here(functools.partial(_cut_output, _KeptTokens.of(adapter, keep_mask)))
            stack.callback(layer_modules(adapter)[-1].register_forward_hook(hook).remove)
        hidden = _token_flags(adapter, ~keep_mask, False)
        stack.enter_context(masked_keys_here(adapter.vision_model, adapter.layers, hidden))
        yield


def _token_flags(adapter: ModelAdapter, patches: Tensor, prefix: bool) -> Tensor:
    """Flags of all tokens, (B, N), from those of the patches, (B, P)."""
    return nn.functional.pad(patches, (adapter.layout.num_prefix_tokens, 0), value=prefix)


@dataclass
class _KeptTokens:
    """Which tokens stay in a forward, and which layers have run.

    Attributes:
        indices: of the tokens that stay, (B, M), in their order.
        num_prefix_tokens: how many tokens stand before the patches.
        tokens: how many tokens there are before any is dropped.
        layers_run: indices of the layers that ran, in their order.
    """

    indices: Tensor
    num_prefix_tokens: int
    tokens: int
    layers_run: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, adapter: ModelAdapter, keep_mask: Tensor) -> _KeptTokens:
        counts = keep_mask.sum(1)
        if (counts != counts[0]).any():
            raise InputError(
                f"images in one forward must have as many patches each, got {counts.tolist()}"
            )
        flags = _token_flags(adapter, keep_mask, True)
        indices = flags.nonzero()[:, 1].reshape(len(flags), -1)
        return cls(indices, adapter.layout.num_prefix_tokens, flags.shape[1])

    def select(self, tokens: Tensor) -> Tensor:
        """The tokens that stay, of (B, N, numbers)."""
        if tokens.shape[:-1] != (len(self.indices), self.tokens):
            raise ModelOutputError(
                f"{len(self.indices)} images of {self.tokens} tokens are needed, but the layers "
                f"have (images, tokens, numbers) = {tuple(tokens.shape)}; correct the layout with "
                "hf_gmar.register_layout, or take a perturbation of pixels"
            )
        return torch.take_along_dim(tokens, self.indices.to(tokens.device)[..., None], 1)

    def select_argument(self, name: str, value: Any) -> Any:
        """Cut another argument of a layer to the tokens that stay."""
        sizes = self.tokens, self.tokens - self.num_prefix_tokens  # of all tokens, of the patches
        several = isinstance(value, (tuple, list))
        parts = list(value) if several else [value]
        tensors = [part for part in parts if isinstance(part, Tensor)]
        if not any(size in sizes for tensor in tensors for size in tensor.shape):
            return value
        if name in _ROTARY and all(part.shape[-2] in sizes for part in parts):
            return (
                type(value)(map(self._select_rotary, parts))
                if several
                else self._select_rotary(value)
            )
        if name in _BIASES and not several and value.dim() > 2 and value.shape[-1] == self.tokens:
            return self.select_bias(value)
        raise UnsupportedModelError(
            f"the layers take {name!r}, which may have numbers for each token, and it is not known "
            "how to take tokens out of it; use attention-masking or a perturbation of pixels"
        )

    def _select_rotary(self, positions: Tensor) -> Tensor:
        """The positions that stay, of (..., N or P, numbers)."""
        indices = self.indices.to(positions.device)
        if positions.shape[-2] != self.tokens:  # they are of patches alone
            indices = indices[:, self.num_prefix_tokens :] - self.num_prefix_tokens
        if len(indices) == 1:
            return positions.index_select(-2, indices[0])
        return positions[indices][:, None]

    def select_bias(self, bias: Tensor) -> Tensor:
        """The biases that stay, of (..., heads, N or 1, N): (B, heads, M or 1, M)."""
        indices = self.indices.to(bias.device)[:, None]
        bias = bias if bias.dim() == 4 else bias[None]
        if bias.shape[-2] == self.tokens:
            bias = torch.take_along_dim(bias, indices[..., None], 2)
        return torch.take_along_dim(bias, indices[..., None, :], 3)


@functools.cache
def _arguments(forward: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the arguments of a layer's forward, the tokens first."""
    return tuple(inspect.signature(forward).parameters)[1:]


def _cut_input(kept: _KeptTokens, index: int, layer: nn.Module, args: Any, kwargs: Any) -> Any:
    """The hook before a layer."""
    positional = dict(zip(_arguments(type(layer).forward), args, strict=False))
    arguments = {**positional, **kwargs}
    tokens = next(iter(arguments))
    kept.layers_run.append(index)
    for name, value in arguments.items():
        if name != tokens:
            arguments[name] = kept.select_argument(name, value)
        elif index == 0:
            arguments[name] = kept.select(value)
    return tuple(arguments[n] for n in positional), {n: arguments[n] for n in kwargs}


def _cut_output(kept: _KeptTokens, _layer: nn.Module, _inputs: Any, output: Any) -> Any:
    """The hook after the top layer."""
    if isinstance(output, tuple):
        return kept.select(output[0]), *output[1:]
    return kept.select(output)


def _cut_bias(
    kept: _KeptTokens, inside: bool, make: Callable[..., Tensor], *args: Any, **kwargs: Any
) -> Tensor:
    """Make a bias of all tokens for a layer to cut or, inside a layer, of the tokens that stay."""
    # Transformers would stretch it to as many tokens as there are, which are too few.
    whole = {"dim_size": kept.tokens} if "dim_size" in kwargs else {}
    bias = make(*args, **{**kwargs, **whole})
    return kept.select_bias(bias) if inside else bias
