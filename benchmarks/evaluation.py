"""Measures the speed of evaluation: deletion and insertion curves, and a second process.

    python -m benchmarks.evaluation
    python -m benchmarks.evaluation --model PATH --data FOLDER --images 4 --scaling 16

Run it from the root of the repository, on a quiet machine. The plain way runs the whole model on
one perturbed copy at a time, for each step of each curve. All ways take turns in one run. Each
number is the median of the ratios within each round, with the range.
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
    "| curves of one map | images per second | speed relative to the plain way | "
    "speed relative to masking |"
)
WAYS = ("blur", "attention-masking", "token-dropping")


@dataclass(frozen=True)
class Curve:
    """The removal curves of one image.

    Attributes:
        loaded: the model.
        pixels: pixel values, (1, channels, height, width).
        target: the explained class.
        masks: kept patches at each step, (2, steps + 1, rows, columns), for removal of the most
            and then of the least relevant patches first.
    """

    loaded: LoadedModel
    pixels: Tensor
    target: int
    masks: Tensor

    @classmethod
    def of(cls, loaded: LoadedModel, pixels: Tensor, steps: int) -> Curve:
        """Make the curves of GMAR's map of the top class."""
        with torch.no_grad():
            target = int(loaded.model(pixels).logits.argmax())
        patches = GMAR(loaded.model).attribute_patches(pixels, target)[0]
        order, count = patch_order(patches), patches.numel()
        fewest = PERTURBATIONS.build("token-dropping").fewest(ModelAdapter.of(loaded.model))
        masks = torch.ones(2, steps + 1, count, dtype=torch.bool)
        for step in range(steps + 1):
            removed = min(round(step * count / steps), count - fewest)
            masks[0, step, order[:removed]] = False
            masks[1, step, order.flip(0)[:removed]] = False
        return cls(loaded, pixels, target, masks.unflatten(2, tuple(patches.shape)))

    def plainly(self) -> Tensor:
        """Score deletion, then insertion, by blur, with one copy of all tokens at a time."""
        adapter = ModelAdapter.of(self.loaded.model)
        perturbed = PERTURBATIONS.build("blur").bind(adapter, self.pixels, batch=1)
        steps = [*self.masks[0], *self.masks[1].flip(0)]
        return torch.cat([perturbed.scores(mask[None]) for mask in steps])

    def by(self, name: str, memory: int) -> Tensor:
        """Score the same curves as the package does, in batches, with each copy once."""
        adapter = ModelAdapter.of(self.loaded.model)
        perturbation = PERTURBATIONS.build(name)
        batch = max_batch_size(adapter, self.pixels, memory, perturbation=perturbation)
        perturbed = perturbation.bind(adapter, self.pixels, batch=batch)
        whole, *between, nothing = self.masks[0]
        return perturbed.scores(torch.stack([whole, nothing, *between, *self.masks[1, 1:-1]]))

    def probabilities(self, name: str, memory: int) -> Tensor:
        """Return the target's probabilities, in the order of :meth:`by`."""
        return self.by(name, memory).softmax(-1)[:, self.target]


def curves_table(
    loaded: LoadedModel, data: ImageDataset, steps: int, repeats: int, memory: int
) -> list[str]:
    """Return Markdown rows with the images per second of each way, and the ratios of speed."""
    curves = []
    for example in data:
        inputs = loaded.processor(images=example.image, return_tensors="pt")
        curves.append(Curve.of(loaded, inputs.pixel_values, steps))
    runs: dict[str, Callable[[], Any]] = {PLAIN: lambda: [curve.plainly() for curve in curves]}
    for name in WAYS:
        runs[name] = lambda name=name: [  # type: ignore[misc]
            curve.by(name, memory) for curve in curves
        ]
    seconds = round_robin(runs, repeats, torch.device("cpu"), lambda: None)
    lines = [CURVES_HEAD, "|---|---|---|---|"]
    for name, times in seconds.items():
        rate = len(curves) / median(times)
        lines.append(
            f"| {name} | {rate:.3g} | {_spread(by_round(seconds[PLAIN], times))} | "
            f"{_spread(by_round(seconds['attention-masking'], times))} |"
        )
    masking, dropping = (
        torch.stack([curve.probabilities(name, memory) for curve in curves])
        for name in ("attention-masking", "token-dropping")
    )
    gap = float((masking - dropping).abs().max())
    return [*lines, "", f"Masking and dropping differ by at most {gap:.1e} in probability."]


def scaling(arguments: Sequence[str], images: int) -> list[str]:
    """Return Markdown rows with the images per second of one and of two processes."""
    lines = ["| processes | images per second | speed relative to one |", "|---|---|---|"]
    rates = []
    for count in (1, 2):
        launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch",
                  "--num_processes", str(count), *(["--multi_gpu"] if count > 1 else []),
                  "-m", "benchmarks.evaluation", *arguments, "--worker", str(images)]  # fmt: skip
        done = subprocess.run(  # noqa: S603
            launch, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
            check=True,
        )  # fmt: skip
        rates.append(json.loads(done.stdout.splitlines()[-1]))
        lines.append(f"| {count} | {rates[-1]:.3g} | {rates[-1] / rates[0]:.2f} |")
    return lines


def work(loaded: LoadedModel, data: ImageDataset, methods: Sequence[str] = ("gmar",)) -> float:
    """Measure the images per second of an evaluation, after all processes are ready."""
    processes = Processes.launched()
    evaluate(loaded, open_data(data, labels_of(loaded.model.config), limit=2), list(methods))
    processes.gathered([processes.number])
    start = time.perf_counter()
    evaluate(loaded, data, list(methods))
    return len(data) / (time.perf_counter() - start)


def _spread(ratios: Sequence[float]) -> str:
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main(
    model: Annotated[str, typer.Option(help="A local folder, or bundled.")] = "bundled",
    data: Annotated[str, typer.Option(help="Scenes, a folder or a CSV file.")] = "scenes",
    images: Annotated[int, typer.Option(min=1, help="Images whose curves are timed.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Steps of a curve.")] = 10,
    repeats: Annotated[int, typer.Option(min=1, help="Counted rounds.")] = 3,
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
        arguments = ["--model", model, "--data", data]
        typer.echo("\n" + "\n".join(scaling(arguments, scaling_images)))


if __name__ == "__main__":
    typer.run(main)
