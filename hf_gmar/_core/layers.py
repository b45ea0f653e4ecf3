"""The layers of a vision tower as modules: the tokens between them, and scores of each layer's own.

Each layer takes tokens (B, N, hidden) as its first argument and gives tokens of that shape, or a
tuple that starts with them. Layers are found by what they are, never by their path.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar._core.request import ForwardRequest
from hf_gmar._core.threads import level, replaced_here, this_thread
from hf_gmar.errors import ModelOutputError, UnsupportedModelError


def layer_modules(adapter: ModelAdapter) -> list[nn.Module]:
    """The attention layers of the tower, lowest first.

    They are Transformers' own layers, or else (in timm's models) the one list of modules of one
    class that has as many of them as the tower has layers.

    Raises:
        UnsupportedModelError: they can't be told from other modules.
    """
    parts = list(adapter.vision_model.modules())
    found: list[nn.Module] = [
        part for part in parts if isinstance(part, GradientCheckpointingLayer)
    ]
    lists = [list(part) for part in parts if isinstance(part, (nn.ModuleList, nn.Sequential))]
    alike = [one for one in lists if len(one) == adapter.layers and len(set(map(type, one))) == 1]
    if not found and len(alike) == 1:
        return alike[0]
    if len(found) != adapter.layers:
        raise UnsupportedModelError(
            f"the tokens between the {adapter.layers} layers of {type(adapter.vision_model).__name__} are "
            f"needed, and {len(found)} modules of it are known as layers of Transformers, and "
            f"{len(alike)} lists of modules are as long; use a method that reads attention alone, "
            "such as GMAR"
        )
    return found


@dataclass
class LayerOutputs:
    """What the layers gave in a forward of this thread.

    Attributes:
        layers: the layers, lowest first.
        found: the outputs in the order of the calls.
    """

    layers: list[nn.Module] = field(default_factory=list)
    found: list[Any] = field(default_factory=list)

    def each(self) -> list[Any]:
        """One output for each layer, lowest first, and no more of them from now on.

        Raises:
            ModelOutputError: the layers did not run once each.
        """
        if len(self.found) != len(self.layers):
            raise ModelOutputError(
                f"each of the {len(self.layers)} layers must run once in a forward pass; they ran "
                f"{len(self.found)} times in all"
            )
        return list(self.found)


@contextmanager
def kept_outputs(adapter: ModelAdapter, wanted: bool) -> Iterator[LayerOutputs]:
    """Inside, the outputs of the layers in this thread are kept, connected to the graph."""
    place = this_thread(), level()
    outputs = LayerOutputs(layer_modules(adapter) if wanted else [])

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if (this_thread(), level()) == place:
            outputs.found.append(output)

    with ExitStack() as stack:
        for layer in outputs.layers:
            # A thread that compiles the model meanwhile could not trace what asks for threads.
            handle = layer.register_forward_hook(torch.compiler.disable(keep))
            stack.callback(handle.remove)
        yield outputs


def scores_of_layers(
    adapter: ModelAdapter, request: ForwardRequest, outputs: list[Any], start: int = 0
) -> Iterator[Tensor]:
    """What the model's own head says of the tokens of each layer but the top, (B, C) each.

    The model runs once for each of them, with layers that give what they gave before, and a top
    layer that gives the tokens in question: what is above the layers (norm, pooling, class head)
    sees them as if they were its last ones. Layers below ``start`` are left out.
    """
    *below, top = layer_modules(adapter)
    for output in outputs[start:-1]:
        with ExitStack() as stack:
            for layer, own in zip(below, outputs, strict=False):
                # A head that reads several layers: only the tokens in question have a gradient.
                stack.enter_context(replaced_here(layer, "forward", _gives(_detached(own))))
            stack.enter_context(replaced_here(top, "forward", _gives(output)))
            yield request.call(adapter)


def _detached(output: Any) -> Any:
    if isinstance(output, tuple):
        return tuple(map(_detached, output))
    return output.detach() if isinstance(output, Tensor) else output


def _gives(output: Any) -> Any:
    def forward(*_: Any, **__: Any) -> Any:
        return output

    return forward
