"""What a forward pass of a Transformers model leaves behind, seen by hooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar._core.threads import level, this_thread
from hf_gmar.errors import ModelOutputError

_HOOK_FLAG = "_output_capturing_hooks_installed"
_MAPS = "output_attentions"


@dataclass
class Runs:
    """The forwards of a model in this thread.

    Attributes:
        images: shape of the pixel values in each of them.
        depth: how many are going on, one inside another by a hook.
    """

    images: list[torch.Size] = field(default_factory=list)
    depth: int = 0

    @property
    def inside(self) -> bool:
        """One is going on, and not one inside it."""
        return self.depth == 1

    def check(self, inputs: Tensor, scores: Tensor) -> None:
        """Check that there was one run, and that it belongs to the inputs image by image.

        Raises:
            ModelOutputError: it does not.
        """
        if len(self.images) != 1:
            raise ModelOutputError(
                f"the Transformers model must be called exactly once in a forward pass, as "
                f"model(...) and not as model.forward(...); it was called {len(self.images)} times"
            )
        wanted = inputs.shape[0], *inputs.shape[2:]
        seen = self.images[0][0], *self.images[0][2:]
        if seen != wanted or scores.shape[0] != wanted[0]:
            raise ModelOutputError(
                f"for inputs of shape {tuple(inputs.shape)} the Transformers model got "
                f"{tuple(self.images[0])} and the scores have shape {tuple(scores.shape)}; a "
                "module around the model must keep number, order and size of the images"
            )


def _place() -> tuple[int, int]:
    return this_thread(), level()


@contextmanager
def watched_runs(adapter: ModelAdapter, inputs: Tensor) -> Iterator[Runs]:
    """Inside, this thread's forwards of the vision tower are noted."""
    if adapter.model is adapter.backbone:
        # The one call is ours. A hook would become part of what another thread compiles meanwhile.
        yield Runs([inputs.shape], depth=1)
        return
    runs = Runs()
    # Forwards of other threads, and of explanations inside this one, go on as ever.
    place = _place()

    # Another thread that is calling while a hook goes away may leave out the keywords.
    def enter(_module: nn.Module, args: Any, kwargs: Any = None) -> None:
        if _place() == place:
            runs.depth += 1
            if runs.inside:
                runs.images.append((args[0] if args else kwargs["pixel_values"]).shape)

    def leave(*_: Any) -> None:
        if _place() == place:
            runs.depth -= 1

    handles = [
        # A thread that compiles the model meanwhile could not trace what asks for threads.
        adapter.vision_model.register_forward_pre_hook(
            torch.compiler.disable(enter), with_kwargs=True
        ),
        adapter.vision_model.register_forward_hook(torch.compiler.disable(leave), prepend=True),
    ]
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        yield runs


@dataclass
class Pooling:
    """What a pooling head did in a forward of this thread.

    Attributes:
        wanted: whether the readout is made of it.
        found: attention over the tokens (B, N) and what the head made of them, for each call.
    """

    wanted: bool
    found: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def attention(self, scores: Tensor) -> Tensor | None:
        """The attention (B, N) from which the scores come; ``None`` if another readout is wanted.

        Raises:
            ModelOutputError: the head did not run once, or the scores do not come from it.
        """
        if not self.wanted:
            return None
        if len(self.found) != 1:
            raise ModelOutputError(
                f"the readout is the attention of a pooling head, which must run once in a forward "
                f"pass; it ran {len(self.found)} times. Say another readout"
            )
        ((attention, output),) = self.found
        whole = scores.sum()
        used = (
            torch.autograd.grad(whole, output, retain_graph=True, allow_unused=True)[0]
            if whole.requires_grad and output.requires_grad
            else None
        )
        if used is None:
            raise ModelOutputError(
                "the readout is the attention of the model's pooling head, but the class scores "
                "do not come from that head; say which tokens your own head reads"
            )
        return attention


