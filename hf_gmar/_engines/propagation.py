"""Propagate relevance through the layers: the protocol of rules, and the sums that feed them.

A rule turns the attention of one layer, its gradient and the relevance that arrived from above
into the relevance below. It sees the query rows of a layer in blocks, in any order, so that an
engine may feed it the whole attention matrix at once or recompute a few rows at a time:

1. :meth:`LayerRule.accumulate` reduces one block of rows to a few sums; the sums of the blocks
   are added up;
2. :meth:`LayerRule.finish` turns the totals into the relevance of the layer's inputs.

Shapes: B images, H heads, N tokens, Q rows in a block. Row = query, column = key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

Sums: TypeAlias = tuple[Tensor, ...]


class Block(NamedTuple):
    """Some query rows of one layer.

    Attributes:
        attention: post-softmax attention, (B, H, Q, N); rows sum to 1.
        gradient: gradient of the explained score with respect to that attention, (B, H, Q, N);
            zeros for a method that needs no gradient.
        relevance: relevance of these rows' tokens, as it arrived from the layer above, (B, Q).
    """

    attention: Tensor
    gradient: Tensor
    relevance: Tensor


Groups: TypeAlias = Callable[[Sequence[Tensor]], Iterable[Iterable[Sequence[Block]]]]
"""From each rule's relevance (B, N) above a layer to the blocks of its first images, the next, ...:
the same rows for each rule, with its own relevance."""


class LayerResult(NamedTuple):
    """The result of a rule for one layer.

    Attributes:
        relevance: relevance of the layer's input tokens, (B, N).
        heads: values of each head, (B, H) or (B, H, more), as GMAR's importance, which sums to 1
            over the heads; ``None`` if the rule gives none.
        addition: the layer's term of the map, (B, N). The map is the sum of these terms, or, if the
            rule gives none, the relevance that leaves the lowest layer.
    """

    relevance: Tensor
    heads: Tensor | None = None
    addition: Tensor | None = None


class LayerRule(Protocol):
    """The computation of a method at each layer, from the top layer down.

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


RuleSpan: TypeAlias = tuple[LayerRule, range]
"""A rule, and the layers that take part in it."""


def sums_of(rules: Sequence[LayerRule], blocks: Iterable[Sequence[Block]]) -> list[Sums]:
    """The sums of each rule over the same rows.

    Args:
        rules: the rules.
        blocks: at least one row of blocks, one block for each rule; together they hold every query
            row once. Rows without relevance and without gradient may be missing.
    """
    totals: list[Sums] = [()] * len(rules)
    for row in blocks:
        for number, (rule, block) in enumerate(zip(rules, row, strict=True)):
            sums, total = rule.accumulate(block), totals[number]
            added = tuple(a + b for a, b in zip(total, sums, strict=True)) if total else sums
            totals[number] = added
    return totals


class RelevancePropagation:
    """Relevance on its way down through the layers, by several rules in one pass.

    An engine calls :meth:`layer` for each layer, top layer first; the relevance that leaves a
    layer enters the next one. Each block is made once, and every rule reads it.

    Args:
        spans: the rules, each with the layers that take part in it.
        relevance: the readout, which enters the highest layer of each rule, (B, N).
        top: the layer that is fed first.

    Attributes:
        layers: how many layers were fed.
        relevance: for each rule, the relevance that left its last layer, (B, N).
        heads: for each rule, the values of the heads of its layers, top layer first.
    """

    def __init__(self, spans: Sequence[RuleSpan], relevance: Tensor, top: int) -> None:
        self.spans = spans
        self.top = top
        self.layers = 0
        self.relevance = [relevance] * len(spans)
        self.heads: list[list[Tensor]] = [[] for _ in spans]
        self._additions: list[Tensor | None] = [None] * len(spans)

    @property
    def maps(self) -> list[Tensor]:
        """Relevance of each token, (B, N), for each rule: its additions, if it makes any."""
        pairs = zip(self.relevance, self._additions, strict=True)
        return [relevance if added is None else added for relevance, added in pairs]

    def layer(self, groups: Groups, device: torch.device) -> None:
        """Move the relevance through one layer.

        Args:
            groups: given the relevance of each rule, the blocks of one group of images after
                another; the groups in their order are the batch.
            device: where the layer's tensors are.
        """
        index = self.top - self.layers
        self.layers += 1
        active = [number for number, (_, layers) in enumerate(self.spans) if index in layers]
        rules = [self.spans[number][0] for number in active]
        above = [self.relevance[number].to(device) for number in active]
        with torch.autocast(device.type, enabled=False):  # sums are not for half precision
            by_group = [sums_of(rules, blocks) for blocks in groups(above)]
            for place, (number, rule) in enumerate(zip(active, rules, strict=True)):
                parts = zip(*(sums[place] for sums in by_group), strict=True)
                self._take(number, rule.finish(tuple(map(torch.cat, parts)), above[place]))

    def _take(self, number: int, result: LayerResult) -> None:
        self.relevance[number] = result.relevance
        if result.heads is not None:
            self.heads[number].append(result.heads)
        if result.addition is not None:
            new, total = result.addition, self._additions[number]
            self._additions[number] = new if total is None else total.to(new.device) + new
