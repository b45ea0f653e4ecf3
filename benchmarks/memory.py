"""Measures peak memory: of the allocator on a GPU, else of a process of its own."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import multiprocessing
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks.contest import FORWARD, Bench, Case, Run

if TYPE_CHECKING:  # Windows lacks ForkServerContext
    from multiprocessing.context import ForkServerContext

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")
_NO_PEAK = "n/a"
_MMAP_THRESHOLD = -3  # glibc's M_MMAP_THRESHOLD, a parameter of mallopt
_TINY = Case("T", 32)


@dataclass(frozen=True)
class Peak:
    """Peak memory above the memory in use before the call.

    Attributes:
        bytes: the peak, or ``None`` if it is unknown.
        reason: why the peak is unknown.
        failed: whether the contestant was not run or did not finish.
        seconds: duration of the call, where it was taken.
    """

    bytes: int | None = None
    reason: str = ""
    failed: bool = False
    seconds: float | None = None


def peak_above(run: Run, device: torch.device) -> Peak:
    """Run a contestant, and return its peak above the memory in use before.

    On a GPU, this is the memory of PyTorch's allocator, else the resident size of this process.
    """
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return Peak(torch.cuda.max_memory_allocated(device) - before)
    if not _reset_peak():
        return Peak(reason=_NO_PEAK)
    before = _status("VmRSS")
    run()
    return Peak(_status("VmHWM") - before)


def resident_peak(run: Run) -> Peak:
    """Run a contestant, and return the peak of the whole process, with what was there before."""
    gc.collect()
    if not _reset_peak():
        return Peak(reason=_NO_PEAK)
    start = time.perf_counter()
    run()
    return Peak(_status("VmHWM"), seconds=time.perf_counter() - start)


def free_at_once() -> None:
    """Make the C library return each freed tensor of a megabyte or more to the system.

    By default, it keeps a random part of the freed memory: the peak of the same call then varies by
    a tenth of a gigabyte or more.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 2**20)


def _reset_peak() -> bool:
    """Reset the peak to the current resident size; return False if the system can't do it."""
    try:
        # Otherwise a call that reuses freed memory of the C library would seem to need nothing.
        ctypes.CDLL(None).malloc_trim(0)
        _RESET.write_text("5")
    except (OSError, AttributeError, TypeError):
        return False
    return True


def _status(field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    assert match is not None  # noqa: S101  # Linux always writes these fields
    return int(match[1]) * 1024


@functools.cache
def measure(case: Case, contestant: str, device: torch.device, threads: int) -> Peak:
    """Measure the peak of a contestant after a plain forward as warm-up.

    On a CPU, each contestant has a new process. If it fails, the result has the reason. Integrated
    Gradients and Occlusion run a part of their passes, because all passes need the same memory.
    """
    task = functools.partial(_peak_of, case, contestant, device, threads)
    if device.type == "cuda":  # whose allocator counts the bytes of a call exactly
        peak = _or_reason(task)
        gc.collect()
        torch.cuda.empty_cache()
        return peak
    if device.type != "cpu" or not _RESET.exists():
        return Peak(reason=_NO_PEAK)
    return in_own_process(task)


def in_own_process(task: Callable[[], Peak], limit: float | None = None) -> Peak:
    """Run a task that can be pickled in a new process on the CPU, and return its peak.

    Args:
        task: returns a peak. If it raises or its process is killed, the result has the reason.
        limit: seconds after which the process is stopped.
    """
    # A fork server with all imports starts processes fast.
    context: ForkServerContext = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, task), daemon=True)
    process.start()
    sender.close()  # the child has its own end; recv fails when the child has ended
    try:
        if not receiver.poll(limit):
            process.kill()
            process.join()
            return Peak(reason=f"stopped after {limit:.0f} s", failed=True)
        peak: Peak = receiver.recv()
    except EOFError:
        process.join()
        peak = Peak(reason=_how_it_ended(process.exitcode), failed=True)
    process.join()
    return peak


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        return f"its process was killed by signal {-code}"
    return f"its process ended with {code}"


def _child(sender: Connection[Peak, None], task: Callable[[], Peak]) -> None:
    free_at_once()
    sender.send(_or_reason(task))


def _or_reason(task: Callable[[], Peak]) -> Peak:
    try:
        return task()
    except Exception as error:  # noqa: BLE001  # any error is reported in the table
        lines = str(error).splitlines() or [""]
        return Peak(reason=f"{type(error).__name__}: {lines[0][:100]}", failed=True)


def _peak_of(case: Case, contestant: str, device: torch.device, threads: int) -> Peak:
    torch.set_num_threads(threads)
    # The first call makes the libraries load code, which must not count: run a tiny model.
    _run_of(Bench.build(replace(_TINY, dtype=case.dtype), device), contestant)()
    bench = Bench.build(case, device)
    bench.runs()[FORWARD]()
    return peak_above(_run_of(bench, contestant), device)


def _run_of(bench: Bench, contestant: str) -> Run:
    method = bench.long_runs().get(contestant)
    if method is None:
        return bench.runs()[contestant]
    return functools.partial(method.run, method.few)
