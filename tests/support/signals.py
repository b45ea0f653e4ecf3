"""Signals at a chosen instant of a call."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import Any


def events_of(call: Callable[[], Any]) -> int:
    """How many calls and returns of functions a call makes."""
    events = 0

    def count(*_: Any) -> None:
        nonlocal events
        events += 1

    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(None)
    return events


def with_signal(
    call: Callable[[], Any], event: int, number: signal.Signals = signal.SIGINT
) -> None:
    """Make a call, and send this process a signal at one call or return of a function in it."""
    left = event

    def count(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            sys.setprofile(None)
            signal.raise_signal(number)

    sys.setprofile(count)
    try:
        call()
    finally:
        if sys.getprofile() is count:
            sys.setprofile(None)
