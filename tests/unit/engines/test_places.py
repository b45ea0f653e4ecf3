"""Scores of places: one pixel or region of a dense head, and the patches under it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BeitConfig, BeitForSemanticSegmentation, ViTConfig, ViTModel

from hf_gmar import (
    GMAR,
    AttentionRollout,
    GradientRollout,
    InputXGradient,
    RawAttention,
    TokenLayout,
    attribute_jointly,
    register_layout,
)
from hf_gmar._core.places import rows_of_target
from hf_gmar._core.targets import TargetSpec, resolve_targets
from hf_gmar.errors import ModelOutputError, ReadoutWarning, TargetError
from tests.reference import oracles
from tests.reference.cases import ENGINE_OPTIONS, VIT, Around, build
from tests.reference.models import HIDDEN
from tests.reference.parity import near, same
from tests.reference.tolerances import PARITY

IMAGES = VIT.images()
every_engine = pytest.mark.parametrize("engine", ["streaming", "dense"])
as_it_is: Callable[[Tensor], Tensor] = lambda scores: scores  # noqa: E731


class Dense(nn.Module):
    """A linear head on each patch: scores (B, 5, rows, columns), perhaps of another size."""

    def __init__(self, form: Callable[[Tensor], Tensor] = as_it_is) -> None:
        """Keep a body as a submodule."""
        super().__init__()
        self.vision_model = build(ViTModel, ViTConfig)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            self.head = nn.Linear(HIDDEN, 5)
        self.config = self.vision_model.config  # for the oracle
        self.form = form
        self.readout = "place"
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """Scores of each place."""
        patches = self.vision_model(pixels).last_hidden_state[:, 1:]
        return self.form(self.head(patches).mT.unflatten(2, (4, 4)))


def repeated(scores: Tensor) -> Tensor:
    """A score for each of 8 x 8 places."""
    return scores.repeat_interleave(2, 2).repeat_interleave(2, 3)


def enlarged(scores: Tensor) -> Tensor:
    return nn.functional.interpolate(scores, scale_factor=8, mode="bilinear")


def row_of(shares: dict[tuple[int, int], float]) -> np.ndarray[Any, Any]:
    """A readout over CLS and 4 x 4 patches."""
    row = np.zeros(17)
    for (down, across), share in shares.items():
        row[1 + 4 * down + across] = share
    return row


QUARTERS = {(1, 0): 0.25, (1, 1): 0.25, (2, 0): 0.25, (2, 1): 0.25}
TARGETS: dict[str, tuple[Any, Any, Any, dict[tuple[int, int], float]]] = {
    "patch": (as_it_is, (2, 1, 3), lambda s: s[:, 2, 1, 3], {(1, 3): 1}),
    "region": (
        as_it_is,
        (4, slice(1, 3), slice(None, 2)),
        lambda s: s[:, 4, 1:3, :2].mean((1, 2)),
        QUARTERS,
    ),
    "finer place": (repeated, (0, 5, 2), lambda s: s[:, 0, 5, 2], {(2, 1): 1}),
    "finer region": (
        repeated,
        np.s_[0, 1:4, 2:4],
        lambda s: s[:, 0, 1:4, 2:4].mean((1, 2)),
        {(0, 1): 1 / 3, (1, 1): 2 / 3},
    ),
    "coarser place": (
        lambda scores: nn.functional.avg_pool2d(scores, 2),
        (3, 1, 0),
        lambda s: s[:, 3, 1, 0],
        {(2, 0): 0.25, (2, 1): 0.25, (3, 0): 0.25, (3, 1): 0.25},
    ),
}
"""Form of the scores, target, the explained score, and the share of each patch."""


def wanted_for(method: str, model: Any, score: Any, shares: Any) -> Any:
    """The map of the oracle for one score, from the patches that share it."""
    alone = Around(model, lambda dense, pixels: score(dense(pixels))[:, None])
    found = oracles.trace(alone, IMAGES, [0] * len(IMAGES), reads="patches")
    found = found._replace(readout=np.stack([row_of(shares)] * len(IMAGES)))
    return getattr(oracles, method)(found).patches


@every_engine
@pytest.mark.parametrize("name", TARGETS)
def test_rollouts_start_under_the_target(name: str, engine: str) -> None:
    form, target, score, shares = TARGETS[name]
    model, options = Dense(form), ENGINE_OPTIONS[engine]
    for method, oracle in (
        (GMAR, "gmar"),
        (AttentionRollout, "attention_rollout"),
        (RawAttention, "raw_attention"),
        (GradientRollout, "gradient_rollout"),
    ):
        found = method(model, **options).attribute_patches(IMAGES, target)
        assert near(found, wanted_for(oracle, model, score, shares), PARITY)


def test_several_targets_and_methods_in_one_pass() -> None:
    model = Dense()
    gmar, rollout = GMAR(model), AttentionRollout(model)
    places: Any = [(2, 1, 3), (2, 0, 0), (1, slice(2, 4), 3)]
    maps = gmar.attribute_targets(IMAGES, places)
    for found, place in zip(maps, places, strict=True):
        joint = attribute_jointly([gmar, rollout], IMAGES, place)
        assert same(found, gmar.attribute_patches(IMAGES, place))
        assert same(joint[0], found)
        assert same(joint[1], rollout.attribute_patches(IMAGES, place))
    mixed = gmar.attribute_patches(IMAGES, [places[0], places[1], places[2]])
    assert all(same(mixed[n], maps[n][n]) for n in range(3))
    result = gmar.attribute_with_scores(IMAGES, [places[2]])
    assert result.classes.tolist() == [[16 + 8 + 3] * 3]  # the first place of the region


def test_methods_at_the_score_explain_a_region() -> None:
    model = Dense()
    mean = Around(model, lambda dense, pixels: dense(pixels)[:, 4, 1:3, :2].mean((1, 2)))
    region = (4, slice(1, 3), slice(0, 2))
    found = InputXGradient(model).attribute_patches(IMAGES, region)
    wanted = InputXGradient(mean, readout="patches").attribute_patches(IMAGES, 0)
    assert same(found, wanted)


def test_a_contrast_at_another_place_has_half_of_the_start() -> None:
    model = Dense()
    for contrast, shares in (
        ((0, 1, 3), {(1, 3): 1.0}),
        ((0, 2, 0), {(1, 3): 0.5, (2, 0): 0.5}),
    ):
        _, down, across = contrast
        wanted = wanted_for(
            "gmar", model, lambda s, d=down, a=across: s[:, 2, 1, 3] - s[:, 0, d, a], shares
        )
        found = GMAR(model).attribute_patches(IMAGES, (2, 1, 3), contrast=contrast)
        assert near(found, wanted, PARITY)


def test_enlarged_scores_may_read_the_neighbours() -> None:
    GMAR(Dense(enlarged)).attribute_patches(IMAGES, (2, 13, 13))  # a warning is an error
    far = Dense(lambda scores: scores.roll(2, 3))
    with pytest.warns(ReadoutWarning, match=r"on 0 of the 1 output tokens.*on 1 others"):
        GMAR(far).attribute_patches(IMAGES, (2, 0, 0))


@pytest.mark.usefixtures("layouts")
def test_a_registered_dense_model() -> None:
    register_layout("ViTModel", TokenLayout(readout=(0.0,), rest="place"))
    model = Dense()
    wanted = GMAR(model).attribute_patches(IMAGES, (2, 1, 3))
    model.readout = ""  # not a readout: the registered one counts
    del model.readout
    assert same(GMAR(model).attribute_patches(IMAGES, (2, 1, 3)), wanted)
    assert same(GMAR(model, readout="place").attribute_patches(IMAGES, (2, 1, 3)), wanted)


def test_shares_of_grids_that_do_not_divide() -> None:
    scores = torch.zeros(1, 2, 3, 5)
    resolved = TargetSpec((1, 1, slice(0, 2))).resolve(scores)
    row = rows_of_target(resolved, scores, (2, 4), torch.float64)
    down, across = np.array([0.5, 0.5]), np.array([1.0, 0.6, 0, 0]) / 1.6
    np.testing.assert_allclose(row[0].reshape(2, 4).numpy(), np.outer(down, across))


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ((2, 1), "has 2 indices"),
        ((2, 1, 4), "out of range"),
        ((2, slice(1, 5), 0), "have 4 places"),
        ((2, slice(2, 2), 0), "one or more of them"),
        ((2, slice(-1, None), 0), "one or more of them"),
        ((2, slice(0, 4, 2), 0), "without a step"),
        ((2, slice(0.5, 2), 0), "slice of whole numbers"),
        ((2, slice(False, 2), 0), "slice of whole numbers"),
        (None, "no top class"),
    ],
)
def test_places_that_can_not_be(target: Any, words: str) -> None:
    with pytest.raises(TargetError, match=words):
        GMAR(Dense()).attribute(IMAGES, target)


def test_what_a_place_needs() -> None:
    with pytest.raises(ModelOutputError, match=r"readout='place'.*returned \(3, 7\)"):
        GMAR(VIT.build(), readout="place").attribute(IMAGES, 3)
    region = (2, slice(0, 2), 1)
    with pytest.raises(TargetError, match="same class"):
        GMAR(Dense()).attribute(IMAGES, region, contrast=region)
    with pytest.raises(TargetError, match="is a region of scores, and one score is needed"):
        resolve_targets((2, slice(0, 2), 1), torch.zeros(1, 5, 4, 4))


def test_a_head_that_reads_several_layers() -> None:
    layers: Any = {"out_indices": [0, 1, 2, 3], "pool_scales": [1, 2], "use_mean_pooling": False}
    model = build(BeitForSemanticSegmentation, BeitConfig, **layers)
    explain = InputXGradient(model, readout="place")
    maps = explain.attribute_targets(IMAGES, [(2, 3, 5), (2, slice(8, 12), slice(8, 12))])
    assert maps.shape == (2, 3, 4, 4)
    assert not same(maps[0], maps[1])
    found = AttentionRollout(model, readout="place").attribute_patches(IMAGES, (2, 3, 5))
    assert same(found, AttentionRollout(model, readout=(0, 1)).attribute_patches(IMAGES))


def test_a_dense_model_from_one_patch_needs_no_target() -> None:
    model = Dense()
    wanted = RawAttention(model).attribute_patches(IMAGES, (2, 1, 3))
    assert same(RawAttention(model, readout=(1, 3)).attribute_patches(IMAGES), wanted)
