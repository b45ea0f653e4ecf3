"""The streaming engine: exact, and no attention map is ever stored.

Backpropagation visits the layers from the top down, which is the order of the rollout. The forward
runs SDPA, and the backward of each attention call recomputes the map in blocks of rows
(:mod:`hf_gmar._engines.blocks`). One pass over the blocks feeds the rules and computes the
gradients for the layers below.

The graph is minimal: weights are constants, and it starts at the attention output of the lowest
explained layer. Linear layers above the top layer's attention skip tokens without gradient.

A mode (:mod:`hf_gmar._core.frozen_weights`) does this in the calling thread. Weights stay
untouched. The config's attention, hooks and forwards that are replaced meanwhile come back.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_gmar._core.attention import attention_here, routed_here
from hf_gmar._core.execution import gradients_of
from hf_gmar._core.frozen_weights import FrozenWeightsMode
from hf_gmar._core.hooks import VisionRuns, recorded_runs
from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar._core.request import ForwardRequest
from hf_gmar._core.threads import acting_for_thread, current_thread_id, replaced_here
from hf_gmar._engines.base import EngineRun, check_reached
from hf_gmar._engines.blocks import AttentionLayer, BlockWalker, sums_like
from hf_gmar._engines.propagation import RelevancePropagation
from hf_gmar.errors import ModelOutputError, UnsupportedModelError


@contextmanager
def streaming_engine(adapter: ModelAdapter, request: ForwardRequest) -> Iterator[EngineRun]:
    """Run one forward with SDPA; each explanation is one backward, without weight gradients."""
    with ExitStack() as stack:
        stack.enter_context(attention_here(adapter.vision_model, "sdpa"))
        runs = stack.enter_context(recorded_runs(adapter, request.inputs))
        layers, graded = request.layers(adapter), request.gradient_layers(adapter)
        walker = BlockWalker(request.chunk_size)
        state = _StreamedPass(adapter.layers, layers, graded, request, runs, walker)
        mode = _StreamingMode(state)
        if request.checkpoint and request.gradient != "none":
            stack.enter_context(_checkpointed_here(adapter.vision_model, mode))
        with mode:
            scores = request.call(adapter)
        runs.check(request.inputs, scores)
        mode.check_calls()
        # Popped: the graph of that tensor leads back to the state, and would keep both alive.
        yield EngineRun(scores, state.top.pop(), state.explain)


@dataclass
class _StreamedPass:
    """One forward, and the propagation that its backward feeds.

    Attributes:
        layers: number of the model's attention layers.
        explained: the explained layers.
        graded: the explained layers whose gradient is needed, at the top.
        request: the call to the model.
        runs: tells whether the vision tower is running.
        walker: recomputes the layers.
        tokens: number of tokens of the layers.
        leaves: layers whose attention output is a leaf of the graph, lowest first: all layers
            without gradient, and the lowest graded layer, or each one for scores of each layer.
        top: the attention output of the top layer, once it has run.
        propagation: the propagation of the current backward.
    """

    layers: int
    explained: range
    graded: range
    request: ForwardRequest
    runs: VisionRuns
    walker: BlockWalker
    tokens: int = 0
    leaves: list[tuple[AttentionLayer, Tensor]] = field(default_factory=list)
    top: list[Tensor] = field(default_factory=list)
    propagation: RelevancePropagation | None = None

    def explain(
        self, scores: Sequence[Tensor], propagation: RelevancePropagation, retain: bool
    ) -> None:
        """Feed the explained layers to the propagation, from the top down."""
        self.propagation = propagation
        below = len(self.explained) - len(self.graded)
        # One backward for each leaf also feeds the layers above it. If each layer is a leaf, no
        # two backwards share a part of the graph.
        if self.graded:
            leaves = reversed(self.leaves[below:])
            for score, (layer, leaf) in zip(reversed(scores), leaves, strict=True):
                (gradient,) = gradients_of(score, [leaf], retain)
                if gradient is not None:
                    self.walker.walk(layer, gradient, propagation)
            check_reached(propagation.layers, len(self.graded))
        for layer, _ in reversed(self.leaves[:below]):
            self.walker.walk(layer, None, propagation)

    def is_leaf(self, index: int) -> bool:
        """Whether a graph starts at the layer's attention output."""
        return self.request.gradient != "score" or index <= self.graded.start


