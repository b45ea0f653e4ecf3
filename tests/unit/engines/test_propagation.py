"""The maths of the layer rules, without models: small examples by hand, and what always holds."""

from __future__ import annotations

import itertools
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_gmar._engines.propagation import Block, LayerResult, sums_of
from hf_gmar.methods.layer_rules import GmarRule, normalise_heads
from tests.reference import oracles

norms = st.sampled_from(["l1", "l2"])
alphas = st.floats(0, 1e6)
sizes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6))  # images, heads, tokens
often = settings(max_examples=60, deadline=None)


def layer(size: tuple[int, int, int], seed: int) -> Block:
    """Random attention, gradient and relevance of a whole layer; rows sum to 1."""
    images, heads, tokens = size
    draw = torch.Generator().manual_seed(seed)
    scores = 4 * torch.randn(images, heads, tokens, tokens, generator=draw, dtype=torch.float64)
    gradient = torch.randn(images, heads, tokens, tokens, generator=draw, dtype=torch.float64)
    relevance = torch.rand(images, tokens, generator=draw, dtype=torch.float64)
    return Block(scores.softmax(-1), gradient, relevance / relevance.sum(1, keepdim=True))


def cut(whole: Block, edges: list[int]) -> list[Block]:
    """The layer in blocks of query rows."""
    bounds = [0, *sorted(edges), whole.relevance.shape[1]]
    return [
        Block(
            whole.attention[:, :, start:stop],
            whole.gradient[:, :, start:stop],
            whole.relevance[:, start:stop],
        )
        for start, stop in itertools.pairwise(bounds)
        if stop > start
    ]


def finish(rule: GmarRule, whole: Block) -> LayerResult:
    """The rule on the layer in one piece."""
    (sums,) = sums_of([rule], [[whole]])
    return rule.finish(sums, whole.relevance)


def heads_of(result: LayerResult) -> Tensor:
    """What a rule that speaks of heads says of them."""
    assert result.heads is not None
    return result.heads


def parts(result: LayerResult) -> list[Tensor]:
    """All that a rule made."""
    return [part for part in result if part is not None]


@pytest.mark.parametrize(
    ("norm", "alpha", "relevance", "weights"),
    [
        # g = 3 + 1 and 12: w = 1/4, 3/4. F = [[1/4, 3/4], [1/2, 1/2]]. r F = (3/8, 5/8).
        ("l1", 0.0, (0.375, 0.625), (0.25, 0.75)),
        ("l1", 1.0, (0.4375, 0.5625), (0.25, 0.75)),
        ("l1", 3.0, (0.46875, 0.53125), (0.25, 0.75)),
        # g = sqrt(9 + 1) and sqrt(144).
        ("l2", 0.0, None, (10**0.5 / (10**0.5 + 12), 12 / (10**0.5 + 12))),
    ],
)
def test_by_hand(
    norm: Literal["l1", "l2"],
    alpha: float,
    relevance: tuple[float, float] | None,
    weights: tuple[float, float],
) -> None:
    attention = torch.tensor([[[[1.0, 0], [0.5, 0.5]], [[0, 1.0], [0.5, 0.5]]]])
    gradient = torch.tensor([[[[-3.0, 0], [0, 1.0]], [[0, 0], [12.0, 0]]]])
    whole = Block(attention, gradient, torch.tensor([[0.5, 0.5]]))
    result = finish(GmarRule(norm, alpha), whole)
    assert heads_of(result)[0].tolist() == pytest.approx(weights)
    if relevance is None:  # r F = (w + 1/2, 1 - w + 1/2) / 2 with w of the first head
        relevance = ((weights[0] + 0.5) / 2, (weights[1] + 0.5) / 2)
    assert result.relevance[0].tolist() == pytest.approx(relevance)


def test_queries_are_rows_and_keys_are_columns() -> None:
    """Relevance of a query goes to the keys that it looked at, not the other way round."""
    attention = torch.tensor([[[[0.0, 1, 0], [0, 1, 0], [0, 0, 1]]]])
    whole = Block(attention, attention, torch.tensor([[1.0, 0, 0]]))
    assert finish(GmarRule("l1", 0.0), whole).relevance.tolist() == [[0, 1, 0]]


