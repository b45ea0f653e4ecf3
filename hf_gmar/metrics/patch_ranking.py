"""The order of the patches in a map, and which of them it keeps. One rule for ties everywhere."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from hf_gmar._utils.validation import check_option, check_positive
from hf_gmar.errors import InputError

Form: TypeAlias = Literal["patches", "soft"]
FORMS: tuple[Form, ...] = get_args(Form)
"""How a map keeps patches: the best of them whole, or each by its relevance."""


def patch_order(relevance: Tensor) -> Tensor:
    """The patches, most relevant first; the least relevant first is exactly its reverse.

    Ties go to the patch that comes first, row by row. Values are compared as float64 on the CPU, so
    that equal maps give the same order on every machine.

    Args:
        relevance: a map (rows, columns), or (..., rows, columns) for several; finite.

    Returns:
        Long tensor (rows * columns,), or (..., rows * columns), on the CPU: indices into the
        flattened map.

    Raises:
        InputError: no such map, or values that are not finite.

    Example:
        >>> patch_order(torch.tensor([[0.1, 0.7, 0.1], [0.7, 0.0, 0.9]])).tolist()
        [5, 1, 3, 0, 2, 4]
    """
    return torch.argsort(-_exact(relevance).flatten(-2), dim=-1, stable=True)


def kept_patches(relevance: Tensor, keep: float = 0.5, form: Form = "patches") -> Tensor:
    """Which patches of an image a map keeps.

    Args:
        relevance: a map (rows, columns), finite.
        keep: share of the patches that stay in the form ``"patches"``, above 0 and at most 1,
            rounded to whole patches (a half upwards), one at least.
        form: ``"patches"`` keeps the most relevant patches whole, in the order of
            :func:`patch_order`. ``"soft"`` keeps of every patch the share that its relevance has
            between the lowest of the map (0) and the highest (1); of a constant map, which prefers
            no patch, nothing is kept.

    Returns:
        (rows, columns) on the CPU: bool for ``"patches"``, float64 from 0 to 1 for ``"soft"``.

    Raises:
        InputError: no such map, or values that are not finite.
        OptionError: an option outside its range.

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
    """How many of so many patches are that share of them, one at least.

    Raises:
        OptionError: a share outside its range.

    Example:
        >>> kept_count(64, 0.5), kept_count(15, 0.5), kept_count(4, 0.01)
        (32, 8, 1)
    """
    return max(1, math.floor(check_positive("keep", keep, 1.0) * patches + 0.5))


def unit_scaled(relevance: Tensor) -> Tensor:
    """A map (..., rows, columns) moved and scaled to reach from 0 to 1; zeros if it is constant.

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
