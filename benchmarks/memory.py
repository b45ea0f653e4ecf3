"""Measures the peak memory of each contestant in its own process."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import multiprocessing
import re
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks.contest import FORWARD, Bench, Case, Run

if TYPE_CHECKING:  # Windows lacks ForkServerContext
    from multiprocessing.context import ForkServerContext, SpawnContext

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
    """

    bytes: int | None = None
    reason: str = ""
    failed: bool = False


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
    """Measure the peak of a contestant in a new process, after a plain forward as warm-up.

    If the process fails or is killed, the result has the reason. Integrated Gradients and Occlusion
    run a part of their passes, because all passes need the same memory.
    """
    if device.type != "cuda" and not (device.type == "cpu" and _RESET.exists()):
        return Peak(reason=_NO_PEAK)
    # A fork server with all imports starts processes fast. CUDA can't be used after a fork.
    context: SpawnContext | ForkServerContext = multiprocessing.get_context("spawn")
    if device.type == "cpu":
        context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    receiver, sender = context.Pipe(duplex=False)
    arguments = (sender, case, contestant, str(device), threads)
    process = context.Process(target=_child, args=arguments, daemon=True)
    process.start()
    sender.close()  # the child has its own end; recv fails when the child has ended
    try:
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


def _child(
    sender: Connection[Peak, None], case: Case, contestant: str, device: str, threads: int
) -> None:
    try:
        free_at_once()
        torch.set_num_threads(threads)
        # The first call makes the libraries load code, which must not count: run a tiny model.
        _run_of(Bench.build(_TINY, torch.device(device)), contestant)()
        bench = Bench.build(case, torch.device(device))
        bench.runs()[FORWARD]()
        peak = peak_above(_run_of(bench, contestant), bench.device)
    except Exception as error:  # noqa: BLE001  # any error is reported in the table
        lines = str(error).splitlines() or [""]
        peak = Peak(reason=f"{type(error).__name__}: {lines[0][:100]}", failed=True)
    sender.send(peak)


def _run_of(bench: Bench, contestant: str) -> Run:
    method = bench.long_runs().get(contestant)
    if method is None:
        return bench.runs()[contestant]
    return functools.partial(method.run, method.few)
