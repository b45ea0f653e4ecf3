"""Layer rules: the tensor maths of the methods, without models.

A rule turns the attention of one layer, its gradient and the relevance that arrived from above
into the relevance below. It sees the query rows of a layer in blocks, in any order, so that an
engine may feed it the whole attention matrix at once or recompute a few rows at a time:

1. :meth:`LayerRule.accumulate` reduces one block of rows to a few sums; the sums of the blocks
   are added up;
2. :meth:`LayerRule.finish` turns the totals into the relevance of the layer's inputs.

Shapes: B images, H heads, N tokens, Q rows in a block. Row = query, column = key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

Norm: TypeAlias = Literal["l1", "l2"]
NORMS: tuple[Norm, ...] = ("l1", "l2")

Sums: TypeAlias = tuple[Tensor, ...]


class Block(NamedTuple):
    """Some query rows of one layer.

    Attributes:
        attention: post-softmax attention, (B, H, Q, N); rows sum to 1.
        gradient: gradient of the explained score by that attention, (B, H, Q, N); zeros for a
            method that needs no gradient.
        relevance: relevance of these rows' tokens, as it arrived from the layer above, (B, Q).
    """

    attention: Tensor
    gradient: Tensor
    relevance: Tensor


Groups: TypeAlias = Callable[[Tensor], Iterable[Iterable[Block]]]
"""From the relevance (B, N) that enters a layer to the blocks of its first images, the next, ..."""


class LayerResult(NamedTuple):
    """What a rule makes of one layer.

    Attributes:
        relevance: relevance of the layer's input tokens, (B, N).
        heads: what the rule says of each head, (B, H) or (B, H, more): GMAR's importance, which
            sums to 1 over the heads; ``None`` if nothing.
        addition: what this layer adds to the map, (B, N). The map is the sum of the additions, or,
            if the rule makes none, the relevance that leaves the lowest layer.
    """

    relevance: Tensor
    heads: Tensor | None = None
    addition: Tensor | None = None


class LayerRule(Protocol):
    """What a method does at each layer, fed from the top layer down.

    Images are independent: every sum and result has the images of the block as its first
    dimension. A row without relevance and without gradient must add nothing, as engines may leave
    it out. The tensors of a block are the engine's: a rule neither changes nor keeps them.
    """

    def accumulate(self, block: Block) -> Sums:
        """Reduce one block of rows; the engine adds up the sums of all blocks of a layer."""
        ...

    def finish(self, sums: Sums, relevance: Tensor) -> LayerResult:
        """Turn a layer's totals and the relevance (B, N) from above into its result."""
        ...


@dataclass(frozen=True)
class GmarRule:
    """Gradient-weighted multi-head attention rollout for one layer.

    Jo, Jang and Park, "GMAR: Gradient-Driven Multi-Head Attention Rollout for Vision Transformer
    Interpretability", ICIP 2025 (arXiv 2504.19414); the rollout of Abnar and Zuidema, ACL 2020
    (arXiv 2005.00928). With attention A, its gradient G and relevance row r from above::

        g_h = sum |G_h|  (l1)   or   sqrt(sum G_h^2)  (l2)
        w_h = g_h / sum_h g_h
        r  <- (r (sum_h w_h A_h) + alpha r) / (1 + alpha)

    The row is propagated instead of the matrix product, which gives the same readout at
    O(N^2) for each layer.

    Attributes:
        norm: how a head's gradient matrix becomes one number.
        alpha: weight of the residual connection, >= 0.

    Example:
        >>> attention = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]])   # B = H = 1, N = 2
        >>> relevance = torch.tensor([[0.0, 1.0]])
        >>> rule = GmarRule("l1", alpha=1.0)
        >>> sums = rule.accumulate(Block(attention, torch.ones_like(attention), relevance))
        >>> rule.finish(sums, relevance).relevance
        tensor([[0.2500, 0.7500]])
    """

    norm: Norm
    alpha: float

    def accumulate(self, block: Block) -> Sums:
        """Head scores (B, H), squared for l2, and each head's rolled-out row (B, H, N)."""
        gradient = block.gradient
        scores = (gradient.abs() if self.norm == "l1" else gradient.square()).sum(dim=(-2, -1))
        rows = block.relevance[:, None, None] @ block.attention
        return scores, rows.squeeze(2)

    def finish(self, sums: Sums, relevance: Tensor) -> LayerResult:
        """Weight the heads, fuse their rows and add the residual."""
        scores, rows = sums
        weights = normalise_heads(scores if self.norm == "l1" else scores.sqrt())
        fused = torch.einsum("bh,bhk->bk", weights, rows)
        kept = self.alpha / (1 + self.alpha)  # first, so that a huge alpha can't overflow
        return LayerResult(fused / (1 + self.alpha) + kept * relevance, weights)


def normalise_heads(scores: Tensor) -> Tensor:
    """Divide scores (B, H) >= 0 by their sum; a layer whose scores are all zero gives 1/H.

    Example:
        >>> normalise_heads(torch.tensor([[3.0, 1.0], [0.0, 0.0]]))
        tensor([[0.7500, 0.2500],
                [0.5000, 0.5000]])
    """
    largest = scores.amax(dim=-1, keepdim=True)
    shares = scores / largest  # the sum of large scores would overflow
    # Scores that are not finite stay NaN: as 1/H they would pass for a result.
    return torch.where(largest == 0, 1 / scores.shape[-1], shares / shares.sum(-1, keepdim=True))


def sums_of(rule: LayerRule, blocks: Iterable[Block]) -> Sums:
    """The rule's sums over some blocks of the same images.

    Args:
        rule: the method's rule.
        blocks: at least one block; together they hold every query row once. Rows without
            relevance and without gradient may be missing.
    """
    totals: Sums = ()
    for block in blocks:
        sums = rule.accumulate(block)
        totals = tuple(a + b for a, b in zip(totals, sums, strict=True)) if totals else sums
    return totals


class Descent:
    """A rule on its way from the top layer down.

    An engine calls :meth:`layer` for each layer, top layer first; the relevance that leaves one
    layer enters the next.

    Args:
        rule: the method's rule.
        relevance: what enters the top layer, (B, N).

    Attributes:
        relevance: what left the last layer that was fed, (B, N).
        layers: how many layers were fed.
        heads: what the rule said of the heads of each layer so far, top layer first.
    """

    def __init__(self, rule: LayerRule, relevance: Tensor) -> None:
        """Nothing is fed yet."""
        self.rule = rule
        self.relevance = relevance
        self.layers = 0
        self.heads: list[Tensor] = []
        self._added: Tensor | None = None

    @property
    def map(self) -> Tensor:
        """Relevance of each token, (B, N), as far as the descent came."""
        return self.relevance if self._added is None else self._added

    def layer(self, groups: Groups, device: torch.device) -> None:
        """Move the relevance through one layer.

        Args:
            groups: given the relevance, the blocks of one group of images after another; the
                groups in their order are the batch.
            device: where the layer's tensors are.
        """
        relevance = self.relevance.to(device)
        with torch.autocast(device.type, enabled=False):  # sums are not for half precision
            parts = [sums_of(self.rule, blocks) for blocks in groups(relevance)]
            sums = tuple(torch.cat(part) for part in zip(*parts, strict=True))
            result = self.rule.finish(sums, relevance)
            self._take(result)

    def _take(self, result: LayerResult) -> None:
        self.layers += 1
        self.relevance = result.relevance
        if result.heads is not None:
            self.heads.append(result.heads)
        if result.addition is not None:
            new = result.addition
            self._added = new if self._added is None else self._added.to(new.device) + new
