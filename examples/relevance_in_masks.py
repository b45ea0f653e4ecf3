"""How much of an explanation lands on the object that it explains?

    python examples/relevance_in_masks.py --scenes 300

Draw new scenes, explain each object that the bundled model finds, and print the share of relevance
inside that object's mask. Two references: relevance spread evenly over the image, and the relevance
of the same map on the scene's other objects. Every patch is weighted by its area inside the
mask; maps are scaled to sum to 1. Intervals: 95 %, bootstrap over scenes.
"""

from __future__ import annotations

import itertools
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch.nn.functional import avg_pool2d

from hf_gmar import GMAR, load_model
from hf_gmar.data import Scene, draw_scene
from hf_gmar.methods.layer_rules import NORMS
from hf_gmar.models import LoadedModel

Shares = NDArray[np.float64]


def shares_of_scene(loaded: LoadedModel, gmar: GMAR, scene: Scene) -> Shares:
    """Measure relevance in each found object, if spread evenly, and on the others, (objects, 3)."""
    model = loaded.model
    pixels = loaded.processor(images=scene.image, return_tensors="pt").pixel_values
    detected = (model(pixels).logits[0, list(scene.classes)] > 0).tolist()
    masks = torch.from_numpy(scene.masks).float()
    covered = avg_pool2d(masks, model.config.patch_size).flatten(1)  # (objects, patches)
    rows = []
    for number in (n for n, present in enumerate(detected) if present):
        relevance = gmar.attribute_patches(pixels, scene.classes[number]).flatten()
        inside = covered @ (relevance / relevance.sum())
        others = [n for n in range(len(covered)) if n != number]
        rows.append([inside[number], covered[number].mean(), inside[others].mean()])
    return np.asarray(rows, dtype=float).reshape(-1, 3)


def interval(per_scene: list[Shares], draws: int = 2000) -> tuple[Shares, Shares, Shares]:
    """Compute the mean over objects and its 95 % bootstrap interval over scenes."""
    rng = np.random.default_rng(0)
    sums = np.stack([shares.sum(axis=0) for shares in per_scene])
    counts = np.array([len(shares) for shares in per_scene])
    picked = rng.integers(len(per_scene), size=(draws, len(per_scene)))
    means = sums[picked].sum(axis=1) / counts[picked].sum(axis=1)[:, None]
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return sums.sum(axis=0) / counts.sum(), low, high


def main(
    scenes: Annotated[int, typer.Option(min=2, help="Number of scenes.")] = 300,
    first_seed: Annotated[int, typer.Option(help="Seed of the first scene.")] = 0,
) -> None:
    """Print a table: one row for each norm and alpha."""
    loaded = load_model("bundled")
    samples = [draw_scene(first_seed + i) for i in range(scenes)]
    typer.echo("| GMAR | relevance in the object | even relevance | relevance on another object |")
    typer.echo("|---|---|---|---|")
    for norm, alpha in itertools.product(NORMS, (1.0, 0.25)):
        gmar = GMAR(loaded.model, norm=norm, alpha=alpha)
        per_scene = [shares_of_scene(loaded, gmar, scene) for scene in samples]
        cells = [
            f"{m:.1%} ({low:.1%} to {high:.1%})"
            for m, low, high in zip(*interval(per_scene), strict=True)
        ]
        typer.echo(f"| {norm}, alpha {alpha} | {' | '.join(cells)} |")
    typer.echo(f"\n{scenes} scenes, {sum(map(len, per_scene))} objects found")


if __name__ == "__main__":
    typer.run(main)
