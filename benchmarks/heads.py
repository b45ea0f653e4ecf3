"""Tests whether head importance predicts the loss of a class's score without the head.

    python -m benchmarks.heads --model bundled --scenes 100
    python -m benchmarks.heads --model PATH --images FOLDER --labels labels.csv

GMAR's head importance is compared with alternatives and chance in two tests:

1. Heads are masked by importance, most important first and least important first. The result is
   the area under the target's score minus the area of random orders on the same image.
2. Each head is masked alone. The result is Spearman's rank correlation between importance and loss
   of the target's score, over all heads of an image and within its layers. It is also computed with
   the absolute change, because an unsigned importance can't distinguish a loss from a gain.

The column ``path`` of the CSV file has the image paths, relative to the folder. Results are means
over images with 95 % bootstrap intervals.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from hf_gmar import GMAR, ablate_heads, load_model
from hf_gmar._engines.propagation import Block, LayerResult, Sums
from hf_gmar._utils.files import whole_file
from hf_gmar._utils.stats import Interval, bootstrap
from hf_gmar.data import draw_scene, open_image
from hf_gmar.heads import HeadAblation, HeadTaylorImportance, single_head_ablation
from hf_gmar.heads.ablation import LERF, MORF, RANDOM
from hf_gmar.methods import AttentionMethod
from hf_gmar.methods.layer_rules import NORMS
from hf_gmar.models import LoadedModel, find_class

Array = NDArray[np.float64]

L1, L2 = "GMAR, l1", "GMAR, l2"
UNSHARED = "gradient l1, not shared out by layer"
MICHEL = "absolute sum of A x G (Michel et al.)"
SIGNED = "sum of A x G, signed"
CHANCE = "chance"
SIDES = ("loss, all heads", "loss, in layers", "change, all heads", "change, in layers")
"""The effect that an importance is compared with, and the set of heads."""


class GradientOfHeads(AttentionMethod):
    """The sum of |G| of each head: GMAR's l1 norm before the division by the layer's sum."""

    source = "Jo, Jang and Park, ICIP 2025, arXiv 2504.19414"
    cost = "forward + backward"

    def __init__(self, model: torch.nn.Module) -> None:
        """Find the Transformers model and set the rule."""
        super().__init__(model)
        self.rule = _GradientRule()

    def sums(self, inputs: Tensor, target: list[int]) -> Array:
        """Return the sums, (B, layers, H)."""
        heads, _ = self._of_heads(inputs, self._target_spec(target, None), None, {})
        sums: Array = heads.double().cpu().numpy()
        return sums


class _GradientRule:
    def accumulate(self, block: Block) -> Sums:
        return (block.gradient.abs().sum((2, 3)),)

    def finish(self, sums: Sums, relevance: Tensor) -> LayerResult:
        return LayerResult(relevance, sums[0])


@dataclass
class Measurements:
    """The measurements of each image, by kind of importance.

    Attributes:
        ablations: the ablation of each batch.
        correlations: rank correlations of each image, (4,), in the order of ``SIDES``.
    """

    ablations: dict[str, list[HeadAblation]] = field(default_factory=dict)
    correlations: dict[str, list[Array]] = field(default_factory=dict)

    def joined(self) -> dict[str, HeadAblation]:
        """Join the curves of all images, so that their areas have a common unit."""
        return {name: _joined(parts) for name, parts in self.ablations.items()}


def importances(loaded: LoadedModel, pixels: Tensor, targets: list[int]) -> dict[str, Array]:
    """Compute each kind of importance, (images, layers, H)."""
    model = loaded.model
    gmar = {
        name: GMAR(model, norm=norm).head_importance(pixels, targets).double().cpu().numpy()
        for name, norm in zip((L1, L2), NORMS, strict=True)
    }
    products = HeadTaylorImportance(model).head_importance(pixels, targets).double().cpu().numpy()
    norms = GradientOfHeads(model).sums(pixels, targets)
    return {**gmar, UNSHARED: norms, MICHEL: np.abs(products), SIGNED: products}


def measure_batch(
    results: Measurements,
    loaded: LoadedModel,
    pixels: Tensor,
    targets: list[int],
    plan: Plan,
    start: int,
) -> None:
    """Add the measurements of a batch; ``start`` is the index of its first image."""
    kinds = importances(loaded, pixels, targets)
    random_orders = plan.random_orders  # only for the first kind: all kinds share random orders
    for name, scores in kinds.items():
        ablation = ablate_heads(
            loaded.model, pixels, torch.from_numpy(scores), targets, steps=plan.steps,
            random_orders=random_orders, seed=plan.seed + start, within_layers=plan.within_layers,
        )  # fmt: skip
        results.ablations.setdefault(name, []).append(ablation)
        random_orders = 0
    few = max(0, min(len(pixels), plan.singles - start))
    if few:
        drops = (
            single_head_ablation(loaded.model, pixels[:few], targets[:few]).double().cpu().numpy()
        )
        chance = np.random.default_rng([plan.seed, start]).random(drops.shape)
        _correlate(results, {**kinds, CHANCE: chance}, drops)


@dataclass(frozen=True)
class Plan:
    """The settings of the benchmark."""

    steps: int
    random_orders: int
    singles: int
    seed: int
    within_layers: bool


def _correlate(results: Measurements, kinds: dict[str, Array], drops: Array) -> None:
    for name, scores in kinds.items():
        rows = [_sides(image, drop) for image, drop in zip(scores, drops, strict=False)]
        results.correlations.setdefault(name, []).extend(rows)


def _sides(scores: Array, drops: Array) -> Array:
    """Correlate one image's scores and drops, (layers, H), in the order of ``SIDES``."""
    sides = []
    for effect in (drops, np.abs(drops)):
        layers = [spearman(*pair) for pair in zip(scores, effect, strict=True)]
        sides += [spearman(scores.ravel(), effect.ravel()), float(np.mean(layers))]
    return np.array(sides)


