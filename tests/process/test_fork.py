"""A process that is forked while another thread explains the same model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.interpreter import run_python

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork"),
]

FORKS = """
import os, signal, sys, threading, time, traceback, warnings

import torch

from benchmarks.interrupts import build_model, snapshot
from hf_gmar import GMAR, compare

warnings.simplefilter("ignore")  # of Python, about threads and forks
torch.set_num_threads(1)
images = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
model = build_model(wrapped=True)
engines = [GMAR(model, engine=engine) for engine in ("streaming", "dense")]
ways = [
    lambda: engines[0].attribute_patches(images, 1),
    lambda: engines[1].attribute_patches(images, 1),
    lambda: GMAR(model, checkpoint=True).attribute_patches(images, 1),
    lambda: compare(model, images, ["gmar"], target=1),
]
wanted = [gmar.attribute_patches(images, 1) for gmar in engines]


def wait(*_):
    if threading.current_thread() is explainer:
        inside.set()
        leave.wait(120)


model.inner.vit.layers[1].register_forward_hook(wait)
before = snapshot(model)
del before["random state"]  # Python itself gives each process another one


def check():
    after = snapshot(model)
    assert [kind for kind, value in before.items() if after[kind] != value] == []
    for gmar, result in zip(engines, wanted):
        assert torch.equal(gmar.attribute_patches(images, 1), result)


def fork():
    assert inside.wait(120)
    for _ in range(3):
        if not (child := os.fork()):
            try:
                check()
                os._exit(0)
            except BaseException:
                os.write(2, traceback.format_exc().encode())
                os._exit(1)
        end = time.monotonic() + 60
        while (status := os.waitpid(child, os.WNOHANG)) == (0, 0):
            if time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.01)
        print("child:", status[1])
    leave.set()


for explain in ways:
    inside, leave = threading.Event(), threading.Event()
    if sys.argv[1] == "main":  # explains, and another thread forks
        explainer, forking = threading.current_thread(), threading.Thread(target=fork)
        forking.start()
        explain()
        forking.join()
    else:
        explainer = threading.Thread(target=explain)
        explainer.start()
        fork()
        explainer.join()
    check()
"""


@pytest.mark.parametrize("explains", ["main", "other"])
def test_the_child_has_the_model_as_it_was(explains: str, tmp_path: Path) -> None:
    """It explains the model at once, without the thread that would give it back."""
    done = run_python(["-c", FORKS, explains], tmp_path)
    assert done.stdout == "child: 0\n" * 12, done.stderr
