"""Measures what a forward under autocast changes: the maps, the probabilities and the time.

python -m benchmarks.precision PHOTOS --model MODEL
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from hf_gmar import Explainer, load_model
from hf_gmar._utils.stats import rank_correlations
from hf_gmar.data import find_images


def main(
    photos: Annotated[Path, typer.Argument(help="A folder of images.")],
    model: Annotated[str, typer.Option(help="A model on the Hub, or a folder.")] = "bundled",
    methods: Annotated[list[str], typer.Option(help="The methods.")] = ["gmar", "attn-lrp"],  # noqa: B006
    precision: Annotated[str, typer.Option(help="bfloat16 or float16.")] = "bfloat16",
    images: Annotated[int, typer.Option(help="Number of images.")] = 30,
) -> None:
    """Print the correlations of the maps, the change of probability and the ratio of times."""
    paths, loaded = find_images(photos)[:images], load_model(model)
    print(f"{len(paths)} images, float32 and {precision}\n")
    print("| method | r, mean | r, lowest | rank r, mean | probability, largest change | time |")
    print("|---|---|---|---|---|---|")
    for method in methods:
        exact, half = (Explainer(loaded, method, precision=each) for each in (None, precision))
        target = exact(paths[0]).target
        ratios, results = [], []
        for path in paths:
            seconds = []
            pair = []
            for explainer in (exact, half):
                start = time.perf_counter()
                pair.append(explainer(path, target))
                seconds.append(time.perf_counter() - start)
            ratios.append(seconds[1] / seconds[0])
            results.append(pair)
        maps = [torch.stack([pair[side].patches for pair in results]) for side in (0, 1)]
        r = torch.tensor(
            [
                float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])
                for a, b in zip(*maps, strict=True)
            ]
        )
        rank = float(rank_correlations(maps)[0, 1])
        change = max(abs(left.score - right.score) for left, right in results)
        ratio = float(torch.tensor(ratios).median())
        numbers = f"{r.mean():.4f} | {r.min():.4f} | {rank:.4f} | {change:.4f} | {ratio:.2f}"
        print(f"| {method} | {numbers} |")


if __name__ == "__main__":
    typer.run(main)
