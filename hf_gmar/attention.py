"""The only module that touches how Transformers computes attention.

Each change to a model is a context manager that takes it back, whatever happens inside.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_gmar.errors import ModelOutputError, UnsupportedModelError

_HOOK_FLAG = "_output_capturing_hooks_installed"
_MAPS = "output_attentions"


@contextmanager
def eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model computes attention matrices that it can return.

    Raises:
        UnsupportedModelError: the model can't switch and was not loaded with eager attention.
    """
    before = [(config, config._attn_implementation) for config in _configs(model)]
    try:
        if any(implementation != "eager" for _, implementation in before):
            _switch_to_eager(model)
        yield
    finally:
        for config, implementation in before:
            # The property's setter would also write into sub-configs; each is in the list itself.
            config._attn_implementation_internal = implementation


def _configs(model: PreTrainedModel) -> list[PreTrainedConfig]:
    """Every config that says how some part of the model computes attention, each once."""
    open_: list[PreTrainedConfig | None]
    open_ = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    found: dict[int, PreTrainedConfig] = {}
    while open_:
        config = open_.pop()
        if config is not None and id(config) not in found:
            found[id(config)] = config
            open_.extend(getattr(config, name, None) for name in config.sub_configs)
    return list(found.values())


def _switch_to_eager(model: PreTrainedModel) -> None:
    if not model._can_set_attn_implementation():
        raise UnsupportedModelError(
            f"{type(model).__name__} fixes its attention implementation when it is built; load it "
            'with from_pretrained(..., attn_implementation="eager")'
        )
    model.set_attn_implementation("eager")


class Recorded(NamedTuple):
    """What one forward of the model left.

    Attributes:
        maps: attention of each layer, (B, H, N, N), connected to the graph.
        images: shape of the pixel values that the model got.
    """

    maps: tuple[Tensor, ...]
    images: torch.Size


@contextmanager
def recorded_attention(model: PreTrainedModel) -> Iterator[list[Recorded]]:
    """Inside, each forward of the model appends what it did to the list.

    Hooks ask for them, so that the model may sit anywhere in a larger module; its caller gets
    the output that it would get without them.
    """
    recorded: list[Recorded] = []
    asked: list[tuple[bool, bool]] = []
    thread = threading.get_ident()  # forwards of other threads go on as ever

    def ask(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        if threading.get_ident() != thread:
            return None
        asked.append((_asked(model, kwargs, "return_dict"), _asked(model, kwargs, _MAPS)))
        return args, {**kwargs, _MAPS: True, "return_dict": True}

    def keep(_module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        if threading.get_ident() != thread:
            return None
        pixels = args[0] if args else kwargs["pixel_values"]
        recorded.append(Recorded(_attention_maps(model, output), pixels.shape))
        as_dict, with_maps = asked.pop()
        if not with_maps:
            output = type(output)(**{k: v for k, v in output.items() if k != "attentions"})
        return output if as_dict else output.to_tuple()

    with ExitStack() as stack:
        stack.enter_context(_hooks_as_before(model))
        handles = [
            model.register_forward_pre_hook(ask, with_kwargs=True),
            # Before the user's own hooks, which may replace the output.
            model.register_forward_hook(keep, prepend=True, with_kwargs=True),
        ]
        for handle in handles:
            stack.callback(handle.remove)
        yield recorded


def _asked(model: PreTrainedModel, kwargs: dict[str, Any], name: str) -> bool:
    given = kwargs.get(name)
    return bool(getattr(model.config, name, name == "return_dict") if given is None else given)


def _attention_maps(model: PreTrainedModel, output: Any) -> tuple[Tensor, ...]:
    maps = getattr(output, "attentions", None) or ()
    if not maps or any(layer is None for layer in maps):
        raise ModelOutputError(
            f"{type(model).__name__} returned no attention maps under eager attention; it does "
            "not honour output_attentions=True"
        )
    return tuple(maps)


@contextmanager
def _hooks_as_before(model: PreTrainedModel) -> Iterator[None]:
    """Take out the hooks that Transformers leaves when attention is asked for the first time."""
    fresh = [
        module
        for module in model.modules()
        if isinstance(module, PreTrainedModel) and not hasattr(module, _HOOK_FLAG)
    ]
    counts = [(module, set(module._forward_hooks)) for module in model.modules()]
    try:
        yield
    finally:
        installed = [module for module in fresh if module.__dict__.pop(_HOOK_FLAG, False)]
        for module, before in counts if installed else ():
            for key in set(module._forward_hooks) - before:
                hook = module._forward_hooks[key]
                if hook.__module__ == "transformers.utils.output_capturing":
                    del module._forward_hooks[key]
