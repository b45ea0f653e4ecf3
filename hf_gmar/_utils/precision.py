"""The precision of a model's forward, by autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from hf_gmar._utils.validation import check_option

if TYPE_CHECKING:  # the command line reads the names without PyTorch
    import torch

Precision: TypeAlias = Literal["float32", "bfloat16", "float16"]
"""Precisions of a model's forward; the last two by autocast."""


def check_precision(precision: str | None) -> None:
    """Raise an OptionError for another precision than those of ``Precision``."""
    if precision is not None:
        check_option("precision", precision, get_args(Precision))


def autocast_dtype(precision: str | None) -> torch.dtype | None:
    """Return the dtype of autocast for a precision; ``None`` without autocast."""
    if precision in (None, "float32"):
        return None
    import torch

    dtype: torch.dtype = getattr(torch, str(precision))
    return dtype


def forward_precision(
    precision: str | None, device: torch.device
) -> AbstractContextManager[object]:
    """Return the context of a forward on a device; ``None`` leaves the model's own precision.

    Example:
        >>> import torch
        >>> layer, values = torch.nn.Linear(2, 2), torch.ones(1, 2)
        >>> with forward_precision("bfloat16", values.device):
        ...     layer(values).dtype
        torch.bfloat16
    """
    dtype = autocast_dtype(precision)
    if dtype is None:
        return nullcontext()
    import torch

    return torch.autocast(device.type, dtype)