def spearman(left: Array, right: Array) -> float:
    """Return Spearman's rank correlation; ties share a rank, and constant values give 0.

    Example:
        >>> round(spearman(np.array([0.1, 0.2, 0.3]), np.array([1.0, 5.0, 9.0])), 6)
        1.0
        >>> spearman(np.array([1.0, 1.0]), np.array([1.0, 5.0]))
        0.0
    """
    first, second = (_ranks(values) - _ranks(values).mean() for values in (left, right))
    scale = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float(first @ second) / scale if scale else 0.0


def _ranks(values: Array) -> Array:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    mean_rank: Array = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return mean_rank


def _joined(parts: list[HeadAblation]) -> HeadAblation:
    curves = {
        name: np.concatenate([part.curves[name] for part in parts]) for name in parts[0].curves
    }
    targets = np.concatenate([part.targets for part in parts])
    return HeadAblation(parts[0].fractions, curves, targets, parts[0].settings)


def area_rows(results: Measurements) -> dict[str, dict[str, Interval]]:
    """Return each kind's areas minus the area of random orders, for both orders."""
    joined = results.joined()
    random = joined[L1].areas()[RANDOM]
    rows = {}
    for name, ablation in joined.items():
        areas = ablation.areas()
        rows[name] = {order: bootstrap(areas[order] - random) for order in (MORF, LERF)}
        rows[name]["mean of both ways"] = bootstrap((areas[LERF] - areas[MORF]) / 2)
    return rows


def correlation_rows(results: Measurements) -> dict[str, dict[str, Interval]]:
    """Return the mean rank correlation of each kind over images."""
    means = {name: bootstrap(np.stack(values)) for name, values in results.correlations.items()}
    return {
        name: {side: Interval(*(part[n] for part in mean)) for n, side in enumerate(SIDES)}
        for name, mean in means.items()
    }


def table(title: str, rows: dict[str, dict[str, Interval]]) -> Table:
    """Make a Markdown table of the rows."""
    columns = list(next(iter(rows.values())))
    result = Table(title=title, title_justify="left", box=box.MARKDOWN)
    for heading in ("importance", *columns):
        result.add_column(heading)
    for name, cells in rows.items():
        result.add_row(name, *(str(cells[column]) for column in columns))
    return result


