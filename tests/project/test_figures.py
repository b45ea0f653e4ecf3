"""The pictures of the pages show what the code draws. If not: python -m benchmarks.figures."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from benchmarks import figures

ROOT = Path(__file__).parents[2]
PICTURES = [*(ROOT / "docs").rglob("*.png"), *(ROOT / "benchmarks").rglob("*.png")]


def test_every_picture_has_what_draws_it() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in PICTURES}
    assert names == set(figures.FIGURES) == set(figures.stored_contents())


@pytest.mark.extended  # 'make docs' runs it, too
@pytest.mark.parametrize("name", figures.FIGURES)
def test_the_picture_is_what_is_drawn(name: str) -> None:
    stored = figures.stored_contents()[name]
    assert figures.digest(ROOT / name) == stored["file"]
    assert figures.differences(stored, figures.contents(figures.FIGURES[name]())) == []


@pytest.mark.extended  # 'make docs' runs it, too
@pytest.mark.parametrize("name", figures.RESULTS)
def test_the_report_is_what_is_written(name: str) -> None:
    path = ROOT / "docs" / "results" / name / "report.md"
    assert path.read_text(encoding="utf-8") == figures.report(name)


def _figure(title: str = "heart 99.9%", last: float = 4.0, colour: float = 0.5) -> Figure:
    figure = Figure()
    axes = figure.subplots()
    axes.plot([0, 1, 2], [1, 2, last], label="line")
    axes.imshow(np.array([[0, colour], [1, 0]]))
    axes.set_title(title)
    return figure


@pytest.mark.parametrize(
    "change",
    [{"title": "cross 99.9%"}, {"title": "heart 89.9%"}, {"title": "heart"}, {"last": 3.8},
     {"colour": 0.6}],
)  # fmt: skip
def test_a_change_is_seen(change: dict[str, Any]) -> None:
    before = figures.contents(_figure())
    assert figures.differences(before, figures.contents(_figure(**change)))


def test_rounding_is_no_change() -> None:
    before = figures.contents(_figure())
    after = figures.contents(_figure("heart 100.0%", 4.001, 0.5001))
    assert figures.differences(before, after) == []
    fewer = copy.deepcopy(before)
    fewer["numbers"].pop()
    assert figures.differences(before, fewer) == ["2 numbers are now 1"]
