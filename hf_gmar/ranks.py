"""How alike two maps order the patches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def average_ranks(values: Tensor) -> Tensor:
    """Ranks from 1 of the values (N,), as float64; equal values share the mean of their ranks.

    Example:
        >>> average_ranks(torch.tensor([0.5, 0.1, 0.5, 0.9])).tolist()
        [2.5, 1.0, 2.5, 4.0]
    """
    _, places, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks: Tensor = last - (counts - 1) / 2
    return ranks[places]


def rank_correlations(maps: Sequence[Tensor]) -> Tensor:
    """Spearman's rank correlation of each two maps.

    Args:
        maps: M maps (B, rows, columns) of the same images.

    Returns:
        Tensor (M, M), float64, from -1 to 1: over the patches of an image, then the mean over those
        images where neither map is constant. NaN where there is none.

    Example:
        >>> up = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
        >>> rank_correlations([up, -(up**3), torch.ones_like(up)])[0].tolist()
        [1.0, -1.0, nan]
    """
    if not maps:
        return torch.empty(0, 0, dtype=torch.float64)
    each = [_of_one_image([one[image] for one in maps]) for image in range(len(maps[0]))]
    return torch.stack(each).nanmean(0)


def _of_one_image(maps: Sequence[Tensor]) -> Tensor:
    ranks = torch.stack([average_ranks(one.flatten()) for one in maps])
    centred = ranks - ranks.mean(1, keepdim=True)
    products = centred @ centred.T
    squares = products.diagonal()
    found: Tensor = products / (squares[:, None] * squares).sqrt()
    return found.clamp(-1, 1)
