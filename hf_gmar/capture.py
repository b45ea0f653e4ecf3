"""One forward, one backward for each target, and the rule fed from the top layer down.

A method knows only its rule; which engine feeds it makes no difference to the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_gmar.attention import configs_of
from hf_gmar.dense import dense_engine
from hf_gmar.engine import Engine, Request, Run
from hf_gmar.errors import ModelOutputError
from hf_gmar.propagation import Descent, LayerRule
from hf_gmar.recording import pooled_attention
from hf_gmar.streaming import streaming_engine
from hf_gmar.subject import Subject
from hf_gmar.targets import Target, resolve_targets
from hf_gmar.threads import turn, uncompiled_here


@dataclass(frozen=True)
class Capture:
    """What a rule made of one call and one target.

    Attributes:
        patches: relevance of each patch, (B, rows, columns): >= 0, sums to at most 1.
        head_weights: importance of each head, (B, layers, H), lowest explained layer first.
    """

    patches: Tensor
    head_weights: Tensor


ENGINES: dict[str, Engine] = {"streaming": streaming_engine, "dense": dense_engine}


def capture(
    subject: Subject, request: Request, targets: Sequence[Target], rule: LayerRule, engine: str
) -> list[Capture]:
    """Run the model once and roll its attention down to the patches, for each target.

    The model is in evaluation mode meanwhile and comes back as it was. Sums are kept in float32,
    or in float64 for a float64 model.

    Raises:
        TargetError: a target does not fit the scores.
        ModelOutputError: no scores, no attention, no gradient, or values that are not finite.
    """
    with (
        _alone(subject),
        _graph_enabled(),
        pooled_attention(subject) as pooling,
        ENGINES[engine](subject, request) as run,
    ):
        explained = [_explained(run.scores, target) for target in targets]
        readout = _readout(subject, request, run, pooling.attention(run.scores))
        descents = [Descent(rule, readout) for _ in targets]
        last = len(targets) - 1
        # A caller's mixed precision is for the forward alone, as PyTorch says.
        with torch.autocast(run.scores.device.type, enabled=False):
            for number, (score, descent) in enumerate(zip(explained, descents, strict=True)):
                run.explain(score, descent, number < last)
    return [_captured(subject, request, run, descent) for descent in descents]


def predict(subject: Subject, request: Request) -> Tensor:
    """The scores (B, C) that an explanation of this request is about, without gradients."""
    with torch.no_grad(), _alone(subject):
        return subject(request.inputs, *request.args, **request.kwargs)


def _explained(scores: Tensor, target: Target) -> Tensor:
    chosen = resolve_targets(target, scores).unsqueeze(1)
    return scores.flatten(1).gather(1, chosen).sum()


def _readout(subject: Subject, request: Request, run: Run, pooled: Tensor | None) -> Tensor:
    """The relevance above the top layer, (B, N)."""
    grid = subject.layout.grid(*request.inputs.shape[-2:])
    patches, layout = grid[0] * grid[1], subject.layout
    if run.tokens != layout.prefix + patches:
        raise ModelOutputError(
            f"{type(subject.tower).__name__} has {run.tokens} tokens, but its layout says "
            f"{layout.prefix} before a grid of {grid[0]} x {grid[1]} patches; correct it with "
            "hf_gmar.register_layout"
        )
    dtype = torch.float64 if run.scores.dtype == torch.float64 else torch.float32
    row = layout.readout_row(patches, dtype, pooled)
    return row.to(run.scores.device).expand(len(run.scores), -1)


def _captured(subject: Subject, request: Request, run: Run, descent: Descent) -> Capture:
    device = run.scores.device
    weights = torch.stack([layer.to(device) for layer in reversed(descent.head_weights)], dim=1)
    relevance = descent.relevance.to(device)
    _check_finite(run, relevance, weights)
    grid = subject.layout.grid(*request.inputs.shape[-2:])
    return Capture(relevance[:, subject.layout.prefix :].reshape(-1, *grid), weights)


def _check_finite(run: Run, relevance: Tensor, weights: Tensor) -> None:
    if not torch.isfinite(run.scores).all():
        raise ModelOutputError(
            "the model's scores are not finite: its weights or the pixels are out of bounds, or "
            f"it overflows in {run.scores.dtype} (then try model.float())"
        )
    if not (torch.isfinite(relevance).all() and torch.isfinite(weights).all()):
        raise ModelOutputError(
            "the attention or its gradient is not finite; the model overflows in this precision: "
            "try model.float()"
        )


@contextmanager
def _alone(subject: Subject) -> Iterator[None]:
    """The model to this thread's explanation, in evaluation mode and as it was written."""
    with (
        turn([*configs_of(subject.tower), *subject.modules()]),
        evaluation_mode(subject.modules()),
        uncompiled_here(subject.modules()),
    ):
        yield


@contextmanager
def _graph_enabled() -> Iterator[None]:
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
