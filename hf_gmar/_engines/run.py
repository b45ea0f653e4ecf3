"""One forward, one backward for each target, and the rule fed from the top layer down.

A method knows only its rule; which engine feeds it makes no difference to the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_gmar._core.execution import alone, check_finite, check_tokens, graph_enabled
from hf_gmar._core.hooks import pooled_attention
from hf_gmar._core.layers import LayerOutputs, kept_outputs, scores_of_layers
from hf_gmar._core.model_adapter import Subject
from hf_gmar._core.request import Request
from hf_gmar._core.targets import Question
from hf_gmar._engines.base import Engine, Run
from hf_gmar._engines.dense import dense_engine
from hf_gmar._engines.propagation import Descent, Descents, LayerRule
from hf_gmar._engines.streaming import streaming_engine


@dataclass(frozen=True)
class Capture:
    """What a rule made of one call and one target.

    Attributes:
        patches: relevance of each patch, (B, rows, columns).
        heads: what the rule said of each head, (B, layers, H) or (B, layers, H, more), lowest
            explained layer first; ``None`` if nothing.
    """

    patches: Tensor
    heads: Tensor | None


@dataclass(frozen=True)
class Part:
    """A rule that takes part in a pass.

    Attributes:
        rule: what the method does at each layer.
        layers: the layers that it is fed, of those of the request.
    """

    rule: LayerRule
    layers: range


ENGINES: dict[str, Engine] = {"streaming": streaming_engine, "dense": dense_engine}


def capture(
    subject: Subject, request: Request, questions: Sequence[Question], rule: LayerRule, engine: str
) -> list[Capture]:
    """Run the model once and feed its attention to the rule, for each question.

    Takes and raises what :func:`capture_each` does, but for one rule in all layers of the request.
    """
    part = Part(rule, request.layers(subject))
    return [found for (found,) in capture_each(subject, request, questions, [part], engine)]


def capture_each(
    subject: Subject,
    request: Request,
    questions: Sequence[Question],
    parts: Sequence[Part],
    engine: str,
) -> list[list[Capture]]:
    """Run the model once and feed its attention to each rule, for each question.

    The model is in evaluation mode meanwhile and comes back as it was. Sums are kept in float32,
    or in float64 for a float64 model.

    Args:
        subject: the model.
        request: the call to it, with all the layers and gradients that one of the rules needs.
        questions: what is explained, with one forward for all of them.
        parts: the rules.
        engine: a name in ``ENGINES``.

    Returns:
        For each question, what each rule made of it.

    Raises:
        TargetError: a target does not fit the scores.
        ModelOutputError: no scores, no attention, no gradient, or values that are not finite.
    """
    with (
        alone(subject),
        graph_enabled(),
        pooled_attention(subject) as pooling,
        kept_outputs(subject, request.gradient == "layers") as outputs,
        ENGINES[engine](subject, request) as run,
    ):
        explained = [question.among(run.scores) for question in questions]
        readout = _readout(subject, request, run, pooling.attention(run.scores))
        scores = _scores_to_explain(subject, request, run, outputs)
        descents = [[Descent(part.rule, readout) for part in parts] for _ in questions]
        top, own = request.layers(subject)[-1], [part.layers for part in parts]
        last = len(questions) - 1
        # A caller's mixed precision is for the forward alone, as PyTorch says.
        with torch.autocast(run.scores.device.type, enabled=False):
            for number, (wanted, each) in enumerate(zip(explained, descents, strict=True)):
                together = Descents(list(zip(each, own, strict=True)), top)
                run.explain([wanted.of(one) for one in scores], together, number < last)
    return [[_captured(subject, request, run, descent) for descent in each] for each in descents]


def _scores_to_explain(
    subject: Subject, request: Request, run: Run, outputs: LayerOutputs
) -> list[Tensor]:
    """The model's scores, or those of the tokens of each explained layer, lowest first."""
    if request.gradient != "layers":
        return [run.scores]
    layers = request.gradient_layers(subject)
    own = scores_of_layers(subject, request, outputs.each(), layers.start)
    return [*own, run.scores][: len(layers)]


def _readout(subject: Subject, request: Request, run: Run, pooled: Tensor | None) -> Tensor:
    """The relevance above the top layer, (B, N)."""
    layout = subject.layout
    rows, columns = check_tokens(subject, request, run.tokens)
    dtype = torch.float64 if run.scores.dtype == torch.float64 else torch.float32
    row = layout.readout_row(rows * columns, dtype, pooled)
    return row.to(run.scores.device).expand(len(run.scores), -1)


def _captured(subject: Subject, request: Request, run: Run, descent: Descent) -> Capture:
    device = run.scores.device
    relevance, heads = descent.map.to(device), None
    if descent.heads:
        heads = torch.stack([layer.to(device) for layer in reversed(descent.heads)], dim=1)
    check_finite(run.scores, (relevance, heads), "attention")
    grid = subject.layout.grid(*request.inputs.shape[-2:])
    return Capture(relevance[:, subject.layout.prefix :].reshape(-1, *grid), heads)
