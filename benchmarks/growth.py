"""Measures how time and memory grow with the number of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.contest import CHECKPOINT, DENSE, FORWARD, STREAMING, Bench, Case, Run
from benchmarks.memory import Peak
from benchmarks.timing import by_round, round_robin
from hf_gmar.visualization.text import wrapped

GROWING = (FORWARD, STREAMING, CHECKPOINT, DENSE)

Values = Sequence[float | None]


@dataclass
class Curve:
    """One contestant over the sizes; ``None`` where it was not measured.

    Attributes:
        time: median over rounds of the time relative to the plain forward at the smallest size.
        memory: peak bytes above the memory in use before the call.
        extra: peak bytes above the plain forward's peak.
        reasons: why a value is missing, or an empty string.
        exponents: the power of the number of tokens in time, memory and extra.
    """

    time: list[float | None] = field(default_factory=list)
    memory: list[float | None] = field(default_factory=list)
    extra: list[float | None] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    exponents: dict[str, float | None] = field(default_factory=dict)


@dataclass
class Growth:
    """Curves by contestant, and raw seconds by case and contestant."""

    cases: list[str]
    tokens: list[int]
    curves: dict[str, Curve]
    seconds: dict[str, dict[str, list[float]]]


def exponent(tokens: Sequence[int], values: Values) -> float | None:
    """Fit the slope of log value over log tokens by least squares over the positive values.

    Example:
        >>> round(exponent([10, 20, 40], [3, 12, 48]), 6)
        2.0
    """
    points = [(n, v) for n, v in zip(tokens, values, strict=True) if v is not None and v > 0]
    if len(points) < 2:
        return None
    x, y = np.log(np.asarray(points, dtype=float)).T
    return float(np.polyfit(x, y, 1)[0])


def measure_growth(
    cases: Sequence[Case],
    peaks: dict[Case, dict[str, Peak]],
    device: torch.device,
    repeats: int,
    done: Callable[[], None],
) -> Growth:
    """Time all sizes in each round, so that each round has its own reference.

    Args:
        cases: the cases from the smallest to the largest.
        peaks: memory of each contestant in each case; failed contestants are left out.
        device: the device of the models.
        repeats: number of counted rounds.
        done: called after each round.
    """
    seconds = round_robin(_all_runs(cases, peaks, device), repeats, device, done)
    growth = Growth([case.name for case in cases], [case.tokens for case in cases], {}, {})
    for (case, name), times in seconds.items():
        growth.seconds.setdefault(case.name, {})[name] = times
    for name in GROWING:
        growth.curves[name] = _curve(cases, name, seconds, peaks)
    return growth


def _all_runs(
    cases: Sequence[Case], peaks: dict[Case, dict[str, Peak]], device: torch.device
) -> dict[tuple[Case, str], Run]:
    runs = {}
    for case in cases:
        for name, run in Bench.build(case, device).runs().items():
            if name in GROWING and not peaks[case][name].failed:
                runs[case, name] = run
    return runs


def _curve(
    cases: Sequence[Case],
    name: str,
    seconds: dict[tuple[Case, str], list[float]],
    peaks: dict[Case, dict[str, Peak]],
) -> Curve:
    first = seconds.get((cases[0], FORWARD))
    curve = Curve()
    for case in cases:
        times = seconds.get((case, name))
        curve.time.append(median(by_round(times, first)) if times and first else None)
        curve.memory.append(peaks[case][name].bytes)
        curve.extra.append(extra_bytes(peaks[case], name))
        curve.reasons.append(peaks[case][name].reason)
    tokens = [case.tokens for case in cases]
    for part in ("time", "memory", "extra"):
        curve.exponents[part] = exponent(tokens, getattr(curve, part))
    return curve


def extra_bytes(peaks: dict[str, Peak], name: str) -> int | None:
    """Return how far a contestant's peak is above the plain forward's peak."""
    peak, plain = peaks[name].bytes, peaks[FORWARD].bytes
    return None if peak is None or plain is None else peak - plain


def growth_figure(growth: Growth) -> Figure:
    """Draw time and memory over tokens, on logarithmic axes, with the exponents."""
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    time, memory = figure.subplots(1, 2)
    for name, curve in growth.curves.items():
        _draw(time, growth.tokens, curve.time, name, curve.exponents["time"])
        in_mb = [None if b is None else b / 1e6 for b in curve.memory]
        _draw(memory, growth.tokens, in_mb, name, curve.exponents["memory"])
    _label(time, growth, f"time / plain forward at {growth.cases[0][1:]} px")
    _label(memory, growth, "peak memory above the state before the call, MB")
    return figure


def _draw(axes: Axes, tokens: list[int], values: Values, name: str, power: float | None) -> None:
    heights = [math.nan if v is None or v <= 0 else v for v in values]
    if not np.isnan(heights).all():
        fit = "" if power is None else f"  ~ tokens^{power:z.2f}"
        axes.plot(tokens, heights, marker="o", label=wrapped(name + fit, 4.3, 9, 2))


def _label(axes: Axes, growth: Growth, title: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(growth.tokens, [f"{n:,}\n{c[1:]} px" for n, c in _ticks(growth)])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("tokens")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=9)  # below the axes


def _ticks(growth: Growth) -> list[tuple[int, str]]:
    return list(zip(growth.tokens, growth.cases, strict=True))
