"""Methods of others, and others' models: left as they were, and their failures in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from captum.attr import Attribution
from torch import nn
from transformers import PreTrainedModel

from hf_gmar.attention import configs_of
from hf_gmar.capture import evaluation_mode, graph_enabled
from hf_gmar.columns import Column
from hf_gmar.errors import HfGmarError
from hf_gmar.restored import as_they_were
from hf_gmar.threads import turn

_LONGEST_REASON = 400


@contextmanager
def left_alone(modules: Sequence[nn.Module]) -> Iterator[None]:
    """The model to this thread, in evaluation mode, with gradients on; everything is put back."""
    models = [part for part in modules if isinstance(part, PreTrainedModel)]
    configs = [config for model in models for config in configs_of(model)]
    with (
        turn([*configs, *modules]),  # first: what another thread's explanation did is not ours
        as_they_were(modules),
        evaluation_mode(modules),
        graph_enabled(),
    ):
        yield


def modules_of(columns: Sequence[Column]) -> Iterator[nn.Module]:
    """The modules that methods were built on, which need not be the model itself."""
    for column in columns:
        method: Any = column.method
        while isinstance(method, Attribution):
            for held in (getattr(method, "forward_func", None), getattr(method, "model", None)):
                owner = held if isinstance(held, nn.Module) else getattr(held, "__self__", None)
                if isinstance(owner, nn.Module):
                    yield from owner.modules()
            method = getattr(method, "attribution_method", None)


def reason_of(error: Exception) -> str:
    """What went wrong, in one line for a cell of a table."""
    kind = "" if isinstance(error, HfGmarError) else f"{type(error).__name__}: "
    reason = " ".join(f"{kind}{error}".split())
    return reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]} ..."
