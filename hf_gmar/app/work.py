"""The work of all visitors: a few requests at a time, a bounded queue, and an end for each.

A request stops before its next forward when its visitor asks again or leaves, or when its time is
over. Models that the page loads call :func:`stop_if_told` before each forward.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from hf_gmar.app.limits import Limits
from hf_gmar.errors import HfGmarError

Result = TypeVar("Result")

_CURRENT = threading.local()
_POLL = 0.2  # seconds between two looks at a request


class StoppedError(Exception):
    """The visitor asked again or left."""


class LimitError(HfGmarError):
    """A request takes too long, or too many wait."""


@dataclass(frozen=True)
class Progress:
    """How far a request is.

    Attributes:
        text: what is being done.
        share: the share that is done, or ``None`` where it is not known.
    """

    text: str
    share: float | None = None


@dataclass(frozen=True)
class Done(Generic[Result]):
    """The result of a request."""

    result: Result


class Job:
    """One request; its work calls :meth:`report` between its steps.

    Args:
        seconds: working time.
    """

    def __init__(self, seconds: float) -> None:
        self.progress: Progress | None = None
        self._seconds = seconds
        self._deadline: float | None = None
        self._stopped = threading.Event()

    def begin(self) -> None:
        """Start the clock."""
        self._deadline = time.monotonic() + self._seconds
        self.progress = Progress("Asking the model")

    def stop(self) -> None:
        """End the work before its next step."""
        self._stopped.set()

    @property
    def is_stopped(self) -> bool:
        """Whether nobody waits for the result."""
        return self._stopped.is_set()

    def report(self, text: str, share: float | None = None) -> None:
        """Say how far the work is.

        Raises:
            StoppedError: nobody waits for the result.
            LimitError: the time is over.
        """
        self.check()
        self.progress = Progress(text, share)

    def check(self) -> None:
        """Raise the errors of :meth:`report`."""
        if self.is_stopped:
            raise StoppedError
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise LimitError(
                f"this takes more than {self._seconds:.0f} seconds, which is the limit here; take "
                "a smaller model or fewer methods, or run hf_gmar on your own machine"
            )


def stop_if_told(*_: Any) -> None:
    """Raise the errors of :meth:`Job.check` in a thread that works on a request."""
    job: Job | None = getattr(_CURRENT, "job", None)
    if job is not None:
        job.check()


class Desk:
    """Runs requests in threads.

    Args:
        limits: the number of threads and of requests, and the time of each.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._pool = ThreadPoolExecutor(limits.workers, "hf-gmar-app")
        self._jobs: dict[tuple[str, str], Job] = {}
        self._count = 0

    @property
    def busy(self) -> int:
        """The number of requests that wait or run."""
        return self._count

    async def run(
        self, visitor: str, kind: str, work: Callable[[Job], Result]
    ) -> AsyncGenerator[Progress | Done[Result], None]:
        """Yield the progress of a request from time to time, and its result at the end.

        The visitor's request of the same kind stops; an explanation stops those of all kinds. When
        the iterator is closed, the request stops.

        Args:
            visitor: who asks.
            kind: ``"explain"``, or what is asked about an explanation.
            work: computes the result.

        Raises:
            StoppedError: the visitor asked again.
            LimitError: too many requests wait, or this one takes too long.
        """
        for key in [key for key in self._jobs if key[0] == visitor]:
            if kind in (key[1], "explain"):
                self._jobs.pop(key).stop()
        if self._count >= self._limits.waiting:
            raise LimitError("too many visitors are asking right now; try again in a minute")
        job = self._jobs[visitor, kind] = Job(self._limits.seconds)
        loop = asyncio.get_running_loop()
        self._count += 1
        future = loop.run_in_executor(self._pool, _work, job, work)
        future.add_done_callback(self._finished)
        try:
            while not (await asyncio.wait([future], timeout=_POLL))[0]:
                if job.is_stopped:  # its thread may take a while to see it
                    raise StoppedError
                yield job.progress or Progress("Waiting for other visitors")
            yield Done(future.result())
        finally:
            job.stop()
            if self._jobs.get((visitor, kind)) is job:
                del self._jobs[visitor, kind]

    def prepare(self, work: Callable[[Job], object]) -> None:
        """Do something before the first request, such as loading modules."""
        job = self._jobs["", "prepare"] = Job(self._limits.seconds)
        self._pool.submit(_work, job, work)

    def _finished(self, future: asyncio.Future[Any]) -> None:
        self._count -= 1
        if not future.cancelled():
            future.exception()  # nobody may be left to ask for it

    def close(self) -> None:
        """Stop all requests, and wait until they have."""
        for job in list(self._jobs.values()):
            job.stop()
        self._pool.shutdown(wait=True, cancel_futures=True)


def _work(job: Job, work: Callable[[Job], Result]) -> Result:
    _CURRENT.job = job
    try:
        job.check()
        job.begin()
        return work(job)
    finally:
        _CURRENT.job = None
