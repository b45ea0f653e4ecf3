"""Record what a forward pass of a Transformers model computes, by hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_gmar._core.execution import gradients_of
from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar._core.threads import thread_hook
from hf_gmar.errors import ModelOutputError

T = TypeVar("T")

_HOOK_FLAG = "_output_capturing_hooks_installed"
_MAPS = "output_attentions"


@dataclass
class CallRecorder(Generic[T]):
    """A value from each call of some modules, in a forward of this thread.

    Attributes:
        name: of the modules, in messages.
        needed: how many calls there must be.
        advice: how the message ends if there were others.
        calls: the values, in the order of the calls.
    """

    name: str
    needed: int = 1
    advice: str = ""
    calls: list[T] = field(default_factory=list)

    def checked(self) -> list[T]:
        """A copy of the values; a ModelOutputError unless there are as many as needed."""
        ran = len(self.calls)
        if ran != self.needed:
            seen = f"it ran {ran} times" if self.needed == 1 else f"they ran {ran} times in all"
            raise ModelOutputError(
                f"{self.name} must run once in a forward pass; {seen}{self.advice}"
            )
        return list(self.calls)


@dataclass
class VisionRuns(CallRecorder[torch.Size]):
    """The forwards of the vision tower in this thread: the shape of the pixel values in each.

    Attributes:
        depth: how many are running, one inside another by a hook.
    """

    name: str = "the Transformers model"
    advice: str = "; call it as model(...), not as model.forward(...)"
    depth: int = 0

    @property
    def inside(self) -> bool:
        """Whether one is running, and none inside it."""
        return self.depth == 1

    def enter(self, _module: Any, args: Any, kwargs: Any) -> None:
        """Note a forward that begins."""
        self.depth += 1
        if self.inside:
            self.calls.append((args[0] if args else kwargs["pixel_values"]).shape)

    def leave(self, *_: Any) -> None:
        """Note that it ended."""
        self.depth -= 1

    def check(self, inputs: Tensor, scores: Tensor) -> None:
        """Raise a ModelOutputError unless there was one forward, image by image of the inputs."""
        (shape,) = self.checked()
        expected = inputs.shape[0], *inputs.shape[2:]
        if (shape[0], *shape[2:]) != expected or scores.shape[0] != expected[0]:
            raise ModelOutputError(
                f"for inputs of shape {tuple(inputs.shape)} the Transformers model got "
                f"{tuple(shape)} and the scores have shape {tuple(scores.shape)}; a "
                "module around the model must keep number, order and size of the images"
            )


@contextmanager
def recorded_runs(adapter: ModelAdapter, inputs: Tensor) -> Iterator[VisionRuns]:
    """Inside, this thread's forwards of the vision tower are recorded."""
    runs = VisionRuns()
    if adapter.model is adapter.backbone:
        # The one call is ours. A hook would become part of what another thread compiles meanwhile.
        runs.enter(None, (inputs,), {})
        yield runs
        return
    with (
        thread_hook(adapter.vision_model, runs.enter, before=True),
        thread_hook(adapter.vision_model, runs.leave, first=True),
    ):
        yield runs


@contextmanager
def pooled_attention(adapter: ModelAdapter) -> Iterator[Callable[[Tensor], Tensor | None]]:
    """Inside, this thread's calls of the pooling head are recorded, if the readout needs them.

    Yields a function from the scores to the head's attention over the tokens, (B, N), or to
    ``None`` for another readout. It raises a ModelOutputError if the head did not run once, or if
    the scores do not come from it.
    """
    head = adapter.pooling
    if head is None:
        yield lambda _: None
        return
    pooling: CallRecorder[tuple[Tensor, Tensor]] = CallRecorder(
        "the pooling head, whose attention is the readout,", advice=". Say another readout"
    )

    def keep(_module: Any, _inputs: Any, output: tuple[Tensor, Tensor | None]) -> None:
        weights = output[1]
        if weights is None or weights.dim() != 3 or weights.shape[1] != 1:
            raise ModelOutputError(
                "the pooling head must give its attention for one query, averaged over its heads, "
                f"(images, 1, tokens); got {None if weights is None else tuple(weights.shape)}"
            )
        pooling.calls.append((weights.detach()[:, 0], output[0]))

    def attention(scores: Tensor) -> Tensor:
        ((weights, output),) = pooling.checked()
        if gradients_of(scores.sum(), [output], again=True)[0] is None:
            raise ModelOutputError(
                "the readout is the attention of the model's pooling head, but the class scores "
                "do not come from that head; say which tokens your own head reads"
            )
        return weights

    with thread_hook(head, keep):
        yield attention


@contextmanager
def recorded_maps(model: PreTrainedModel) -> Iterator[list[tuple[Tensor, ...]]]:
    """Inside, each forward of this thread appends the attention maps of its layers to the list.

    Maps are (B, H, N, N), connected to the graph. Hooks ask for them, so that the model may sit
    anywhere in a larger module; its caller gets the output that it would get without them.
    """
    recorded: list[tuple[Tensor, ...]] = []
    running: list[tuple[bool, bool] | None] = []

    def ask(_module: Any, args: Any, kwargs: Any) -> Any:
        if running:  # a forward inside this one, by a hook, is not ours
            running.append(None)
            return None
        running.append((_option(model, kwargs, "return_dict"), _option(model, kwargs, _MAPS)))
        return args, {**kwargs, _MAPS: True, "return_dict": True}

    def keep(_module: Any, _inputs: Any, output: Any) -> Any:
        if (options := running.pop()) is None:
            return None
        recorded.append(_attention_maps(model, output))
        as_dict, with_maps = options
        if not with_maps:
            output = type(output)(**{k: v for k, v in output.items() if k != "attentions"})
        return output if as_dict else output.to_tuple()

    with (
        _hooks_as_before(model),
        thread_hook(model, ask, before=True),
        thread_hook(model, keep, first=True),
    ):
        yield recorded


def _option(model: PreTrainedModel, kwargs: dict[str, Any], name: str) -> bool:
    value = kwargs.get(name)
    return bool(getattr(model.config, name, name == "return_dict") if value is None else value)


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
