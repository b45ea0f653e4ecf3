"""Recompute attention and its gradient in blocks of query rows, with tensor operations only.

For a layer with queries q, keys k, values v, output O and dO = ds/dO, a block of rows is::

    P  = softmax(scale q k^T + mask)         attention
    dP = dO v^T                              gradient ds/dP of these rows, exactly
    dS = P * (dP - rowsum(P * dP))           gradient before the softmax
    dq = scale dS k,   dk += scale dS^T q,   dv += P^T dO

The rule and the gradients for the layers below use the same block, so no N x N matrix is stored.
Rows without relevance and gradient are skipped: under a class head that reads CLS alone, the top
layer has one row.

Shapes: B images, H heads, N tokens, D numbers in a head, Q rows in a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from hf_gmar._core.execution import accumulation_dtype
from hf_gmar._core.interrupts import deliver_signals
from hf_gmar._engines.propagation import Block, RelevancePropagation

Gradients: TypeAlias = tuple[Tensor, Tensor, Tensor]
Index: TypeAlias = slice | Tensor

# Bytes of one of a block's three tensors: small enough for the cache of a CPU, large enough to keep
# another device busy.
_CPU_BYTES = 4 * 2**20
_DEVICE_BYTES = 128 * 2**20
# Images share a block up to this size; a block of one image needs no copies.
_CPU_SHARED_BYTES = 2**19
_MANY_BLOCKS = 8
_FEWEST_ROWS = 64  # fewer make the matrix products slow
_ENOUGH_ROWS = 128  # if fewer rows of all heads fit, the heads are split


@dataclass(frozen=True)
class AttentionLayer:
    """The inputs of one layer's attention.

    Attributes:
        query: (B, H, N, D).
        key: (B, H, N, D).
        value: (B, H, N, any size).
        mask: added to the scores, or boolean with True for allowed keys; broadcasts to
            (B, H, N, N).
        scale: factor of the scores.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scale: float


