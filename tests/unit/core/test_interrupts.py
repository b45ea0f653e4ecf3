"""Signals that wait while a model is changed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.nn.modules import module

from hf_gmar._core import interrupts
from hf_gmar._core.interrupts import deferred_signals, deliver_signals
from hf_gmar._core.threads import lock_models
from hf_gmar.models import load_model
from tests.reference.tolerances import PATIENCE
from tests.support.signals import events_of, with_signal

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Ctrl-C raises a KeyboardInterrupt; each test leaves no handler of its own."""
    before = [signal.getsignal(number) for number in SIGNALS]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert sys.getprofile() is None
    assert interrupts._current is None
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


def interrupted(*_: Any) -> None:
    signal.raise_signal(signal.SIGINT)


def test_a_signal_waits_for_the_end() -> None:
    reached = []

    @deferred_signals()
    def work() -> None:
        interrupted()
        reached.append(list(map(str, range(1000))))

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached


def test_a_signal_waits_for_the_next_module() -> None:
    inner, outer = nn.Identity(), nn.Identity()
    inner.register_forward_hook(interrupted)
    reached = []
    with deferred_signals():
        reached.append(inner(1))
        with pytest.raises(KeyboardInterrupt):
            reached.append(outer(2))
    assert reached == [1]


@pytest.mark.parametrize("raises", [False, True])
def test_any_handler_runs_once(raises: bool) -> None:
    """With the signal's number and a frame; one that raises nothing lets the work go on."""
    calls: list[tuple[int, bool]] = []

    def handle(number: int, frame: Any) -> None:
        calls.append((number, frame is not None))
        if raises:
            raise RuntimeError("stopped")

    signal.signal(signal.SIGTERM, handle)
    done = []
    try:
        with deferred_signals():
            signal.raise_signal(signal.SIGTERM)
            assert not calls
            nn.Identity()(1)
            done.append(1)
    except RuntimeError:
        done.append(2)
    assert done == [2 if raises else 1]
    assert calls == [(signal.SIGTERM, True)]
    assert signal.getsignal(signal.SIGTERM) is handle


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN])
def test_what_the_system_handles_stays(handler: Any) -> None:
    signal.signal(signal.SIGTERM, handler)
    with deferred_signals():
        assert signal.getsignal(signal.SIGTERM) is handler
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler


def test_an_inner_context_is_part_of_the_outer_one() -> None:
    reached = []

    @deferred_signals()
    def work() -> None:
        with deferred_signals():
            interrupted()
        reached.append(True)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached


def test_an_error_of_the_work_is_the_context_of_the_interrupt() -> None:
    @deferred_signals()
    def work() -> None:
        interrupted()
        raise ValueError

    with pytest.raises(KeyboardInterrupt) as caught:
        work()
    assert isinstance(caught.value.__context__, ValueError)


def test_a_repeated_signal_breaks_in_after_a_while() -> None:
    """A hook of the user may hang, and then no module is called."""
    with deferred_signals():
        interrupted()
        interrupted()
        with (
            patch.object(interrupts, "_PATIENCE", 0.0),
            pytest.raises(KeyboardInterrupt),
        ):
            interrupted()
        nn.Identity()(1)  # nothing is left that waits


def test_a_handler_that_the_model_sets_stays() -> None:
    def other(*_: Any) -> None:
        """Another handler."""

    signal.signal(signal.SIGTERM, other)
    with deferred_signals():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def test_a_profiler_of_the_user_stays() -> None:
    """The signal then waits for the end."""

    def profiler(*_: Any) -> None:
        """Look at a call."""

    done: list[Any] = []

    @deferred_signals()
    def work() -> None:
        interrupted()
        nn.Identity()(1)
        done.append(sys.getprofile())

    sys.setprofile(profiler)
    try:
        with pytest.raises(KeyboardInterrupt):
            work()
    finally:
        sys.setprofile(None)
    assert done == [profiler]


def test_other_threads_change_no_handlers() -> None:
    def inside() -> Any:
        with deferred_signals():
            deliver_signals()
            return signal.getsignal(signal.SIGINT)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(inside).result(PATIENCE) is signal.default_int_handler
        with deferred_signals():  # and do not deliver what waits in the main thread
            interrupted()
            pool.submit(inside).result(PATIENCE)
            with pytest.raises(KeyboardInterrupt):
                deliver_signals()


@pytest.mark.parametrize("first", SIGNALS)
def test_handlers_come_back_although_the_other_one_raises(first: signal.Signals) -> None:
    """A signal may arrive between any two instructions where they are replaced or come back."""

    def handle(*_: Any) -> None:
        raise InterruptedError

    def context() -> None:
        with deferred_signals():
            pass

    signal.signal(signal.SIGTERM, handle)
    for event in range(1, events_of(context) + 1):
        with pytest.raises((KeyboardInterrupt, InterruptedError)):
            with_signal(context, event, number=first)
        assert signal.getsignal(signal.SIGTERM) is handle
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert interrupts._current is None


def test_waiting_for_another_thread_can_be_interrupted() -> None:
    model, held, release = nn.Identity(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock_models([model]):
            held.set()
            assert release.wait(PATIENCE)

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(hold)
        assert held.wait(PATIENCE)
        with deferred_signals():
            interrupted()
            with pytest.raises(KeyboardInterrupt), lock_models([model]):
                pytest.fail("it is held by the other thread")
        release.set()
        future.result(PATIENCE)
    with lock_models([model]):
        pass


def test_asyncio_gets_its_interrupt() -> None:
    """``asyncio.run`` has a handler of its own, which cancels the main task."""
    steps = []

    async def explain() -> None:
        with deferred_signals():
            interrupted()
            steps.append("explained")
        await asyncio.sleep(PATIENCE)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(explain())
    assert steps == ["explained"]


def _load() -> None:
    load_model("bundled")


def test_an_interrupted_load_leaves_no_settings() -> None:
    """Ours are a variable of the process and a hook; Transformers' own are many."""
    for _ in range(2):  # the first times make more
        _load()
    before, events = dict(os.environ), events_of(_load)
    for event in range(events // 5, events * 4 // 5, events // 12):  # their number differs a little
        with pytest.raises(KeyboardInterrupt):
            with_signal(_load, event)
        assert dict(os.environ) == before
        assert not module._global_parameter_registration_hooks
        assert torch.empty(0).device.type == "cpu"
        assert torch.get_default_dtype() == torch.float32
    _load()
