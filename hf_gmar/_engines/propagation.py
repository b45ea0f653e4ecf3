"""Propagate relevance through the layers: the protocol of rules, and their sums over blocks.

A rule computes the relevance below a layer from the layer's attention, its gradient and the
relevance from above. It gets the query rows in blocks, in any order: an engine may pass the whole
attention matrix, or recompute a few rows at a time.

1. :meth:`LayerRule.accumulate` reduces one block of rows to a few sums; the engine adds the sums
   of all blocks;
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
        gradient: gradient of the explained score with respect to the attention, (B, H, Q, N);
            zeros for a method that needs no gradient.
        relevance: relevance of these rows' tokens from the layer above, (B, Q).
    """

    attention: Tensor
    gradient: Tensor
    relevance: Tensor


Groups: TypeAlias = Callable[
    [Sequence[Tensor], bool], Iterable[Iterable[Iterable[Sequence[Block]]]]
]
"""Maps the relevance (B, N) of each rule to the layer's blocks: for each group of images, for each
group of its heads, one step after the other. With ``False`` all heads are one group. The blocks of
one step have the same rows, and one block for each rule with its relevance."""


class LayerResult(NamedTuple):
    """The result of a rule for one layer.

    Attributes:
        relevance: relevance of the layer's input tokens, (B, N).
        heads: values of each head, (B, H) or (B, H, more), such as GMAR's head importance; ``None``
            if the rule has none.
        addition: the layer's term of the map, (B, N). The map is the sum of these terms or, without
            any, the relevance that leaves the lowest layer.
    """

    relevance: Tensor
    heads: Tensor | None = None
    addition: Tensor | None = None


class LayerRule(Protocol):
    """The computation of a method at each layer, from the top layer down.

    Images are independent: the first dimension of every sum and result is the block's images. A row
    without relevance and gradient must add nothing, as engines may skip it. The tensors of a block
    belong to the engine: a rule neither changes nor stores them. A rule that does not use the
    relevance has the attribute ``starts_at_readout = False``; others get a check of the readout. A
    rule whose sums are of single heads, (B, H) or (B, H, more), may say ``per_head = True``: it
    then gets some heads at a time, which is faster with many tokens.
    """

    def accumulate(self, block: Block) -> Sums:
        """Reduce one block of rows; the engine adds the sums of all blocks of a layer."""
        ...

    def finish(self, sums: Sums, relevance: Tensor) -> LayerResult:
        """Turn a layer's totals and the relevance (B, N) from above into its result."""
        ...


RuleSpan: TypeAlias = tuple[LayerRule, range]
"""A rule and its layers."""


def sums_of(rules: Sequence[LayerRule], blocks: Iterable[Sequence[Block]]) -> list[Sums]:
    """Add up the sums of each rule over the same rows.

    Args:
        rules: the rules.
        blocks: at least one step, with one block for each rule; together the steps have every query
            row once. Rows without relevance and gradient may be missing.
    """
    totals: list[Sums] = [()] * len(rules)
    for row in blocks:
        for number, (rule, block) in enumerate(zip(rules, row, strict=True)):
            sums, total = rule.accumulate(block), totals[number]
            if not total and getattr(rule, "per_head", False):
                _check_per_head(rule, block, sums)
            added = tuple(a + b for a, b in zip(total, sums, strict=True)) if total else sums
            totals[number] = added
    return totals


def _check_per_head(rule: LayerRule, block: Block, sums: Sums) -> None:
    heads = block.attention.shape[:2]
    for tensor in sums:
        if tensor.shape[:2] != heads:
            raise TypeError(
                f"{type(rule).__name__} says per_head = True, so its sums must have the shape "
                f"{tuple(heads)} or {tuple(heads)} and more, got {tuple(tensor.shape)}; say "
                "per_head = False for sums over the heads"
            )


def _joined(groups: Sequence[Sequence[Sums]], dim: int) -> list[Sums]:
    """Concatenate the sums of each rule over the groups."""
    if len(groups) == 1:
        return list(groups[0])
    return [
        tuple(torch.cat(parts, dim) for parts in zip(*sums, strict=True))
        for sums in zip(*groups, strict=True)
    ]


class RelevancePropagation:
    """Propagate relevance down through the layers, by several rules in one pass.

    An engine calls :meth:`layer` for each layer, top layer first; the relevance that leaves a layer
    enters the layer below. All rules share the blocks.

    Args:
        spans: the rules with their layers.
        relevance: the readout (B, N), which enters the highest layer of each rule.
        top: index of the first fed layer.

    Attributes:
        layers: number of layers fed so far.
        relevance: for each rule, the relevance (B, N) that left its last layer.
        heads: for each rule, the heads' values in its layers, top layer first.
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
        """Relevance of each token, (B, N), for each rule: the sum of its additions, if any."""
        pairs = zip(self.relevance, self._additions, strict=True)
        return [relevance if added is None else added for relevance, added in pairs]

    def layer(self, groups: Groups, device: torch.device) -> None:
        """Propagate the relevance through one layer.

        Args:
            groups: maps the relevance of each rule to the blocks of each group of images and heads;
                the groups in their order are the batch.
            device: device of the layer's tensors.
        """
        index = self.top - self.layers
        self.layers += 1
        active = [number for number, (_, layers) in enumerate(self.spans) if index in layers]
        rules = [self.spans[number][0] for number in active]
        above = [self.relevance[number].to(device) for number in active]
        with torch.autocast(device.type, enabled=False):  # no sums in half precision
            split_heads = all(getattr(rule, "per_head", False) for rule in rules)
            by_images = [
                _joined([sums_of(rules, blocks) for blocks in heads], dim=1)
                for heads in groups(above, split_heads)
            ]
            totals = _joined(by_images, dim=0)
            for number, rule, sums, relevance in zip(active, rules, totals, above, strict=True):
                self._store(number, rule.finish(sums, relevance))

    def _store(self, number: int, result: LayerResult) -> None:
        self.relevance[number] = result.relevance
        if result.heads is not None:
            self.heads[number].append(result.heads)
        if result.addition is not None:
            new, total = result.addition, self._additions[number]
            self._additions[number] = new if total is None else total.to(new.device) + new
