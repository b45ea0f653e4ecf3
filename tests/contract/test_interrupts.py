"""An interrupt at any instant of an explanation leaves no trace, and the next one is the same."""

from __future__ import annotations

import functools
import signal
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from benchmarks.interrupts import WAYS, build_model, snapshot
from hf_gmar import GMAR
from tests.support.signals import CONTEXTS, events_of, with_signal

IMAGES = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
STEPS = 12
"""Instants of each explanation in the short form of the test."""


@pytest.fixture(autouse=True)
def _raising() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize(
    ("files", "steps"),
    [(CONTEXTS, STEPS), pytest.param((), 1000, marks=pytest.mark.extended)],
    ids=["contexts", "all"],
)
def test_an_interrupt_leaves_no_trace(files: tuple[str, ...], steps: int, name: str) -> None:
    model = build_model(wrapped=True)
    call = functools.partial(WAYS[name], model, IMAGES)
    call()
    before, events = snapshot(model), events_of(call, files)
    for event in range(1, events + 1, max(1, events // steps)):
        try:
            with_signal(call, event, files)
        except KeyboardInterrupt:  # its traceback is alive, and so is all that it holds
            after = snapshot(model)
        else:  # beyond the end, or Python has dropped it, as in a function that closes an object
            after = snapshot(model)
        assert {kind for kind, value in before.items() if after[kind] != value} == set()


@pytest.mark.parametrize("engine", ["streaming", "dense"])
def test_the_next_explanation_is_the_same(engine: str) -> None:
    model = build_model(wrapped=False)
    call = functools.partial(GMAR(model, engine=engine).attribute_patches, IMAGES, 1)
    wanted, events = call(), events_of(call)
    for event in range(1, events, events // STEPS):
        with pytest.raises(KeyboardInterrupt):
            with_signal(call, event)
        assert torch.equal(call(), wanted)


def test_the_work_is_interrupted_before_its_end() -> None:
    """At the next module: a long explanation does not go on to its end."""
    model = build_model(wrapped=False)
    run: list[nn.Module] = []

    def interrupted(module: nn.Module, *_: object) -> None:
        if not run:
            signal.raise_signal(signal.SIGINT)
        run.append(module)

    for layer in model.vit.layers:
        layer.register_forward_hook(interrupted)
    with pytest.raises(KeyboardInterrupt):
        GMAR(model).attribute_patches(IMAGES, 1)
    assert len(run) == 1
