"""Layers recomputed in blocks, against attention and its gradient written out whole."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from hf_gmar._engines import blocks
from hf_gmar._engines.blocks import AttentionLayer, BlockSize, BlockWalker, sums_like
from hf_gmar._engines.propagation import Block, LayerResult, RelevancePropagation, Sums
from hf_gmar.methods.layer_rules import GmarRule
from tests.reference import oracles

often = settings(max_examples=80, deadline=None)
MASKS = ("none", "boolean", "boolean for keys", "bias of heads", "minus infinity", "one row blind")


class Case(NamedTuple):
    """A layer, the gradient of its output, and the relevance of its rows."""

    layer: AttentionLayer
    gradient: Tensor
    relevance: Tensor


def mask_of(kind: str, size: tuple[int, int, int], draw: torch.Generator) -> Tensor | None:
    """A mask that leaves each query the first key, but for the blind row."""
    images, heads, tokens = size
    seen = torch.rand(images, 1, tokens, tokens, generator=draw) < 0.6
    seen[..., 0] = True
    if kind == "one row blind":
        seen[:, :, -1] = False
    if kind in ("boolean", "one row blind"):
        return seen
    if kind == "boolean for keys":
        return seen[:, :, :1]
    if kind == "minus infinity":
        return torch.zeros(seen.shape).double().masked_fill(~seen, -torch.inf)
    if kind == "bias of heads":
        return torch.randn(1, heads, tokens, tokens, generator=draw, dtype=torch.float64)
    return None


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Layers of any size and mask; some rows have no relevance and no gradient."""
    size = draw(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9)))
    widths = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    mask = mask_of(draw(st.sampled_from(MASKS)), size, generator)
    query, key = normal(*size, widths[0]), normal(*size, widths[0])
    gradient, relevance = normal(*size, widths[1]), normal(size[0], size[2]).abs()
    some_rows = st.lists(st.integers(0, size[2] - 1), max_size=size[2])
    gradient[:, :, draw(some_rows)] = 0
    relevance[:, draw(some_rows)] = 0
    scale = draw(st.floats(0.1, 2.0))
    value = normal(*size, widths[1])
    if draw(st.booleans()):  # as a projection of tokens gives them
        query, key, value, gradient = (
            tensor.transpose(1, 2).contiguous().transpose(1, 2)
            for tensor in (query, key, value, gradient)
        )
    return Case(AttentionLayer(query, key, value, mask, scale), gradient, relevance)


def attention_of(layer: AttentionLayer) -> Tensor:
    """The attention matrix in one piece."""
    scores = layer.scale * layer.query @ layer.key.mT
    if layer.mask is not None:
        hidden = ~layer.mask if layer.mask.dtype == torch.bool else layer.mask == -torch.inf
        bias = 0 if layer.mask.dtype == torch.bool else layer.mask
        scores = (scores + bias).masked_fill(hidden, -torch.inf)
    return scores.softmax(-1).nan_to_num(0)


class Seen:
    """A rule that keeps its blocks, and moves the relevance on as it is."""

    def __init__(self, *, per_head: bool = False) -> None:
        """Nothing seen yet."""
        self.per_head = per_head
        self.blocks: list[Block] = []

    def accumulate(self, block: Block) -> Sums:
        """Keep a copy: the engine uses the memory again."""
        self.blocks.append(Block(*(tensor.clone() for tensor in block)))
        return (block.attention.sum((2, 3)),)

    def finish(self, sums: Sums, relevance: Tensor) -> LayerResult:
        """Sums stand for the heads."""
        return LayerResult(relevance, sums[0])


def walked(
    case: Case, rule: Any, rows: int | None, dtype: torch.dtype, budget: int | None = None
) -> tuple[RelevancePropagation, Any]:
    """The propagation after the layer, and the gradients by query, key and value."""
    if budget is not None:
        with patch.multiple(blocks, **small(budget)):
            return walked(case, rule, rows, dtype)
    layer, gradient, relevance = case
    query, key, value = (tensor.to(dtype) for tensor in (layer.query, layer.key, layer.value))
    mask = layer.mask
    if mask is not None and mask.is_floating_point():
        mask = mask.to(dtype)
    propagation = RelevancePropagation([(rule, range(1))], relevance.to(dtype), top=0)
    below = sums_like(query), sums_like(key), sums_like(value)
    cast = AttentionLayer(query, key, value, mask, layer.scale)
    BlockWalker(rows).walk(cast, gradient.to(dtype), propagation, below)
    return propagation, below


