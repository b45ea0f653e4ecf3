"""Methods of others, and others' models: left as they were, and their failures in words."""

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
from hf_gmar._core.threads import lock_models


@contextmanager
def isolated_model(modules: Sequence[nn.Module]) -> Iterator[None]:
    """The model to this thread, in evaluation mode, with gradients on; everything is put back."""
    models = [part for part in modules if isinstance(part, PreTrainedModel)]
    configs = [config for model in models for config in configs_of(model)]
    with (
        lock_models(
            [*configs, *modules]
        ),  # first: what another thread's explanation did is not ours
        preserve_state(modules),
        evaluation_mode(modules),
        graph_enabled(),
    ):
        yield


@contextmanager
def preserve_state(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put hooks, attributes, modes and parameters back, also after an error.

    Captum's methods take their hooks out only if they come to their end, and some put other weights
    or attributes in place for a while. Values that are written into a tensor in place are not seen.
    Meanwhile parameters have no gradients, so that nothing can be added to them.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> with preserve_state([layer]):
        ...     _ = layer.register_forward_hook(print)
        >>> len(layer._forward_hooks)
        0
    """
    found = list({id(one): one for module in modules for one in module.modules()}.values())
    tensors = {id(one): one for part in found for one in _own_tensors(part)}
    with ExitStack() as stack:
        for part in found:
            stack.callback(_put_back_module, part, dict(vars(part)), _contents_of(part))
        for tensor in tensors.values():
            stack.callback(_put_back_tensor, tensor, tensor.data, tensor.requires_grad, tensor.grad)
            tensor.grad = None
        yield


def _own_tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters(recurse=False)
    yield from (buffer for buffer in module.buffers(recurse=False) if buffer.is_leaf)


def _contents_of(module: nn.Module) -> dict[str, Any]:
    """What is in the module's own dicts: hooks, parameters, buffers and modules."""
    return {
        name: value.copy()
        for name, value in vars(module).items()
        if name.startswith("_") and isinstance(value, dict)
    }


def _put_back_module(
    module: nn.Module, attributes: dict[str, Any], contents: dict[str, Any]
) -> None:
    for name in set(vars(module)) - set(attributes):
        del vars(module)[name]
    vars(module).update(attributes)
    for name, content in contents.items():
        attributes[name].clear()  # the dict itself stays: handles of hooks know it
        attributes[name].update(content)


def _put_back_tensor(
    tensor: Tensor, data: Tensor, requires_grad: bool, grad: Tensor | None
) -> None:
    if tensor.data_ptr() != data.data_ptr():
        tensor.data = data
    tensor.requires_grad_(requires_grad)
    tensor.grad = grad


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers from a seed; the caller's generators come back as they were.

    Those of PyTorch (of the CPU and of the device), NumPy and Python: Captum draws from all.

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
    own, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002  # Captum's is global
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        try:
            torch.default_generator.manual_seed(seed)  # torch.manual_seed sets idle devices, too
            if on_gpu:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            random.seed(seed)
            yield
        finally:
            random.setstate(own)
            np.random.set_state(numpys)  # noqa: NPY002
