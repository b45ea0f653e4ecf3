"""One forward, one backward, then the layer rules fed from the top layer down.

An engine runs the model and yields, for each layer from the top down, the blocks of query rows
that a :class:`~hf_gmar.propagation.LayerRule` wants. A method knows only its rule; which engine
feeds it makes no difference to the result.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from hf_gmar.attention import Recorded, eager_attention, recorded_attention
from hf_gmar.errors import ModelOutputError
from hf_gmar.propagation import Block, LayerResult, LayerRule, apply_rule
from hf_gmar.subject import Subject
from hf_gmar.targets import Target, resolve_targets


@dataclass(frozen=True)
class Request:
    """One call to the model.

    Attributes:
        inputs: pixel values, (B, channels, height, width).
        target: the explained class, in any form that Captum documents.
        args: positional arguments of the model after the inputs.
        kwargs: keyword arguments of the model.
        start_layer: the lowest layer that takes part; layers below it are left out.
    """

    inputs: Tensor
    target: Target = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    start_layer: int = 0


@dataclass(frozen=True)
class Capture:
    """What the rules made of one call.

    Attributes:
        patches: relevance of each patch, (B, rows, columns): >= 0, sums to at most 1.
        head_weights: importance of each head, (B, layers, H), lowest explained layer first.
    """

    patches: Tensor
    head_weights: Tensor


@dataclass(frozen=True)
class LayerFeed:
    """What an engine hands over: the scores, and the blocks of each layer from the top down.

    Attributes:
        scores: the model's scores, detached.
        tokens: how many tokens each layer has.
        layers: given the relevance (B, N) that reaches a layer, its blocks; one for each layer,
            top layer first.
    """

    scores: Tensor
    tokens: int
    layers: Sequence[Callable[[Tensor], Iterator[Block]]]


# Two threads must not switch a model, or a config that two models share, at the same time. The
# lock is reentrant, as a hook inside the model may explain another one.
_ALONE = threading.RLock()

Engine: TypeAlias = Callable[[Subject, Request], LayerFeed]


def capture(subject: Subject, request: Request, rule: LayerRule, engine: str) -> Capture:
    """Run the model once and roll its attention down to the patches.

    The model is in evaluation mode meanwhile and comes back as it was. Sums are kept in float32,
    or in float64 for a float64 model.

    Raises:
        TargetError: the target does not fit the scores.
        ModelOutputError: no scores, no attention, no gradient, or values that are not finite.
    """
    with _ALONE, _graph_enabled(), _evaluation_mode(subject):
        feed = ENGINES[engine](subject, request)
    return _roll_down(subject, request, rule, feed)


def predict(subject: Subject, request: Request) -> Tensor:
    """The scores (B, C) that an explanation of this request is about, without gradients."""
    with torch.no_grad(), _ALONE, _evaluation_mode(subject):
        return subject(request.inputs, *request.args, **request.kwargs)


def dense_engine(subject: Subject, request: Request) -> LayerFeed:
    """The readable reference: eager attention, and gradients of the returned attention maps.

    Memory grows with layers x heads x tokens x tokens, twice.
    """
    # Gradients flow to the attention maps even if every weight is frozen: the graph starts here.
    inputs = _plain(request.inputs).detach().clone().requires_grad_()
    args = tuple(_plain(value) for value in request.args)
    kwargs = {name: _plain(value) for name, value in request.kwargs.items()}
    backbone = subject.backbone
    with eager_attention(backbone), recorded_attention(backbone) as recorded:
        scores = subject(inputs, *args, **kwargs)
    maps = _maps_of(recorded, inputs, scores)[request.start_layer :]
    targets = resolve_targets(request.target, scores)
    explained = scores.flatten(1).gather(1, targets.unsqueeze(1)).sum()
    pairs = zip(maps, _gradients(explained, maps), strict=True)
    layers = [_whole_layer(attention.detach(), gradient) for attention, gradient in pairs]
    return LayerFeed(scores.detach(), maps[-1].shape[-1], layers[::-1])


ENGINES: dict[str, Engine] = {"dense": dense_engine}


def _plain(value: Any) -> Any:
    # Autograd can't save tensors made in inference mode; a copy made outside of it is ordinary.
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def _maps_of(recorded: list[Recorded], inputs: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
    """The attention maps of the one run, if they belong to the inputs image by image."""
    if len(recorded) != 1:
        raise ModelOutputError(
            f"the Transformers model must be called exactly once in a forward pass, as model(...) "
            f"and not as model.forward(...); it was called {len(recorded)} times"
        )
    wanted = inputs.shape[0], *inputs.shape[2:]
    seen = recorded[0].images[0], *recorded[0].images[2:]
    if seen != wanted or scores.shape[0] != wanted[0]:
        raise ModelOutputError(
            f"for inputs of shape {tuple(inputs.shape)} the Transformers model got "
            f"{tuple(recorded[0].images)} and the scores have shape {tuple(scores.shape)}; a "
            "module around the model must keep number, order and size of the images"
        )
    return recorded[0].maps


def _gradients(explained: Tensor, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    reached: tuple[Tensor | None, ...] = (None,) * len(maps)
    if explained.requires_grad and all(layer.requires_grad for layer in maps):
        reached = torch.autograd.grad(explained, maps, allow_unused=True)
    gradients = tuple(gradient for gradient in reached if gradient is not None)
    if len(gradients) != len(maps):
        raise ModelOutputError(
            f"the gradient of the scores reaches {len(gradients)} of {len(maps)} attention layers; "
            "the scores must depend on every layer, without no_grad() or detach() in between"
        )
    return gradients


def _whole_layer(attention: Tensor, gradient: Tensor) -> Callable[[Tensor], Iterator[Block]]:
    def blocks(relevance: Tensor) -> Iterator[Block]:
        yield Block(attention.to(relevance.dtype), gradient.to(relevance.dtype), relevance)

    return blocks


def _roll_down(subject: Subject, request: Request, rule: LayerRule, feed: LayerFeed) -> Capture:
    grid = subject.layout.grid(*request.inputs.shape[-2:])
    relevance = _readout(subject, feed, grid)
    results: list[LayerResult] = []
    for blocks in feed.layers:
        results.append(apply_rule(rule, blocks(relevance), relevance))
        relevance = results[-1].relevance
    weights = torch.stack([result.head_weights for result in reversed(results)], dim=1)
    _check_finite(feed, relevance, weights)
    patches = relevance[:, subject.layout.prefix :].reshape(-1, *grid)
    return Capture(patches, weights)


def _readout(subject: Subject, feed: LayerFeed, grid: tuple[int, int]) -> Tensor:
    """The relevance above the top layer, (B, N)."""
    patches, layout = grid[0] * grid[1], subject.layout
    if feed.tokens != layout.prefix + patches:
        raise ModelOutputError(
            f"{type(subject.backbone).__name__} has {feed.tokens} tokens, but its layout says "
            f"{layout.prefix} before a grid of {grid[0]} x {grid[1]} patches; correct it with "
            "hf_gmar.register_layout"
        )
    dtype = torch.float64 if feed.scores.dtype == torch.float64 else torch.float32
    row = layout.readout_row(patches, dtype).to(feed.scores.device)
    return row.expand(len(feed.scores), -1)


def _check_finite(feed: LayerFeed, relevance: Tensor, weights: Tensor) -> None:
    if not torch.isfinite(feed.scores).all():
        raise ModelOutputError(
            "the model's scores are not finite: its weights or the pixels are out of bounds, or "
            f"it overflows in {feed.scores.dtype} (then try model.float())"
        )
    if not (torch.isfinite(relevance).all() and torch.isfinite(weights).all()):
        raise ModelOutputError(
            "the attention or its gradient is not finite; the model overflows in this precision: "
            "try model.float()"
        )


@contextmanager
def _graph_enabled() -> Iterator[None]:
    """Gradients on, also inside a caller's ``no_grad`` or ``inference_mode``."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def _evaluation_mode(subject: Subject) -> Iterator[None]:
    """Dropout off; each submodule gets its own mode back."""
    training = [module for module in subject.modules() if module.training]
    with ExitStack() as stack:
        for module in training:
            stack.callback(setattr, module, "training", True)
            module.training = False
        yield
