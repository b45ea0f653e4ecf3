"""The layers of a vision tower as modules, their outputs, and scores of each layer's tokens.

Each layer takes tokens (B, N, hidden) as its first argument and returns tokens of that shape, or a
tuple that starts with them. Layers are found by their type, never by their path.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_gmar._core.hooks import CallRecorder
from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar._core.request import ForwardRequest
from hf_gmar._core.threads import replaced_here, thread_hook
from hf_gmar.errors import UnsupportedModelError


def layer_modules(adapter: ModelAdapter) -> list[nn.Module]:
    """The attention layers of the tower, lowest first.

    They are Transformers' own layers, or else (in timm's models) the one list of modules of one
    class that has as many of them as the tower has layers. An UnsupportedModelError is raised if
    they can't be told from other modules.
    """
    count, parts = adapter.layers, list(adapter.vision_model.modules())
    layers: list[nn.Module] = [m for m in parts if isinstance(m, GradientCheckpointingLayer)]
    lists = [list(part) for part in parts if isinstance(part, (nn.ModuleList, nn.Sequential))]
    alike = [items for items in lists if len(items) == count and len(set(map(type, items))) == 1]
    if not layers and len(alike) == 1:
        return alike[0]
    if len(layers) != count:
        raise UnsupportedModelError(
            f"the tokens between the {count} layers of {type(adapter.vision_model).__name__} are "
            f"needed, and {len(layers)} modules of it are known as layers of Transformers, and "
            f"{len(alike)} lists of modules are as long; use a method that reads attention alone, "
            "such as GMAR"
        )
    return layers


@contextmanager
def recorded_layers(adapter: ModelAdapter) -> Iterator[CallRecorder[Any]]:
    """Inside, the outputs of the layers in this thread are recorded, connected to the graph."""
    layers = layer_modules(adapter)
    outputs: CallRecorder[Any] = CallRecorder(f"each of the {len(layers)} layers", len(layers))

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        outputs.calls.append(output)

    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(thread_hook(layer, keep))
        yield outputs


def scores_of_layers(
    adapter: ModelAdapter, request: ForwardRequest, outputs: list[Any], start: int = 0
) -> Iterator[Tensor]:
    """Scores of the model's own head for the tokens of each layer but the top, (B, C) each.

    The model runs once for each layer from ``start`` on. Its layers repeat their outputs, and the
    top layer gives the tokens of the layer in question. So what is above the layers (norm, pooling,
    class head) takes them for its last tokens.
    """
    *below, top = layer_modules(adapter)
    for output in outputs[start:-1]:
        with ExitStack() as stack:
            for layer, tokens in zip(below, outputs, strict=False):
                # A head that reads several layers: only the tokens in question have a gradient.
                stack.enter_context(replaced_here(layer, "forward", _gives(_detached(tokens))))
            stack.enter_context(replaced_here(top, "forward", _gives(output)))
            yield request.call(adapter)


def _detached(output: Any) -> Any:
    if isinstance(output, tuple):
        return tuple(map(_detached, output))
    return output.detach() if isinstance(output, Tensor) else output


def _gives(output: Any) -> Any:
    return lambda *_, **__: output
