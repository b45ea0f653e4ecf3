"""Four threads explain one model, a fifth runs it: are all results exact?

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
"""What the explaining threads do, one each."""


class Outcome(NamedTuple):
    """How often the threads ran, and how often a result was not bit for bit what it should be."""

    explanations: int
    predictions: int
    wrong: int


def busy_threads(model: Any, images: Tensor, seconds: float) -> Outcome:
    """Run the threads for a while.

    Each compares its results with those that it gets when nobody else is there.
    """
    explain = [_explaining(model, images, options) for options in OPTIONS]
    work: list[Callable[[], Tensor]] = [*explain, lambda: _predict(model, images)]
    with ThreadPoolExecutor(1) as alone:  # a thread as the others: it may take other kernels here
        wanted = [alone.submit(task).result() for task in work]
    end = time.monotonic() + seconds
    start = threading.Barrier(len(work))

    def run(task: Callable[[], Tensor], right: Tensor) -> tuple[int, int]:
        start.wait()
        runs = wrong = 0
        while time.monotonic() < end:
            runs += 1
            wrong += not torch.equal(task(), right)
        return runs, wrong

    with ThreadPoolExecutor(len(work)) as pool:
        counts = list(pool.map(run, work, wanted))
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
        f"predictions in a fifth, in {seconds:.0f} s: {outcome.wrong} differ from those made alone"
    )
    raise typer.Exit(1 if outcome.wrong else 0)


if __name__ == "__main__":
    typer.run(main)