@contextmanager
def pooled_attention(adapter: ModelAdapter) -> Iterator[Pooling]:
    """Inside, this thread's calls of the pooling head are kept, if the readout is made of it."""
    place, head = _place(), adapter.pooling
    pooling = Pooling(wanted=head is not None)
    if head is None:
        yield pooling
        return

    def keep(_module: nn.Module, _inputs: Any, output: tuple[Tensor, Tensor | None]) -> None:
        if _place() == place:
            pooling.found.append((_one_query(output[1]), output[0]))

    handle = head.register_forward_hook(torch.compiler.disable(keep))
    try:
        yield pooling
    finally:
        handle.remove()


def _one_query(weights: Tensor | None) -> Tensor:
    if weights is None or weights.dim() != 3 or weights.shape[1] != 1:
        raise ModelOutputError(
            "the pooling head must give its attention for one query, averaged over its heads, "
            f"(images, 1, tokens); got {None if weights is None else tuple(weights.shape)}"
        )
    return weights.detach()[:, 0]


@contextmanager
def recorded_maps(model: PreTrainedModel) -> Iterator[list[tuple[Tensor, ...]]]:
    """Inside, each forward of this thread appends the attention maps of its layers to the list.

    Maps are (B, H, N, N), connected to the graph. Hooks ask for them, so that the model may sit
    anywhere in a larger module; its caller gets the output that it would get without them.
    """
    recorded: list[tuple[Tensor, ...]] = []
    asked: list[tuple[bool, bool] | None] = []
    place = _place()

    def ask(_module: nn.Module, args: Any, kwargs: Any = None) -> Any:
        if _place() != place:
            return None
        if asked:  # a forward inside this one, by a hook, is not ours
            asked.append(None)
            return None
        asked.append((_asked(model, kwargs, "return_dict"), _asked(model, kwargs, _MAPS)))
        return args, {**kwargs, _MAPS: True, "return_dict": True}

    def keep(*called: Any) -> Any:
        if _place() != place or (before := asked.pop()) is None:
            return None
        output = called[-1]
        recorded.append(_attention_maps(model, output))
        as_dict, with_maps = before
        if not with_maps:
            output = type(output)(**{k: v for k, v in output.items() if k != "attentions"})
        return output if as_dict else output.to_tuple()

    with ExitStack() as stack:
        stack.enter_context(_hooks_as_before(model))
        handles = [
            model.register_forward_pre_hook(ask, with_kwargs=True),
            # Before the user's own hooks, which may replace the output.
            model.register_forward_hook(keep, prepend=True, with_kwargs=True),
        ]
        for handle in handles:
            stack.callback(handle.remove)
        yield recorded


def _asked(model: PreTrainedModel, kwargs: dict[str, Any], name: str) -> bool:
    given = kwargs.get(name)
    return bool(getattr(model.config, name, name == "return_dict") if given is None else given)


def _attention_maps(model: PreTrainedModel, output: Any) -> tuple[Tensor, ...]:
    maps = getattr(output, "attentions", None) or ()
    if not maps or any(layer is None for layer in maps):
        raise ModelOutputError(
            f"{type(model).__name__} returned no attention maps under eager attention; it does "
            "not honour output_attentions=True"
        )
    return tuple(maps)


@contextmanager
def _hooks_as_before(model: PreTrainedModel) -> Iterator[None]:
    """Take out the hooks that Transformers leaves when attention is asked for the first time."""
    fresh = [
        module
        for module in model.modules()
        if isinstance(module, PreTrainedModel) and not hasattr(module, _HOOK_FLAG)
    ]
    counts = [(module, set(module._forward_hooks)) for module in model.modules()]
    try:
        yield
    finally:
        installed = [module for module in fresh if module.__dict__.pop(_HOOK_FLAG, False)]
        for module, before in counts if installed else ():
            for key in set(module._forward_hooks) - before:
                hook = module._forward_hooks[key]
                if hook.__module__ == "transformers.utils.output_capturing":
                    del module._forward_hooks[key]
