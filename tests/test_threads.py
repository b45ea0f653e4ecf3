"""A model that several threads use at once: explained by some, simply called by others."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_gmar import GMAR
from tests.cases import TARGETS, VIT, every_engine

PATIENCE = 10.0


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


@every_engine
@pytest.mark.parametrize("training", [False, True])
def test_two_threads_explain_one_model(training: bool, engine: str) -> None:
    model = VIT.build(hidden_dropout_prob=0.5).train(training)
    halfway, gmar = Halfway(), GMAR(model, engine=engine)
    wanted = gmar.attribute(VIT.images(), TARGETS)
    model.vit.layers[1].register_forward_hook(halfway)
    with ThreadPoolExecutor(2) as pool:
        one = halfway.during(lambda: gmar.attribute(VIT.images(), TARGETS), pool)
        other = pool.submit(lambda: gmar.attribute(VIT.images(), TARGETS))
        with pytest.raises(TimeoutError):  # it waits; it must not switch the model meanwhile
            other.result(0.2)
        halfway.go_on.set()
        assert torch.equal(one.result(PATIENCE), wanted)
        assert torch.equal(other.result(PATIENCE), wanted)
    assert model.config._attn_implementation == "sdpa"
    assert all(module.training == training for module in model.modules())


@every_engine
def test_a_plain_forward_goes_on_meanwhile(engine: str) -> None:
    model = VIT.build()
    halfway, gmar = Halfway(), GMAR(model, engine=engine)
    wanted, logits = gmar.attribute(VIT.images(), TARGETS), model(VIT.images()).logits
    model.vit.layers[1].register_forward_hook(halfway)
    with ThreadPoolExecutor(1) as pool:
        explained = halfway.during(lambda: gmar.attribute(VIT.images(), TARGETS), pool)
        output = model(VIT.images())
        halfway.go_on.set()
        assert torch.equal(explained.result(PATIENCE), wanted)
    assert set(output) == {"logits"}
    assert torch.allclose(output.logits, logits, atol=1e-5)