def small(budget: int) -> dict[str, Any]:
    """Sizes with which a few bytes are a block."""
    return {
        "_CPU_BYTES": budget,
        "_CPU_SHARED_BYTES": budget,
        "_FEWEST_ROWS": 1,
        "_ENOUGH_ROWS": 3,
    }


def close(got: Tensor, wanted: Any, limit: float) -> bool:
    """Equal as a share of the largest value, or of 1."""
    wanted = torch.as_tensor(wanted)
    largest = max(1.0, float(wanted.abs().max()))
    return (
        got.shape == wanted.shape and float((got.double() - wanted).abs().max()) <= limit * largest
    )


rows_in_a_block = st.one_of(st.none(), st.integers(1, 12))
budgets = st.one_of(st.none(), st.integers(1, 2000))
dtypes = st.sampled_from([(torch.float64, 1e-12), (torch.float32, 1e-5)])


@often
@given(cases(), rows_in_a_block, dtypes, budgets)
def test_gradients_are_those_of_attention(
    case: Case, rows: int | None, precision: tuple[torch.dtype, float], budget: int | None
) -> None:
    dtype, limit = precision
    layer = case.layer
    leaves = [part.clone().requires_grad_() for part in (layer.query, layer.key, layer.value)]
    query, key, value = leaves
    whole = AttentionLayer(query, key, value, layer.mask, layer.scale)
    wanted = torch.autograd.grad((attention_of(whole) @ value * case.gradient).sum(), leaves)
    _, below = walked(case, GmarRule("l1", 1.0), rows, dtype, budget)
    for got, right in zip(below, wanted, strict=True):
        assert close(got, right.nan_to_num(0), limit)


@often
@given(
    cases(),
    rows_in_a_block,
    dtypes,
    budgets,
    st.sampled_from(["l1", "l2"]),
    st.sampled_from([0.0, 0.7]),
)
def test_the_rule_sees_the_layer(
    case: Case,
    rows: int | None,
    precision: tuple[torch.dtype, float],
    budget: int | None,
    norm: Literal["l1", "l2"],
    alpha: float,
) -> None:
    dtype, limit = precision
    propagation, _ = walked(case, GmarRule(norm, alpha), rows, dtype, budget)
    attention = attention_of(case.layer)
    gradient = case.gradient @ case.layer.value.mT
    for image in range(len(attention)):
        weights = oracles.head_weights(gradient[image].numpy(), norm)
        matrix = oracles.rollout(attention[image : image + 1].numpy(), [weights], alpha)
        assert close(propagation.heads[0][0][image], weights, limit)
        assert close(propagation.relevance[0][image], case.relevance[image].numpy() @ matrix, limit)


@often
@given(cases(), rows_in_a_block, st.integers(1, 2000), st.booleans())
def test_every_live_row_comes_once(
    case: Case, rows: int | None, budget: int, per_head: bool
) -> None:
    """Whatever the block size: chosen, forced, or so small that heads come one by one."""
    rule = Seen(per_head=per_head)
    propagation, _ = walked(case, rule, rows, torch.float64, budget)
    with patch.multiple(blocks, **small(budget)):
        size = BlockSize.choose(case.layer, rows, split_heads=per_head)
    images, heads, tokens = case.layer.query.shape[:3]
    assert heads % size.heads == 0
    assert per_head or size.heads == heads
    for block in rule.blocks:
        assert block.attention.shape == block.gradient.shape
        assert block.relevance.shape == (block.attention.shape[0], block.attention.shape[2])
        assert block.attention.shape[0] <= size.images
        assert block.attention.shape[1] == size.heads
        assert block.attention.shape[2] <= size.rows
    live = (case.relevance != 0).any(0) | (case.gradient != 0).any(3).any(1).any(0)
    index = [0, *[row for row in range(1, tokens) if live[row]]] if not live[0] else live.nonzero()
    wanted = attention_of(case.layer)[:, :, torch.as_tensor(index).flatten()]
    each = len(rule.blocks) // (-(-images // size.images) * (heads // size.heads))
    parts = [
        torch.cat([block.attention for block in rule.blocks[start : start + each]], dim=2)
        for start in range(0, len(rule.blocks), each)
    ]
    across = heads // size.heads
    got = [torch.cat(parts[start : start + across], 1) for start in range(0, len(parts), across)]
    assert close(torch.cat(got), wanted, 1e-12)
    assert close(propagation.heads[0][0], wanted.sum((2, 3)), 1e-12)


