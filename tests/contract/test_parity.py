"""The package gives what the plain maths gives, on every model and with every method."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hf_gmar import GMAR
from hf_gmar._core.model_adapter import ModelAdapter, scores_of
from hf_gmar._core.request import ForwardRequest
from hf_gmar._core.targets import TargetSpec
from hf_gmar._engines.propagation import Block, LayerResult, Sums
from hf_gmar._engines.run import ENGINES, run_rules
from tests.reference import oracles
from tests.reference.cases import (
    BATCH,
    ENGINE_OPTIONS,
    HEADS,
    LABELS,
    LAYERS,
    MODELS,
    MORE_MODELS,
    TARGETS,
    VIT,
    MethodCase,
    ModelCase,
    every_method_and_engine,
    shared,
)
from tests.reference.parity import ROWS, Row, errors, largest_error, near, relative_error
from tests.reference.report_parity import DTYPES, machine, report
from tests.reference.tolerances import PARITY


@pytest.mark.pairwise
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_equals_the_oracle(row: Row, dtype: torch.dtype) -> None:
    found = errors(row, dtype)
    assert max(found) < PARITY.of(dtype), found


@pytest.mark.sampled(4)
@every_method_and_engine
@pytest.mark.parametrize("case", MODELS, ids=lambda case: case.name)
def test_bfloat16_is_near_float32(case: ModelCase, method: MethodCase, engine: str) -> None:
    images = case.images()
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        explain = method.made(shared(case, dtype=dtype), engine)
        # float32 images where the model casts them, as it does for a user.
        pixels = images if case.casts else images.to(dtype)
        results.append(explain.attribute_patches(pixels, TARGETS, **case.forward_kwargs))
        assert results[-1].dtype == torch.float32
    if method.has_heads:
        # Three decimal digits in the weights; a product of the wrong layers is off by more than 1.
        assert relative_error(results[1], results[0].double().numpy()) < 0.5
    if method.reference:  # products of attention and gradient lose more digits, not their shape
        pairs = zip(*(maps.flatten(1).double() for maps in results), strict=True)
        assert min(float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in pairs) > 0.4


@pytest.mark.parametrize("case", MODELS, ids=lambda case: case.name)
def test_the_table_says_what_the_models_are(case: ModelCase) -> None:
    model, images = case.build(), case.images()
    scores = scores_of(model(images, **case.forward_kwargs))
    found = oracles.trace(model, images, TARGETS, case.forward_kwargs)
    assert oracles.vision_part(model).config._attn_implementation == "sdpa"
    assert scores.shape == (BATCH, LABELS)
    assert (found.grid, found.prefix) == (case.grid, case.prefix)
    tokens = case.prefix + case.grid[0] * case.grid[1]
    assert found.attention.shape == (BATCH, LAYERS, HEADS, tokens, tokens)


@pytest.mark.parametrize("case", MODELS, ids=lambda case: case.name)
def test_the_models_could_show_a_mistake(case: ModelCase) -> None:
    """Attention far from uniform, heads and layers that differ, targets that aren't all on top."""
    model, images = case.build(), case.images()
    found = oracles.trace(model, images, TARGETS, case.forward_kwargs)
    assert found.attention.max(axis=-1).mean() > 4 / found.attention.shape[-1]
    weights = oracles.gmar(found).heads
    assert weights is not None
    assert weights.max() > 1.5 * weights.min()
    right = oracles.gmar(found).patches
    upside_down = found._replace(attention=found.attention[:, ::-1])
    shuffled = found._replace(gradient=np.roll(found.gradient, 1, axis=2))
    for wrong in (upside_down, shuffled):
        assert np.abs(oracles.gmar(wrong).patches - right).max() / right.max() > 1e-3
    top = scores_of(model(images, **case.forward_kwargs)).argmax(dim=1).tolist()
    assert top != TARGETS


def test_every_engine_is_in_the_table() -> None:
    assert {options["engine"] for options in ENGINE_OPTIONS.values()} == set(ENGINES)


