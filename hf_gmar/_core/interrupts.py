"""Let Ctrl-C and SIGTERM wait while a model is changed.

Python runs the handler of a signal between any two instructions of the main thread. If it raises an
exception inside the entry or exit of a context manager, changes are not undone. While signals are
deferred, the handler runs only where an exception is like one of the model: before a call of a
module, before a layer of a streamed backward, when a weight is loaded, while a lock is awaited, and
at the end.

Exceptions that other code raises at a random instant are not deferred: those of other signals, and
of ``PyThreadState_SetAsyncExc``.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from torch import nn

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PATIENCE = 1.0
"""Seconds after which a repeated signal breaks in: the model may hang."""
_MODULE_CALL = nn.Module._wrapped_call_impl.__code__


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Defer signals in the main thread; in other threads, where none arrive, do nothing.

    The handlers run at the latest at the end. A context inside another one does nothing.
    """
    global _current  # noqa: PLW0603  # signals belong to the process
    if _current is not None or threading.get_ident() != threading.main_thread().ident:
        yield
        return
    deferral = _Deferral()
    deferral.install()  # from here on, no handler raises an exception
    _current = deferral
    try:
        yield
    finally:
        _current = None
        deferral.restore()
        deferral.deliver(sys._getframe())


def deliver_signals() -> None:
    """Run the handlers of deferred signals, in the main thread."""
    if _current is not None and _current.pending and _current.thread == threading.get_ident():
        _current.deliver(sys._getframe())


class _Deferral:
    """Signals that wait for a call of a module.

    Attributes:
        thread: the main thread.
        pending: the time of each waiting signal.
    """

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.pending: dict[int, float] = {}
        # One object each, to be compared by identity.
        self._handler, self._profile = self._handle, self._before_module
        handlers = {int(number): signal.getsignal(number) for number in _SIGNALS}
        # Python's default for SIGINT is a function; without a function, the system handles it.
        self._handlers = {number: old for number, old in handlers.items() if callable(old)}
        self._installed: list[int] = []

    def install(self) -> None:
        """Replace the handlers."""
        try:
            for number in self._handlers:
                self._installed.append(number)
                signal.signal(number, self._handler)
        except ValueError:  # the main thread of a subinterpreter gets no signals
            self._installed.clear()
        except BaseException:  # by the handler of a signal that was not replaced yet
            self.restore()
            raise

    def restore(self) -> None:
        """Bring the handlers back, except where the model has set another one."""
        if sys.getprofile() is self._profile:
            sys.setprofile(None)
        try:
            while self._installed:
                if signal.getsignal(self._installed[-1]) is self._handler:
                    signal.signal(self._installed[-1], self._handlers[self._installed[-1]])
                self._installed.pop()
        except BaseException:  # by the first handler that is back; the other one must follow
            self.restore()
            raise

    def deliver(self, frame: FrameType | None) -> None:
        """Run the handlers of waiting signals."""
        if sys.getprofile() is self._profile:
            sys.setprofile(None)
        while self.pending:
            number, _ = self.pending.popitem()
            self._handlers[number](number, frame)

    def _handle(self, number: int, frame: FrameType | None) -> Any:
        now = time.monotonic()
        if now - self.pending.setdefault(number, now) < _PATIENCE:
            if sys.getprofile() is None:  # a profiler of the user stays
                sys.setprofile(self._profile)
            return None
        del self.pending[number]
        return self._handlers[number](number, frame)

    def _before_module(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code is _MODULE_CALL:
            self.deliver(frame)


_current: _Deferral | None = None


def _in_child() -> None:
    """Give a process that another thread has forked its handlers back."""
    global _current  # noqa: PLW0603
    if _current is not None and _current.thread != threading.get_ident():
        _current.restore()
        _current = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
