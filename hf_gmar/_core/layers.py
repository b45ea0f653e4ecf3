"""The layers of a vision tower as modules, their outputs, and scores of each layer's tokens.

The first argument of a layer is tokens (B, N, hidden). A layer returns tokens of that shape, or a
tuple that starts with them. Layers are found by type, never by path.
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
    """Return the attention layers of the tower, lowest first.

    They are Transformers' own layers or, in timm's models, the only list of modules of one class
    that is as long as the tower has layers. Otherwise an UnsupportedModelError is raised.
    """
    count, parts = adapter.layers, list(adapter.vision_model.modules())
    layers: list[nn.Module] = [m for m in parts if isinstance(m, GradientCheckpointingLayer)]
    groups = [list(part) for part in parts if isinstance(part, (nn.ModuleList, nn.Sequential))]
    lists = [items for items in groups if len(items) == count and len(set(map(type, items))) == 1]
    if not layers and len(lists) == 1:
        return lists[0]
    if len(layers) != count:
        raise UnsupportedModelError(
            f"the tokens between the {count} layers of {type(adapter.vision_model).__name__} are "
            f"needed, and {len(layers)} modules of it are known as layers of Transformers, and "
            f"{len(lists)} lists of modules are as long; use a method that reads attention alone, "
            "such as GMAR"
        )
    return layers


@contextmanager
def recorded_layers(adapter: ModelAdapter) -> Iterator[CallRecorder[Any]]:
    """Record the layers' outputs in this thread, connected to the graph."""
    layers = layer_modules(adapter)
    outputs: CallRecorder[Any] = CallRecorder(f"each of the {len(layers)} layers", len(layers))

    def record(_module: Any, _inputs: Any, output: Any) -> None:
        outputs.calls.append(output)

    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(thread_hook(layer, record))
        yield outputs


def scores_of_layers(
    adapter: ModelAdapter, request: ForwardRequest, outputs: list[Any], start: int = 0
) -> Iterator[Tensor]:
    """Yield the model head's scores (B, C) for the tokens of each layer below the top.

    The model runs once for each layer from ``start`` on. Its layers return their recorded outputs,
    and the top layer returns the tokens of the scored layer. The final norm, pooling and class head
    then read these tokens.
    """
    *below, top = layer_modules(adapter)
    for output in outputs[start:-1]:
        with ExitStack() as stack:
            for layer, tokens in zip(below, outputs, strict=False):
                # If the head reads several layers, only the scored layer has a gradient.
                stack.enter_context(replaced_here(layer, "forward", _returns(_detached(tokens))))
            stack.enter_context(replaced_here(top, "forward", _returns(output)))
            yield request.call(adapter)


def _detached(output: Any) -> Any:
    if isinstance(output, tuple):
        return tuple(map(_detached, output))
    return output.detach() if isinstance(output, Tensor) else output


def _returns(output: Any) -> Any:
    return lambda *_, **__: output
