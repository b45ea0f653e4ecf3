"""The ranking of the patches in a map, and the patches that a map keeps; one rule for ties."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from hf_gmar._utils.validation import check_option, check_positive
from hf_gmar.errors import InputError

Form: TypeAlias = Literal["patches", "soft"]
FORMS: tuple[Form, ...] = get_args(Form)
"""How a map keeps patches: the most relevant ones whole, or a share of each by its relevance."""


def patch_order(relevance: Tensor) -> Tensor:
    """Sort the patches, most relevant first; "least relevant first" is exactly the reverse.

    Ties go to the first patch, row by row. Values are compared as float64 on the CPU, so equal
    maps give the same order on every machine.

    Args:
        relevance: one map (rows, columns) or several, (..., rows, columns); finite.

    Returns:
        Long tensor (rows * columns,), or (..., rows * columns), on the CPU: indices into the
        flattened map.

    Raises:
        InputError: the map has another shape, or values that are not finite.

    Example:
        >>> patch_order(torch.tensor([[0.1, 0.7, 0.1], [0.7, 0.0, 0.9]])).tolist()
        [5, 1, 3, 0, 2, 4]
    """
    return torch.argsort(-_exact(relevance).flatten(-2), dim=-1, stable=True)


def kept_patches(relevance: Tensor, keep: float = 0.5, form: Form = "patches") -> Tensor:
    """Return which patches of an image a map keeps.

    Args:
        relevance: a map (rows, columns), finite.
        keep: for ``"patches"``, the share of the patches that stay, above 0 and at most 1. It is
            rounded to whole patches, halves upwards, and at least one patch stays.
        form: ``"patches"`` keeps the most relevant patches whole, in the order of
            :func:`patch_order`. ``"soft"`` keeps a share of every patch: its relevance, scaled so
            that the map's lowest value is 0 and its highest is 1. A constant map keeps nothing.

    Returns:
        (rows, columns) on the CPU: bool for ``"patches"``, float64 from 0 to 1 for ``"soft"``.

    Raises:
        InputError: the map has another shape, or values that are not finite.
        OptionError: an option is outside its range.

    Example:
        >>> kept_patches(torch.tensor([[0.1, 0.7], [0.2, 0.3]]))
        tensor([[False,  True],
                [False,  True]])
        >>> kept_patches(torch.tensor([[1.0, 5.0], [2.0, 3.0]]), form="soft")
        tensor([[0.0000, 1.0000],
                [0.2500, 0.5000]], dtype=torch.float64)
    """
    check_option("form", form, FORMS)
    if form == "soft":
        return unit_scaled(relevance)
    count = kept_count(relevance.numel(), keep)
    mask = torch.zeros(relevance.numel(), dtype=torch.bool)
    mask[patch_order(relevance)[:count]] = True
    return mask.reshape(relevance.shape)


def kept_count(patches: int, keep: float) -> int:
    """Round a share of the patches to whole patches, at least one.

    Raises:
        OptionError: the share is outside its range.

    Example:
        >>> kept_count(64, 0.5), kept_count(15, 0.5), kept_count(4, 0.01)
        (32, 8, 1)
    """
    return max(1, math.floor(check_positive("keep", keep, 1.0) * patches + 0.5))


def unit_scaled(relevance: Tensor) -> Tensor:
    """Scale a map (..., rows, columns) linearly to the range 0 to 1; zeros if it is constant.

    Example:
        >>> unit_scaled(torch.tensor([[-1.0, 1.0, 0.0]])).tolist()
        [[0.0, 1.0, 0.5]]
    """
    exact = _exact(relevance)
    low, high = exact.amin((-2, -1), keepdim=True), exact.amax((-2, -1), keepdim=True)
    return torch.where(high > low, (exact - low) / (high - low), 0.0)


def _exact(relevance: Tensor) -> Tensor:
    if not isinstance(relevance, Tensor) or relevance.dim() < 2 or not relevance.numel():
        got = tuple(relevance.shape) if isinstance(relevance, Tensor) else type(relevance).__name__
        raise InputError(f"a map of patches (rows, columns) is needed, got {got}")
    exact = relevance.detach().cpu().double()
    if not exact.isfinite().all():
        raise InputError("the map holds NaN or infinity, so its patches have no order")
    return exact
