"""Measures what questions without a class cost, relative to a GMAR map of one class.

    python -m benchmarks.questions PHOTOS --model MODEL

The dense head is an untrained linear layer on the model's patches: its cost does not depend on its
weights. Times are medians of ratios within a round; memory is the peak above the memory in use
before the call, in one process.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from benchmarks.memory import free_at_once, peak_above
from benchmarks.timing import by_round, round_robin
from hf_gmar import GMAR, AttentionRollout, AttnLRP, RawAttention, SimilarityModel, load_model
from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar.data import find_images, open_image

CPU = torch.device("cpu")
CLASS = "GMAR, a class"


class DenseHead(nn.Module):
    """Scores (B, K, rows, columns) by a linear layer on each patch of a tower."""

    readout = "place"

    def __init__(self, adapter: ModelAdapter, grid: tuple[int, int], classes: int = 21) -> None:
        super().__init__()
        self.body: Any = adapter.vision_model
        self.prefix, self.grid = adapter.tokens.num_prefix_tokens, grid
        self.head = nn.Linear(self.body.config.hidden_size, classes)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Compute the scores of each patch."""
        patches = self.body(pixel_values).last_hidden_state[:, self.prefix :]
        scores: Tensor = self.head(patches).mT.unflatten(2, self.grid)
        return scores


def questions(model: Any, pixels: Tensor, other: Tensor) -> dict[str, partial[Any]]:
    """Return a call for each question about the same images."""
    adapter = ModelAdapter.of(model)
    rows, columns = grid = adapter.layout.grid(*pixels.shape[-2:])
    place = rows // 2, columns // 3
    dense, similar = DenseHead(adapter, grid), SimilarityModel(model, other)
    gmar_of_place = GMAR(dense).attribute_patches
    region = 3, slice(0, rows // 2), slice(0, columns // 2)

    def with_its_embedding() -> Tensor:
        return GMAR(SimilarityModel(model, other)).attribute_patches(pixels, 0)

    return {
        CLASS: partial(GMAR(model).attribute_patches, pixels, 0),
        "AttnLRP, a class": partial(AttnLRP(model).attribute_patches, pixels, 0),
        "raw attention from one patch": partial(
            RawAttention(model, readout=place).attribute_patches, pixels
        ),
        "attention rollout from one patch": partial(
            AttentionRollout(model, readout=place).attribute_patches, pixels
        ),
        "GMAR, similarity to another image": partial(GMAR(similar).attribute_patches, pixels, 0),
        "the same, with the other image's embedding": partial(with_its_embedding),
        "AttnLRP, similarity to another image": partial(
            AttnLRP(similar).attribute_patches, pixels, 0
        ),
        "GMAR, one place of a dense head": partial(gmar_of_place, pixels, (3, *place)),
        "GMAR, a region of a dense head": partial(gmar_of_place, pixels, region),
    }


def main(
    photos: Annotated[Path, typer.Argument(help="A folder of images.")],
    model: Annotated[str, typer.Option(help="A model on the Hub, or a folder.")] = "bundled",
    batch: Annotated[int, typer.Option(min=1, help="Images in a call.")] = 4,
    repeats: Annotated[int, typer.Option(min=1, help="Counted rounds.")] = 7,
    threads: Annotated[int, typer.Option(min=1, help="Threads of PyTorch.")] = 1,
) -> None:
    """Print a table of times and peaks as ratios to a GMAR map of one class."""
    torch.set_num_threads(threads)
    free_at_once()
    loaded = load_model(model)
    images = [loaded.pixels(open_image(path)) for path in find_images(photos)[: batch + 1]]
    runs = questions(loaded.model, torch.cat(images[:-1]), images[-1])
    seconds = round_robin(runs, repeats, CPU, lambda: None)
    peaks = {name: [peak_above(run, CPU).bytes for _ in range(3)] for name, run in runs.items()}
    print(f"{len(images) - 1} images, {repeats} rounds, {threads} threads\n")
    print("| question | time | peak memory |")
    print("|---|---|---|")
    for name in runs:
        time = median(by_round(seconds[name], seconds[CLASS]))
        known = [peak for peak in peaks[name] if peak is not None]
        base = [peak for peak in peaks[CLASS] if peak is not None]
        memory = f"{median(known) / median(base):.2f}" if known else "unknown"
        print(f"| {name} | {time:.2f} | {memory} |")


if __name__ == "__main__":
    typer.run(main)
