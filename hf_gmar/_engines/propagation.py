"""How relevance descends through the layers, whatever the method: rules, and what feeds them.

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
        gradient: gradient of the explained score by that attention, (B, H, Q, N); zeros for a
            method that needs no gradient.
        relevance: relevance of these rows' tokens, as it arrived from the layer above, (B, Q).
    """

    attention: Tensor
    gradient: Tensor
    relevance: Tensor


Groups: TypeAlias = Callable[[Sequence[Tensor]], Iterable[Iterable[Sequence[Block]]]]
"""From the relevance (B, N) that enters a layer, one for each rule, to the blocks of its first
images, the next, ...: the same rows for each rule, with the relevance of its own."""


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


def sums_of(rule: LayerRule, blocks: Iterable[Block]) -> Sums:
    """The rule's sums over some blocks of the same images.

    Args:
        rule: the method's rule.
        blocks: at least one block; together they hold every query row once. Rows without
            relevance and without gradient may be missing.
    """
    (totals,) = _sums_of_each([rule], ([block] for block in blocks))
    return totals


def _sums_of_each(rules: Sequence[LayerRule], blocks: Iterable[Sequence[Block]]) -> list[Sums]:
    """The sums of each rule over the same rows."""
    totals: list[Sums] = [()] * len(rules)
    for each in blocks:
        for number, (rule, block) in enumerate(zip(rules, each, strict=True)):
            sums, so_far = rule.accumulate(block), totals[number]
            more = tuple(a + b for a, b in zip(so_far, sums, strict=True)) if so_far else sums
            totals[number] = more
    return totals


class Descending(Protocol):
    """What an engine feeds, top layer first.

    Attributes:
        layers: how many layers were fed.
    """

    layers: int

    def layer(self, groups: Groups, device: torch.device) -> None:
        """Move the relevance through one layer.

        Args:
            groups: given the relevance of each rule, the blocks of one group of images after
                another; the groups in their order are the batch.
            device: where the layer's tensors are.
        """
        ...


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
        """Move the relevance through one layer: see :class:`Descending`."""
        _feed([self], groups, device)

    def take(self, result: LayerResult) -> None:
        """Go on from what the rule made of a layer."""
        self.layers += 1
        self.relevance = result.relevance
        if result.heads is not None:
            self.heads.append(result.heads)
        if result.addition is not None:
            new = result.addition
            self._added = new if self._added is None else self._added.to(new.device) + new


class Descents:
    """Several descents through one pass: each block is made once, and every rule reads it.

    Args:
        each: the descents, and the layers that each of them takes part in.
        top: the highest layer that is fed.

    Attributes:
        layers: how many layers were fed.
    """

    def __init__(self, each: Sequence[tuple[Descent, range]], top: int) -> None:
        self.each = each
        self.top = top
        self.layers = 0

    def layer(self, groups: Groups, device: torch.device) -> None:
        """Move each relevance through a layer that is its own: see :class:`Descending`."""
        index = self.top - self.layers
        self.layers += 1
        _feed([descent for descent, own in self.each if index in own], groups, device)


def _feed(descents: Sequence[Descent], groups: Groups, device: torch.device) -> None:
    rules = [descent.rule for descent in descents]
    relevance = [descent.relevance.to(device) for descent in descents]
    with torch.autocast(device.type, enabled=False):  # sums are not for half precision
        parts = [_sums_of_each(rules, blocks) for blocks in groups(relevance)]
        for descent, own, before in zip(descents, zip(*parts, strict=True), relevance, strict=True):
            sums = tuple(torch.cat(part) for part in zip(*own, strict=True))
            descent.take(descent.rule.finish(sums, before))
