"""Profiles an explanation beside a forward and backward of the unmodified model.

    python -m benchmarks.profile --case S512

It prints the time of the main operators, as shares of the time of the forward and backward.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Annotated

import torch
import typer
from torch.profiler import ProfilerActivity, profile

from benchmarks.contest import BACKWARD, STREAMING, Bench, Case, Run

_RUNS = 8
_KINDS = {
    "linear layers": ("aten::addmm", "aten::mm"),
    "attention, forward": ("aten::_scaled_dot_product_flash_attention_for_cpu",),
    "attention, PyTorch's backward": (
        "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
    ),
    "attention, the blocks' products": ("aten::baddbmm", "aten::bmm"),
    "attention, softmax again": ("aten::_softmax",),
    "the rule: sums of |gradient|": ("aten::abs", "aten::sum"),
    "gradient before the softmax": ("aten::mul_", "aten::addcmul_"),
    "GELU": ("aten::gelu", "aten::gelu_backward"),
    "patch embedding": ("aten::mkldnn_convolution", "aten::convolution_backward"),
}
_OTHER = "everything else"


def milliseconds(run: Run) -> dict[str, float]:
    """Return the mean milliseconds of a call by kind of work, after a warm-up."""
    run()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(_RUNS):
            run()
    kind_of = {name: kind for kind, names in _KINDS.items() for name in names}
    times: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        times[kind_of.get(event.key, _OTHER)] += event.self_cpu_time_total / 1e3 / _RUNS
    return times


def table(case: Case) -> str:
    """Return one row for each kind of work, in shares of the forward and backward's total time."""
    runs = Bench.build(case, torch.device("cpu")).runs()
    streaming, plain = milliseconds(runs[STREAMING]), milliseconds(runs[BACKWARD])
    total = sum(plain.values())
    rows = [f"| {case.name} | {BACKWARD} | {STREAMING} |", "|---|---|---|"]
    rows += [
        f"| {kind} | {plain[kind] / total:.1%} | {streaming[kind] / total:.1%} |"
        for kind in (*_KINDS, _OTHER)
    ]
    rows.append(f"| together | 100.0% | {sum(streaming.values()) / total:.1%} |")
    return "\n".join(rows)


def main(
    case: Annotated[list[str] | None, typer.Option(help="Such as S512 or B224x8.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
) -> None:
    """Print a table for each case."""
    torch.set_num_threads(threads)
    for name in case or ("B224", "S512"):
        typer.echo(table(Case.parse(name)) + "\n")


if __name__ == "__main__":
    typer.run(main)
