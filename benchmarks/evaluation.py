"""What measuring costs: curves of deletion and insertion, and what a second process brings.

    python -m benchmarks.evaluation
    python -m benchmarks.evaluation --model PATH --data FOLDER --images 4 --scaling 16

Run it from the root of the repository, on a quiet machine. The plain way puts one image with
patches removed through the whole model after another, for each step of each curve; all ways take
turns in one run, and a figure is the median of the ratios within each round, with their range.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks.timing import by_round, round_robin
from hf_gmar import GMAR, evaluate, load_model
from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar.data import ImageDataset, open_data
from hf_gmar.evaluation.run.distributed import Processes
from hf_gmar.metrics import patch_order
from hf_gmar.models import LoadedModel
from hf_gmar.models.labels import labels_of
from hf_gmar.perturbations import PERTURBATIONS, max_batch_size

PLAIN = "plain way, blur"
CURVES_HEAD = (
    "| curves of one map | images in a second | times as fast as the plain way | "
    "times as fast as masking |"
)
WAYS = ("blur", "attention-masking", "token-dropping")


@dataclass(frozen=True)
class Curve:
    """One image whose patches are removed in a map's order.

    Attributes:
        loaded: the model.
        pixels: pixel values, (1, channels, height, width).
        target: the explained class.
        kept: what is kept at each step, most and then least relevant first, (2, steps + 1, rows,
            columns).
    """

    loaded: LoadedModel
    pixels: Tensor
    target: int
    kept: Tensor

    @classmethod
    def of(cls, loaded: LoadedModel, pixels: Tensor, steps: int) -> Curve:
        """The curve of GMAR's map of the top class."""
        with torch.no_grad():
            target = int(loaded.model(pixels).logits.argmax())
        patches = GMAR(loaded.model).attribute_patches(pixels, target)[0]
        order, count = patch_order(patches), patches.numel()
        fewest = PERTURBATIONS.build("token-dropping").fewest(ModelAdapter.of(loaded.model))
        kept = torch.ones(2, steps + 1, count, dtype=torch.bool)
        for step in range(steps + 1):
            gone = min(round(step * count / steps), count - fewest)
            kept[0, step, order[:gone]] = False
            kept[1, step, order.flip(0)[:gone]] = False
        return cls(loaded, pixels, target, kept.unflatten(2, tuple(patches.shape)))

    def plainly(self) -> Tensor:
        """Deletion, then insertion, step by step: blurred, one copy at a time, all tokens."""
        adapter = ModelAdapter.of(self.loaded.model)
        begun = PERTURBATIONS.build("blur").bind(adapter, self.pixels, batch=1)
        steps = [self.kept[0], self.kept[1].flip(0)]
        return torch.cat([begun.scores(one[None]) for half in steps for one in half])

    def by(self, name: str, memory: int) -> Tensor:
        """The same scores as the package measures them: in batches, each copy once."""
        adapter = ModelAdapter.of(self.loaded.model)
        perturbation = PERTURBATIONS.build(name)
        batch = max_batch_size(adapter, self.pixels, memory, perturbation=perturbation)
        begun = perturbation.bind(adapter, self.pixels, batch=batch)
        whole, *between, nothing = self.kept[0]
        return begun.scores(torch.stack([whole, nothing, *between, *self.kept[1, 1:-1]]))

    def shares(self, name: str, memory: int) -> Tensor:
        """Probabilities of the target, in the order of :meth:`by`."""
        return self.by(name, memory).softmax(-1)[:, self.target]


def curves_table(
    loaded: LoadedModel, data: ImageDataset, steps: int, repeats: int, memory: int
) -> list[str]:
    """Rows of Markdown: images in a second by each way, and their ratio to the plain one."""
    pixels = [loaded.processor(images=one.image, return_tensors="pt").pixel_values for one in data]
    curves = [Curve.of(loaded, one, steps) for one in pixels]
    runs: dict[str, Callable[[], Any]] = {PLAIN: lambda: [one.plainly() for one in curves]}
    for name in WAYS:
        runs[name] = lambda name=name: [  # type: ignore[misc]
            one.by(name, memory) for one in curves
        ]
    seconds = round_robin(runs, repeats, torch.device("cpu"), lambda: None)
    lines = [CURVES_HEAD, "|---|---|---|---|"]
    for name, own in seconds.items():
        rate = len(curves) / median(own)
        lines.append(
            f"| {name} | {rate:.3g} | {_spread(by_round(seconds[PLAIN], own))} | "
            f"{_spread(by_round(seconds['attention-masking'], own))} |"
        )
    apart = max(
        float((one.shares("attention-masking", memory) - one.shares("token-dropping", memory))
        .abs().max()) for one in curves
    )  # fmt: skip
    return [*lines, "", f"Masking and dropping differ by {apart:.1e} in probability at most."]


def scaling(words: Sequence[str], images: int) -> list[str]:
    """Rows of Markdown: images in a second with one process and with two, one thread each."""
    lines = ["| processes | images in a second | times as fast as one |", "|---|---|---|"]
    rates = []
    for count in (1, 2):
        launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch",
                  "--num_processes", str(count), *(["--multi_gpu"] if count > 1 else []),
                  "-m", "benchmarks.evaluation", *words, "--worker", str(images)]  # fmt: skip
        done = subprocess.run(  # noqa: S603
            launch, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
            check=True,
        )  # fmt: skip
        rates.append(json.loads(done.stdout.splitlines()[-1]))
        lines.append(f"| {count} | {rates[-1]:.3g} | {rates[-1] / rates[0]:.2f} |")
    return lines


def work(loaded: LoadedModel, data: ImageDataset) -> float:
    """Images in a second of a whole evaluation, from when all processes are ready."""
    processes = Processes.launched()
    evaluate(loaded, open_data(data, labels_of(loaded.model.config), limit=2), ["gmar"])
    processes.gathered([processes.number])
    start = time.perf_counter()
    evaluate(loaded, data, ["gmar"])
    return len(data) / (time.perf_counter() - start)


def _spread(ratios: Sequence[float]) -> str:
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main(
    model: Annotated[str, typer.Option(help="A local folder, or bundled.")] = "bundled",
    data: Annotated[str, typer.Option(help="Scenes, a folder or a CSV file.")] = "scenes",
    images: Annotated[int, typer.Option(min=1, help="Images whose curves are timed.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Steps of a curve.")] = 10,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds that count.")] = 3,
    memory: Annotated[int, typer.Option(min=1, help="MB for copies at a time.")] = 256,
    scaling_images: Annotated[int, typer.Option("--scaling", help="0 leaves it out.")] = 32,
    worker: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Print the tables."""
    loaded = load_model(model)
    labels = labels_of(loaded.model.config)
    if worker is not None:
        rate = work(loaded, open_data(data, labels, limit=worker))
        if Processes.launched().is_main:
            typer.echo(json.dumps(rate))
        return
    chosen = open_data(data, labels, limit=images)
    typer.echo("\n".join(curves_table(loaded, chosen, steps, repeats, memory * 2**20)))
    if scaling_images:
        words = ["--model", model, "--data", data]
        typer.echo("\n" + "\n".join(scaling(words, scaling_images)))


if __name__ == "__main__":
    typer.run(main)
