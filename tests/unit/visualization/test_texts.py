"""No figure of the library cuts a text or draws one over another, whatever names there are."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from io import BytesIO
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from benchmarks.growth import Curve as GrowthCurve
from benchmarks.growth import Growth, growth_figure
from hf_gmar._utils.stats import Interval
from hf_gmar.evaluation import ExampleMaps, Summary, summarize
from hf_gmar.evaluation.report.figures import curves_figure, differences_figure, examples_figure
from hf_gmar.heads.ablation import LERF, MORF, RANDOM
from hf_gmar.methods import METHODS
from hf_gmar.models import ImageView
from hf_gmar.visualization import (
    GridColumn,
    ablation_figure,
    grid_figure,
    head_maps_figure,
    importance_figure,
    overlay_figure,
)
from hf_gmar.visualization.text import legend_columns, width_of, wrapped
from tests.support.figures import drawn_texts, text_problems
from tests.support.hostile import HOSTILE, hidden_in

SCRIPTS = {
    "short": "a",
    "plain": "gmar",
    "words": "gradient rollout of the third variant with a long name and options",
    "one word": "gmar-norm-l2-alpha-0.5-start-layer-3-chunk-size-64-engine-streaming-checkpoint",
    "CJK": "视觉变换器注意力回放方法的一个非常长的名称用于测试图形中的文字是否被裁剪掉",
    "accents": "Ǻttribütiön dès têtes pondérées, à l'échelle",
    "Cyrillic": "Ширина щёток внимания, взвешенных по градиенту логита",
    "wide": "WWWWWWWWWWMMMMMMMMMM" * 3,
    "maths": "$R^2_{i}$ \\frac{a}{b} & <b>",
}
MEASURES = (
    "deletion", "insertion", "aopc", "srg", "average-drop (keep=0.30000000000000004)",
    "a-measure-of-my-own-with-a-name-that-does-not-end (option=value, other=value)",
)  # fmt: skip
BETTER = {"deletion": False, "insertion": True, "average-drop": False}


def names_of(script: str, count: int) -> list[str]:
    return [f"{number} {SCRIPTS[script]}" for number in range(1, count + 1)]


def found(script: str, count: int, scale: float = 1, measures: int = 6) -> Summary:
    """An evaluation of methods of these names, each with a curve, under one perturbation."""
    random = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for image in range(3):
        for name in names_of(script, count):
            curves = {order: np.sort(random.random(4) * scale)[::-1] for order in ("morf", "lerf")}
            rows.append({
                "index": image, "key": f"{image}", "method": name,
                "values": {
                    f"{measure}:token-dropping": float(random.random() * scale)
                    for measure in MEASURES[:measures]
                },
                "fractions": [0, 0.3, 0.6, 1],
                "curves": {"token-dropping": {key: part.tolist() for key, part in curves.items()}},
            })  # fmt: skip
    settings = {"score": "probability", "methods": dict.fromkeys(names_of(script, count))}
    return summarize(rows, settings, BETTER, names_of(script, count)[-1])


ROWS = [(count, list(SCRIPTS)[5 * count % len(SCRIPTS)]) for count in range(1, 13)]
"""Each number of names, with the scripts in turn."""


def rows_from(first: int) -> list[Any]:
    """The rows from a number of names on; a few numbers stand for all in the default run."""
    return [
        pytest.param(*row, marks=[] if row[0] in (1, 2, 5, 12) else [pytest.mark.extended])
        for row in ROWS
        if row[0] >= first
    ]


@pytest.mark.parametrize(("count", "script"), rows_from(1))
def test_curves(count: int, script: str) -> None:
    assert text_problems(curves_figure(found(script, count), "token-dropping")) == []


@pytest.mark.parametrize(("count", "script"), rows_from(2))
def test_differences(count: int, script: str) -> None:
    summary = found(script, count, scale=10.0 ** (count - 6), measures=1 + count % 6)
    measures = summary.compared(summary.measures)
    assert text_problems(differences_figure(summary, measures)) == []


@pytest.mark.parametrize(("count", "script"), ROWS[::4])
def test_examples(count: int, script: str) -> None:
    maps = {name: torch.rand(4, 4) for name in names_of(script, count)}
    shape = (64, 20 + 10 * count)
    pictures = [
        ExampleMaps(Image.new("RGB", shape), f"{SCRIPTS[script]} 0.98\n{SCRIPTS[other]}.png", maps)
        for other in ("words", "CJK")
    ]
    assert text_problems(examples_figure(found(script, count), pictures)) == []


@pytest.mark.parametrize(("count", "script"), rows_from(1))
def test_comparisons(count: int, script: str) -> None:
    columns = [
        GridColumn(name, "102.5 forwards, 1.5 GB", torch.randn(2, 3, 3)) if number % 4 != 3
        else GridColumn(name, "", None, f"{SCRIPTS[script]} is what went wrong " * 5)
        for number, name in enumerate(names_of(script, count))
    ]  # fmt: skip
    pictures = [Image.new("RGB", (200, 60 + 30 * count))] * 2
    titles = [f"{SCRIPTS[script]}  99.9%\n{SCRIPTS[script]}", "cat  1.0%\na.png"]
    figure = grid_figure(pictures, titles, columns, f"{SCRIPTS[script]}. " * 8)
    assert text_problems(figure) == []


@pytest.mark.parametrize(("place", "script"), list(enumerate(SCRIPTS)))
def test_overlays(place: int, script: str) -> None:
    width, height = size = ((300, 300), (900, 200), (150, 700))[place % 3]
    view = ImageView((height, width), (height * 0.1, 0.0, height * 0.9, width))
    text = SCRIPTS[script]
    for scale, unit, seen in ((1e-7, text, view), (-123456, text, None), (0.5, "gradient", None)):
        figure = overlay_figure(
            Image.new("RGB", size), torch.rand(3, 3) * scale, f"{text}  99.9%",
            f"{text} (model {text}, norm l2)", seen, unit,
        )  # fmt: skip
        assert text_problems(figure) == []


@pytest.mark.parametrize("name", list(METHODS))
def test_colour_bars_of_all_methods(name: str) -> None:
    for maps in (torch.rand(3, 3), -torch.rand(3, 3)):
        figure = overlay_figure(Image.new("RGB", (900, 99)), maps, "cat", unit=METHODS[name].unit)
        assert text_problems(figure) == []


@pytest.mark.parametrize(("count", "script"), rows_from(1))
def test_heads(count: int, script: str) -> None:
    layers = 13 - count
    values = np.random.default_rng(0).random((layers, count)).astype(np.float32)
    text, std = SCRIPTS[script], values if count % 2 else None
    assert text_problems(importance_figure(values, std, text, text * 2)) == []
    effects = (values - 0.5) * np.float32(10.0 ** (count - 6))
    assert text_problems(importance_figure(effects, std, text, text, shares=False)) == []


@pytest.mark.parametrize(("heads", "script"), ROWS[::2])
def test_maps_of_heads(heads: int, script: str) -> None:
    maps, text = torch.rand(13 - heads, heads, 2, 2), SCRIPTS[script]
    view = ImageView((40, 90), (0.0, 10.0, 40.0, 50.0))
    figure = head_maps_figure(Image.new("RGB", (90, 40)), maps, text, f"{text} {text}.png", view)
    assert text_problems(figure) == []


@pytest.mark.parametrize(("place", "script"), list(enumerate(SCRIPTS)))
def test_ablations(place: int, script: str) -> None:
    ends = np.array([2.0, 1.0]) * 10.0 ** (2 * place - 8)
    bands = dict.fromkeys((MORF, LERF, RANDOM), Interval(ends, ends / 2, ends * 2))
    assert text_problems(ablation_figure(np.array([0, 1.0]), bands, 3, SCRIPTS[script] * 5)) == []


@pytest.mark.parametrize("script", ["words", "CJK", "wide"])
def test_growth(script: str) -> None:
    powers: dict[str, float | None] = {"time": 1.9, "memory": 0.1, "extra": None}
    curve = GrowthCurve([1.0, 5.0, 30.0], [1e6, 1e8, 1e9], [None] * 3, [""] * 3, powers)
    curves = dict.fromkeys(names_of(script, 4), curve)
    growth = Growth(["S224", "S512", "S1024"], [197, 1025, 4097], curves, {})
    assert text_problems(growth_figure(growth)) == []


CHECKS: dict[str, Callable[[Figure], Any]] = {
    "cut": lambda figure: figure.text(0.99, 0.5, "too long"),
    "over each other": lambda figure: [figure.text(0.5, 0.5, "one"), figure.text(0.51, 0.5, "two")],
}


@pytest.mark.parametrize("problem", CHECKS)
def test_the_check_sees_what_it_looks_for(problem: str) -> None:
    figure = Figure(figsize=(2, 1))
    CHECKS[problem](figure)
    (text,) = text_problems(figure)
    assert text.startswith(problem)


@pytest.mark.parametrize("script", list(SCRIPTS))
def test_wrapped_lines_are_no_wider_than_said(script: str) -> None:
    for width in (0.5, 1.7, 4):
        lines = wrapped(SCRIPTS[script], width, 9, 2).replace(r"\$", "$").splitlines()
        assert 1 <= len(lines) <= 2
        assert all(width_of(line, 9) <= width for line in lines)
        whole = "".join(SCRIPTS[script].split())
        joined = "".join("".join(lines).split())
        assert joined == whole or (joined.endswith("…") and whole.startswith(joined[:-1]))


@pytest.mark.parametrize("script", list(SCRIPTS))
@pytest.mark.parametrize("lines", [1, 2, 3])
def test_a_label_is_shortened_before_what_follows_it(script: str, lines: int) -> None:
    """Whatever the label: with words of two spaces too, and with a long text after the number."""
    label = f"{SCRIPTS[script]}  " * 9
    for rest in ("", f" rather than {SCRIPTS[script]}" * 5)[:lines]:
        shown = wrapped(f"{label}  99.9%{rest}", 1.75, 8, lines).replace(r"\$", "$")
        assert all(width_of(line, 8) <= 1.75 for line in shown.splitlines())
        assert shown.count("\n") < lines
        joined = "".join(shown.split())
        assert "99.9%" in joined
        assert joined.startswith("".join(label.split())[0])
        assert rest or joined.endswith("99.9%")


@pytest.mark.parametrize("script", list(SCRIPTS))
def test_grids_shorten_labels_and_never_a_score(script: str) -> None:
    label = f"{SCRIPTS[script]} " * 3
    picture = Image.new("RGB", (60, 60))
    columns = [GridColumn("gmar", maps=torch.rand(1, 3, 3))]
    figure = grid_figure([picture], [f"{label}  99.9%\n{label}.png"], columns, "")
    assert any("99.9%" in text.get_text() for text in drawn_texts(figure))
    assert text_problems(figure) == []


@pytest.mark.parametrize("name", HOSTILE)
def test_hidden_characters_are_drawn_as_escapes(name: str) -> None:
    """So that no letter is lost, and no font is asked for it."""
    maps = {f"{number}{name}": torch.rand(4, 4) for number in range(2)}
    example = ExampleMaps(Image.new("RGB", (60, 60)), f"{name}  0.98", maps)
    rows = [{"index": 0, "key": name, "method": label, "values": {}} for label in maps]
    summary = summarize(rows, {}, {})
    texts: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in (
            examples_figure(summary, [example]),
            head_maps_figure(example.picture, torch.rand(2, 2, 3, 3), name, name),
            importance_figure(np.ones((2, 2), np.float32), None, name, name),
        ):
            figure.savefig(BytesIO(), format="png")
            texts += [text.get_text() for text in figure.findobj(Text)]
    assert hidden_in("".join(texts)) <= {"\n"}
    assert ("\x1b" not in name) or any(r"\x1b]52" in text.replace("\n", "") for text in texts)


def test_names_never_go_to_latex() -> None:
    """Which matplotlib's settings may ask for, and which can run commands."""
    with mpl.rc_context({"text.usetex": True}):
        name, picture = r"\input{/etc/passwd} $x$ a_b", Image.new("RGB", (60, 60))
        rows: list[dict[str, Any]] = [
            {"index": number, "key": name, "method": label, "values": {"deletion:blur": number / 9},
             "curves": {"blur": {"morf": [1, 0], "lerf": [1, 0]}}, "fractions": [0, 1]}
            for number in range(3) for label in (name, "random")
        ]  # fmt: skip
        summary = summarize(rows, {}, {"deletion": False}, "random")
        example = ExampleMaps(picture, name, {name: torch.rand(4, 4)})
        for figure in (
            overlay_figure(picture, torch.rand(4, 4), name, name),
            examples_figure(summary, [example]),
            curves_figure(summary, "blur"),
            differences_figure(summary, summary.compared(summary.measures)),
            head_maps_figure(picture, torch.rand(2, 2, 3, 3), name, name),
            importance_figure(np.ones((2, 2), np.float32), None, name, name),
        ):
            figure.savefig(BytesIO(), format="png")  # fails where there is no LaTeX
            assert not any(text.get_usetex() for text in figure.findobj(Text))


def test_a_text_that_fits_is_not_changed() -> None:
    assert wrapped("costs  $5", 5, 9) == r"costs \$5"
    assert wrapped("", 5, 9) == ""
    assert wrapped("word " * 9, 0.8, 9, 2) == "word word\nword wor…"


def test_as_many_columns_of_a_legend_as_fit() -> None:
    assert legend_columns(["a", "b", "c"], 5, 9) == 3
    assert legend_columns(["a" * 50, "b" * 50, "c"], 5, 9) == 1
    assert legend_columns(["a" * 25, "b" * 25, "c"], 5, 9) == 2
