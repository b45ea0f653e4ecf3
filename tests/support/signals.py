"""Signals at a chosen instant of a call."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

CONTEXTS = ("contextlib.py", "threads.py", "execution.py", "attention.py", "hooks.py")
"""The files that enter and leave the contexts of an explanation."""


def events_of(call: Callable[[], Any], files: tuple[str, ...] = ()) -> int:
    """How many functions are called or return in a call, in all files or in these alone."""
    events = 0

    def count(frame: FrameType, *_: Any) -> None:
        nonlocal events
        events += _is_in(frame, files)

    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(None)
    return events


def with_signal(
    call: Callable[[], Any],
    event: int,
    files: tuple[str, ...] = (),
    number: signal.Signals = signal.SIGINT,
) -> None:
    """Make a call, and send this process a signal at one of these events."""
    left = event

    def count(frame: FrameType, *_: Any) -> None:
        nonlocal left
        left -= _is_in(frame, files)
        if left == 0:
            sys.setprofile(None)
            signal.raise_signal(number)

    sys.setprofile(count)
    try:
        call()
    finally:
        if sys.getprofile() is count:
            sys.setprofile(None)


def _is_in(frame: FrameType, files: tuple[str, ...]) -> bool:
    return not files or frame.f_code.co_filename.endswith(files)
