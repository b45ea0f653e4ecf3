"""Measure Shapley values: their error, their cost, and how close other methods come to them.

    python -m benchmarks.shapley
    python -m benchmarks.shapley --images 2 --samples 4 --few 1
    python -m benchmarks.shapley --no-scenes --few 1

Explain the top class of synthetic scenes with the bundled model, and of photos with the trained
model of the kit where it is at hand, and print tables as Markdown. Times are ratios within one run;
run it on a quiet machine.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor

from hf_gmar import ShapleyValues, load_model
from hf_gmar._utils.stats import bootstrap, rank_correlations
from hf_gmar.data import draw_scene, open_image
from hf_gmar.methods import METHODS, ShapleyAttribution
from hf_gmar.methods.shapley_values import player_grid
from hf_gmar.models import LoadedModel
from hf_gmar.perturbations import TokenDropping

KIT = Path(__file__).parents[2] / "shared" / "kit"
SEEDS = range(8)
"""Seeds of the sampling whose error is measured."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Subject:
    """Images for one model.

    Attributes:
        name: shown above the tables.
        loaded: the model.
        images: pixel values of each image, (1, channels, height, width).
        targets: the top class of each image.
    """

    name: str
    loaded: LoadedModel
    images: list[Tensor]
    targets: list[int]

    @classmethod
    def of(cls, name: str, loaded: LoadedModel, images: Sequence[Any]) -> Subject:
        """Process the images, and find their top classes."""
        pixels = [loaded.pixels(image) for image in images]
        with torch.no_grad():
            targets = [int(loaded.model(image).logits.argmax()) for image in pixels]
        return cls(name, loaded, pixels, targets)


