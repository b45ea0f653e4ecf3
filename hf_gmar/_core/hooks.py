"""Record calls and attention maps of a Transformers model's forward pass, by hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from transformers import PreTrainedModel

from hf_gmar._core.execution import gradients_of
from hf_gmar._core.families import READOUTS
from hf_gmar._core.media import INPUT_NAMES
from hf_gmar._core.model_adapter import ModelAdapter, scores_of
from hf_gmar._core.threads import thread_hook, undoing
from hf_gmar.errors import ModelOutputError

T = TypeVar("T")

_HOOK_FLAG = "_output_capturing_hooks_installed"
_MAPS = "output_attentions"


@dataclass
class CallRecorder(Generic[T]):
    """One value for each call of some modules, in a forward of this thread.

    Attributes:
        name: the modules' name in messages.
        needed: required number of calls.
        advice: end of the message about a wrong number of calls.
        calls: the values, in the order of the calls.
    """

    name: str
    needed: int = 1
    advice: str = ""
    calls: list[T] = field(default_factory=list)

    def checked(self) -> list[T]:
        """Return a copy of the values; a ModelOutputError if their number is wrong."""
        count = len(self.calls)
        if count != self.needed:
            runs = f"it ran {count} times" if self.needed == 1 else f"they ran {count} times in all"
            raise ModelOutputError(
                f"{self.name} must run once in a forward pass; {runs}{self.advice}"
            )
        return list(self.calls)


_SEVERAL_RUNS = (
    ". Explain one run: compute what the other runs give beforehand, such as the features of the "
    "other image of a pair, and pass a module that takes one image and runs the model once"
)


@dataclass
class VisionRuns(CallRecorder[torch.Size]):
    """The shape of the pixel values in each forward of the vision tower in this thread.

    Attributes:
        depth: number of running forwards; a hook may start a nested one.
        channels: the dimension of the channels; ``None`` if the inputs have none.
    """

    name: str = "the Transformers model"
    advice: str = "; call it as model(...), not as model.forward(...)"
    depth: int = 0
    channels: int | None = 1

    @property
    def inside(self) -> bool:
        """Whether a forward runs without a nested one."""
        return self.depth == 1

    def enter(self, module: Any, args: Any, kwargs: Any) -> None:
        """Record the start of a forward."""
        self.depth += 1
        if self.inside and self.calls:
            self.advice = _SEVERAL_RUNS
        if self.inside:
            self.calls.append(_input_of(module, args, kwargs).shape)

    def leave(self, *_: Any) -> None:
        """Record the end of a forward."""
        self.depth -= 1

    def check(self, inputs: Tensor, scores: Tensor) -> None:
        """Raise a ModelOutputError unless one forward ran, with number and size of the inputs."""
        (shape,) = self.checked()
        got, expected = self._sizes(shape), self._sizes(inputs.shape)
        if got != expected or scores.shape[0] != inputs.shape[0]:
            raise ModelOutputError(
                f"for inputs of shape {tuple(inputs.shape)} the Transformers model got "
                f"{tuple(shape)} and the scores have shape {tuple(scores.shape)}; a "
                "module around the model must keep number, order and size of the images"
            )

    def _sizes(self, shape: torch.Size) -> list[int]:
        """Return a shape without the number of channels, which a module around may change."""
        return [size for dimension, size in enumerate(shape) if dimension != self.channels]


def _input_of(module: Any, args: Any, kwargs: Any) -> Tensor:
    """Return the inputs of a forward; a ModelOutputError if none is known by its name."""
    names = (*INPUT_NAMES, getattr(module, "main_input_name", ""))
    tensor = args[0] if args else next((kwargs[name] for name in names if name in kwargs), None)
    if not isinstance(tensor, Tensor):
        raise ModelOutputError(
            f"{type(module).__name__} was called with {', '.join(kwargs) or 'nothing'}; it must "
            f"get the inputs as its first argument, or as {' or '.join(INPUT_NAMES)}"
        )
    return tensor


@contextmanager
def recorded_runs(adapter: ModelAdapter, inputs: Tensor) -> Iterator[VisionRuns]:
    """Record this thread's forwards of the vision tower."""
    runs = VisionRuns(channels=adapter.input_shape.channel_dimension)
    if adapter.model is adapter.backbone:
        # The only call is ours. Another thread's compilation would trace a hook.
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
    """Record this thread's calls of the pooling head, if the readout needs them.

    Yields a function from the scores to the head's attention over the tokens, (B, N); ``None`` for
    other readouts. The function raises a ModelOutputError unless the head ran once and the scores
    depend on it.
    """
    head = adapter.pooling
    if head is None:
        yield lambda _: None
        return
    pooling: CallRecorder[tuple[Tensor, Tensor]] = CallRecorder(
        "the pooling head, whose attention is the readout,", advice=". Say another readout"
    )

    def record(_module: Any, _inputs: Any, output: tuple[Tensor, Tensor | None]) -> None:
        weights = output[1]
        if weights is None or weights.dim() != 3 or weights.shape[1] != 1:
            raise ModelOutputError(
                "the pooling head must give its attention for one query, averaged over its heads, "
                f"(images, 1, tokens); got {None if weights is None else tuple(weights.shape)}"
            )
        pooling.calls.append((weights.detach()[:, 0], output[0]))

    def attention(scores: Tensor) -> Tensor:
        ((weights, output),) = pooling.checked()
        has_scores = bool(scores[:1].numel())
        if has_scores and gradients_of(scores.sum(), [output], retain_graph=True)[0] is None:
            raise ModelOutputError(
                "the readout is the attention of the model's pooling head, but the class scores "
                "do not come from that head; say which tokens your own head reads"
            )
        return weights

    with thread_hook(head, record):
        yield attention


