"""Times contestants in rounds, and computes ratios within each round."""

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
    """Relative times of one contestant.

    Attributes:
        to_forward: time relative to the plain forward of the same round, one for each round.
        to_backward: time relative to the forward and backward of the unmodified model.
        scaled: the measured part of a scaled run, or an empty string.
    """

    to_forward: list[float]
    to_backward: list[float]
    scaled: str = ""


@dataclass
class Times:
    """Times of one case.

    Attributes:
        seconds: seconds in each round by contestant; a scaled run has its estimated total.
        ratios: relative times by contestant.
        to_streaming: time of several targets relative to one streaming call.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    ratios: dict[str, Ratios] = field(default_factory=dict)
    to_streaming: dict[str, list[float]] = field(default_factory=dict)


def seconds_of(run: Run, device: torch.device) -> float:
    """Measure the seconds until the device has finished a call."""
    gc.collect()  # the garbage of earlier calls must not count
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
    """Time each run in each round; the first round is dropped."""
    rounds = []
    for _ in range(repeats + 1):
        rounds.append({key: seconds_of(run, device) for key, run in runs.items()})
        done()
    return {key: [seconds[key] for seconds in rounds[1:]] for key in runs}


def by_round(seconds: list[float], reference: list[float]) -> list[float]:
    """Compute the ratios within each round.

    Example:
        >>> by_round([3.0, 8.0], [1.0, 2.0])
        [3.0, 4.0]
    """
    return [time / base for time, base in zip(seconds, reference, strict=True)]


def as_ratios(seconds: dict[str, list[float]]) -> Times:
    """Compute the relative times of a case from its seconds."""
    times = Times(seconds)
    for name, rounds in seconds.items():
        if name in TARGET_CONTESTANTS:
            times.to_streaming[name] = by_round(rounds, seconds[STREAMING])
        else:
            to_forward, to_backward = (by_round(rounds, seconds[other]) for other in REFERENCES)
            times.ratios[name] = Ratios(to_forward, to_backward)
    return times


def time_long_run(bench: Bench, name: str, method: LongRun, times: Times, limit: float) -> None:
    """Time a long run, relative to the mean of the references just before and after it.

    Args:
        bench: the case with its model.
        name: the name of the contestant.
        method: the long run.
        times: the times of the case, to which the long run is added.
        limit: seconds above which a part is measured and scaled.
    """
    amount = method.whole
    seconds_per_pass = median(times.seconds[BACKWARD if method.backward else FORWARD])
    if method.passes(method.whole) * seconds_per_pass > limit:
        amount = method.few
    before = _references(bench)
    seconds = seconds_of(lambda: method.run(amount), bench.device)
    references = [fmean(pair) for pair in zip(before, _references(bench), strict=True)]
    measured, whole = method.passes(amount), method.passes(method.whole)
    seconds *= whole / measured
    times.seconds[name] = [seconds]
    scaled = f"{measured} of {whole} passes" if measured < whole else ""
    times.ratios[name] = Ratios([seconds / references[0]], [seconds / references[1]], scaled)


def _references(bench: Bench) -> list[float]:
    runs = bench.runs()
    return [seconds_of(runs[name], bench.device) for name in REFERENCES]