def subjects(images: int, kit: Path, scenes: bool) -> Iterator[Subject]:
    """Yield scenes with the bundled model, and photos with the kit's model if it is there."""
    if scenes:
        drawn = [draw_scene(seed).image for seed in range(images)]
        yield Subject.of(f"{images} synthetic scenes, bundled model", load_model("bundled"), drawn)
    paths = sorted((kit / "images").rglob("*.jpg"))
    if not paths:
        typer.echo(f"no photos in {kit}: none are measured", err=True)
        return
    chosen = [open_image(paths[place * len(paths) // images]) for place in range(images)]
    yield Subject.of(
        f"{images} photos, {kit.name}/photo-vit", load_model(kit / "photo-vit"), chosen
    )


# Error


def groups_for(grid: tuple[int, int], rows: int, columns: int) -> tuple[int, int]:
    """Return the groups of patches that make at most this many players."""
    return math.ceil(grid[0] / rows), math.ceil(grid[1] / columns)


def coalition_scores(subject: Subject, place: int, players: Tensor, batch: int) -> Array:
    """Return the target's logit of each coalition (2^n,), whose bits are its players.

    Without a score of no player, it is the mean of the scores of single players.
    """
    count = int(players.max()) + 1
    bits = (torch.arange(2**count)[:, None] >> torch.arange(count)) & 1
    bound = TokenDropping().bind(subject.loaded.model, subject.images[place], batch=batch)
    fewest = TokenDropping().fewest(bound.image.adapter)
    scores = bound.scores(bits.bool()[fewest:, players])[:, subject.targets[place]].double().cpu()
    values = torch.cat([scores.new_zeros(fewest), scores]).numpy()
    if fewest:
        values[0] = values[2 ** np.arange(count)].mean()
    return np.asarray(values, dtype=np.float64)


def enumerated(values: Array) -> Array:
    """Return the Shapley value of each player (n,) from the scores of all coalitions (2^n,)."""
    count = int(math.log2(len(values)))
    coalitions = np.arange(len(values))
    sizes = ((coalitions[:, None] >> np.arange(count)) & 1).sum(1)
    weights = np.array(
        [1 / (count * math.comb(count - 1, size)) for size in range(count)], dtype=np.float64
    )
    shapley = np.empty(count)
    for player in range(count):
        without = coalitions[(coalitions >> player) & 1 == 0]
        gains = values[without | 1 << player] - values[without]
        shapley[player] = (weights[sizes[without]] * gains).sum()
    return shapley


def independent_estimate(values: Array, samples: int, seed: int) -> Array:
    """Estimate the Shapley values (n,) from permutations that come without their reverses."""
    count = int(math.log2(len(values)))
    random, shapley = np.random.default_rng(seed), np.zeros(count)
    for _ in range(samples):
        order = random.permutation(count)
        chain = values[np.concatenate([[0], np.cumsum(1 << order)])]
        shapley[order] += np.diff(chain) / samples
    return shapley


def error_table(subject: Subject, images: int, budgets: Sequence[int], batch: int) -> None:
    """Print the error of the estimate against enumeration for several budgets."""
    grid = _grid(subject)
    groups = groups_for(grid, 3, 4)
    players = player_grid(grid, groups)
    sizes = players.flatten().bincount().numpy()
    first = [int((players.flatten() == player).nonzero()[0]) for player in range(len(sizes))]
    rows: dict[int, list[tuple[float, float, float]]] = {budget: [] for budget in budgets}
    for place in range(images):
        values = coalition_scores(subject, place, players, batch)
        exact = enumerated(values)
        for budget, seed in itertools.product(budgets, SEEDS):
            result = _run(subject, place, budget, batch, groups=groups, seed=seed)
            estimate, stated = (
                part[0].double().flatten()[first].numpy() * sizes
                for part in (result.maps, result.standard_errors)
            )
            other = independent_estimate(values, budget, seed)
            covered = float((np.abs(estimate - exact) <= 2 * stated).mean())
            rows[budget].append((_error(estimate, exact), _error(other, exact), covered))
    typer.echo(
        f"\nError against the enumeration of {2 ** len(sizes)} coalitions, {images} images\n"
    )
    typer.echo(
        "| samples | antithetic | independent | within 2 standard errors |\n|---|---|---|---|"
    )
    for budget, found in rows.items():
        antithetic, independent, covered = (fmean(column) for column in zip(*found, strict=True))
        share = "-" if budget == 2 else f"{covered:.0%}"
        typer.echo(f"| {budget} | {antithetic:.3f} | {independent:.3f} | {share} |")


def _error(estimate: Array, exact: Array) -> float:
    """Root mean square error over the players, relative to the values' standard deviation."""
    return float(np.sqrt(((estimate - exact) ** 2).mean()) / exact.std())


# Spread, cost and correlation


def cost_table(
    subject: Subject, images: int, budgets: Sequence[int], batch: int, groups: tuple[int, int]
) -> None:
    """Print spread and cost of several budgets."""
    reference = METHODS.build("gmar", subject.loaded.model)
    rows: dict[int, list[tuple[float, float]]] = {budget: [] for budget in budgets}
    reference.attribute_patches(subject.images[0])  # the first call is slower
    for place, budget in itertools.product(range(images), budgets):
        call = functools.partial(_run, subject, place, budget, batch, groups=groups)
        plain = functools.partial(
            reference.attribute_patches, subject.images[place], subject.targets[place]
        )
        _, before = _timed(plain)
        result, spent = _timed(call)
        ratio = result.standard_errors.mean() / result.maps.std(correction=0)
        rows[budget].append((float(ratio), spent / before))
    typer.echo(f"\nSpread and cost with {_players(subject, groups)} players, {images} images\n")
    typer.echo("| samples | mean standard error / standard deviation of values | time / GMAR |")
    typer.echo("|---|---|---|")
    for budget, found in rows.items():
        spreads, times = zip(*found, strict=True)
        spread = "-" if budget == 2 else f"{fmean(spreads):.2f}"
        typer.echo(f"| {budget} | {spread} | {median(times):.0f} |")


def correlation_table(subject: Subject, samples: int, batch: int, groups: tuple[int, int]) -> None:
    """Print the rank correlation of each method's map with the Shapley values."""
    maps, seconds = _method_maps(subject)
    places = range(len(subject.images))
    wanted, again = (
        [_run(subject, place, samples, batch, groups=groups, seed=seed).maps for place in places]
        for seed in (0, 1)
    )
    maps["shapley-values, other permutations"] = again
    typer.echo(
        f"\nRank correlation with the Shapley values of {_players(subject, groups)} players, "
        f"{samples} samples, {len(places)} images\n"
    )
    typer.echo("| method | mean and 95 % interval | time / GMAR |\n|---|---|---|")
    for name, found in maps.items():
        values = [
            float(rank_correlations([_means(one, groups), _means(other, groups)])[0, 1])
            for one, other in zip(found, wanted, strict=True)
        ]
        ratio = _ratio(seconds.get(name), seconds["gmar"])
        typer.echo(f"| {name} | {bootstrap(np.array(values))} | {ratio} |")


def _means(maps: Tensor, groups: tuple[int, int]) -> Tensor:
    """Average maps (1, rows, columns) over the patches of each player."""
    return torch.nn.functional.avg_pool2d(maps, groups, groups, ceil_mode=True)


def _method_maps(subject: Subject) -> tuple[dict[str, list[Tensor]], dict[str, list[float]]]:
    """Return the maps of every other method, and the seconds that each took."""
    model = subject.loaded.model
    methods = {name: METHODS.build(name, model) for name in METHODS if METHODS[name].by_default}
    methods["attn-lrp (layers=lower)"] = METHODS.build("attn-lrp", model, layers="lower")
    maps: dict[str, list[Tensor]] = {name: [] for name in methods}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for pixels, target in zip(subject.images, subject.targets, strict=True):
        for name, method in methods.items():
            found, spent = _timed(functools.partial(method.attribute_patches, pixels, target))
            maps[name].append(found)
            seconds[name].append(spent)
    return maps, seconds


def _ratio(seconds: Sequence[float] | None, reference: Sequence[float]) -> str:
    if seconds is None:
        return "-"
    return f"{median(one / other for one, other in zip(seconds, reference, strict=True)):.1f}"


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def _run(
    subject: Subject, place: int, samples: int, batch: int, **options: Any
) -> ShapleyAttribution:
    shapley = ShapleyValues(subject.loaded.model, samples, batch_size=batch, **options)
    return shapley.attribute_with_errors(subject.images[place], subject.targets[place])


def _grid(subject: Subject) -> tuple[int, int]:
    height, width = subject.images[0].shape[-2:]
    return ShapleyValues(subject.loaded.model).adapter.layout.grid(height, width)


def _players(subject: Subject, groups: tuple[int, int]) -> int:
    return int(player_grid(_grid(subject), groups).max()) + 1


def main(
    images: Annotated[int, typer.Option(min=1, help="Number of scenes, and of photos.")] = 16,
    samples: Annotated[int, typer.Option(min=2, help="Largest number of permutations.")] = 16,
    few: Annotated[
        int, typer.Option(min=1, help="Images of the tables that need several budgets.")
    ] = 4,
    side: Annotated[int, typer.Option(min=1, help="Most players in a row or column.")] = 8,
    batch: Annotated[int, typer.Option(min=1, help="Copies in one forward.")] = 16,
    kit: Annotated[Path, typer.Option(help="Folder with photos and a trained model.")] = KIT,
    scenes: Annotated[bool, typer.Option(help="Whether scenes are measured, too.")] = True,
) -> None:
    """Print the tables of each set of images."""
    budgets = [2**power for power in range(1, 20) if 2**power < samples]
    for subject in subjects(images, kit, scenes):
        typer.echo(f"\n## {subject.name}")
        groups = groups_for(_grid(subject), side, side)
        error_table(subject, min(few, images), [*budgets, samples], batch)
        cost_table(subject, min(few, images), [*budgets, samples], batch, groups)
        correlation_table(subject, samples, batch, groups)


if __name__ == "__main__":
    typer.run(main)
