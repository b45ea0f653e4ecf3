"""The tokens that enter some layers, and the gradient of the scores with respect to these tokens.

The graph starts at the tokens of the lowest of these layers. Layers below run without a graph, and
weights are constants (:mod:`hf_gmar._core.frozen_weights`), so only activations above are stored.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, TypeAlias

import torch
from torch import Tensor

from hf_gmar._core.attention import attention_here
from hf_gmar._core.execution import (
    accumulation_dtype,
    check_differentiable,
    check_finite,
    check_tokens,
    exclusive_eval,
    gradients_of,
    graph_enabled,
)
from hf_gmar._core.frozen_weights import FrozenWeightsMode
from hf_gmar._core.hooks import CallRecorder, recorded_runs
from hf_gmar._core.layers import layer_modules
from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar._core.request import ForwardRequest
from hf_gmar._core.targets import TargetSpec
from hf_gmar._core.threads import thread_hook
from hf_gmar._core.token_layout import engines_of
from hf_gmar._engines.lrp import LRPMode
from hf_gmar.errors import ModelOutputError

TokenMap: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Maps patch tokens (B, P, C) and their gradient to one value for each patch, (B, P)."""


def product(tokens: Tensor, gradient: Tensor) -> Tensor:
    """Sum gradient x input over the channels of each token."""
    return (tokens * gradient).sum(-1)


def token_attributions(
    adapter: ModelAdapter,
    request: ForwardRequest,
    target_specs: Sequence[TargetSpec],
    layers: Sequence[int],
    token_map: TokenMap,
    lrp: LRPMode | None = None,
) -> list[Tensor]:
    """Compute a map (B, rows, columns) of the tokens that enter some layers, for each target.

    The map is the mean over the layers, which come lowest first. All targets share one forward.
    Sums are in float32, or in float64 for a float64 model. With ``lrp`` the gradient is relevance /
    token.

    Raises:
        UnsupportedModelError: the layers can't be found, weights are quantised, or a function has
            no rule.
        TargetError: a target does not fit the scores.
        ModelOutputError: no scores, no gradient, or values that are not finite.
    """
    check_differentiable(adapter)
    with exclusive_eval(adapter), graph_enabled(), ExitStack() as stack:
        if lrp is not None and engines_of(adapter.vision_model):  # the rules are for SDPA
            stack.enter_context(attention_here(adapter.vision_model, "sdpa"))
        scores, entries = _forward(adapter, request, layers, lrp or FrozenWeightsMode())
        targets = [target_spec.resolve(scores) for target_spec in target_specs]
        check_tokens(adapter, request, entries[0].shape[1])
        patches, dtype = slice(adapter.tokens.num_prefix_tokens, None), accumulation_dtype(scores)
        maps = []
        # A caller's autocast is for the forward alone, as PyTorch recommends.
        with torch.autocast(scores.device.type, enabled=False):
            for number, target in enumerate(targets, 1):
                score, retain = target.of(scores), number < len(targets)
                total: Any = 0
                for pair in zip(entries, _gradients(score, entries, layers, retain), strict=True):
                    total += token_map(*(part[:, patches].detach().to(dtype) for part in pair))
                maps.append(adapter.tokens.to_map(total / len(layers), request.inputs.shape))
    check_finite(scores, maps, "product of the tokens")
    return [patch_map.to(scores.device) for patch_map in maps]


def _forward(
    adapter: ModelAdapter, request: ForwardRequest, layers: Sequence[int], mode: FrozenWeightsMode
) -> tuple[Tensor, list[Tensor]]:
    """Return the scores, and the tokens that enter each layer; their graph starts at the lowest."""
    modules, recorders = layer_modules(adapter), []
    with recorded_runs(adapter, request.inputs) as runs, ExitStack() as stack:
        for layer in layers:
            recorder: CallRecorder[Tensor] = CallRecorder(f"layer {layer}")
            recorders.append(recorder)
            record = functools.partial(_record, recorder, layer == layers[0])
            stack.enter_context(thread_hook(modules[layer], record, before=True))
        with mode:
            scores = request.call(adapter)
    runs.check(request.inputs, scores)
    if isinstance(mode, LRPMode):
        if retried := mode.retry(scores):
            return _forward(adapter, request, layers, retried)
        mode.check(scores)
    return scores, [recorder.checked()[0] for recorder in recorders]


def _record(
    recorder: CallRecorder[Tensor], starts_graph: bool, _module: Any, args: Any, kwargs: Any
) -> Any:
    """Record the tokens that enter a layer (a pre-forward hook)."""
    name = None if args else next(iter(kwargs))
    tokens = args[0] if args else kwargs[name]
    if starts_graph:
        tokens = tokens.detach().requires_grad_()
    recorder.calls.append(tokens)
    copy = tokens.clone()  # a layer may overwrite its input, but not what is recorded
    return ((copy, *args[1:]), kwargs) if args else (args, {**kwargs, name: copy})


def _gradients(
    score: Tensor, entries: Sequence[Tensor], layers: Sequence[int], retain: bool
) -> list[Tensor]:
    gradients = []
    for layer, gradient in zip(layers, gradients_of(score, entries, retain), strict=True):
        if gradient is None:
            raise ModelOutputError(
                f"the gradient of the scores does not reach the tokens that enter layer {layer}; "
                "the scores must depend on every layer, without no_grad(), detach() or quantised "
                "weights in between"
            )
        gradients.append(gradient)
    return gradients
