"""Run the model once, then feed the rules by one backward for each target.

A method knows only its rule; the result does not depend on the engine.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_gmar._core.execution import (
    accumulation_dtype,
    check_differentiable,
    check_finite,
    check_tokens,
    exclusive_eval,
    gradients_of,
    graph_enabled,
)
from hf_gmar._core.hooks import class_head_output, pooled_attention
from hf_gmar._core.layers import recorded_layers, scores_of_layers
from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar._core.places import near, place_row, rows_of_target
from hf_gmar._core.request import ForwardRequest
from hf_gmar._core.targets import ResolvedTarget, TargetSpec
from hf_gmar._engines.base import Engine, EngineRun
from hf_gmar._engines.dense import dense_engine
from hf_gmar._engines.propagation import RelevancePropagation, RuleSpan
from hf_gmar._engines.streaming import streaming_engine
from hf_gmar.errors import ReadoutWarning


@dataclass(frozen=True)
class RuleResult:
    """The result of a rule for one call and one target.

    Attributes:
        patches: relevance of each patch, (B, rows, columns) for images.
        heads: values of each head, (B, layers, H) or (B, layers, H, more), lowest explained layer
            first; ``None`` if the rule has none.
    """

    patches: Tensor
    heads: Tensor | None


ENGINES: dict[str, Engine] = {"streaming": streaming_engine, "dense": dense_engine}


def run_rules(
    adapter: ModelAdapter,
    request: ForwardRequest,
    target_specs: Sequence[TargetSpec],
    spans: Sequence[RuleSpan],
    engine: str,
) -> list[list[RuleResult]]:
    """Run the model once and feed its attention to each rule, for each target.

    The request has all layers and gradients that the rules need. The model runs in evaluation
    mode; its state is restored. Sums are in float32, or in float64 for a float64 model.

    Raises:
        UnsupportedModelError: a gradient is needed and weights are quantised.
        TargetError: a target does not fit the scores.
        ModelOutputError: no scores, no attention, no gradient, values that are not finite, or
            scores that do not come from the class head whose readout is taken.
    """
    if request.gradient != "none":
        check_differentiable(adapter)
    layers, layer_scores = request.layers(adapter), request.gradient == "layers"
    with (
        exclusive_eval(adapter),
        graph_enabled(),
        pooled_attention(adapter) as pooling,
        recorded_layers(adapter) if layer_scores else nullcontext() as outputs,
        class_head_output(adapter) as from_class_head,
        ENGINES[engine](adapter, request) as run,
    ):
        starts_at_readout = any(getattr(rule, "starts_at_readout", True) for rule, _ in spans)
        if starts_at_readout:
            from_class_head(run.scores, run.top)
        targets = [target_spec.resolve(run.scores) for target_spec in target_specs]
        readouts = _readouts(adapter, request, run, targets, pooling(run.scores))
        scores = [run.scores]
        if outputs is not None:  # one score for each explained layer, lowest first
            graded = request.gradient_layers(adapter)
            below = scores_of_layers(adapter, request, outputs.checked(), graded.start)
            scores = [*below, run.scores][: len(graded)]
        propagations = [RelevancePropagation(spans, readout, layers[-1]) for readout in readouts]
        # A caller's autocast is for the forward alone, as PyTorch recommends.
        with torch.autocast(run.scores.device.type, enabled=False):
            for number, (target, propagation) in enumerate(zip(targets, propagations, strict=True)):
                if starts_at_readout:
                    _check_readout(adapter, request, run, target.of(run.scores), readouts[number])
                retain = number < len(targets) - 1
                run.explain([target.of(score) for score in scores], propagation, retain)
    return [_results(adapter, request, run, propagation) for propagation in propagations]


def _readouts(
    adapter: ModelAdapter,
    request: ForwardRequest,
    run: EngineRun,
    targets: Sequence[ResolvedTarget],
    pooled: Tensor | None,
) -> list[Tensor]:
    """Return the relevance above the top layer for each target, (B, N)."""
    grid = check_tokens(adapter, request, run.top.shape[2])
    dtype, prefix = accumulation_dtype(run.scores), adapter.tokens.num_prefix_tokens
    given = [pooled] * len(targets)
    if adapter.tokens.rest == "place":
        cells = adapter.tokens.grid(*request.inputs.shape[-2:])
        patches = (
            [rows_of_target(target, run.scores, cells, dtype) for target in targets]
            if adapter.place is None
            else [place_row(adapter.place, cells, dtype)[None]] * len(targets)
        )
        given = [torch.cat([part.new_zeros(len(part), prefix), part], dim=1) for part in patches]
    readouts = [adapter.tokens.readout_row(math.prod(grid), dtype, one) for one in given]
    return [row.to(run.scores.device).expand(len(run.scores), -1) for row in readouts]


def _check_readout(
    adapter: ModelAdapter, request: ForwardRequest, run: EngineRun, score: Tensor, readout: Tensor
) -> None:
    """Warn unless the score depends on the output tokens of the readout, and on no others.

    The readout of Transformers' own class heads needs no check, nor one patch, which is no class
    head. A dense head may also read the neighbours of the patches under a place.
    """
    if adapter.place is not None or (adapter.own_readout and run.scores.dim() == 2):
        return
    (gradient,) = gradients_of(score, [run.top], retain_graph=True)
    if gradient is None:  # the score can't be differentiated
        return
    read, named, allowed = (gradient != 0).any(-1).any(1), readout > 0, readout > 0
    if adapter.tokens.rest == "place":
        grid = adapter.layout.grid(*request.inputs.shape[-2:])
        allowed = near(readout, adapter.tokens.num_prefix_tokens, grid)
    differs = (read & ~allowed) | (named & ~read)
    wrong = (read.any(1) & differs.any(1)).nonzero().flatten().tolist()
    if wrong:
        image, others = wrong[0], int((read & ~named)[wrong[0]].sum())
        warnings.warn(
            f"the explained score of image {image} depends on {int((read & named)[image].sum())} "
            f"of the {int(named[image].sum())} output tokens at which the readout starts the map, "
            f"and on {others} others: the map is not that of this score. For the score of one "
            "place, as in segmentation, say readout='place', or take a method that starts at the "
            "score itself: AttnLRP, InputXGradient, TokenGradCAM, GradSAM or LeGrad. For a class "
            "head of your own, correct readout=",
            ReadoutWarning,
            stacklevel=2,
        )


def _results(
    adapter: ModelAdapter,
    request: ForwardRequest,
    run: EngineRun,
    propagation: RelevancePropagation,
) -> list[RuleResult]:
    device, prefix = run.scores.device, adapter.tokens.num_prefix_tokens
    results = []
    for relevance, layers in zip(propagation.maps, propagation.heads, strict=True):
        heads = torch.stack([x.to(device) for x in reversed(layers)], dim=1) if layers else None
        patches = relevance.to(device)
        check_finite(run.scores, (patches, heads), "attention")
        maps = adapter.tokens.to_map(patches[:, prefix:], request.inputs.shape)
        results.append(RuleResult(maps, heads))
    return results