@dataclass(frozen=True)
class BlockSize:
    """The size of a recomputed block.

    Attributes:
        images: number of images in a block.
        heads: number of heads of each image in a block; it divides the number of all heads.
        rows: number of query rows of each head in a block.
    """

    images: int
    heads: int
    rows: int

    @classmethod
    def choose(
        cls, layer: AttentionLayer, rows: int | None = None, *, split_heads: bool = True
    ) -> BlockSize:
        """Choose the block for the memory budget; ``rows`` sets the number of rows.

        With many tokens, many rows of a few heads are faster than a few rows of all heads.

        Example:
            >>> q = torch.zeros(8, 12, 1025, 64)
            >>> BlockSize.choose(AttentionLayer(q, q, q, None, 1.0))
            BlockSize(images=1, heads=4, rows=205)
            >>> BlockSize.choose(AttentionLayer(q, q, q, None, 1.0), split_heads=False)
            BlockSize(images=1, heads=12, rows=79)
            >>> BlockSize.choose(AttentionLayer(q, q, q, None, 1.0), rows=5)
            BlockSize(images=2, heads=12, rows=5)
        """
        images, heads, tokens = layer.query.shape[:3]
        on_cpu = layer.query.device.type == "cpu"
        budget = _CPU_BYTES if on_cpu else _DEVICE_BYTES
        row = tokens * accumulation_dtype(layer.query).itemsize
        if split_heads:
            heads = _dividing(heads, budget // (row * min(rows or _ENOUGH_ROWS, tokens)))
        if rows is None:
            blocks = -(-tokens // max(_FEWEST_ROWS, budget // (row * heads)))
            rows = -(-tokens // blocks)  # blocks of equal size
        rows = min(rows, tokens)
        shared = (_CPU_SHARED_BYTES if on_cpu else _DEVICE_BYTES) // (row * heads * rows)
        whole = heads == layer.query.shape[1]
        return cls(min(images, max(1, shared)) if whole else 1, heads, rows)


def _dividing(heads: int, most: int) -> int:
    """Return all heads, or else the largest power of two that divides them, up to ``most``.

    An even number of heads keeps an even number of processor cores busy.
    """
    if heads <= most:
        return heads
    divisor = 1
    while 2 * divisor <= most and heads % (2 * divisor) == 0:
        divisor *= 2
    return divisor


def sums_like(tensor: Tensor) -> Tensor:
    """Allocate memory for sums of a tensor's shape and layout."""
    return torch.empty_like(tensor, dtype=accumulation_dtype(tensor))


class BlockWalker:
    """Walk through layers block by block, with the same memory for all layers.

    Args:
        rows: query rows in a block, or ``None`` to choose by the memory budget.
    """

    def __init__(self, rows: int | None = None) -> None:
        self.rows = rows
        self._buffers: dict[str, Tensor] = {}

    def walk(
        self,
        layer: AttentionLayer,
        output_gradient: Tensor | None,
        propagation: RelevancePropagation,
        below: Gradients | None = None,
    ) -> None:
        """Feed a layer to the rule, and compute the gradients for the layers below.

        Args:
            layer: the layer.
            output_gradient: gradient of the score with respect to the attention output, of its
                shape; ``None`` if the rule needs no gradient.
            propagation: the rules and their relevance.
            below: memory for the gradients with respect to query, key and value, of their shapes
                and in the dtype of the sums; ``None`` if no layer below needs them.
        """
        deliver_signals()

        def groups(
            relevance: Sequence[Tensor], split_heads: bool
        ) -> Iterator[Iterator[Iterator[list[Block]]]]:
            if not relevance and below is None:  # neither a rule nor a layer below needs the layer
                return
            size = BlockSize.choose(layer, self.rows, split_heads=split_heads)
            live = _live_rows(layer, relevance, output_gradient).split(size.rows)
            parts = [
                [
                    (slice(image, image + size.images), slice(head, head + size.heads))
                    for head in range(0, layer.query.shape[1], size.heads)
                ]
                for image in range(0, len(layer.query), size.images)
            ]
            for image_parts in parts:
                yield (
                    _Group(self, layer, output_gradient, relevance, *part).blocks(live, below)
                    for part in image_parts
                )

        with torch.no_grad():
            propagation.layer(groups, layer.query.device)

    def take(self, name: str, like: Tensor, rows: int, columns: int) -> Tensor:
        """Return a block (len(like), rows, columns); blocks of one name share memory."""
        size = len(like) * rows * columns
        buffer = self._buffers.get(name)
        fits = buffer is not None and (buffer.dtype, buffer.device) == (like.dtype, like.device)
        if buffer is None or not fits or buffer.numel() < size:
            buffer = self._buffers[name] = like.new_empty(size)
        return buffer[:size].view(len(like), rows, columns)


class _Group:
    """Some images and heads of a layer, as (images x heads, N, D) in the dtype of the sums.

    One image is a view of the layer; several images are a copy.
    """

    def __init__(
        self,
        walker: BlockWalker,
        layer: AttentionLayer,
        output_gradient: Tensor | None,
        relevance: Sequence[Tensor],
        images: slice,
        heads: slice,
    ) -> None:
        self.walker, self.layer, self.part = walker, layer, (images, heads)
        self.relevance = [tensor[images] for tensor in relevance]
        self.dtype = relevance[0].dtype if relevance else accumulation_dtype(layer.query)
        self.query, self.key, self.value = map(
            self._of_group, (layer.query, layer.key, layer.value)
        )
        self.above = None if output_gradient is None else self._of_group(output_gradient)
        self.keys, self.values = self.key.mT, self.value.mT

    def _of_group(self, tensor: Tensor) -> Tensor:
        return tensor[self.part].to(self.dtype).flatten(0, 1)

    def blocks(self, rows: Sequence[Tensor], below: Gradients | None) -> Iterator[list[Block]]:
        """Yield the blocks of these rows; add the gradients of each block after the rules."""
        if len(rows) >= _MANY_BLOCKS:  # the copies pay off by faster products
            self.keys, self.values = self.keys.contiguous(), self.values.contiguous()
        sums = self._empty_sums() if below else None
        for number, block_rows in enumerate(rows):
            index = _as_slice(block_rows)
            attention = self._attention(index, len(block_rows))
            above = None if self.above is None else self.above[:, index]
            gradient = self._gradient(above, attention)
            pair = self._by_image(attention), self._by_image(gradient)
            yield [Block(*pair, relevance[:, index]) for relevance in self.relevance]
            if sums and above is not None:
                self._add(sums, index, attention, gradient, above, first=number == 0)
        for target, part in zip(below or (), sums or (), strict=True):
            target[self.part] = self._by_image(part)

    def _by_image(self, tensor: Tensor) -> Tensor:
        images = len(self.layer.query[self.part[0]])
        return tensor.view(images, -1, *tensor.shape[1:])

    def _empty_sums(self) -> Gradients:
        query, key, value = (
            self.walker.take(name, like, *like.shape[1:])
            for name, like in (("query", self.query), ("key", self.key), ("value", self.value))
        )
        return query.zero_(), key, value  # skipped rows have no gradient

    def _attention(self, index: Index, rows: int) -> Tensor:
        tokens = self.key.shape[1]
        scores = self.walker.take("scores", self.key, rows, tokens)
        torch.baddbmm(
            scores, self.query[:, index], self.keys, beta=0, alpha=self.layer.scale, out=scores
        )
        attention = self.walker.take("attention", self.key, rows, tokens)
        if self.layer.mask is None:
            return torch.softmax(scores, -1, out=attention)
        return _masked_softmax(scores, self._mask(self.layer.mask, index), attention)

    def _mask(self, mask: Tensor, index: Index) -> Tensor:
        batch, heads, tokens = self.layer.query.shape[:3]
        whole = mask.expand(batch, heads, tokens, self.key.shape[1])
        return whole[self.part][:, :, index].flatten(0, 1)

    def _gradient(self, above: Tensor | None, attention: Tensor) -> Tensor:
        if above is None:
            return attention.new_zeros(()).expand_as(attention)
        gradient = self.walker.take("gradient", self.key, *attention.shape[1:])
        return torch.bmm(above, self.values, out=gradient)

    def _add(
        self,
        sums: Gradients,
        index: Index,
        attention: Tensor,
        gradient: Tensor,
        above: Tensor,
        *,
        first: bool,
    ) -> None:
        query, key, value = sums
        scale = self.layer.scale
        _add_product(value, attention.mT, above, first)
        d_scores = gradient.mul_(attention)
        d_scores.addcmul_(attention, d_scores.sum(-1, keepdim=True), value=-1)
        _add_product(key, d_scores.mT, self.query[:, index], first, scale)
        query[:, index] = torch.bmm(d_scores, self.key).mul_(scale)


def _add_product(total: Tensor, left: Tensor, right: Tensor, first: bool, scale: float = 1) -> None:
    torch.baddbmm(total, left, right, beta=int(not first), alpha=scale, out=total)


def _live_rows(
    layer: AttentionLayer, relevance: Sequence[Tensor], output_gradient: Tensor | None
) -> Tensor:
    """Return the indices of rows with relevance or gradient in some image and head."""
    live = torch.zeros(layer.query.shape[2], dtype=torch.bool, device=layer.query.device)
    for tensor in relevance:
        live |= (tensor != 0).any(0)
    if not live.all():
        if output_gradient is not None:
            live |= (output_gradient != 0).any(3).any(1).any(0)
        live[0] = True  # a rule gets at least one block
    return live.nonzero().flatten()


def _as_slice(rows: Tensor) -> Index:
    """Turn neighbouring rows into a slice, which gives views instead of copies."""
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first + 1 == len(rows) else rows


def _masked_softmax(scores: Tensor, mask: Tensor, out: Tensor) -> Tensor:
    """Apply softmax under a mask; a fully masked row is zero, as in PyTorch's attention."""
    if mask.dtype == torch.bool:
        scores.masked_fill_(~mask, -torch.inf)
    else:
        scores.add_(mask)
    masked_rows = torch.isneginf(scores.amax(-1, keepdim=True))
    return torch.softmax(scores, -1, out=out).masked_fill_(masked_rows, 0)
