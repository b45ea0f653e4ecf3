"""One forward, one backward for each target, and the rule fed from the top layer down.

A method knows only its rule; which engine feeds it makes no difference to the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_gmar.attention import configs_of, masked_heads
from hf_gmar.dense import dense_engine
from hf_gmar.engine import Engine, Request, Run
from hf_gmar.errors import ModelOutputError
from hf_gmar.layers import LayerOutputs, kept_outputs, scores_of_layers
from hf_gmar.propagation import Descent, Descents, LayerRule
from hf_gmar.recording import pooled_attention
from hf_gmar.streaming import streaming_engine
from hf_gmar.subject import Subject
from hf_gmar.targets import Question
from hf_gmar.threads import deeper, turn, uncompiled_here


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


def predict(subject: Subject, request: Request, masked: Tensor | None = None) -> Tensor:
    """The scores (B, C) that an explanation of this request is about, without gradients.

    ``masked`` heads, (B or 1, layers, H), give zeros: :func:`hf_gmar.attention.masked_heads`.
    """
    heads = nullcontext() if masked is None else masked_heads(subject.tower, masked)
    with torch.no_grad(), alone(subject), heads:
        return subject(request.inputs, *request.args, **request.kwargs)


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


def check_tokens(subject: Subject, request: Request, tokens: int) -> tuple[int, int]:
    """The rows and columns of patches; an error if the layers have other tokens than the layout.

    Raises:
        ModelOutputError: they have.
    """
    grid, layout = subject.layout.grid(*request.inputs.shape[-2:]), subject.layout
    if tokens != layout.prefix + grid[0] * grid[1]:
        raise ModelOutputError(
            f"{type(subject.tower).__name__} has {tokens} tokens, but its layout says "
            f"{layout.prefix} before a grid of {grid[0]} x {grid[1]} patches; correct it with "
            "hf_gmar.register_layout"
        )
    return grid


def _captured(subject: Subject, request: Request, run: Run, descent: Descent) -> Capture:
    device = run.scores.device
    relevance, heads = descent.map.to(device), None
    if descent.heads:
        heads = torch.stack([layer.to(device) for layer in reversed(descent.heads)], dim=1)
    check_finite(run.scores, (relevance, heads), "attention")
    grid = subject.layout.grid(*request.inputs.shape[-2:])
    return Capture(relevance[:, subject.layout.prefix :].reshape(-1, *grid), heads)


def check_finite(scores: Tensor, parts: Iterable[Tensor | None], what: str) -> None:
    """Check an explanation, and the scores that it is of.

    Args:
        scores: the model's.
        parts: the explanation.
        what: that of which the gradient was taken.

    Raises:
        ModelOutputError: they hold NaN or infinity.
    """
    if not torch.isfinite(scores).all():
        raise ModelOutputError(
            "the model's scores are not finite: its weights or the pixels are out of bounds, or "
            f"it overflows in {scores.dtype} (then try model.float())"
        )
    if not all(torch.isfinite(part).all() for part in parts if part is not None):
        raise ModelOutputError(
            f"the {what} or its gradient is not finite; the model overflows in this precision: "
            "try model.float()"
        )


@contextmanager
def alone(subject: Subject) -> Iterator[None]:
    """The model to this thread's explanation, in evaluation mode and as it was written."""
    with (
        turn([*configs_of(subject.tower), *subject.modules()]),
        deeper(),
        evaluation_mode(subject.modules()),
        uncompiled_here(subject.modules()),
    ):
        yield


@contextmanager
def graph_enabled() -> Iterator[None]:
    """Gradients on, also inside a caller's ``no_grad`` or ``inference_mode``."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def evaluation_mode(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Dropout off; each module gets its own mode back."""
    training = [module for module in modules if module.training]
    with ExitStack() as stack:
        for module in training:
            stack.callback(setattr, module, "training", True)
            module.training = False
        yield