def test_rows_without_relevance_and_gradient_are_left_out() -> None:
    """The top layer under a CLS head: one row, however many tokens."""
    query = torch.randn(2, 3, 50, 4)
    gradient, relevance = torch.zeros(2, 3, 50, 4), torch.zeros(2, 50)
    gradient[:, :, 0], relevance[:, 0] = 1.0, 1.0
    rule = Seen()
    walked(
        Case(AttentionLayer(query, query, query, None, 1.0), gradient, relevance),
        rule,
        None,
        torch.float32,
    )
    assert [block.attention.shape for block in rule.blocks] == [(2, 3, 1, 50)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(2)
    query, key, value, gradient = (
        torch.randn(2, 3, 40, 8, generator=draw).to(dtype) for _ in range(4)
    )
    relevance = torch.rand(2, 40, generator=draw)
    layer = AttentionLayer(query, key, value, None, 0.3)
    propagation = RelevancePropagation([(GmarRule("l1", 1.0), range(1))], relevance, top=0)
    below = sums_like(query), sums_like(key), sums_like(value)
    BlockWalker().walk(layer, gradient, propagation, below)
    exact = Case(
        AttentionLayer(query.double(), key.double(), value.double(), None, 0.3),
        gradient.double(),
        relevance.double(),
    )
    wanted, wanted_below = walked(exact, GmarRule("l1", 1.0), None, torch.float64)
    assert propagation.relevance[0].dtype == torch.float32
    assert close(propagation.relevance[0], wanted.relevance[0], 1e-5)
    assert all(close(got, right, 1e-5) for got, right in zip(below, wanted_below, strict=True))


@pytest.mark.parametrize("kind", MASKS)
def test_masks_mean_what_they_mean_in_pytorch(kind: str) -> None:
    size = (2, 3, 7)
    draw = torch.Generator().manual_seed(5)
    query, key, value = (
        torch.randn(*size, 4, generator=draw, dtype=torch.float64) for _ in range(3)
    )
    mask = mask_of(kind, size, draw)
    rule = Seen()
    case = Case(
        AttentionLayer(query, key, value, mask, 0.5),
        torch.ones_like(value),
        torch.ones(2, 7, dtype=torch.float64),
    )
    walked(case, rule, 3, torch.float64)
    attention = torch.cat([block.attention for block in rule.blocks], dim=2)
    wanted = functional.scaled_dot_product_attention(query, key, value, mask, scale=0.5)
    assert close(attention @ value, wanted, 1e-12)


def test_a_block_stays_in_its_budget() -> None:
    for images, heads, tokens in ((1, 6, 4097), (8, 12, 197), (64, 3, 17), (1, 16, 1370)):
        query = torch.empty(images, heads, tokens, 1)
        layer = AttentionLayer(query, query, query, None, 1.0)
        size = BlockSize.choose(layer)
        numbers = size.images * size.heads * size.rows * tokens
        assert 4 * numbers <= blocks._CPU_BYTES or size.rows <= blocks._FEWEST_ROWS
        assert size.rows == tokens or size.rows > blocks._FEWEST_ROWS / 2
        assert BlockSize.choose(layer, 7).rows == 7