class _StreamingMode(FrozenWeightsMode):
    """Stream this thread's attention calls, with constant weights.

    Args:
        state: data from the forward for the backward.
        calls: number of attention calls so far.
        recomputes: whether a layer is recomputed in the backward.
    """

    def __init__(self, state: _StreamedPass, calls: int = 0, *, recomputes: bool = False) -> None:
        super().__init__()
        self.state = state
        self.calls = calls
        self.recomputes = recomputes

    def call(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Stream attention calls."""
        if self.state.request.checkpoint and func is functional.dropout:
            _check_not_random(*args, **kwargs)
        if func is functional.scaled_dot_product_attention and self._inside:
            output = self._attention(*args, **kwargs)
            if self.calls == self.state.layers:
                self.state.top = [output]
            return output
        if func is functional.linear and self.calls == self.state.layers:
            return _linear(*args, **kwargs)
        return func(*args, **kwargs)

    @property
    def _inside(self) -> bool:
        return self.recomputes or self.state.runs.inside

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kw: Any
    ) -> Tensor:
        index, state = self.calls, self.state
        self.calls += 1
        if index not in state.explained:
            output = functional.scaled_dot_product_attention(query, key, value, *args, **kw)
            return self._leaf_of_class_head(output, index)
        layer = _layer_of(query, key, value, *args, **kw)
        state.tokens = _same_tokens(layer, state.tokens)
        if not state.is_leaf(index):
            inputs = layer.query, layer.key, layer.value, layer.mask, layer.scale, state
            streamed: Tensor = _StreamedAttention.apply(*inputs)  # type: ignore[no-untyped-call]
            return streamed
        leaf = _attend(layer).detach()
        if not self.recomputes:
            # Detached, or the stored layer would keep the graph below it.
            parts = {name: getattr(layer, name).detach() for name in ("query", "key", "value")}
            state.leaves.append((replace(layer, **parts), leaf))
        if index not in state.graded:
            return self._leaf_of_class_head(leaf, index)
        return leaf.requires_grad_().clone()  # the model may overwrite it

    def _leaf_of_class_head(self, output: Tensor, index: int) -> Tensor:
        """Start a graph above the top layer if no layer has one, to check the readout."""
        state = self.state
        starts = state.request.gradient == "none" and index == state.layers - 1
        return output.detach().requires_grad_().clone() if starts else output

    def check_calls(self) -> None:
        """Raise a ModelOutputError unless each layer made one attention call."""
        state = self.state
        if self.calls != state.layers:
            raise ModelOutputError(
                f"{state.layers} layers made {self.calls} calls of PyTorch's "
                "scaled_dot_product_attention, but one for each layer is needed; use "
                'engine="dense" for this model'
            )


def _check_not_random(_: Tensor, p: float = 0.5, training: bool = True, **__: Any) -> None:
    if p and training:
        raise ModelOutputError(
            f"dropout of {p} is active although the model is in evaluation mode, and a layer that "
            "runs again would draw other numbers; turn it off or use checkpoint=False"
        )


def _layer_of(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> AttentionLayer:
    """Check the arguments of PyTorch's attention, and bring them into one form."""
    if query.dim() != 4 or query.shape[2] != key.shape[2]:
        raise ModelOutputError(
            "self-attention over (images, heads, tokens, numbers in a head) is needed, but queries "
            f"have shape {tuple(query.shape)} and keys {tuple(key.shape)}"
        )
    if dropout_p:
        raise ModelOutputError(
            f"attention dropout of {dropout_p} is active although the model is in evaluation mode; "
            "an explanation needs the same attention twice: turn it off"
        )
    if attn_mask is not None and attn_mask.requires_grad:
        raise ModelOutputError(
            "the attention mask or position bias depends on the image, and the gradient through it "
            'is not streamed; use engine="dense" for this model'
        )
    if enable_gqa:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if is_causal:
        attn_mask = query.new_ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()
    return AttentionLayer(
        query, key, value, attn_mask, query.shape[-1] ** -0.5 if scale is None else scale
    )


def _same_tokens(layer: AttentionLayer, before: int) -> int:
    tokens = layer.query.shape[2]
    if before not in (0, tokens):
        raise ModelOutputError(
            f"the layers have {before} and {tokens} tokens; rollout needs the same tokens in every "
            "layer"
        )
    return tokens


def _attend(layer: AttentionLayer) -> Tensor:
    return functional.scaled_dot_product_attention(
        layer.query, layer.key, layer.value, attn_mask=layer.mask, scale=layer.scale
    )


class _StreamedAttention(torch.autograd.Function):
    """Attention whose backward feeds the layer to the propagation."""

    # On a GPU the backward runs in autograd's own thread, so its state is in ``ctx``.

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scale: float,
        state: _StreamedPass,
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, mask)
        ctx.scale, ctx.state = scale, state
        return _attend(AttentionLayer(query, key, value, mask, scale))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask = ctx.saved_tensors
        layer = AttentionLayer(query, key, value, mask, ctx.scale)
        below = sums_like(query), sums_like(key), sums_like(value)
        ctx.state.walker.walk(layer, gradient, ctx.state.propagation, below)
        return (*(part.to(query.dtype) for part in below), None, None, None)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: A002
    # Weights may depend on the image, or have a tensor class for quantisation.
    is_constant = all(
        part is None or (type(part) in (Tensor, nn.Parameter) and not part.requires_grad)
        for part in (weight, bias)
    )
    if not is_constant or not input.requires_grad:
        return functional.linear(input, weight, bias)
    output: Tensor = _LinearOfFewTokens.apply(input, weight, bias)  # type: ignore[no-untyped-call]
    return output