def scene_batches(loaded: LoadedModel, count: int, size: int) -> Iterator[tuple[Tensor, list[int]]]:
    """Yield batches of synthetic scenes; the target is the first object of each scene."""
    for start in range(0, count, size):
        scenes = [draw_scene(seed) for seed in range(start, min(start + size, count))]
        images = [scene.image for scene in scenes]
        pixels = loaded.processor(images=images, return_tensors="pt").pixel_values
        yield pixels, [scene.classes[0] for scene in scenes]


def photo_batches(
    loaded: LoadedModel, rows: list[tuple[Path, int]], size: int
) -> Iterator[tuple[Tensor, list[int]]]:
    """Yield batches of photos with their labels."""
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        images = [open_image(path) for path, _ in batch]
        pixels = loaded.processor(images=images, return_tensors="pt").pixel_values
        yield pixels, [label for _, label in batch]


def labelled(
    loaded: LoadedModel, images: Path, labels: Path, column: str, count: int, seed: int
) -> list[tuple[Path, int]]:
    """Draw random rows of the CSV file; return the image file and class of each."""
    with labels.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    picked = np.random.default_rng(seed).permutation(len(rows))[:count]
    config = loaded.model.config
    return [(images / rows[n]["path"], find_class(config, rows[n][column])) for n in picked]


def main(  # noqa: PLR0913, PLR0917  # an option is a parameter
    model: Annotated[
        str, typer.Option(help="bundled, a folder, or a model on the Hub.")
    ] = "bundled",
    scenes: Annotated[int, typer.Option(min=2, help="Scenes, if no images are given.")] = 100,
    images: Annotated[Path | None, typer.Option(help="Folder of the image paths.")] = None,
    labels: Annotated[Path | None, typer.Option(help="CSV file with path and label.")] = None,
    column: Annotated[str, typer.Option(help="Its column with the label or index.")] = "label",
    photos: Annotated[int, typer.Option(min=2, help="How many of its images.")] = 50,
    singles: Annotated[int, typer.Option(help="Images for the test of single heads.")] = 1000,
    steps: Annotated[int, typer.Option(min=2, help="Steps of each curve.")] = 6,
    random_orders: Annotated[int, typer.Option(min=1, help="Random orders an image.")] = 3,
    within_layers: Annotated[
        bool, typer.Option("--within-layers", help="Mask the same share of each layer.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of photos and random orders.")] = 0,
    output: Annotated[Path | None, typer.Option(help="JSON file for all numbers.")] = None,
) -> None:
    """Print two tables in Markdown."""
    loaded, size = load_model(model), 8
    if images is not None and labels is not None:
        rows = labelled(loaded, images, labels, column, photos, seed)
        data, count = photo_batches(loaded, rows, size), len(rows)
    else:
        data, count = scene_batches(loaded, scenes, size), scenes
    results, start = Measurements(), 0
    plan = Plan(steps, random_orders, singles, seed, within_layers)
    progress = Console(stderr=True)
    for pixels, targets in track(data, "Masking", total=-(-count // size), console=progress):
        measure_batch(results, loaded, pixels, targets, plan, start)
        start += len(pixels)
    areas, correlations = area_rows(results), correlation_rows(results)
    out = Console(width=160)
    out.print(table(f"Area minus random order, {start} images", areas))
    out.print(table(f"Rank correlation, {len(results.correlations[CHANCE])} images", correlations))
    if output is not None:
        with whole_file(output) as part:
            part.write_text(
                json.dumps({"areas": _plain(areas), "correlations": _plain(correlations)})
            )


def _plain(rows: dict[str, dict[str, Interval]]) -> dict[str, dict[str, list[float]]]:
    return {
        name: {key: [float(number) for number in interval] for key, interval in cells.items()}
        for name, cells in rows.items()
    }


if __name__ == "__main__":
    typer.run(main)
