"""Run a model for one thread alone, in evaluation mode, and check its output."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from hf_gmar._core.attention import configs_of, masked_heads_here
from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar._core.request import ForwardRequest
from hf_gmar._core.threads import lock_models, nested, uncompiled_here, undoing
from hf_gmar.errors import ModelOutputError, UnsupportedModelError


@contextmanager
def exclusive_eval(adapter: ModelAdapter) -> Iterator[None]:
    """Lock the model for this thread, in evaluation mode and uncompiled."""
    modules = adapter.modules()
    with (
        lock_models([*configs_of(adapter.vision_model), *modules]),
        nested(),
        evaluation_mode(modules),
        uncompiled_here(modules),
    ):
        yield


@contextmanager
def graph_enabled() -> Iterator[None]:
    """Enable gradients, even inside a caller's ``no_grad`` or ``inference_mode``."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def gradients_of(
    score: Tensor, tensors: Sequence[Tensor], retain_graph: bool
) -> Sequence[Tensor | None]:
    """Compute gradients of a score with respect to tensors; ``None`` where there is none."""
    if not score.requires_grad or not all(tensor.requires_grad for tensor in tensors):
        return [None] * len(tensors)
    return torch.autograd.grad(score, tensors, retain_graph=retain_graph, allow_unused=True)


@contextmanager
def evaluation_mode(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Switch dropout off, and restore the mode of each module."""
    training = [module for module in modules if module.training]

    def restore() -> None:
        for module in training:
            module.training = True

    with undoing(restore):
        for module in training:
            module.training = False
        yield


def predict(adapter: ModelAdapter, request: ForwardRequest, masked: Tensor | None = None) -> Tensor:
    """Compute the scores (B, C) that an explanation refers to, without gradients.

    The output of ``masked`` heads, (B or 1, layers, H), is zero.
    """
    heads = nullcontext() if masked is None else masked_heads_here(adapter.vision_model, masked)
    with exclusive_eval(adapter), torch.no_grad(), heads:
        return adapter(request.inputs, *request.args, **request.kwargs)


def check_tokens(adapter: ModelAdapter, request: ForwardRequest, tokens: int) -> tuple[int, ...]:
    """Return the shape of the map; a ModelOutputError if the token count is wrong."""
    grid, layout = adapter.grid(request.inputs), adapter.tokens
    if tokens != layout.num_prefix_tokens + math.prod(grid):
        raise ModelOutputError(
            f"{type(adapter.vision_model).__name__} has {tokens} tokens, but its layout says "
            f"{layout.num_prefix_tokens} before a grid of {' x '.join(map(str, grid))} patches; "
            "correct it with hf_gmar.register_layout, unless the others are after the patches, "
            "which no layout can say"
        )
    return grid


def check_differentiable(adapter: ModelAdapter) -> None:
    """Raise an UnsupportedModelError for quantised modules of PyTorch, which give no gradient."""

    def is_quantised(module: nn.Module) -> bool:
        return _QUANTISED.match(type(module).__module__) is not None

    if any(map(is_quantised, adapter.modules())):  # names take longer
        names = [
            name
            for name, module in adapter.named_modules()
            if is_quantised(module) and not name.endswith("_packed_params")
        ]
        raise UnsupportedModelError(
            f"{len(names)} layers of {type(adapter.backbone).__name__} have quantised weights, "
            f"through which PyTorch takes no gradients: {', '.join(names[:3])}"
            f"{' ...' if names[3:] else ''}; explain the model as it was before it was quantised, "
            "or by a method without gradients, such as AttentionRollout"
        )


_QUANTISED = re.compile(r"torch\.(ao\.)?nn\.(intrinsic\.)?quantized\.")


def check_finite(scores: Tensor, parts: Iterable[Tensor | None], what: str) -> None:
    """Raise a ModelOutputError if the scores or parts of the explanation are not finite.

    ``what`` names the tensor with the gradient.
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


def accumulation_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype of sums: float32, or float64 for float64."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