class _LinearOfFewTokens(torch.autograd.Function):
    """A linear layer whose backward skips tokens without gradient."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.dtype = tokens.dtype
        return functional.linear(tokens, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        with torch.autocast(weight.device.type, enabled=False):
            below = _of_live_tokens(gradient.to(weight.dtype), weight)
        return below.to(ctx.dtype), None, None


def _of_live_tokens(gradient: Tensor, weight: Tensor) -> Tensor:
    live = (gradient != 0).any(-1)
    if 2 * int(live.sum()) > live.numel():
        return gradient @ weight
    below = gradient.new_zeros(*gradient.shape[:-1], weight.shape[1])
    below[live] = gradient[live] @ weight
    return below


@contextmanager
def _checkpointed_here(model: PreTrainedModel, mode: _StreamingMode) -> Iterator[None]:
    """Store only the inputs of layers, which then run again in the backward.

    The top layer, which the backward needs first, and layers below the graph run once.
    """
    layers = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
    if not layers:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no layers that can be recomputed one by one; use "
            "checkpoint=False"
        )
    # A recomputation may stop early, unless accelerate offloads weights at the layer's end.
    to_the_end = any(hasattr(part, "_hf_hook") for part in model.modules())
    with ExitStack() as stack:
        for layer in layers:
            forward = functools.partial(_checkpointed, mode, layer.forward, to_the_end)
            stack.enter_context(replaced_here(layer, "forward", forward))
        yield


def _checkpointed(
    mode: _StreamingMode, forward: Callable[..., Any], to_the_end: bool, *args: Any, **kwargs: Any
) -> Any:
    state, first = mode.state, mode.calls
    if first not in state.graded[:-1]:
        return forward(*args, **kwargs)
    recomputation = _Recomputation(state, first, current_thread_id())
    return checkpoint(
        functools.partial(forward, **kwargs),
        *args,
        use_reentrant=False,
        preserve_rng_state=False,  # it would reset the state of other threads
        context_fn=lambda: (nullcontext(), recomputation),
        early_stop=not to_the_end,
    )


class _Recomputation:
    """The context of each recomputation of a layer, which may run in autograd's own thread."""

    def __init__(self, state: _StreamedPass, first: int, thread: int) -> None:
        self.state, self.first, self.thread = state, first, thread

    def __enter__(self) -> None:
        self.stack = ExitStack()
        self.stack.enter_context(acting_for_thread(self.thread))
        self.stack.enter_context(routed_here())
        self.stack.enter_context(_StreamingMode(self.state, self.first, recomputes=True))

    def __exit__(self, *_: object) -> None:
        self.stack.close()
