"""Tests that results stay exact while four threads explain a model and a fifth runs it.

python benchmarks/threads.py --seconds 60
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, NamedTuple

import torch
import typer
from torch import Tensor

from hf_gmar import GMAR, load_model
from hf_gmar.data import open_image
from hf_gmar.models import sample_image

OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"chunk_size": 16},
    {"checkpoint": True},
    {"engine": "dense"},
)
"""The options of GMAR in each of the explaining threads."""


class Outcome(NamedTuple):
    """The number of calls, and of results that differ in any bit from the expected result."""

    explanations: int
    predictions: int
    wrong: int


def busy_threads(model: Any, images: Tensor, seconds: float) -> Outcome:
    """Run the threads for some seconds.

    Each thread compares its results with the result of the same call without other threads.
    """
    explain = [_explaining(model, images, options) for options in OPTIONS]
    work: list[Callable[[], Tensor]] = [*explain, lambda: _predict(model, images)]
    with ThreadPoolExecutor(1) as alone:  # the main thread may use other kernels than a worker
        expected_results = [alone.submit(task).result() for task in work]
    end = time.monotonic() + seconds
    start = threading.Barrier(len(work))

    def run(task: Callable[[], Tensor], expected: Tensor) -> tuple[int, int]:
        start.wait()
        runs = wrong = 0
        while time.monotonic() < end:
            runs += 1
            wrong += not torch.equal(task(), expected)
        return runs, wrong

    with ThreadPoolExecutor(len(work)) as pool:
        counts = list(pool.map(run, work, expected_results))
    runs, wrong = zip(*counts, strict=True)
    return Outcome(sum(runs[:-1]), runs[-1], sum(wrong))


def _explaining(model: Any, images: Tensor, options: dict[str, Any]) -> Callable[[], Tensor]:
    gmar = GMAR(model, **options)
    return lambda: gmar.attribute_patches(images, 3)


def _predict(model: Any, images: Tensor) -> Tensor:
    with torch.no_grad():
        scores: Tensor = model(images).logits
    return scores


def main(
    seconds: Annotated[float, typer.Option(min=1, help="How long.")] = 60.0,
    attention: Annotated[str, typer.Option(help="How the model is loaded.")] = "sdpa",
) -> None:
    """Print how often the threads ran and how many results were wrong."""
    loaded = load_model("bundled", "cpu", attn_implementation=attention)
    pixels = loaded.processor(images=open_image(sample_image()), return_tensors="pt").pixel_values
    outcome = busy_threads(loaded.model, pixels, seconds)
    print(
        f"{outcome.explanations} explanations in four threads and {outcome.predictions} "
        f"predictions in a fifth, in {seconds:.0f} s: {outcome.wrong} differ from a single thread"
    )
    raise typer.Exit(1 if outcome.wrong else 0)


if __name__ == "__main__":
    typer.run(main)