@contextmanager
def class_head_output(adapter: ModelAdapter) -> Iterator[Callable[[Tensor, Tensor], None]]:
    """Record this thread's class scores of the backbone inside a module around it.

    Yields a function of the module's scores and a tensor of the top layer. It raises a
    ModelOutputError if the scores depend on that tensor past the class head, whose readout is
    assumed. If the user gave a readout, it does nothing.
    """
    if not adapter.own_readout or adapter.model is adapter.backbone or adapter.place is not None:
        yield lambda *_: None
        return
    outputs: list[Tensor] = []

    def check(scores: Tensor, top: Tensor) -> None:
        ends = {get_gradient_edge(output).node for output in outputs if output.requires_grad}
        if scores.requires_grad and _depends(scores, top, ends):
            raise ModelOutputError(
                f"the scores of {type(adapter.model).__name__} do not come from the class head of "
                f"{type(adapter.backbone).__name__} alone, so it is not known which tokens they "
                f"read; say it: readout= one of {', '.join(map(repr, READOUTS))}, or a share for "
                "each prefix token"
            )

    def record(_module: Any, _inputs: Any, output: Any) -> None:
        outputs.append(scores_of(output))

    with thread_hook(adapter.backbone, record, first=True):
        yield check


def _depends(result: Tensor, source: Tensor, ends: set[Any]) -> bool:
    """Whether a result depends on a source by a path that passes none of the graph's ends."""
    if not source.requires_grad:
        return False
    goal, seen = get_gradient_edge(source).node, {*ends}
    nodes = [get_gradient_edge(result).node]
    while nodes:
        node = nodes.pop()
        if node is goal:
            return True
        if node not in seen:
            seen.add(node)
            nodes += [below for below, _ in node.next_functions if below is not None]
    return False


@contextmanager
def recorded_maps(model: PreTrainedModel) -> Iterator[list[tuple[Tensor, ...]]]:
    """Append the attention maps of all layers to a list, in each forward of this thread.

    Maps are (B, H, N, N), connected to the graph. Hooks request them, so that the model may be
    anywhere in a larger module; its caller gets the usual output.
    """
    recorded: list[tuple[Tensor, ...]] = []
    running: list[tuple[bool, bool] | None] = []

    def request(_module: Any, args: Any, kwargs: Any) -> Any:
        if running:  # a nested forward, by a hook
            running.append(None)
            return None
        running.append((_option(model, kwargs, "return_dict"), _option(model, kwargs, _MAPS)))
        return args, {**kwargs, _MAPS: True, "return_dict": True}

    def record(_module: Any, _inputs: Any, output: Any) -> Any:
        if (options := running.pop()) is None:
            return None
        recorded.append(_attention_maps(model, output))
        as_dict, with_maps = options
        if not with_maps:
            output = type(output)(**{k: v for k, v in output.items() if k != "attentions"})
        return output if as_dict else output.to_tuple()

    with (
        _hooks_as_before(model),
        thread_hook(model, request, before=True),
        thread_hook(model, record, first=True),
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
    """Remove the hooks that Transformers installs when attention maps are first requested."""
    unhooked = [
        module
        for module in model.modules()
        if isinstance(module, PreTrainedModel) and not hasattr(module, _HOOK_FLAG)
    ]
    counts = [(module, set(module._forward_hooks)) for module in model.modules()]

    def remove() -> None:
        installed = [module for module in unhooked if module.__dict__.pop(_HOOK_FLAG, False)]
        for module, before in counts if installed else ():
            for key in set(module._forward_hooks) - before:
                hook = module._forward_hooks[key]
                if hook.__module__ == "transformers.utils.output_capturing":
                    del module._forward_hooks[key]

    with undoing(remove):
        yield