def test_the_plain_forward_is_the_model() -> None:
    model, images = VIT.build().double(), VIT.images(torch.float64)
    with oracles.unrounded_softmax():
        output = model(images)
        found = oracles.trace(model, images)
    for index, image in enumerate(images):
        logits, attentions = oracles.vit_logits(model, image)
        assert torch.allclose(logits, output.logits[index], rtol=0, atol=1e-10)
        assert np.allclose(torch.stack(attentions).numpy(), found.attention[index], atol=1e-12)


class Gradients:
    """A rule that keeps what it sees: the gradient of each layer, top layer first."""

    def __init__(self) -> None:
        """Nothing seen yet."""
        self.seen: list[Tensor] = []

    def accumulate(self, block: Block) -> Sums:
        """The gradient of all rows, at their places; the tests' layers are one block."""
        return (block.gradient.clone(),)

    def finish(self, sums: Sums, relevance: Tensor) -> LayerResult:
        """Leave relevance on every token, so that no row is left out below."""
        self.seen.append(sums[0])
        return LayerResult(torch.ones_like(relevance), relevance.new_ones(len(relevance), HEADS))


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_the_gradient_is_how_the_score_changes(engine: str) -> None:
    """The engine's gradient is d score / d attention: move single entries and see."""
    model, images = VIT.build().double(), VIT.images(torch.float64)
    adapter, rule = ModelAdapter.of(model), Gradients()
    adapter = replace(adapter, layout=replace(adapter.tokens, readout=(0.5,)))  # on every token
    with oracles.unrounded_softmax():
        spans = [(rule, range(LAYERS))]
        run_rules(adapter, ForwardRequest(images), [TargetSpec(TARGETS)], spans, engine)
    gradient = rule.seen[::-1]
    tokens = gradient[0].shape[-1]
    draw = np.random.default_rng(3)
    for _ in range(40):
        image, layer = int(draw.integers(BATCH)), int(draw.integers(LAYERS))
        head, query, key = (int(draw.integers(n)) for n in (HEADS, tokens, tokens))
        if layer == LAYERS - 1:
            query = 0  # only the top layer's CLS row reaches the logits
        moved = oracles.finite_difference(
            model, images[image], TARGETS[image], (layer, head, query, key)
        )
        assert moved != 0
        assert moved == pytest.approx(
            float(gradient[layer][image, head, query, key]), rel=1e-4, abs=1e-7
        )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_model_from_disk(tmp_path: Path, attention: str) -> None:
    model, images = VIT.build(), VIT.images()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, attn_implementation=attention)
    assert loaded.config._attn_implementation == attention
    wanted = oracles.gmar(oracles.trace(model, images, TARGETS))
    assert near(GMAR(loaded).attribute_patches(images, TARGETS), wanted.patches, PARITY)


def test_the_report_names_the_largest_error_beside_its_limit() -> None:
    rows = ROWS[:2] + ROWS[-2:]
    first, _, head, _, *lines = report(rows).splitlines()
    assert first == machine()
    assert torch.backends.cpu.get_cpu_capability() in first
    assert f"{torch.get_num_threads()} threads" in first
    cells = [line.strip("| ").split(" | ") for line in (head, *lines[:3])]
    assert cells[0][2:] == ["float32", "limit", "share of it", "float64", "limit", "share of it"]
    assert [line[0] for line in cells[1:]] == ["vit", MORE_MODELS[-1].name, "all"]
    for place, dtype in ((2, torch.float32), (5, torch.float64)):
        found = max(max(errors(row, dtype)) for row in rows)
        assert largest_error(dtype, rows) == found
        limit = PARITY.of(dtype)
        assert cells[3][place : place + 3] == [
            f"{found:.1e}", f"{limit:.0e}", f"{found / limit:.3f}",
        ]  # fmt: skip


def test_a_wrong_result_is_a_large_error() -> None:
    right = np.array([[0.5, 0.25]])
    assert relative_error(torch.tensor([[0.5, 0.5]]), right) == 0.5
    assert relative_error(torch.tensor([[0.5, float("nan")]]), right) == float("inf")
    assert relative_error(torch.tensor([0.5, 0.25]), right) == float("inf")
