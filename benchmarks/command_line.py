"""Measures the CPU seconds of 'hf-gmar explain' beside those of the bare explanations.

python -m benchmarks.command_line PHOTOS --model MODEL
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from typer.testing import CliRunner

from hf_gmar import load_model
from hf_gmar.cli.main import app
from hf_gmar.data import find_images, open_image
from hf_gmar.methods import METHODS
from hf_gmar.models import LoadedModel


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the user and system seconds of this process for some work."""
    before = os.times()
    work()
    after = os.times()
    return after.user + after.system - before.user - before.system


def explain_bare(loaded: LoadedModel, method: str, batches: list[torch.Tensor]) -> None:
    """Explain the top class of each image, without reading or drawing any."""
    explainer = METHODS.build(method, loaded.model)
    for batch in batches:
        explainer.attribute_patches(batch)


def run_command(words: list[str]) -> None:
    """Run the command in this process."""
    result = CliRunner().invoke(app, words)
    if result.exit_code:
        raise RuntimeError(result.output)


def main(
    photos: Annotated[Path, typer.Argument(help="A folder of images.")],
    model: Annotated[str, typer.Option(help="A model on the Hub, or a folder.")] = "bundled",
    method: Annotated[str, typer.Option(help="The method.")] = "gmar",
    images: Annotated[int, typer.Option(help="Number of images.")] = 100,
    batch_size: Annotated[int, typer.Option(help="Images in a forward.")] = 4,
    rounds: Annotated[int, typer.Option(help="Rounds, of which the best counts.")] = 3,
) -> None:
    """Print the CPU seconds of an image both ways, and their ratio."""
    torch.set_num_threads(1)  # threads that wait for each other use seconds too
    paths = find_images(photos)[:images]
    loaded = load_model(model)
    pixels = torch.cat([loaded.pixels(open_image(path)) for path in paths])
    batches = list(pixels.split(batch_size))
    with tempfile.TemporaryDirectory() as folder:
        words = ["explain", *map(str, paths), "--model", model, "--method", method]
        words += ["--device", "cpu", "--batch-size", str(batch_size), "--output", folder]
        ways: dict[str, Callable[[], object]] = {
            "attribute_patches": lambda: explain_bare(loaded, method, batches),
            "hf-gmar explain": lambda: run_command(words),
            "the same, of one image": lambda: run_command([*words[:2], *words[1 + len(paths) :]]),
        }
        seconds = dict.fromkeys(ways, math.inf)
        for _ in range(rounds):
            for name, work in ways.items():
                seconds[name] = min(seconds[name], cpu_seconds(work))
    start = seconds.pop("the same, of one image")  # loads the model as well
    seconds["hf-gmar explain"] -= start
    counts = {"attribute_patches": len(paths), "hf-gmar explain": len(paths) - 1}
    each = {name: value / counts[name] for name, value in seconds.items()}
    print(f"{len(paths)} images by {method} in batches of {batch_size}; start {start:.1f} s\n")
    print("| way | CPU seconds for each image | ratio |\n|---|---|---|")
    for name, value in each.items():
        print(f"| `{name}` | {value:.3f} | {value / each['attribute_patches']:.2f} |")


if __name__ == "__main__":
    typer.run(main)
