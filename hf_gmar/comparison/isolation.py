"""Contexts that restore the model, its state and the random generators after a method ran."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_gmar._core.attention import configs_of
from hf_gmar._core.execution import evaluation_mode, graph_enabled
from hf_gmar._core.threads import lock_models, undoing


@contextmanager
def isolated_model(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Lock a model for this thread, in evaluation mode with gradients; restore it at the end."""
    models = [module for module in modules if isinstance(module, PreTrainedModel)]
    configs = [config for model in models for config in configs_of(model)]
    # The lock comes first, so that the saved state has no changes of another thread.
    with (
        lock_models([*configs, *modules]),
        preserve_state(modules),
        evaluation_mode(modules),
        graph_enabled(),
    ):
        yield


@contextmanager
def preserve_state(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Restore hooks, attributes, modes and parameters at the end, also after an error.

    Captum's methods remove their hooks only if they succeed, and some replace weights or attributes
    temporarily. In-place changes of a tensor's values are not restored. Inside the context, the
    parameters' gradients are ``None``, so that no method can add to them.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> with preserve_state([layer]):
        ...     _ = layer.register_forward_hook(print)
        >>> len(layer._forward_hooks)
        0
    """
    parts = list({id(part): part for module in modules for part in module.modules()}.values())
    leaves = {
        id(tensor): tensor
        for part in parts
        for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False))
        if tensor.is_leaf
    }
    stack = ExitStack()
    with undoing(stack.close):
        for part in parts:
            # A module stores hooks, parameters, buffers and submodules in dicts.
            contents = {
                name: value.copy()
                for name, value in vars(part).items()
                if name.startswith("_") and isinstance(value, dict)
            }
            stack.callback(_restore_module, part, dict(vars(part)), contents)
        for tensor in leaves.values():
            stack.callback(_restore_tensor, tensor, tensor.data, tensor.requires_grad, tensor.grad)
            tensor.grad = None
        yield


def _restore_module(
    module: nn.Module, attributes: dict[str, Any], contents: dict[str, Any]
) -> None:
    for name in set(vars(module)) - set(attributes):
        del vars(module)[name]
    vars(module).update(attributes)
    for name, content in contents.items():
        attributes[name].clear()  # the dict object stays, because hook handles refer to it
        attributes[name].update(content)


def _restore_tensor(tensor: Tensor, data: Tensor, requires_grad: bool, grad: Tensor | None) -> None:
    if tensor.data_ptr() != data.data_ptr():
        tensor.data = data
    tensor.requires_grad_(requires_grad)
    tensor.grad = grad


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the generators of PyTorch (CPU and device), NumPy and Python, and restore them.

    Captum's methods draw from all of these generators.

    Example:
        >>> state = torch.get_rng_state()
        >>> with seeded(3, torch.device("cpu")):
        ...     first = torch.rand(1)
        >>> with seeded(3, torch.device("cpu")):
        ...     second = torch.rand(1)
        >>> torch.equal(first, second), torch.equal(state, torch.get_rng_state())
        (True, True)
    """
    on_gpu = device.type == "cuda"
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  # Captum uses it
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        try:
            torch.default_generator.manual_seed(seed)  # torch.manual_seed also seeds idle devices
            if on_gpu:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            random.seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
