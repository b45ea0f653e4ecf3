"""Measures how much time one pass for several methods saves.

    python -m benchmarks.together
    python -m benchmarks.together --case B224 --case S512 --threads 2

Run it from the root of the repository, on a quiet machine. All variants take turns in one run. Each
number is the median of the ratios within each round, with the range.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Annotated, Any

import torch
import typer

from benchmarks.contest import FORWARD, TARGET, Bench, Case, Run
from benchmarks.timing import by_round, round_robin
from hf_gmar import GMAR
from hf_gmar.methods import METHODS, AttentionMethod, AttributionMethod, attribute_jointly

ALPHAS = (0.0, 0.5, 1.0, 2.0)
READERS = [name for name, method in METHODS.items() if issubclass(method, AttentionMethod)]
"""The methods that read attention."""


def variants(model: Any) -> list[AttributionMethod]:
    """Build GMAR with both norms and several weights of the residual connection."""
    return [GMAR(model, norm=norm, alpha=alpha) for norm in ("l1", "l2") for alpha in ALPHAS]


def readers(model: Any, without: Sequence[str] = ()) -> list[AttributionMethod]:
    """Build each method that reads attention, with default options."""
    return [METHODS[name](model) for name in READERS if name not in without]


SETS: Mapping[str, Callable[[Any], list[AttributionMethod]]] = {
    "8 variants of GMAR": variants,
    "8 variants of GMAR and all that read attention but LeGrad": lambda model: [
        *variants(model),
        *readers(model, ["gmar", "legrad"]),
    ],
    "all that read attention": readers,
}
"""Sets of methods that share one pass."""


def one_by_one(methods: Sequence[AttributionMethod], images: torch.Tensor) -> None:
    """Run each method separately."""
    for method in methods:
        method.attribute_patches(images, TARGET)


def rows(case: Case, repeats: int, device: torch.device) -> list[str]:
    """Return one row of the table for each set of methods."""
    bench = Bench.build(case, device)
    runs: dict[str, Run] = {FORWARD: bench.runs()[FORWARD]}
    counts = {}
    for name, build in SETS.items():
        methods = build(bench.model)
        counts[name] = len(methods)
        runs[f"{name}, one by one"] = functools.partial(one_by_one, methods, bench.pixels)
        runs[name] = functools.partial(attribute_jointly, methods, bench.pixels, TARGET)
    seconds = round_robin(runs, repeats, device, lambda: None)
    return [
        f"| {case.name} | {name} | {count} | "
        f"{_spread(by_round(seconds[f'{name}, one by one'], seconds[FORWARD]))} | "
        f"{_spread(by_round(seconds[name], seconds[FORWARD]))} | "
        f"{_spread(by_round(seconds[name], seconds[f'{name}, one by one']))} |"
        for name, count in counts.items()
    ]


def _spread(ratios: Sequence[float]) -> str:
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main(
    case: Annotated[list[str] | None, typer.Option(help="Such as S512 or B224x8.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds that count.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
) -> None:
    """Print the table."""
    torch.set_num_threads(threads)
    typer.echo(
        "| case | methods | maps | one by one, in plain forwards | together, in plain forwards | "
        "together / one by one |\n|---|---|---|---|---|---|"
    )
    for name in case or ("B224", "S512"):
        typer.echo("\n".join(rows(Case.parse(name), repeats, torch.device(device))))


if __name__ == "__main__":
    typer.run(main)
