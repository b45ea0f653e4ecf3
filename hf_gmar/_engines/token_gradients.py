"""The tokens between two layers, and the gradient of the scores by them: one forward for all.

The graph starts at the tokens that enter a layer. What is below runs without one, and weights are
constants (:mod:`hf_gmar._core.constant_weights`), so only what is above is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from hf_gmar._core.attention import attention_here
from hf_gmar._core.constant_weights import FrozenWeightsMode
from hf_gmar._core.execution import check_finite, check_tokens, exclusive_eval, graph_enabled
from hf_gmar._core.hooks import watched_runs
from hf_gmar._core.layers import layer_modules
from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar._core.request import ForwardRequest
from hf_gmar._core.targets import TargetSpec
from hf_gmar._engines.lrp import LRPMode
from hf_gmar.errors import ModelOutputError

TokenMap: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""What a method makes of the patch tokens (B, P, C) and their gradient: one value each, (B, P)."""


def product(tokens: Tensor, gradient: Tensor) -> Tensor:
    """Gradient x input, summed over the channels of each token."""
    return (tokens * gradient).sum(-1)


def token_attributions(
    adapter: ModelAdapter,
    request: ForwardRequest,
    target_specs: Sequence[TargetSpec],
    layer: int,
    token_map: TokenMap,
    rules: LRPMode | None = None,
) -> list[Tensor]:
    """A map (B, rows, columns) for each target, of the tokens that enter a layer.

    Sums are kept in float32, or in float64 for a float64 model.

    Args:
        subject: the model.
        request: the call to it.
        target_specs: what is explained, with one forward for all of them.
        layer: whose input is explained, counted from 0.
        token_map: makes the map, see ``TokenMap``.
        rules: propagate relevance by these; the plain gradient without them.

    Raises:
        UnsupportedModelError: the layers can't be found, or a function has no rule.
        TargetError: a target does not fit the scores.
        ModelOutputError: no scores, no gradient, or values that are not finite.
    """
    with exclusive_eval(adapter), graph_enabled(), ExitStack() as stack:
        if rules is not None:  # one form of attention, however the model was loaded
            stack.enter_context(attention_here(adapter.vision_model, "sdpa"))
        scores, tokens = _forward(adapter, request, layer, rules or FrozenWeightsMode())
        explained = [target_spec.resolve(scores) for target_spec in target_specs]
        grid = check_tokens(adapter, request, tokens.shape[1])
        prefix, last = adapter.layout.num_prefix_tokens, len(target_specs) - 1
        maps = []
        # A caller's mixed precision is for the forward alone, as PyTorch says.
        with torch.autocast(scores.device.type, enabled=False):
            for number, wanted in enumerate(explained):
                gradient = _gradient(wanted.of(scores), tokens, layer, number < last)
                patches = (_precise(part[:, prefix:], scores) for part in (tokens, gradient))
                maps.append(token_map(*patches).reshape(-1, *grid))
    check_finite(scores, maps, "product of the tokens")
    return [found.to(scores.device) for found in maps]


def _forward(
    adapter: ModelAdapter, request: ForwardRequest, layer: int, mode: FrozenWeightsMode
) -> tuple[Tensor, Tensor]:
    """The scores, and the tokens on which they depend."""
    with (
        watched_runs(adapter, request.inputs) as runs,
        _entry(layer_modules(adapter)[layer], mode) as entry,
        mode,
    ):
        scores = request.call(adapter)
    runs.check(request.inputs, scores)
    if isinstance(mode, LRPMode):
        mode.check(scores)
    return scores, entry.tokens(layer)


def _gradient(score: Tensor, tokens: Tensor, layer: int, again: bool) -> Tensor:
    found = (
        torch.autograd.grad(score, tokens, retain_graph=again, allow_unused=True)[0]
        if score.requires_grad
        else None
    )
    if found is None:
        raise ModelOutputError(
            f"the gradient of the scores does not reach the tokens that enter layer {layer}; the "
            "scores must depend on every layer, without no_grad() or detach() in between"
        )
    return found


def _precise(part: Tensor, scores: Tensor) -> Tensor:
    precision = torch.float64 if scores.dtype == torch.float64 else torch.float32
    return part.detach().to(precision)


@dataclass
class _Entry:
    """Where a graph starts in a forward of this thread.

    Attributes:
        found: the tokens, for each call of the layer.
    """

    found: list[Tensor] = field(default_factory=list)

    def tokens(self, layer: int) -> Tensor:
        """The tokens that entered the layer.

        Raises:
            ModelOutputError: the layer did not run once.
        """
        if len(self.found) != 1:
            raise ModelOutputError(
                f"layer {layer} must run once in a forward pass; it ran {len(self.found)} times"
            )
        return self.found[0]


@contextmanager
def _entry(layer: nn.Module, mode: FrozenWeightsMode) -> Iterator[_Entry]:
    """Inside, a graph starts at the tokens that enter the layer, in this thread alone."""
    entry = _Entry()

    # Another thread that is calling while a hook goes away may leave out the keywords.
    def start(_module: nn.Module, args: Any, kwargs: Any = None) -> Any:
        # It does not in other threads, nor while a hook of the model explains something else.
        if not mode.acts:
            return None
        name = None if args else next(iter(kwargs))
        tokens = (args[0] if args else kwargs[name]).detach().requires_grad_()
        entry.found.append(tokens)
        given = tokens.clone()  # a layer may overwrite what it is given, but not the graph's start
        return ((given, *args[1:]), kwargs) if args else (args, {**kwargs, name: given})

    # A thread that compiles the model meanwhile could not trace what asks for threads.
    hook = torch.compiler.disable(start)
    handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield entry
    finally:
        handle.remove()
