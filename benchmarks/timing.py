"""Times of contestants that take turns, as ratios within each round."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import TypeVar

import torch

from benchmarks.contest import (
    BACKWARD,
    FORWARD,
    STREAMING,
    TARGET_CONTESTANTS,
    Bench,
    LongRun,
    Run,
)

Key = TypeVar("Key")

REFERENCES = (FORWARD, BACKWARD)


@dataclass
class Ratios:
    """Times of one contestant.

    Attributes:
        to_forward: time by that of the plain forward of the same round, one for each round.
        to_backward: the same by the forward and backward of the unmodified model.
        scaled: which part was measured, where it was not the whole.
    """

    to_forward: list[float]
    to_backward: list[float]
    scaled: str = ""


@dataclass
class Times:
    """Times of one case.

    Attributes:
        seconds: raw seconds of the rounds; of a scaled run, those of the whole.
        ratios: by contestant.
        to_streaming: for several targets, time by that of one streaming call.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    ratios: dict[str, Ratios] = field(default_factory=dict)
    to_streaming: dict[str, list[float]] = field(default_factory=dict)


def seconds_of(run: Run, device: torch.device) -> float:
    """Seconds of one call, until the device has done it."""
    gc.collect()  # nobody pays for what others left
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def round_robin(
    runs: Mapping[Key, Run], repeats: int, device: torch.device, done: Callable[[], None]
) -> dict[Key, list[float]]:
    """Seconds of each run in each round; all take turns, and the first round does not count."""
    rounds = []
    for _ in range(repeats + 1):
        rounds.append({key: seconds_of(run, device) for key, run in runs.items()})
        done()
    return {key: [seconds[key] for seconds in rounds[1:]] for key in runs}


def by_round(seconds: list[float], reference: list[float]) -> list[float]:
    """Ratios within each round.

    Example:
        >>> by_round([3.0, 8.0], [1.0, 2.0])
        [3.0, 4.0]
    """
    return [one / other for one, other in zip(seconds, reference, strict=True)]


def as_ratios(seconds: dict[str, list[float]]) -> Times:
    """Times of a case whose rounds are done."""
    times = Times(seconds)
    for name, own in seconds.items():
        if name in TARGET_CONTESTANTS:
            times.to_streaming[name] = by_round(own, seconds[STREAMING])
        else:
            to_forward, to_backward = (by_round(own, seconds[other]) for other in REFERENCES)
            times.ratios[name] = Ratios(to_forward, to_backward)
    return times


def time_long_run(bench: Bench, name: str, method: LongRun, times: Times, limit: float) -> None:
    """Add a long run, with ratios to the mean of the references just before and after it.

    Args:
        bench: where it runs.
        name: of the contestant.
        method: the long run.
        times: of the case, with those of the references.
        limit: seconds above which a part is measured and scaled.
    """
    amount = method.whole
    a_pass = median(times.seconds[BACKWARD if method.backward else FORWARD])
    if method.passes(method.whole) * a_pass > limit:
        amount = method.few
    before = _references(bench)
    spent = seconds_of(lambda: method.run(amount), bench.device)
    near = [fmean(pair) for pair in zip(before, _references(bench), strict=True)]
    measured, whole = method.passes(amount), method.passes(method.whole)
    spent *= whole / measured
    times.seconds[name] = [spent]
    scaled = f"{measured} of {whole} passes" if measured < whole else ""
    times.ratios[name] = Ratios([spent / near[0]], [spent / near[1]], scaled)


def _references(bench: Bench) -> list[float]:
    runs = bench.runs()
    return [seconds_of(runs[name], bench.device) for name in REFERENCES]
