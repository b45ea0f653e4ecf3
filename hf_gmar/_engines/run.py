"""One forward, one backward for each target, and the rule fed from the top layer down.

A method knows only its rule; which engine feeds it makes no difference to the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_gmar._core.execution import check_finite, check_tokens, exclusive_eval, graph_enabled
from hf_gmar._core.hooks import pooled_attention
from hf_gmar._core.layers import LayerOutputs, kept_outputs, scores_of_layers
from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar._core.request import ForwardRequest
from hf_gmar._core.targets import TargetSpec
from hf_gmar._engines.base import Engine, EngineRun
from hf_gmar._engines.dense import dense_engine
from hf_gmar._engines.propagation import Descent, Descents, LayerRule
from hf_gmar._engines.streaming import streaming_engine


@dataclass(frozen=True)
class RuleResult:
    """What a rule made of one call and one target.

    Attributes:
        patches: relevance of each patch, (B, rows, columns).
        heads: what the rule said of each head, (B, layers, H) or (B, layers, H, more), lowest
            explained layer first; ``None`` if nothing.
    """

    patches: Tensor
    heads: Tensor | None


@dataclass(frozen=True)
class RuleSpan:
    """A rule that takes part in a pass.

    Attributes:
        rule: what the method does at each layer.
        layers: the layers that it is fed, of those of the request.
    """

    rule: LayerRule
    layers: range


ENGINES: dict[str, Engine] = {"streaming": streaming_engine, "dense": dense_engine}


def capture(
    adapter: ModelAdapter,
    request: ForwardRequest,
    target_specs: Sequence[TargetSpec],
    rule: LayerRule,
    engine: str,
) -> list[RuleResult]:
    """Run the model once and feed its attention to the rule, for each target.

    Takes and raises what :func:`capture_each` does, but for one rule in all layers of the request.
    """
    part = RuleSpan(rule, request.layers(adapter))
    return [found for (found,) in capture_each(adapter, request, target_specs, [part], engine)]


def capture_each(
    adapter: ModelAdapter,
    request: ForwardRequest,
    target_specs: Sequence[TargetSpec],
    parts: Sequence[RuleSpan],
    engine: str,
) -> list[list[RuleResult]]:
    """Run the model once and feed its attention to each rule, for each target.

    The model is in evaluation mode meanwhile and comes back as it was. Sums are kept in float32,
    or in float64 for a float64 model.

    Args:
        subject: the model.
        request: the call to it, with all the layers and gradients that one of the rules needs.
        target_specs: what is explained, with one forward for all of them.
        parts: the rules.
        engine: a name in ``ENGINES``.

    Returns:
        For each target, what each rule made of it.

    Raises:
        TargetError: a target does not fit the scores.
        ModelOutputError: no scores, no attention, no gradient, or values that are not finite.
    """
    with (
        exclusive_eval(adapter),
        graph_enabled(),
        pooled_attention(adapter) as pooling,
        kept_outputs(adapter, request.gradient == "layers") as outputs,
        ENGINES[engine](adapter, request) as run,
    ):
        explained = [target_spec.resolve(run.scores) for target_spec in target_specs]
        readout = _readout(adapter, request, run, pooling.attention(run.scores))
        scores = _scores_to_explain(adapter, request, run, outputs)
        descents = [[Descent(part.rule, readout) for part in parts] for _ in target_specs]
        top, own = request.layers(adapter)[-1], [part.layers for part in parts]
        last = len(target_specs) - 1
        # A caller's mixed precision is for the forward alone, as PyTorch says.
        with torch.autocast(run.scores.device.type, enabled=False):
            for number, (wanted, each) in enumerate(zip(explained, descents, strict=True)):
                together = Descents(list(zip(each, own, strict=True)), top)
                run.explain([wanted.of(one) for one in scores], together, number < last)
    return [[_captured(adapter, request, run, descent) for descent in each] for each in descents]


def _scores_to_explain(
    adapter: ModelAdapter, request: ForwardRequest, run: EngineRun, outputs: LayerOutputs
) -> list[Tensor]:
    """The model's scores, or those of the tokens of each explained layer, lowest first."""
    if request.gradient != "layers":
        return [run.scores]
    layers = request.gradient_layers(adapter)
    own = scores_of_layers(adapter, request, outputs.each(), layers.start)
    return [*own, run.scores][: len(layers)]


def _readout(
    adapter: ModelAdapter, request: ForwardRequest, run: EngineRun, pooled: Tensor | None
) -> Tensor:
    """The relevance above the top layer, (B, N)."""
    layout = adapter.layout
    rows, columns = check_tokens(adapter, request, run.tokens)
    dtype = torch.float64 if run.scores.dtype == torch.float64 else torch.float32
    row = layout.readout_row(rows * columns, dtype, pooled)
    return row.to(run.scores.device).expand(len(run.scores), -1)


def _captured(
    adapter: ModelAdapter, request: ForwardRequest, run: EngineRun, descent: Descent
) -> RuleResult:
    device = run.scores.device
    relevance, heads = descent.map.to(device), None
    if descent.heads:
        heads = torch.stack([layer.to(device) for layer in reversed(descent.heads)], dim=1)
    check_finite(run.scores, (relevance, heads), "attention")
    grid = adapter.layout.grid(*request.inputs.shape[-2:])
    return RuleResult(relevance[:, adapter.layout.num_prefix_tokens :].reshape(-1, *grid), heads)
