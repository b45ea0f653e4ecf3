"""Peak memory of a contestant, each in a process of its own."""

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

if TYPE_CHECKING:  # Windows lacks one of them
    from multiprocessing.context import ForkServerContext, SpawnContext

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")
_NO_PEAK = "n/a"
_MMAP_THRESHOLD = -3  # mallopt's name for it, in glibc
_TINY = Case("T", 32)


@dataclass(frozen=True)
class Peak:
    """Peak memory above what was in use before the call.

    Attributes:
        bytes: how much, if it is known.
        reason: why it is not known.
        failed: the contestant was not tried or did not come to its end.
    """

    bytes: int | None = None
    reason: str = ""
    failed: bool = False


def peak_above(run: Run, device: torch.device) -> Peak:
    """Run it, and say how far memory rose above what was in use before.

    On a GPU this is what PyTorch's allocator gave out, else the resident size of this process.
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


def _give_back_at_once() -> None:
    """Let the C library give back each freed tensor of a megabyte or more.

    Left alone it keeps some for later, and how much depends on chance: the peak of the same call
    then varies by a tenth of a gigabyte and more.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 2**20)


def _reset_peak() -> bool:
    """Make the present resident size the peak; False where the system has no such thing."""
    try:
        # The C library keeps what was freed; a call that uses it again would seem to need nothing.
        ctypes.CDLL(None).malloc_trim(0)
        _RESET.write_text("5")
    except (OSError, AttributeError, TypeError):
        return False
    return True


def _status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    assert found is not None  # noqa: S101  # Linux writes it
    return int(found[1]) * 1024


@functools.cache
def measure(case: Case, contestant: str, device: torch.device, threads: int) -> Peak:
    """The peak of a contestant in a new process, after a plain forward to warm up.

    A process that fails or is killed gives its reason. Integrated Gradients and Occlusion run a
    part of their passes: all passes need the same.
    """
    if device.type != "cuda" and not (device.type == "cpu" and _RESET.exists()):
        return Peak(reason=_NO_PEAK)
    # A fork of a server that has the imports done starts fast. CUDA can't be used after a fork.
    context: SpawnContext | ForkServerContext = multiprocessing.get_context("spawn")
    if device.type == "cpu":
        context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    receiver, sender = context.Pipe(duplex=False)
    arguments = (sender, case, contestant, str(device), threads)
    process = context.Process(target=_child, args=arguments, daemon=True)
    process.start()
    sender.close()  # the child has its own; once it is gone there is nothing to wait for
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
        _give_back_at_once()
        torch.set_num_threads(threads)
        # What a first call loads of the libraries is nobody's: a tiny model has them load it.
        _run_of(Bench.build(_TINY, torch.device(device)), contestant)()
        bench = Bench.build(case, torch.device(device))
        bench.runs()[FORWARD]()
        peak = peak_above(_run_of(bench, contestant), bench.device)
    except Exception as error:  # noqa: BLE001  # whatever it is, it goes into the table
        lines = str(error).splitlines() or [""]
        peak = Peak(reason=f"{type(error).__name__}: {lines[0][:100]}", failed=True)
    sender.send(peak)


def _run_of(bench: Bench, contestant: str) -> Run:
    method = bench.long_runs().get(contestant)
    if method is None:
        return bench.runs()[contestant]
    return functools.partial(method.run, method.few)
