"""Forwards without some patches: their tokens are dropped, or masked in attention.

Both changes act in the calling thread alone and are undone afterwards. Tokens are dropped after the
position embedding, so the remaining tokens keep their positions.
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
from hf_gmar._core.families import model_type
from hf_gmar._core.layers import layer_modules
from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar._core.threads import replaced_here, thread_hook
from hf_gmar.errors import InputError, ModelOutputError, UnsupportedModelError

_ROTARY = ("position_embeddings", "rope")
"""Argument names of rotary positions in layers, (..., tokens or patches, numbers)."""

_ROTARY_BY_IMAGE = ("dinov3_vit",)
"""Families that take rotary positions for each image: (B, 1, patches, numbers)."""

_BIASES = ("attention_mask", "attn_mask", "relative_position_bias", "shared_rel_pos_bias")
"""Argument names of attention biases in layers, (..., N or 1, N)."""

_TABLE, _TIMM = "relative_position_bias_table", "_get_rel_pos_bias"
"""Weight of modules with relative position biases; method that timm's attention calls for them."""


def reads_patches(adapter: ModelAdapter) -> bool:
    """Whether the class head reads other tokens than prefix tokens."""
    return sum(adapter.tokens.readout) < 1 - 1e-6


def fewest_patches(adapter: ModelAdapter) -> int:
    """Return 1 if attention or pooling would have no token without patches, else 0."""
    pools_patches = reads_patches(adapter) and adapter.tokens.rest == "patches"
    return int(pools_patches or not adapter.tokens.num_prefix_tokens)


@dataclass(frozen=True)
class DropSites:
    """The places in a model where tokens are dropped.

    Attributes:
        layers: the layers, lowest first.
        biases: modules that compute relative position biases, the name of the method that does so,
            and whether the module is inside a layer.
        one_by_one: copies share rotary positions, so other tokens need another forward.
    """

    layers: list[nn.Module]
    biases: list[tuple[nn.Module, str, bool]]
    one_by_one: bool

    @classmethod
    def of(cls, adapter: ModelAdapter) -> DropSites:
        """Find the places; an UnsupportedModelError if the layers can't be found."""
        layers = layer_modules(adapter)
        inside = {id(part) for layer in layers for part in layer.modules()}
        biases = [
            (part, _TIMM if hasattr(part, _TIMM) else "forward", id(part) in inside)
            for part in adapter.vision_model.modules()
            if isinstance(getattr(part, _TABLE, None), Tensor)
        ]
        rotary = any(name in _arguments(type(layers[0]).forward) for name in _ROTARY)
        by_image = model_type(adapter.vision_model) in _ROTARY_BY_IMAGE
        return cls(layers, biases, rotary and not by_image)


@contextmanager
def drop_tokens(
    adapter: ModelAdapter, keep_mask: Tensor, sites: DropSites | None = None
) -> Iterator[None]:
    """Run one forward of this thread without the tokens of missing patches.

    They are removed from the input of the lowest layer, so all layers and the class head have fewer
    tokens. Rotary positions and relative position biases are reduced to the same tokens.

    Args:
        adapter: the model.
        keep_mask: bool (B, P), True for a kept patch; equally many for each image, and B = 1 if
            ``DropSites.one_by_one``.
        sites: the places where tokens are dropped, if they are known already.

    Raises:
        InputError: images with different numbers of patches.
        UnsupportedModelError: the layers can't be found, or have an unknown argument for tokens.
        ModelOutputError: a token count that contradicts the layout, or not one run of each layer.
    """
    sites, selection = sites or DropSites.of(adapter), _TokenSelection.of(adapter, keep_mask)
    with ExitStack() as stack:
        for module, name, inside in sites.biases:
            make_bias = functools.partial(_select_bias, selection, inside, getattr(module, name))
            stack.enter_context(replaced_here(module, name, make_bias))
        for index, layer in enumerate(sites.layers):
            select = functools.partial(_select_input, selection, index)
            stack.enter_context(thread_hook(layer, select, before=True))
        yield
    if selection.layers_run != list(range(len(sites.layers))):
        raise ModelOutputError(
            f"each of the {len(sites.layers)} layers must run once in a forward pass, the lowest "
            f"first; they ran in the order {selection.layers_run}"
        )


@contextmanager
def mask_tokens(adapter: ModelAdapter, keep_mask: Tensor) -> Iterator[None]:
    """Mask missing patches in the attention of all layers, for one forward of this thread.

    The tokens of missing patches stay in the layers. A head that reads other tokens than prefix
    tokens gets the top layer's output without them.

    Args:
        adapter: the model.
        keep_mask: bool (B, P), True for a kept patch; equally many for each image if the head
            :func:`reads_patches`.

    Raises:
        InputError: images with different numbers of patches.
        UnsupportedModelError: attention is not Transformers', or is fixed when the model is built,
            or the layers can't be found.
        ModelOutputError: a token count that contradicts the layout, or not one call of each layer.
    """
    with ExitStack() as stack:
        if reads_patches(adapter):
            selection = _TokenSelection.of(adapter, keep_mask)
            select = functools.partial(_select_output, selection)
            stack.enter_context(thread_hook(layer_modules(adapter)[-1], select))
        masked = _token_flags(adapter, ~keep_mask, False)
        stack.enter_context(masked_keys_here(adapter.vision_model, adapter.layers, masked))
        yield


