"""Bytes that are counted are those that live."""

from __future__ import annotations

import threading

import torch
from torch import nn

from hf_gmar.perturbations.memory import LiveBytes


def test_tensors_count_as_long_as_they_live() -> None:
    with LiveBytes() as live:
        one = torch.ones(100)
        assert (live.now, live.peak) == (400, 400)
        two = one + 1
        assert (live.now, live.peak) == (800, 800)
        del one
        assert (live.now, live.peak) == (400, 800)
        two = two.double()
        assert (live.now, live.peak) == (800, 1200)
    assert two.sum() == 200
    assert live.peak == 1200


def test_views_and_changes_in_place_are_no_new_memory() -> None:
    with LiveBytes() as live:
        one = torch.ones(10, 10)
        views = [one[1:], one.T, one.reshape(100), one.expand(5, 10, 10)]
        one.add_(1)
        one[0].mul_(2)
        assert live.now == 400
        del one
        assert live.now == 400  # the views have it
        del views
        assert live.now == 0


def test_what_was_there_before_does_not_count() -> None:
    layer, inputs = nn.Linear(10, 20), torch.ones(5, 10)
    with torch.no_grad(), LiveBytes() as live:
        found = layer(inputs)
        inputs.add_(1)
    assert found.shape == (5, 20)
    assert (live.now, live.peak) == (400, 400)


def test_several_results_of_one_call() -> None:
    with LiveBytes() as live:
        values, places = torch.arange(10.0).sort()
    assert len(values) == len(places)
    assert live.now == 40 + 80
    assert live.peak == 40 + 40 + 80


def test_other_threads_do_not_count() -> None:
    with LiveBytes() as live:
        thread = threading.Thread(target=lambda: torch.ones(1000))
        thread.start()
        thread.join()
    assert live.peak == 0
