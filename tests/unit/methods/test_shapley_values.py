"""Shapley values beside the definition: a sum over all subsets of the players."""

from __future__ import annotations

import functools
import itertools
import math
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import ShapleyValueSampling
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from hf_gmar import ShapleyValues
from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar._core.request import ForwardRequest
from hf_gmar._core.targets import TargetSpec
from hf_gmar.errors import InputError, OptionError
from hf_gmar.methods.shapley_values import _Game, player_grid
from tests.reference.cases import MODELS, VIT, Around, ModelCase, shared
from tests.reference.models import LABELS, own_head
from tests.reference.parity import same
from tests.support.state import unchanged

CASES = {case.name: case for case in MODELS}
OBLONG, MEAN = CASES["vit-oblong"], CASES["ijepa"]
GROUPS = (2, 2)
"""Of the 3 x 5 patches: six players of 4, 4, 2, 2, 2 and 1 patches."""

PLAYERS = [[0, 0, 1, 1, 2], [0, 0, 1, 1, 2], [3, 3, 4, 4, 5]]


def score_of(case: ModelCase, model: Any, pixels: Tensor, patches: list[int]) -> Tensor:
    """The logits of one image with these patches alone, by the modules of the model."""
    tower = model.vit if hasattr(model, "vit") else model.ijepa
    tokens = tower.embeddings(pixels)
    kept = [*range(case.prefix), *(case.prefix + patch for patch in patches)]
    hidden = tokens[:, kept]
    for layer in tower.layers:
        hidden = layer(hidden)
    hidden = tower.layernorm(hidden)
    logits: Tensor = model.classifier(hidden[:, 0] if case.prefix else hidden.mean(1))
    return logits[0]


