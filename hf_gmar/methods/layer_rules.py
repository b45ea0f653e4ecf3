"""The layer rules of the methods, and the protocol of a rule: tensor operations, no models.

Shapes: B images, H heads, N tokens, Q rows in a block. Row = query, column = key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from hf_gmar._engines.propagation import Block, LayerResult, LayerRule, Sums

__all__ = ["Block", "LayerResult", "LayerRule", "Sums"]  # the protocol, for rules of your own

Norm: TypeAlias = Literal["l1", "l2"]
NORMS: tuple[Norm, ...] = ("l1", "l2")

Fusion: TypeAlias = Literal["mean", "max", "min"]
FUSIONS: dict[Fusion, Callable[[Tensor], Tensor]] = {
    "mean": lambda attention: attention.mean(1),
    "max": lambda attention: attention.amax(1),
    "min": lambda attention: attention.amin(1),
}
"""Fusion of a layer's heads: from attention (B, H, Q, N) to (B, Q, N)."""


@dataclass(frozen=True)
class GmarRule:
    """GMAR for one layer: r <- (r (sum_h w_h A_h) + alpha r) / (1 + alpha).

    The row vector r of the readout is propagated, not a matrix product: O(N^2) for each layer.

    Attributes:
        norm: the norm of each head's gradient.
        alpha: weight of the residual connection, >= 0.

    Example:
        >>> attention = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]])   # B = H = 1, N = 2
        >>> relevance = torch.tensor([[0.0, 1.0]])
        >>> rule = GmarRule("l1", alpha=1.0)
        >>> sums = rule.accumulate(Block(attention, torch.ones_like(attention), relevance))
        >>> rule.finish(sums, relevance).relevance
        tensor([[0.2500, 0.7500]])
    """

    per_head: ClassVar[bool] = True

    norm: Norm
    alpha: float

    def accumulate(self, block: Block) -> Sums:
        """Return head scores (B, H), squared for l2, and each head's row r A_h, (B, H, N)."""
        gradient = block.gradient
        scores = (gradient.abs() if self.norm == "l1" else gradient.square()).sum(dim=(-2, -1))
        rows = block.relevance[:, None, None] @ block.attention
        return scores, rows.squeeze(2)

    def finish(self, sums: Sums, relevance: Tensor) -> LayerResult:
        """Weight the heads, fuse their rows and add the residual."""
        scores, rows = sums
        weights = normalise_heads(scores if self.norm == "l1" else scores.sqrt())
        fused = torch.einsum("bh,bhk->bk", weights, rows)
        residual = self.alpha / (1 + self.alpha)  # divided first, or a huge alpha would overflow
        return LayerResult(fused / (1 + self.alpha) + residual * relevance, weights)


def normalise_heads(scores: Tensor) -> Tensor:
    """Divide scores (B, H) >= 0 by their sum; a layer whose scores are all zero gives 1/H.

    Example:
        >>> normalise_heads(torch.tensor([[3.0, 1.0], [0.0, 0.0]]))
        tensor([[0.7500, 0.2500],
                [0.5000, 0.5000]])
    """
    largest = scores.amax(dim=-1, keepdim=True)
    shares = scores / largest  # the sum of large scores would overflow
    # Non-finite scores stay NaN, so that the caller's check rejects them.
    return torch.where(largest == 0, 1 / scores.shape[-1], shares / shares.sum(-1, keepdim=True))


@dataclass(frozen=True)
class RolloutRule:
    """Attention rollout for one layer, without gradients: r <- (r F + alpha r) / (1 + alpha).

    F is the fused attention; each row keeps its largest entries and is divided by its sum.

    Attributes:
        fusion: how the heads are fused.
        discard_ratio: share of the entries of each row that is set to zero, smallest first.
        alpha: weight of the residual connection, >= 0.

    Example:
        >>> attention = torch.tensor([[[[1.0, 0.0], [0.25, 0.75]]]])   # B = H = 1, N = 2
        >>> relevance = torch.tensor([[0.0, 1.0]])
        >>> rule = RolloutRule("mean", discard_ratio=0.5, alpha=1.0)
        >>> sums = rule.accumulate(Block(attention, torch.zeros_like(attention), relevance))
        >>> rule.finish(sums, relevance).relevance
        tensor([[0., 1.]])
    """

    fusion: Fusion
    discard_ratio: float
    alpha: float

    def accumulate(self, block: Block) -> Sums:
        """Return the row r F, (B, N), of these queries."""
        fused = _largest(FUSIONS[self.fusion](block.attention), self.discard_ratio)
        total = fused.sum(-1, keepdim=True)
        fused = fused / total.masked_fill(total == 0, 1)  # a masked query has no attention
        return ((block.relevance[:, None] @ fused).squeeze(1),)

    def finish(self, sums: Sums, relevance: Tensor) -> LayerResult:
        """Add the residual."""
        (row,) = sums
        residual = self.alpha / (1 + self.alpha)
        return LayerResult(row / (1 + self.alpha) + residual * relevance)


def _largest(fused: Tensor, discard_ratio: float) -> Tensor:
    """Set the smallest entries of each row (B, Q, N) to zero."""
    discarded = int(discard_ratio * fused.shape[-1])
    if not discarded:
        return fused
    smallest = fused.topk(discarded, largest=False).indices
    return fused.scatter(-1, smallest, 0)


class GradientRolloutRule:
    """Gradient-weighted rollout for one layer: r <- r + r mean_h relu(A_h * G_h).

    The map is the sum of the terms that the layers add, without the identity R_0.
    """

    per_head: ClassVar[bool] = True

    def accumulate(self, block: Block) -> Sums:
        """Return the relevance that each head passes down from these rows, (B, H, N)."""
        positive = (block.attention * block.gradient).clamp(min=0)
        return ((block.relevance[:, None, None] @ positive).squeeze(2),)

    def finish(self, sums: Sums, relevance: Tensor) -> LayerResult:
        """Add the mean of the heads to the relevance from above."""
        # Adding it to the far larger readout, and subtracting that later, would lose digits.
        row = sums[0].mean(1)
        return LayerResult(relevance + row, addition=row)


@dataclass(frozen=True)
class PositiveGradientRule:
    """Mean of the positive gradient over heads, queries and layers; nothing is rolled out.

    Attributes:
        layers: number of layers in the mean.
        weighted: whether the gradient is multiplied by the attention, as in Grad-SAM.

    Example:
        >>> attention = torch.tensor([[[[0.5, 0.5], [0.25, 0.75]]]])
        >>> gradient = torch.tensor([[[[4.0, -1.0], [0.0, 2.0]]]])
        >>> block = Block(attention, gradient, torch.zeros(1, 2))
        >>> rule = PositiveGradientRule(layers=1, weighted=True)
        >>> rule.finish(rule.accumulate(block), block.relevance).addition
        tensor([[1.0000, 0.7500]])
    """

    starts_at_readout: ClassVar[bool] = False
    per_head: ClassVar[bool] = True

    layers: int
    weighted: bool

    def accumulate(self, block: Block) -> Sums:
        """Return the sum of these rows' positive gradient for each head and key, (B, H, N)."""
        gradient = block.gradient * block.attention if self.weighted else block.gradient
        return (gradient.clamp(min=0).sum(2),)

    def finish(self, sums: Sums, relevance: Tensor) -> LayerResult:
        """Return the layer's term of the mean."""
        total = sums[0].mean(1)
        return LayerResult(relevance, addition=total / (relevance.shape[1] * self.layers))