@often
@given(sizes, st.integers(0, 99), norms, alphas)
def test_the_rule_is_the_matrix_form(
    size: tuple[int, int, int], seed: int, norm: Literal["l1", "l2"], alpha: float
) -> None:
    whole = layer(size, seed)
    result = finish(GmarRule(norm, alpha), whole)
    for image in range(size[0]):
        weights = oracles.head_weights(whole.gradient[image].numpy(), norm)
        matrix = oracles.rollout(whole.attention[image : image + 1].numpy(), [weights], alpha)
        assert heads_of(result)[image].tolist() == pytest.approx(weights.tolist())
        wanted = whole.relevance[image].numpy() @ matrix
        assert result.relevance[image].tolist() == pytest.approx(wanted.tolist())


@often
@given(sizes, st.integers(0, 99), norms, alphas, st.data())
def test_blocks_of_any_split_make_the_layer(
    size: tuple[int, int, int],
    seed: int,
    norm: Literal["l1", "l2"],
    alpha: float,
    data: st.DataObject,
) -> None:
    whole, rule = layer(size, seed), GmarRule(norm, alpha)
    edges = data.draw(st.lists(st.integers(0, size[2]), max_size=5))
    blocks = data.draw(st.permutations(cut(whole, edges)))
    (sums,) = sums_of([rule], [[block] for block in blocks])
    result = rule.finish(sums, whole.relevance)
    for got, wanted in zip(parts(result), parts(finish(rule, whole)), strict=True):
        assert torch.allclose(got, wanted, rtol=1e-12, atol=1e-14)


@often
@given(sizes, st.integers(0, 99), norms, alphas)
def test_relevance_is_neither_made_nor_lost(
    size: tuple[int, int, int], seed: int, norm: Literal["l1", "l2"], alpha: float
) -> None:
    whole = layer(size, seed)
    result = finish(GmarRule(norm, alpha), whole)
    assert (result.relevance >= 0).all()
    assert torch.allclose(result.relevance.sum(1), whole.relevance.sum(1), rtol=1e-12)
    assert torch.allclose(heads_of(result).sum(1), torch.ones(size[0], dtype=torch.float64))


@often
@given(sizes, st.integers(0, 99), norms, st.floats(1e-6, 1e6))
def test_the_scale_of_the_score_does_not_matter(
    size: tuple[int, int, int], seed: int, norm: Literal["l1", "l2"], scale: float
) -> None:
    whole, rule = layer(size, seed), GmarRule(norm, 1.0)
    scaled = whole._replace(gradient=-scale * whole.gradient)
    for got, wanted in zip(parts(finish(rule, scaled)), parts(finish(rule, whole)), strict=True):
        assert torch.allclose(got, wanted, rtol=1e-9)


def scores_of_heads() -> st.SearchStrategy[list[list[float]]]:
    """Head scores of some images; many of them zero."""
    values = st.one_of(st.just(0.0), st.floats(0, width=32, allow_infinity=False))
    return st.integers(1, 6).flatmap(
        lambda heads: st.lists(
            st.lists(values, min_size=heads, max_size=heads), min_size=1, max_size=4
        )
    )


@often
@given(scores_of_heads())
def test_head_weights_are_shares(rows: list[list[float]]) -> None:
    scores = torch.tensor(rows)
    weights = normalise_heads(scores)
    assert weights.shape == scores.shape
    assert torch.allclose(weights.sum(1), torch.ones(len(rows)), atol=1e-6)
    for score, weight in zip(scores, weights, strict=True):
        if not score.any():
            assert weight.tolist() == pytest.approx([1 / len(score)] * len(score))
        else:
            assert (weight[score == 0] == 0).all()
            assert (weight[score == score.max()] == weight.max()).all()


def test_scores_that_are_not_finite_stay_visible() -> None:
    """The engine looks for them afterwards; hidden behind 1/H they would pass for a result."""
    bad = normalise_heads(torch.tensor([[float("nan"), 1.0], [float("inf"), 1.0]]))
    assert bad.isnan().any(dim=1).all()
