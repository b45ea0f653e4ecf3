"""The gradient of the scores with respect to the pixels, and to the last feature map of a model.

Both are for models of any structure. All layers run with a graph, and weights are constants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from hf_gmar._core.attention import attention_here
from hf_gmar._core.execution import (
    accumulation_dtype,
    check_differentiable,
    check_finite,
    exclusive_eval,
    gradients_of,
    graph_enabled,
)
from hf_gmar._core.families import FEATURE_MODULE, NO_FEATURE_MAP, model_type
from hf_gmar._core.frozen_weights import FrozenWeightsMode
from hf_gmar._core.hooks import CallRecorder
from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar._core.request import ForwardRequest
from hf_gmar._core.targets import TargetSpec
from hf_gmar._core.threads import thread_hook
from hf_gmar._engines.lrp import LRPMode
from hf_gmar.errors import ModelOutputError, UnsupportedModelError

_Forward: TypeAlias = Callable[[], tuple[Tensor, Tensor]]


def pixel_attributions(
    adapter: ModelAdapter,
    request: ForwardRequest,
    target_specs: Sequence[TargetSpec],
    lrp: LRPMode | None = None,
) -> list[Tensor]:
    """Compute gradient x input of each pixel and channel, (B, channels, height, width).

    All targets share one forward. With ``lrp`` the gradient is relevance / pixel. The dtype is
    float32, or float64 for a float64 model.

    Raises:
        UnsupportedModelError: weights are quantised, or a function has no rule.
        TargetError: a target does not fit the scores.
        ModelOutputError: no scores, no gradient, or values that are not finite.
    """

    def forward() -> tuple[Tensor, Tensor]:
        pixels, mode = request.leaf(), lrp or FrozenWeightsMode()
        while True:
            with mode:
                scores = request.call(adapter, pixels.clone())
            if not isinstance(mode, LRPMode):
                return scores, pixels
            if (retried := mode.retry(scores)) is None:
                mode.check(scores)
                return scores, pixels
            mode = retried

    with ExitStack() as stack:
        if lrp is not None and not adapter.has_cells:
            stack.enter_context(attention_here(adapter.vision_model, "sdpa"))  # it has a rule
        pairs = _values_and_gradients(adapter, target_specs, forward, "the pixels")
    return [value * gradient for value, gradient in pairs]


def feature_attributions(
    adapter: ModelAdapter, request: ForwardRequest, target_specs: Sequence[TargetSpec]
) -> list[tuple[Tensor, Tensor]]:
    """Return the last feature map and its gradient for each target, (B, rows, columns, channels).

    Raises:
        UnsupportedModelError: the model has no known feature map, or weights are quantised.
        TargetError: a target does not fit the scores.
        ModelOutputError: no scores, no gradient, or values that are not finite.
    """
    backbone = _feature_module(adapter)
    recorder: CallRecorder[Tensor] = CallRecorder(type(backbone).__name__)

    def record(_module: Any, _inputs: Any, output: Any) -> None:
        recorder.calls.append(output if isinstance(output, Tensor) else output[0])

    def forward() -> tuple[Tensor, Tensor]:
        with thread_hook(backbone, record), FrozenWeightsMode():
            scores = request.call(adapter, request.leaf())
        return scores, recorder.checked()[0]

    pairs = _values_and_gradients(adapter, target_specs, forward, "its last feature map")
    height, width = request.inputs.shape[-2:]
    return [
        (_as_grid(adapter, value, height / width), _as_grid(adapter, gradient, height / width))
        for value, gradient in pairs
    ]


def _values_and_gradients(
    adapter: ModelAdapter, target_specs: Sequence[TargetSpec], forward: _Forward, what: str
) -> list[tuple[Tensor, Tensor]]:
    """Return a tensor of the forward with the gradient of each target's score."""
    check_differentiable(adapter)
    with exclusive_eval(adapter), graph_enabled():
        scores, value = forward()
        targets = [target_spec.resolve(scores) for target_spec in target_specs]
        dtype, pairs = accumulation_dtype(scores), []
        # A caller's autocast is for the forward alone, as PyTorch recommends.
        with torch.autocast(scores.device.type, enabled=False):
            for number, target in enumerate(targets, 1):
                score, retain = target.of(scores), number < len(targets)
                (gradient,) = gradients_of(score, [value], retain)
                if gradient is None:
                    raise ModelOutputError(
                        f"the gradient of the scores does not reach {what}; the model must not use "
                        "no_grad(), detach() or quantised weights in between"
                    )
                pairs.append((value.detach().to(dtype), gradient.detach().to(dtype)))
    check_finite(scores, [gradient for _, gradient in pairs], what)
    return pairs


def _feature_module(adapter: ModelAdapter) -> nn.Module:
    """Return the module whose output is the last feature map."""
    model, kind = adapter.backbone, model_type(adapter.vision_model)
    if kind in NO_FEATURE_MAP:
        raise UnsupportedModelError(
            f"the class head of {type(model).__name__} reads a CLS token, and no position of its "
            "last feature map; use AttnLRP or InputXGradient"
        )
    name = FEATURE_MODULE.get(kind)
    return model.base_model if name is None else model.get_submodule(name)


def _as_grid(adapter: ModelAdapter, features: Tensor, aspect: float) -> Tensor:
    """Return features (B, rows, columns, channels) of feature maps or tokens."""
    if features.dim() == 4:
        return features.permute(0, 2, 3, 1)
    count = features.shape[1] if features.dim() == 3 else 0
    rows = round((count * aspect) ** 0.5)
    columns = count // max(rows, 1)
    if not count or rows * columns != count:
        raise UnsupportedModelError(
            f"{type(adapter.backbone).__name__} gives {tuple(features.shape)}, in which no feature "
            "map (images, channels, rows, columns) is known; use AttnLRP or InputXGradient"
        )
    return features.reshape(len(features), rows, columns, -1)


def resized(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Interpolate maps (B, rows, columns) to another grid, bilinearly."""
    if maps.shape[1:] == grid:
        return maps
    return functional.interpolate(maps[:, None], grid, mode="bilinear")[:, 0]
