"""Threads that stop in the middle of a forward."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch import Tensor

from tests.reference.tolerances import PATIENCE


class Halfway:
    """A hook that stops the forward of one thread in the middle, until it is let go."""

    def __init__(self) -> None:
        """Nobody is stopped yet."""
        self.reached = threading.Event()
        self.go_on = threading.Event()
        self.thread: int | None = None

    def __call__(self, *_: Any) -> None:
        """Stop the thread that is meant."""
        if threading.get_ident() == self.thread:
            self.reached.set()
            assert self.go_on.wait(PATIENCE)

    def during(self, work: Callable[[], Tensor], pool: ThreadPoolExecutor) -> Future[Tensor]:
        """Start the work in another thread and return when that is in the middle of a forward."""

        def stopping() -> Tensor:
            self.thread = threading.get_ident()
            return work()

        future = pool.submit(stopping)
        assert self.reached.wait(PATIENCE)
        return future
