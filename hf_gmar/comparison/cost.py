"""The cost of a call: its seconds, and the memory that PyTorch allocates for it."""

from __future__ import annotations

import gc
import itertools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

import torch
from torch import autograd
from torch.profiler import ProfilerActivity, profile

T = TypeVar("T")

_LOG_LEVEL = "KINETO_LOG_LEVEL"
_SILENT = "99"
_ENOUGH = 0.5  # total seconds after which a call is not repeated
_REPEATS = 5


@dataclass(frozen=True)
class Cost:
    """The cost of one call.

    Attributes:
        seconds: time until the device has finished the call; the median of repeated calls.
        peak: peak bytes that PyTorch allocated, above the bytes in use before the call; ``None``
            if unknown.
        ratio: seconds divided by a reference's seconds just before; the median of repeated calls.
    """

    seconds: float
    peak: int | None
    ratio: float = 1.0


def measure_cost(
    run: Callable[[], T], device: torch.device, reference: Callable[[], Any] | None = None
) -> tuple[T, Cost]:
    """Call ``run`` twice or more, and return its result and its cost.

    The first call is a warm-up and is not timed. Short calls are repeated up to five times, and the
    median counts. The reference runs just before each call, so that both times of a ratio include
    the same other load on the machine.

    Memory is that of tensors and operations, not of the process. On CUDA it is the peak of
    PyTorch's allocator in the timed calls. On the CPU it is the highest running sum of allocations
    that PyTorch's profiler records in the first call, including backward passes. On other devices,
    or while the caller profiles, it is unknown.

    Example:
        >>> ones, cost = measure_cost(lambda: torch.ones(1000), torch.device("cpu"))
        >>> cost.peak
        4000
    """
    peak = _first_run(run, device)
    on_cuda = device.type == "cuda"
    gc.collect()  # the garbage of earlier calls must not count
    before = torch.cuda.memory_allocated(device) if on_cuda else 0
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    times: list[float] = []
    ratios: list[float] = []
    while not times or (sum(times) < _ENOUGH and len(times) < _REPEATS):
        reference_seconds = None if reference is None else _time(reference, device)[1]
        result, seconds = _time(run, device)
        times.append(seconds)
        ratios.append(1.0 if reference_seconds is None else seconds / reference_seconds)
    if on_cuda:
        peak = torch.cuda.max_memory_allocated(device) - before
    return result, Cost(median(times), peak, median(ratios))


def _time(run: Callable[[], T], device: torch.device) -> tuple[T, float]:
    _wait(device)
    start = time.perf_counter()
    result = run()
    _wait(device)
    return result, time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _first_run(run: Callable[[], Any], device: torch.device) -> int | None:
    """Run the warm-up call; on the CPU, return its peak memory."""
    profiled: bool = autograd._profiler_enabled()  # type: ignore[attr-defined]
    if device.type != "cpu" or profiled:  # a thread can have only one profiler
        run()
        return None
    settings: dict[str, Any] = {"activities": [ProfilerActivity.CPU], "profile_memory": True}
    with _silent_profiler(), profile(**settings) as profiler:
        run()
    results: Any = profiler.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    changes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    peak: int = max(itertools.accumulate(changes, initial=0))
    return peak


@contextmanager
def _silent_profiler() -> Iterator[None]:
    """Keep the profiler from printing a line at its start and end."""
    if _LOG_LEVEL in os.environ:
        yield
        return
    os.environ[_LOG_LEVEL] = _SILENT
    try:
        yield
    finally:
        os.environ.pop(_LOG_LEVEL, None)