def _token_flags(adapter: ModelAdapter, patches: Tensor, prefix: bool) -> Tensor:
    """Extend flags of the patches, (B, P), to all tokens, (B, N)."""
    return nn.functional.pad(patches, (adapter.tokens.num_prefix_tokens, 0), value=prefix)


@dataclass
class _TokenSelection:
    """The kept tokens of a forward, and the layers that have run.

    Attributes:
        indices: indices of the kept tokens, (B, M), ascending.
        num_prefix_tokens: number of tokens before the patches.
        tokens: number of tokens before any is dropped.
        layers_run: indices of the layers that ran, in their order.
    """

    indices: Tensor
    num_prefix_tokens: int
    tokens: int
    layers_run: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, adapter: ModelAdapter, keep_mask: Tensor) -> _TokenSelection:
        counts = keep_mask.sum(1)
        if (counts != counts[0]).any():
            raise InputError(
                f"images in one forward must have as many patches each, got {counts.tolist()}"
            )
        flags = _token_flags(adapter, keep_mask, True)
        indices = flags.nonzero()[:, 1].reshape(len(flags), -1)
        return cls(indices, adapter.tokens.num_prefix_tokens, flags.shape[1])

    def select(self, tokens: Tensor) -> Tensor:
        """Select the kept tokens of (B, N, numbers)."""
        if tokens.shape[:-1] != (len(self.indices), self.tokens):
            raise ModelOutputError(
                f"{len(self.indices)} images of {self.tokens} tokens are needed, but the layers "
                f"have (images, tokens, numbers) = {tuple(tokens.shape)}; correct the layout with "
                "hf_gmar.register_layout, or take a perturbation of pixels"
            )
        return torch.take_along_dim(tokens, self.indices.to(tokens.device)[..., None], 1)

    def select_argument(self, name: str, value: Any) -> Any:
        """Select the kept tokens in another argument of a layer."""
        sizes = self.tokens, self.tokens - self.num_prefix_tokens  # all tokens, patches
        is_sequence = isinstance(value, (tuple, list))
        parts = list(value) if is_sequence else [value]
        tensors = [part for part in parts if isinstance(part, Tensor)]
        if not any(size in sizes for tensor in tensors for size in tensor.shape):
            return value
        if name in _ROTARY and all(part.shape[-2] in sizes for part in parts):
            return (
                type(value)(map(self._select_rotary, parts))
                if is_sequence
                else self._select_rotary(value)
            )
        is_bias = name in _BIASES and not is_sequence and value.dim() > 2
        if is_bias and value.shape[-1] == self.tokens:
            return self.select_bias(value)
        raise UnsupportedModelError(
            f"the layers take {name!r}, which may have numbers for each token, and it is not known "
            "how to take tokens out of it; use attention-masking or a perturbation of pixels"
        )

    def _select_rotary(self, positions: Tensor) -> Tensor:
        """Select the kept positions of (..., N or P, numbers)."""
        indices = self.indices.to(positions.device)
        if positions.shape[-2] != self.tokens:  # of patches alone
            indices = indices[:, self.num_prefix_tokens :] - self.num_prefix_tokens
        if len(indices) == 1:
            return positions.index_select(-2, indices[0])
        return positions[indices][:, None]

    def select_bias(self, bias: Tensor) -> Tensor:
        """Select the kept biases of (..., heads, N or 1, N): (B, heads, M or 1, M)."""
        indices = self.indices.to(bias.device)[:, None]
        bias = bias if bias.dim() == 4 else bias[None]
        if bias.shape[-2] == self.tokens:
            bias = torch.take_along_dim(bias, indices[..., None], 2)
        return torch.take_along_dim(bias, indices[..., None, :], 3)


@functools.cache
def _arguments(forward: Callable[..., Any]) -> tuple[str, ...]:
    """Return the argument names of a layer's forward, the tokens first."""
    return tuple(inspect.signature(forward).parameters)[1:]


def _select_input(
    selection: _TokenSelection, index: int, layer: nn.Module, args: Any, kwargs: Any
) -> Any:
    """Select the kept tokens in a layer's arguments (a pre-forward hook)."""
    positional = dict(zip(_arguments(type(layer).forward), args, strict=False))
    arguments = {**positional, **kwargs}
    tokens = next(iter(arguments))
    selection.layers_run.append(index)
    for name, value in arguments.items():
        if name != tokens:
            arguments[name] = selection.select_argument(name, value)
        elif index == 0:
            arguments[name] = selection.select(value)
    return tuple(arguments[n] for n in positional), {n: arguments[n] for n in kwargs}


def _select_output(selection: _TokenSelection, _layer: nn.Module, _inputs: Any, output: Any) -> Any:
    """Select the kept tokens in the top layer's output (a forward hook)."""
    if isinstance(output, tuple):
        return selection.select(output[0]), *output[1:]
    return selection.select(output)


def _select_bias(
    selection: _TokenSelection, inside: bool, make: Callable[..., Tensor], *args: Any, **kwargs: Any
) -> Tensor:
    """Compute a bias of all tokens; inside a layer, select the kept tokens."""
    # Transformers would interpolate the bias to the reduced number of tokens.
    size = {"dim_size": selection.tokens} if "dim_size" in kwargs else {}
    bias = make(*args, **{**kwargs, **size})
    return selection.select_bias(bias) if inside else bias