@functools.cache
def game_of(case: ModelCase) -> tuple[dict[frozenset[int], Tensor], list[list[int]]]:
    """The logits of every coalition for the first image, and the patches of each player."""
    model, pixels = shared(case, dtype=torch.float64), case.images(torch.float64, batch=1)
    players = PLAYERS if case is OBLONG else [[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2
    flat = list(itertools.chain(*players))
    members = [[i for i, owner in enumerate(flat) if owner == p] for p in range(max(flat) + 1)]
    values = {}
    with torch.no_grad():
        for size in range(len(members) + 1):
            for coalition in itertools.combinations(range(len(members)), size):
                patches = sorted(itertools.chain(*(members[p] for p in coalition)))
                if patches or case.prefix:
                    values[frozenset(coalition)] = score_of(case, model, pixels, patches)
    if not case.prefix:  # the mean of the single players, as there is no score of nothing
        singles = [values[frozenset([player])] for player in range(len(members))]
        values[frozenset()] = torch.stack(singles).mean(0)
    return values, members


def enumerated(case: ModelCase) -> Tensor:
    """The map of each class, (LABELS, rows, columns), by the sum over all subsets."""
    values, members = game_of(case)
    count = len(members)
    patches = torch.zeros(LABELS, case.grid[0] * case.grid[1], dtype=torch.float64)
    for player in range(count):
        others = [other for other in range(count) if other != player]
        for size in range(count):
            weight = math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count)
            for coalition in map(frozenset, itertools.combinations(others, size)):
                gain = values[coalition | {player}] - values[coalition]
                patches[:, members[player]] += (weight * gain / len(members[player]))[:, None]
    return patches.reshape(-1, *case.grid)


every_game = pytest.mark.parametrize("case", [OBLONG, MEAN], ids=["with CLS", "mean of patches"])


@every_game
def test_all_permutations_give_the_sum_over_subsets(case: ModelCase) -> None:
    model, pixels = shared(case, dtype=torch.float64), case.images(torch.float64, batch=1)
    adapter, specs = ModelAdapter.of(model), [TargetSpec(label) for label in range(LABELS)]
    game = _Game.of(adapter, ForwardRequest(pixels), specs, GROUPS, 512)
    orders = torch.tensor([*itertools.permutations(range(game.count))])
    means = game.pair_values(orders, lambda _: None).mean(2)
    assert same(game.maps(means)[:, 0], enumerated(case))


@every_game
def test_samples_are_within_their_standard_errors(case: ModelCase) -> None:
    model = shared(case, dtype=torch.float64)
    shapley = ShapleyValues(model, samples=1000, groups=GROUPS, batch_size=512)
    result = shapley.attribute_with_errors(case.images(torch.float64, batch=1), 2)
    wanted = enumerated(case)[2]
    assert result.samples == 1000
    deviations = (result.maps[0] - wanted) / result.standard_errors[0]
    assert deviations.abs().max() < 4
    assert deviations.abs().max() > 0.3  # no standard error is far too large
    assert (result.standard_errors[0] < 0.1 * wanted.abs().max()).all()


@every_game
def test_a_standard_error_is_what_other_seeds_give(case: ModelCase) -> None:
    model, pixels = shared(case, dtype=torch.float64), case.images(torch.float64, batch=1)
    results = [
        ShapleyValues(model, 24, GROUPS, seed, batch_size=512).attribute_with_errors(pixels, 2)
        for seed in range(40)
    ]
    spread = torch.stack([result.maps[0] for result in results]).square().mean(0)
    spread = spread - torch.stack([result.maps[0] for result in results]).mean(0).square()
    stated = torch.stack([result.standard_errors[0] for result in results]).square().mean(0)
    assert 0.7 < float((stated / spread).mean()) < 1.4


@every_game
def test_a_permutation_and_its_reverse_beat_two_others(case: ModelCase) -> None:
    model, pixels = shared(case, dtype=torch.float64), case.images(torch.float64, batch=1)
    values, members = game_of(case)
    wanted, generator = enumerated(case)[2], torch.Generator().manual_seed(0)

    def error_of_others() -> float:
        patches = torch.zeros(wanted.numel(), dtype=torch.float64)
        for _ in range(8):
            order = torch.randperm(len(members), generator=generator).tolist()
            for place, player in enumerate(order):
                before = frozenset(order[:place])
                gain = (values[before | {player}] - values[before])[2]
                patches[members[player]] += gain / len(members[player]) / 8
        return float((patches.reshape(wanted.shape) - wanted).square().mean())

    pairs = [
        ShapleyValues(model, 8, GROUPS, seed, batch_size=512).attribute_patches(pixels, 2)[0]
        for seed in range(40)
    ]
    error = sum(float((one - wanted).square().mean()) for one in pairs) / len(pairs)
    assert error < 0.7 * sum(error_of_others() for _ in range(400)) / 400


@pytest.mark.parametrize("groups", [(1, 1), (2, 3), (4, 4), (2, 4)], ids=str)
@pytest.mark.parametrize("case", [VIT, MEAN], ids=lambda case: case.name)
def test_a_map_sums_to_the_score(case: ModelCase, groups: tuple[int, int]) -> None:
    model, pixels = shared(case), case.images()
    shapley = ShapleyValues(model, samples=2, groups=groups)
    result = shapley.attribute_with_errors(pixels, [5, 0, 3], contrast=1)
    total = result.full_scores - result.empty_scores
    assert torch.allclose(result.maps.sum((1, 2)), total, atol=1e-5)
    logits = model(pixels).logits
    wanted = logits[range(3), [5, 0, 3]] - logits[:, 1]
    assert torch.allclose(result.full_scores, wanted, atol=1e-5)
    assert result.standard_errors.isnan().all()  # of a single pair
    player_of = player_grid(case.grid, groups)
    for player in range(int(player_of.max()) + 1):
        values = result.maps[:, player_of == player]
        assert (values == values[:, :1]).all()


def test_two_players_are_exact() -> None:
    result = ShapleyValues(shared(VIT), samples=4, groups=(2, 4)).attribute_with_errors(
        VIT.images(), 3
    )
    assert (result.standard_errors < 1e-6).all()


def test_captums_shapley_values_of_a_model_that_adds_its_patches() -> None:
    """A grey patch adds nothing to this model, as does an absent one."""
    model = own_head(ViTModel, ViTConfig, lambda tokens: tokens[:, 1:].sum(1))
    for name, weight in model.named_parameters():
        if "o_proj" in name or "fc2" in name or "position" in name or name.endswith("norm.bias"):
            weight.data.zero_()
        if name.endswith("projection.bias"):
            weight.data.zero_()
    pixels = VIT.images()
    mask = torch.arange(16).reshape(1, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    captum = ShapleyValueSampling(model).attribute(
        pixels, target=3, feature_mask=mask, n_samples=1, perturbations_per_eval=4
    )
    result = ShapleyValues(model, samples=4, readout="cls").attribute_with_errors(pixels, 3)
    assert torch.allclose(result.maps, captum[:, 0, ::8, ::8], atol=1e-5)
    assert result.maps.std() > 0.1
    assert (result.standard_errors < 1e-5).all()


def test_batches_of_copies_change_nothing() -> None:
    model, pixels = shared(OBLONG), OBLONG.images()
    results = [
        ShapleyValues(model, 6, GROUPS, batch_size=size).attribute_with_errors(pixels, 2)
        for size in (1, 12, 1000)  # rounds of one, two and all pairs
    ]
    for other in results[1:]:
        assert same(results[0].maps, other.maps)
        assert torch.allclose(results[0].standard_errors, other.standard_errors, rtol=1e-3)
    seeded = ShapleyValues(model, 6, GROUPS, seed=1).attribute_patches(pixels, 2)
    assert not same(results[0].maps, seeded)


def test_targets_share_their_forwards() -> None:
    model = VIT.build()
    forwards: list[None] = []
    model.register_forward_hook(lambda *_: forwards.append(None))
    shapley = ShapleyValues(model, samples=2, groups=GROUPS)
    shapley.attribute_patches(VIT.images(), 3)
    alone = len(forwards)
    shapley.attribute_targets(VIT.images(), [3, 4, None])
    assert len(forwards) == 2 * alone


class Scaled(nn.Module):
    """A user's module that takes a tensor with a row for each image."""

    def __init__(self) -> None:
        """Hold the tiny ViT."""
        super().__init__()
        self.model = VIT.build()

    def forward(self, pixels: Tensor, scale: Tensor) -> Tensor:
        """Scores with two dimensions, scaled for each image."""
        logits: Tensor = self.model(pixels).logits
        return (logits * scale[:, None])[:, :6].reshape(-1, 2, 3)


def test_arguments_of_the_images_and_scores_of_two_dimensions() -> None:
    scale, pixels = torch.tensor([1.0, 2.0, -3.0]), VIT.images()
    wanted = ShapleyValues(VIT.build(), 2, GROUPS).attribute_patches(pixels, [5, 0, 4])
    shapley = ShapleyValues(Scaled(), 2, GROUPS)
    targets: Any = [(1, 2), (0, 0), (1, 1)]
    assert same(shapley.attribute_patches(pixels, targets, scale), wanted * scale[:, None, None])
    by_name = shapley.attribute_patches(pixels, targets, scale=scale)
    assert same(by_name, wanted * scale[:, None, None])


def interrupting(model: Any, forwards: int) -> None:
    """Send this process Ctrl-C in a forward of the model."""
    left = forwards

    def stop(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            signal.raise_signal(signal.SIGINT)

    model.vit.layers[1].register_forward_hook(stop)


def test_an_interrupt_gives_the_permutations_so_far() -> None:
    """With 8 copies in a forward, 8 permutations of 3 coalitions are a round: 5 forwards in all."""
    pixels = VIT.images(batch=1)
    model = VIT.build()
    interrupting(model, forwards=2 + 2 * 3 + 1)
    shapley = ShapleyValues(model, samples=100, groups=GROUPS)
    with unchanged(model), pytest.warns(UserWarning, match="after 16 of 100 permutations"):
        result = shapley.attribute_with_errors(pixels, 3)
    wanted = ShapleyValues(VIT.build(), samples=16, groups=GROUPS).attribute_with_errors(pixels, 3)
    assert result.samples == wanted.samples == 16
    assert torch.equal(result.maps, wanted.maps)
    assert torch.equal(result.standard_errors, wanted.standard_errors)


@pytest.mark.parametrize(
    ("forwards", "call"),
    [
        (1, lambda shapley, pixels: shapley.attribute_with_errors(pixels, 3)),
        (4, lambda shapley, pixels: shapley.attribute_with_errors(pixels, 3)),
        (9, lambda shapley, pixels: shapley.attribute(pixels, 3)),
        (9, lambda shapley, pixels: shapley.attribute_with_scores(pixels)),
    ],
    ids=["first", "no pair", "map", "scores"],
)
def test_an_interrupt_without_a_result(
    forwards: int, call: Callable[[ShapleyValues, Tensor], Any]
) -> None:
    model = VIT.build()
    interrupting(model, forwards)
    with unchanged(model), pytest.raises(KeyboardInterrupt):
        call(ShapleyValues(model, samples=100, groups=GROUPS), VIT.images(batch=1))


def test_standard_errors_shrink_with_the_samples() -> None:
    model, pixels = shared(OBLONG, dtype=torch.float64), OBLONG.images(torch.float64)
    few, many = (
        ShapleyValues(model, samples, GROUPS, batch_size=64).attribute_with_errors(pixels, 2)
        for samples in (32, 512)
    )
    shrinking = (few.standard_errors / many.standard_errors).mean()
    assert 3 < shrinking < 5  # about the square root of 16


def test_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ShapleyValues(shared(VIT), 2, GROUPS, progress=True).attribute_patches(VIT.images(), 3)
    assert capsys.readouterr() == ("", "")  # no terminal
    monkeypatch.setenv("FORCE_COLOR", "1")
    maps = [
        ShapleyValues(shared(VIT), 2, GROUPS, progress=shown).attribute_patches(VIT.images(), 3)
        for shown in (False, True)
    ]
    written = capsys.readouterr()
    assert torch.equal(*maps)
    assert not written.out
    assert "Shapley values" in written.err
    assert "100%" in written.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"samples": 3}, "samples must be even"),
        ({"samples": 0}, "samples must be a whole number from 1"),
        ({"groups": (0, 1)}, "groups must be a whole number from 1"),
        ({"groups": 2}, "groups must be the rows and columns"),
        ({"groups": (1, 2, 3)}, "such as"),
        ({"groups": "22"}, "groups must be the rows and columns"),
        ({"seed": -1}, "seed must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"progress": 1}, "progress must be True or False"),
    ],
    ids=str,
)
def test_options_out_of_range(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        ShapleyValues(shared(VIT), **options)


def test_scores_that_are_not_finite() -> None:
    broken = Around(VIT.build(), lambda vit, pixels: vit(pixels).logits / 0)
    with pytest.raises(Exception, match="scores are not finite"):
        ShapleyValues(broken, 2, GROUPS).attribute(VIT.images(), 3)
    with pytest.raises(InputError, match="refused images of 40 x 40"):
        ShapleyValues(shared(VIT), 2).attribute_with_errors(torch.zeros(1, 3, 40, 40), 3)
