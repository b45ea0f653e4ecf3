"""Snapshots of a model, and models in the middle of other work."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.reference.cases import ModelCase
from tests.reference.models import state_of


def snapshot(*models: nn.Module) -> dict[str, Any]:
    """All that a caller could find changed, in forms that compare with ``==``."""
    state: dict[str, Any] = {
        "torch random": torch.get_rng_state().tolist(),
        "python random": random.getstate(),
        "numpy random": repr(np.random.get_state()),  # noqa: NPY002
        "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    }
    for number, model in enumerate(models):
        state.update({f"{number} {name}": value for name, value in state_of(model).items()})
    return state


@contextmanager
def unchanged(*models: nn.Module) -> Iterator[None]:
    """Nothing in the snapshot may differ afterwards."""
    before = snapshot(*models)
    yield
    after = snapshot(*models)
    assert {key for key in before | after if before.get(key) != after.get(key)} == set()


def used(case: ModelCase, attention: str = "sdpa") -> Any:
    """A model in the middle of other work: mixed modes, some gradients, some weights frozen."""
    model = case.build(attention=attention)
    modules = list(model.modules())
    for module in modules[::3]:
        module.training = True
    for index, parameter in enumerate(model.parameters()):
        if index % 3 == 0:
            parameter.grad = torch.full_like(parameter, 0.5)
        if index % 4 == 0:
            parameter.requires_grad_(False)
    model.register_buffer("seen", torch.arange(3.0))
    modules[1].register_forward_hook(lambda *_: None)
    model.register_forward_pre_hook(lambda *_: None)
    modules[-1].register_full_backward_hook(lambda *_: None)
    return model


class HalfWayError(Exception):
    """Raised by a hook in the middle of a forward pass."""


def fail_halfway(*_: Any) -> None:
    """Raise, as a hook."""
    raise HalfWayError


PLACES: dict[str, Callable[[Any], nn.Module]] = {
    "first layer": lambda model: model.vit.layers[0],
    "last layer": lambda model: model.vit.layers[2].attention,
    "head": lambda model: model.classifier,
}


def live_tensors() -> tuple[int, int]:
    """How many tensors live in this process, and their bytes."""
    # Not isinstance: it would wake lazy objects of other libraries.
    tensors = [item for item in gc.get_objects() if issubclass(type(item), Tensor)]
    return len(tensors), sum(tensor.numel() * tensor.element_size() for tensor in tensors)
