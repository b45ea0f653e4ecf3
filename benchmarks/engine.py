"""Measures the time and memory of explanations, relative to the plain model.

    python -m benchmarks.engine
    python -m benchmarks.engine --case S224 --case S1024 --no-growth
    python -m benchmarks.engine --quick --output /tmp/quick

Run it from the root of the repository. All times are ratios between contestants that take turns
in one process. On a CPU, peak memory is measured in a separate process for each contestant. Models
have random weights, because their cost does not depend on the weights. The name of a case is its
model (S for ViT-S/16, B for ViT-B/16, L for ViT-L/16), the pixels of its images, and x with its
batch size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from rich.console import Console
from rich.progress import Progress

from benchmarks.contest import (
    BACKWARD,
    CONTESTANTS,
    DENSE,
    FORWARD,
    STREAMING,
    Bench,
    Case,
    no_room,
)
from benchmarks.growth import GROWING, growth_figure, measure_growth
from benchmarks.memory import Peak, measure
from benchmarks.report import CaseResult, Report, machine
from benchmarks.timing import Times, as_ratios, round_robin, time_long_run
from hf_gmar.models.hub import pick_device
from hf_gmar.visualization import save_figure

CASES = ("S224", "S224x8", "S512", "S1024", "B224", "B224x8", "B512", "B1024")
GROWTH = ("S224", "S384", "S512", "S768", "S1024")
QUICK_CASES = ("T32", "T64x2")
QUICK_GROWTH = ("T32", "T64")


@dataclass(frozen=True)
class Plan:
    """The settings of the benchmark.

    Attributes:
        device: the device of the models.
        threads: number of CPU threads.
        repeats: number of counted rounds.
        slow_limit: seconds above which only a part of a long run is measured.
        dense_limit_gb: memory above which the dense engine is not run.
        say: reports that a step is done, with the name of the next step.
    """

    device: torch.device
    threads: int
    repeats: int
    slow_limit: float
    dense_limit_gb: float
    say: Callable[[str], None]


Precision = Literal["float32", "bfloat16", "float16"]


def peaks_of(case: Case, contestants: Sequence[str], plan: Plan) -> dict[str, Peak]:
    """Measure the peak memory of each contestant."""
    peaks = {}
    for name in contestants:
        plan.say(f"{case.name}: memory of {name}")
        reason = no_room(case, plan.device, plan.dense_limit_gb) if name == DENSE else ""
        peaks[name] = (
            Peak(reason=reason, failed=True)
            if reason
            else measure(case, name, plan.device, plan.threads)
        )
    return peaks


def times_of(case: Case, peaks: dict[str, Peak], plan: Plan) -> Times:
    """Time the contestants that did not fail when their memory was measured."""
    if peaks[FORWARD].failed or peaks[BACKWARD].failed:  # there is no reference
        return Times()
    bench = Bench.build(case, plan.device)
    failed = {name for name, peak in peaks.items() if peak.failed}
    runs = {name: run for name, run in bench.runs().items() if name not in failed}
    if STREAMING in runs:
        runs |= bench.target_runs()
    done = functools.partial(plan.say, f"{case.name}: time of a round")
    times = as_ratios(round_robin(runs, plan.repeats, plan.device, done))
    for name, method in bench.long_runs().items():
        plan.say(f"{case.name}: time of {name}")
        if name not in failed:
            time_long_run(bench, name, method, times, plan.slow_limit)
    return times


def measure_all(
    cases: Sequence[Case], sizes: Sequence[Case], plan: Plan, output: Path, report: Report
) -> None:
    """Fill the report, and write it after each case, so that no result is lost."""
    for case in cases:
        peaks = peaks_of(case, CONTESTANTS, plan)
        times = times_of(case, peaks, plan)
        at_once = case.at_once(plan.device)
        report.cases[case.name] = CaseResult(case.tokens, at_once, peaks, times)
        report.save(output)
    if sizes:
        all_peaks = {case: peaks_of(case, GROWING, plan) for case in sizes}
        done = functools.partial(plan.say, "growth: time of a round")
        report.growth = measure_growth(sizes, all_peaks, plan.device, plan.repeats, done)
        report.save(output)
        save_figure(growth_figure(report.growth), output / "growth.png")


def steps(cases: Sequence[Case], sizes: Sequence[Case], repeats: int) -> int:
    """Estimate the number of progress steps."""
    of_case = len(CONTESTANTS) + repeats + 1 + 2
    of_growth = len(sizes) * len(GROWING) + repeats + 1
    return len(cases) * of_case + (of_growth if sizes else 0)


def parsed(names: Sequence[str], dtype: str) -> list[Case]:
    """Parse the names of cases."""
    try:
        return [Case.parse(name, dtype) for name in names]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def main(
    case: Annotated[list[str] | None, typer.Option(help=f"{', '.join(CASES)}, or more.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds that count.")] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    output: Annotated[Path, typer.Option()] = Path("benchmarks/results"),
    growth: Annotated[bool, typer.Option(help="Also measure over image sizes.")] = True,
    slow_limit: Annotated[
        float, typer.Option(help="Seconds above which Captum's times are scaled.")
    ] = 120,
    dense_limit_gb: Annotated[float, typer.Option(help="Memory for the dense engine.")] = 16,
    dtype: Annotated[Precision, typer.Option(help="Of weights and images.")] = "float32",
    quick: Annotated[bool, typer.Option(help="Use a tiny model, to try the script.")] = False,
) -> None:
    """Measure, print the tables, and write tables, numbers and a figure to OUTPUT."""
    cases = parsed(case or (QUICK_CASES if quick else CASES), dtype)
    sizes = parsed((QUICK_GROWTH if quick else GROWTH) if growth else (), dtype)
    where = pick_device(device)
    torch.set_num_threads(threads)
    output.mkdir(parents=True, exist_ok=True)
    report = Report(machine(where, threads) | {"weights": dtype}, repeats)
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=steps(cases, sizes, repeats))

        def say(step: str) -> None:
            progress.update(task, advance=1, description=step)

        plan = Plan(where, threads, repeats, slow_limit, dense_limit_gb, say)
        measure_all(cases, sizes, plan, output, report)
    typer.echo(report.markdown(), nl=False)


if __name__ == "__main__":
    typer.run(main)
