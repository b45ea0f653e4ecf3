"""The report of an evaluation: its pages say what the summary holds, and can be read."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from hf_gmar._utils.text import visible
from hf_gmar.evaluation import ExampleMaps, Summary, summarize, write_report
from hf_gmar.evaluation.report.figures import curves_figure, differences_figure, examples_figure
from hf_gmar.evaluation.report.markdown import LIMITS, page
from hf_gmar.evaluation.report.writer import html
from hf_gmar.metrics import METRICS
from tests.reference.tolerances import PATIENCE

METHODS = (
    *("gmar", "gmar (alpha=0.25)", "gmar (alpha=0.5)", "gmar (alpha=2.0)"),
    *(f"gmar (norm=l2, alpha={alpha})" for alpha in (0.25, 0.5, 1.0, 2.0)),
    *("attention-rollout", "raw-attention", "gradient-rollout", "legrad", "grad-sam"),
    *("token-grad-cam", "input-x-gradient", "attn-lrp", "random"),
)
FEW = ("gmar", "gmar (norm=l2, alpha=0.25)", "attention-rollout", "raw-attention", "random")
"""Enough for what a report does with any number of methods."""

BETTER = {
    "deletion": False,
    "insertion": True,
    "average-drop": False,
    "pointing-game": True,
    "infidelity": False,
    "spread": None,
}
SETTINGS = {
    "model": "bundled",
    "data": "scenes:40",
    "score": "probability",
    "explained_class": "label",
    "methods": list(METHODS),
    "perturbations": ["blur", "token-dropping"],
    "steps": 10,
}
FRACTIONS = np.linspace(0, 1, 6)


def rows_of(
    methods: tuple[str, ...] = METHODS,
    images: int = 24,
    perturbations: tuple[str, ...] = ("blur", "token-dropping"),
) -> Iterator[dict[str, Any]]:
    """Rows in which later methods are worse; one broken image, one method that fails once."""
    generator = np.random.default_rng(0)
    yield {"index": images, "key": "broken_1.png", "method": None, "error": "no image"}
    for index in range(images):
        hard = generator.normal(0, 0.03)
        for place, method in enumerate(methods):
            name = {"index": index, "key": f"{index}.png", "method": method}
            if (index, place) == (2, 4):
                yield {**name, "error": "its map holds NaN"}
                continue
            values: dict[str, float | None] = {}
            curves: dict[str, Any] = {}
            for perturbation in perturbations:
                shift = hard + 0.02 * place + generator.normal(0, 0.02)
                curves[perturbation] = {
                    "morf": (0.9 - FRACTIONS * (0.8 - shift)).tolist(),
                    "lerf": (0.9 - FRACTIONS**2 * (0.8 + shift)).tolist(),
                }
                values[f"deletion:{perturbation}"] = 0.2 + shift
                values[f"insertion:{perturbation}"] = 0.8 - shift
                values[f"average-drop (keep=0.5):{perturbation}"] = 20 + 100 * shift
            values["pointing-game"] = float(generator.random() < 0.5) if index % 2 else None
            values["infidelity"] = generator.gamma(2, 1e-9)
            values["spread"] = shift * 1e7
            yield {
                **name,
                "label": index % 2,
                "predicted": 0,
                "values": values,
                "curves": curves,
                "fractions": FRACTIONS.tolist(),
            }


@pytest.fixture(scope="module")
def summary() -> Summary:
    """Of all methods, with a baseline."""
    return summarize(rows_of(), SETTINGS, BETTER, "attention-rollout")


@pytest.fixture(scope="module")
def short() -> Summary:
    """Of a few methods, with the same baseline."""
    return summarize(rows_of(FEW), SETTINGS, BETTER, "attention-rollout")


@pytest.fixture(scope="module")
def report(short: Summary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a whole report."""
    folder = tmp_path_factory.mktemp("report") / "new"
    write_report(folder, short, examples(FEW))
    return folder


def examples(methods: tuple[str, ...] = METHODS) -> list[ExampleMaps]:
    picture = Image.new("RGB", (48, 48), "teal")
    return [
        ExampleMaps(
            picture, f"class {n}\n{n}.png", {name: torch.rand(4, 4) for name in methods[n:]}
        )
        for n in range(2)
    ]


class Read(HTMLParser):
    """What a page holds: texts of cells and headings, names, and where it points."""

    def __init__(self, text: str) -> None:
        """Read it at once."""
        super().__init__()
        self.rows: list[list[str]] = []
        self.headings: list[str] = []
        self.names: set[str] = set()
        self.points: list[tuple[str, str]] = []
        self.tags: list[str] = []
        self.items: list[str] = []
        self._into: list[str] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the tag and what it names or points to."""
        self.tags.append(tag)
        found = dict(attrs)
        self.names.add(found.get("id") or "")
        self.points += [(one, found[one] or "") for one in ("src", "href") if one in found]
        if tag == "tr":
            self.rows.append([])
        into = {"td": self.rows[-1:], "th": self.rows[-1:], "li": [self.items]}.get(tag)
        into = [self.headings] if tag in {"h1", "h2", "h3"} else into
        if into:
            into[0].append("")
            self._into = into[0]

    def handle_data(self, data: str) -> None:
        """Add to the text of the cell, heading or item."""
        if self._into is not None:
            self._into[-1] += data

    def handle_endtag(self, tag: str) -> None:
        """Close the cell, heading or item."""
        if tag in {"td", "th", "li", "h1", "h2", "h3"}:
            self._into = None


def small(better: bool | None = False, **values: Sequence[float | None]) -> Summary:
    rows = [
        {"index": index, "key": "a", "method": name, "values": {"m": value}}
        for name, each in values.items()
        for index, value in enumerate(each)
    ]
    return summarize(rows, {}, {"m": better}, next(iter(values)))


def table_rows(found: Summary) -> dict[str, str]:
    """The means of a summary with one measure, by method, as the page has them."""
    lines = found.markdown().split("## Other measures\n\n")[1].split("\n\n")[0].splitlines()
    return {
        method.strip(): text.strip() for _, method, text, _ in (one.split("|") for one in lines)
    }


def test_the_table_has_mean_interval_and_mark() -> None:
    found = small(a=[0.5] * 9, b=[0.25, 0.5] * 4 + [0.25], c=[0.75, 0.5, *[0.75] * 7])
    shown = table_rows(found)
    assert shown["method"] == "m ↓ lower is better, n = 9"
    assert shown["a"] == "0.50 [0.50,\u00a00.50]"
    by_place = {name: found.by_place["m", name] for name in "bc"}
    for name, start in (("b", "**0.36**"), ("c", "0.72 ▼\\*")):
        cell = by_place[name]
        assert shown[name] == f"{start} [{cell.low:.2f},\u00a0{cell.high:.2f}]"
    assert [by_place[name].difference.corrected for name in "bc"] == [0.0625, 0.015625]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("better", "bold", "marks"),
    [
        (False, {"b"}, {"b": "▲\\*\\*", "c": "▼\\*\\*"}),
        (True, {"c"}, {"b": "▼\\*\\*", "c": "▲\\*\\*"}),
        (None, set(), {"b": "▽\\*\\*", "c": "△\\*\\*"}),
    ],
)
def test_bold_and_marks_go_by_the_better_direction(
    better: bool | None, bold: set[str], marks: dict[str, str]
) -> None:
    shown = table_rows(small(better, a=[0.5] * 12, b=[0.25] * 12, c=[0.75] * 12))
    assert {name for name, text in shown.items() if "**" in text.replace("\\*", "")} == bold
    assert {name: text.split()[1] for name, text in shown.items() if name in "bc"} == marks


def test_equal_means_are_all_the_best_and_a_single_one_is_not() -> None:
    shown = table_rows(small(a=[0.5, 0.5], b=[0.25, 0.75], c=[0.75, 0.75]))
    assert [shown[name].startswith("**") for name in "abc"] == [True, True, False]
    assert table_rows(small(a=[0.5, 0.75], b=[None, None]))["b"] == "–"  # noqa: RUF001
    assert not table_rows(small(a=[0.5, 0.75], b=[None, None]))["a"].startswith("**")


def test_the_table_says_how_many_images_each_mean_is_of() -> None:
    shown = table_rows(small(a=[0.5, 0.25, 0.5], b=[0.5, 0.75, None]))
    assert shown["method"].endswith("n = 2 to 3")
    assert shown["b"].endswith("n=2")
    assert "n=" not in shown["a"]


def test_decimals_follow_the_width_of_the_intervals() -> None:
    wide = table_rows(small(a=[1000.0, 2000.0, 3000.0], b=[0.0, -0.001, 0.001]))
    assert wide["a"].startswith("2000 [")
    assert wide["b"].startswith("**0** [0,")  # and not -0
    assert table_rows(small(a=[1e-9, 2e-9, 3e-9]))["a"].startswith("2.00e-09 [")
    assert table_rows(small(a=[1e7, 2e7, 3e7]))["a"].startswith("2.00e+07 [")
    assert table_rows(small(a=[0.5], b=[0.25])) == {
        "method": "m ↓ lower is better, n = 1",
        ":--": "--:",
        "a": "0.5000",
        "b": "**0.2500**",
    }
    assert table_rows(small(a=[0.1] * 30))["a"] == "0.1000 [0.1000,\u00a00.1000]"
    assert table_rows(small(a=[0.0, 0.0]))["a"] == "0.00 [0.00,\u00a00.00]"


def test_differences_have_a_sign() -> None:
    text = small(a=[0.5, 0.25, 0.5], b=[0.75, 0.5, 0.75], c=[0.25, 0.0, 0.25]).markdown()
    text = text.split("### Differences to a")[1]
    assert "| method | m ↓ lower is better |\n" in text
    assert "| b | +0.2500 [0.2500,\u00a00.2500] |" in text
    assert "| c | -0.2500 [-0.2500,\u00a0-0.2500] |" in text
    assert "| a |" not in text
    assert "+" not in small(a=[0.5, 0.5], b=[0.5, 0.5]).markdown().split("### ")[1].split("##")[0]


def test_the_page_says_what_was_measured(summary: Summary) -> None:
    text = summary.markdown()
    for words in (
        "- Model: bundled\n",
        "- Data: scenes:40\n",
        "- Images: 24, and 1 broken\n",
        "- Methods: 17\n",
        "- Baseline: attention-rollout\n",
        "- Explained class: the image's label\n",
        "- Score: the probability of the explained class\n",
        "▲ better, ▼ worse than attention-rollout: \\* p \\< 0.05, \\*\\* p \\< 0.01.",
        "| gmar (norm=l2, alpha=0.25) | 1 | its map holds NaN |",
        "The numbers do not include these images (1).",
        "- broken\\_1.png: no image\n",
        "| steps | 10 |",
        "| perturbations | blur, token-dropping |",
        *LIMITS,
    ):
        assert words in text, words
    assert "fewer than 20 images" in text  # the pointing game is of half of them
    logits = summarize(rows_of(METHODS[:1]), {"score": "logit"}, BETTER).markdown()
    assert "- Score: the logit of the explained class\n" in logits


def test_every_measure_has_a_column_with_its_direction(summary: Summary) -> None:
    headings = [line for line in summary.markdown().splitlines() if line.startswith("| method |")]
    assert len(headings) == 2 * 5 + 1  # means and differences of five groups; failures
    assert headings[0] == (
        "| method | deletion ↓ lower is better, n = 23 to 24 | insertion ↑ higher is better, n = "
        "23 to 24 | average-drop (keep=0.5) ↓ lower is better, n = 23 to 24 |"
    )
    assert any("| spread, n = 23 to 24 |" in one for one in headings)


def test_without_a_baseline_nothing_is_said_of_differences() -> None:
    text = summarize(rows_of(METHODS[:2]), {}, BETTER).markdown()
    for words in ("Differences", "baseline", "p-values are of", "▲"):
        assert words not in text.split("## Limits")[0]
    assert "No settings." in text
    absent = summarize(rows_of(METHODS[:2]), SETTINGS, BETTER, "legrad").markdown()
    assert "the baseline legrad has no rows" in absent
    assert "### Differences" not in absent


def test_measures_that_the_baseline_lacks_are_named() -> None:
    rows = [
        {"index": 0, "key": "k", "method": name, "values": {"m": 1.0, f"only {name}_": 1.0}}
        for name in "ab"
    ]
    text = summarize(rows, {}, BETTER, "a").markdown()
    assert "because no image has both values: only a\\_, only b\\_." in text
    assert "Not compared" not in summarize(rows[:1], {}, BETTER, "a").markdown()
    assert "Not compared" not in summarize(rows, {}, BETTER).markdown()
    assert "Not compared" not in small(a=[0.5], b=[0.5]).markdown()


def test_enough_images_and_no_failures_need_no_words() -> None:
    text = small(a=[0.5] * 20, b=[0.25] * 20).markdown()
    assert "fewer than" not in text
    assert "## Where methods failed" not in text
    assert "## Broken images" not in text
    assert "predicts" not in text


def test_many_broken_images_are_not_all_listed() -> None:
    rows = [{"index": n, "key": f"{n}", "method": None, "error": "e"} for n in range(23)]
    text = summarize(rows, {}, BETTER).markdown()
    assert "- 19: e\n- and 3 more" in text
    assert "- 20: e" not in text
    assert "more, in" not in summarize(rows[:20], {}, BETTER).markdown()


def test_reasons_are_counted_the_most_frequent_first() -> None:
    rows = [
        {"index": n, "key": "k", "method": "a", "error": "often" if n else "once"} for n in range(3)
    ]
    lines = summarize(rows, {}, BETTER).markdown().splitlines()
    place = lines.index("| a | 2 | often |")
    assert lines[place + 1] == "| a | 1 | once |"


words = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=20)


@settings(deadline=None, max_examples=60)
@given(words, words, words)
def test_any_name_comes_out_as_text(method: str, key: str, reason: str) -> None:
    rows = [
        {"index": 0, "key": key, "method": None, "error": reason},
        {"index": 1, "key": "a", "method": method, "values": {"deletion": 1.0}},
    ]
    markdown = summarize(rows, {reason: key}, BETTER).markdown()
    found = Read(html(markdown, {}))
    method, key, reason = (
        " ".join(visible(one, keep="\n\t").split()) for one in (method, key, reason)
    )
    assert method in [row[0] for row in found.rows]
    assert f"{key}: {reason}".strip() in [item.strip() for item in found.items]
    assert [reason, key] in found.rows
    assert {"script", "img", "a"} & set(found.tags) <= {"a"}
    assert all(target.startswith("#section-") for _, target in found.points)


@pytest.mark.parametrize(
    "text",
    ["<script>alert(1)</script>", "![x](http://a/b.png)", "[x](javascript:a)", "a|b", "`x`", "&lt;",
     "*a* **b** _c_", "http://example.org", "1. x", "# x", "\\", "a\\|b", "$x$", "~~x~~", "- x"],
)  # fmt: skip
def test_names_are_not_read_as_markup(text: str) -> None:
    rows = [
        {"index": 0, "key": text, "method": None, "error": text},
        {"index": 1, "key": text, "method": text, "values": {f"m:{text}": 1.0}},
    ]
    found = Read(html(summarize(rows, {"data": text}, {}).markdown(), {}))
    assert text in [row[0] for row in found.rows]
    assert f"{text}: {text}" in found.items
    assert f"Data: {text}" in found.items
    assert f"Faithfulness, patches removed by {text}" in found.headings
    assert all(target.startswith("#section-") for _, target in found.points)


def test_the_report_is_all_files(short: Summary, report: Path) -> None:
    names = {path.name for path in report.iterdir()}
    assert names == {
        *("summary.json", "report.md", "report.html", "examples.png"),
        *("curves-blur.png", "curves-token-dropping.png"),
        *("differences-blur.png", "differences-token-dropping.png"),
        *("differences-localisation.png", "differences-robustness-and-sanity-checks.png"),
        "differences-other-measures.png",
    }
    assert (report / "summary.json").read_text(encoding="utf-8") == short.to_json()
    assert json.loads(short.to_json())["methods"] == list(FEW)
    for path in report.glob("*.png"):
        with Image.open(path) as picture:
            picture.verify()


def test_the_page_shows_each_picture_under_its_heading(report: Path) -> None:
    text = (report / "report.md").read_text(encoding="utf-8")
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert sorted(shown) == sorted(path.name for path in report.glob("*.png"))
    blur = text.split("## Faithfulness, patches removed by blur")[1].split("\n## ")[0]
    assert re.findall(r"\]\((.+)\)", blur) == ["curves-blur.png", "differences-blur.png"]


def test_the_html_needs_no_other_file(report: Path) -> None:
    text = (report / "report.html").read_text(encoding="utf-8")
    found = Read(text)
    pictures = [target for name, target in found.points if name == "src"]
    assert len(pictures) == len(list(report.glob("*.png")))
    assert all(one.startswith("data:image/") for one in pictures)
    links = [target for name, target in found.points if name == "href"]
    assert len(links) == found.tags.count("h2") > 8
    assert {one.removeprefix("#") for one in links} <= found.names
    assert "<title>Evaluation of explanations</title>" in text
    assert not re.search(r"https?://|url\(|<link|<script", text)
    assert text.count('<span class="interval">') > len(FEW) * 9
    assert '<span class="better">▲**</span>' in text
    assert '<span class="worse">▼**</span>' in text


def test_the_html_has_the_tables_of_the_page(short: Summary, report: Path) -> None:
    rows = Read((report / "report.html").read_text(encoding="utf-8")).rows
    lines = [
        line for line in page(short).splitlines() if line.startswith("|") and ":--" not in line
    ]
    plain = [re.sub(r"\\(.)|\*\*", r"\1", line)[2:-2].split(" | ") for line in lines]
    assert rows == plain


def test_heavy_pictures_are_made_light() -> None:
    noise = Image.fromarray(
        np.random.default_rng(0).integers(0, 255, (700, 700, 3), dtype=np.uint8)
    )
    heavy, light = BytesIO(), BytesIO()
    noise.save(heavy, "PNG")
    noise.resize((20, 20)).save(light, "PNG")
    files = {"a.png": heavy.getvalue(), "b.png": light.getvalue()}
    (_, first), (_, second) = Read(html("# T\n\n![x](a.png)\n\n![y](b.png)", files)).points
    assert first.startswith("data:image/webp;base64,")
    assert second.startswith("data:image/png;base64,")
    assert len(first) < len(heavy.getvalue()) / 2


def test_a_report_that_fails_leaves_the_old_one(report: Path) -> None:
    before = {path: path.read_bytes() for path in report.iterdir()}
    other = small(a=[0.5] * 3, b=[0.25] * 3)  # one figure, before that of the examples fails
    broken = ExampleMaps(None, "no picture", {"a": torch.zeros(4, 4)})  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        write_report(report, other, [broken])
    assert {path: path.read_bytes() for path in report.iterdir()} == before


@pytest.mark.usefixtures("few_dots")
def test_pictures_of_like_names_do_not_overwrite_each_other(tmp_path: Path) -> None:
    keys = ("deletion:noise (std=0.1)", "deletion:noise (std=0 1)", "deletion:§")
    rows = [
        {"index": n, "key": "a", "method": name, "values": dict.fromkeys(keys, float(n + place))}
        for n in range(3)
        for place, name in enumerate("ab")
    ]
    written = write_report(tmp_path, summarize(rows, {}, BETTER, "a"))
    assert [path.name for path in written[3:]] == [
        "differences-noise-std-0-1.png",
        "differences-noise-std-0-1-2.png",
        "differences.png",
    ]
    assert all(path.exists() for path in written)


@pytest.mark.usefixtures("few_dots")
@pytest.mark.parametrize("methods", [METHODS[:1], METHODS[:2]], ids=["one method", "two"])
@pytest.mark.parametrize("images", [0, 1], ids=["no image", "one image"])
def test_little_gives_a_report_too(methods: tuple[str, ...], images: int, tmp_path: Path) -> None:
    found = summarize(rows_of(methods, images, ("blur",)), SETTINGS, BETTER, "gmar")
    write_report(str(tmp_path / "a" / "b"), found, [ExampleMaps(Image.new("RGB", (8, 8)), "x", {})])
    names = {path.name for path in (tmp_path / "a" / "b").glob("*.png")}
    assert ("curves-blur.png" in names) == (images > 0)
    assert ("differences-blur.png" in names) == (images > 0 and len(methods) > 1)
    assert "examples.png" not in names


def drawn(figure: Figure) -> Any:
    """The renderer, after all has its place."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return canvas.get_renderer()  # type: ignore[no-untyped-call]


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Titles and names of methods that are written over each other, or outside of the figure."""
    renderer = drawn(figure)
    texts = [text for axes in figure.axes for text in (axes.title, *axes.get_yticklabels())]
    boxes = [
        (text.get_text(), text.get_window_extent(renderer))
        for text in texts
        if text.get_text() and text.get_visible() and text.axes and text.axes.axison
    ]
    found = [
        (one, other)
        for place, (one, box) in enumerate(boxes)
        for other, box2 in boxes[:place]
        if box.overlaps(box2) and (one, box.bounds) != (other, box2.bounds)
    ]
    across, down = figure.get_size_inches() * figure.dpi
    found += [
        (one, "the edge")
        for one, box in boxes
        if box.x0 < 0 or box.y0 < 0 or box.x1 > across or box.y1 > down
    ]
    return found


@pytest.mark.parametrize(
    "methods",
    [METHODS[5:13], pytest.param(METHODS, marks=pytest.mark.extended)],
    ids=["two rows", "four rows"],
)
def test_curves_have_a_panel_for_each_method(methods: tuple[str, ...]) -> None:
    results = summarize(rows_of(methods), SETTINGS, BETTER, "attention-rollout")
    figure = curves_figure(results, "blur")
    panels = [axes for axes in figure.axes if axes.axison]
    assert [" ".join(axes.get_title().split()) for axes in panels] == list(methods)
    assert overlapping(figure) == []
    found = {(one.method, one.order): one for one in results.curves if one.perturbation == "blur"}
    for axes, method in zip(panels, methods, strict=True):
        lines = [np.asarray(line.get_ydata()) for line in axes.lines if len(line.get_xdata())]  # type: ignore[arg-type]
        shown = {method, "attention-rollout"}
        wanted = [one.mean for (name, _), one in found.items() if name in shown]
        assert sorted(map(tuple, lines)) == sorted(wanted)
        assert len(axes.collections) == 2  # bands
        own = found[method, "morf"]
        assert own.low is not None
        corners = np.concatenate([path.vertices for path in axes.collections[0].get_paths()])
        assert np.isclose(corners[:, 1].min(), min(own.low))
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == [
        "most relevant removed first: the area is deletion",
        "least relevant removed first: the area is insertion",
        "attention-rollout, the baseline",
    ]


def test_differences_have_a_panel_for_each_measure(summary: Summary) -> None:
    measures = summary.groups["Faithfulness, patches removed by blur"]
    figure = differences_figure(summary, measures)
    panels = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in panels] == [
        "deletion\n↓ lower is better",
        "insertion\n↑ higher is better",
        "average-drop (keep=0.5)\n↓ lower is better",
    ]
    others = [name for name in METHODS if name != "attention-rollout"]
    names = [text.get_text() for text in panels[0].get_yticklabels()]
    assert names == others
    assert panels[0].get_ylim()[0] > panels[0].get_ylim()[1]  # the first one is at the top
    assert overlapping(figure) == []
    for axes, measure in zip(panels, measures, strict=True):
        points = [line for line in axes.lines if line.get_marker() == "o"]
        for place, (name, point) in enumerate(zip(others, points, strict=True)):
            found = summary.by_place[measure.label, name].difference
            assert found is not None
            assert (point.get_xdata(), point.get_ydata()) == ([found.mean], [place])
            hollow = point.get_markerfacecolor() == "white"
            assert hollow == (found.verdict == "no difference")
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"better", "worse"}
    more = differences_figure(summary, [*summary.groups["Localisation"], summary.measures[-1]])
    assert {text.get_text() for text in more.legends[0].get_texts()} == {
        "differs, neither direction is better",
        "no difference found",
    }


def test_long_names_stay_within_the_figures() -> None:
    names = tuple(f"a method with a name that has no end and the number ${n}" for n in range(3))
    found = summarize(rows_of(names), {}, BETTER, names[0])
    assert overlapping(curves_figure(found, "blur")) == []
    assert overlapping(differences_figure(found, found.measures[:2])) == []


def test_examples_show_what_there_is(summary: Summary) -> None:
    odd = ExampleMaps(Image.new("RGB", (8, 8)), "other grid", {"gmar": torch.zeros(2, 3)})
    some = [*examples(), odd]
    figure = examples_figure(summary, some)
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert {" ".join(text.split()) for text in texts} >= set(METHODS)
    assert texts.count("class 1\n1.png") == 3  # once in each band of methods
    assert "other grid" not in texts
    only = [
        ExampleMaps(one.picture, one.title, {"legrad": one.maps["legrad"]}) for one in examples()
    ]
    shown = [text.get_text() for axes in examples_figure(summary, only).axes for text in axes.texts]
    assert "gmar" not in shown
    assert "legrad" in shown
    # Where gmar failed, its map of NaN is no warning.
    failed = [replace(only[0], maps=dict.fromkeys(("gmar", "legrad"), torch.ones(4, 4))), only[1]]
    drawn(examples_figure(summary, failed))


@pytest.mark.parametrize("width", [70, 110, 400])
def test_the_terminal_shows_all_methods_uncut(summary: Summary, width: int) -> None:
    out = StringIO()
    Console(file=out, width=width).print(summary.table())
    text = out.getvalue()
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in text
    tables = text.count("method")
    assert tables == {70: 7, 110: 5, 400: 5}[width]
    for name in METHODS:
        assert sum(line.split("│")[1:2] == [f" {name:26} "] for line in lines) == tables
    assert "bold: best mean; ▲ better, ▼ worse than attention-rollout: * p < 0.05" in " ".join(
        text.split()
    )


def test_the_terminal_shows_names_as_they_are() -> None:
    rows = [
        {"index": 0, "key": "a", "method": "[red]x[/red]", "values": {"m [bold] (a=[1]):[b]": 1.0}}
    ]
    out = StringIO()
    Console(file=out, width=100).print(summarize(rows, {}, {}, "[red]x[/red]").table())
    assert "[red]x[/red]" in out.getvalue()
    assert "than [red]x[/red]" in out.getvalue()
    assert "removed by [b]" in out.getvalue()
    assert "[bold]" in out.getvalue()
    assert "(a=[1])" in out.getvalue()


def test_bold_in_the_terminal_is_the_best_mean() -> None:
    out = StringIO()
    found = small(a=[0.5] * 8, b=[0.25] * 8)
    Console(file=out, width=60, force_terminal=True, color_system="standard").print(found.table())
    lines = out.getvalue()
    assert re.search(r"\x1b\[1m0\.25\d*\x1b\[0m ▲\*\*", lines)
    assert "0.500" in lines


CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)

WIDTHS = (1400, 600)

MEASURE = """<!DOCTYPE html><body><script>
const found = {}, page = PAGE;
for (const width of WIDTHS) {
  const frame = document.createElement("iframe");
  frame.style.cssText = `width: ${width}px; height: 900px; border: 0`;
  frame.onload = () => {
    const inner = frame.contentDocument;
    const all = name => [...inner.querySelectorAll(name)];
    found[width] = {
      width: frame.contentWindow.innerWidth,
      pictures: all("img").map(one => one.complete && one.naturalWidth > 300),
      overflow: inner.documentElement.scrollWidth - inner.documentElement.clientWidth,
      broken: all(".interval").filter(one => one.getClientRects().length > 1).length,
      tallest: Math.max(...[...all("table")[0].querySelectorAll("td")].map(one =>
        one.getBoundingClientRect().height)),
      names: all("nav a").every(one => inner.getElementById(one.hash.slice(1))),
      colour: frame.contentWindow.getComputedStyle(inner.querySelector(".better")).color,
    };
    if (Object.keys(found).length === WIDTHS.length)
      document.body.innerHTML = "<h1>" + JSON.stringify(found) + "</h1>";
  };
  frame.srcdoc = page;
  document.body.append(frame);
}
</script></body>"""


@pytest.fixture(scope="module")
def in_browser(report: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a browser measures of the report, by the width of the frame that it is in."""
    folder = tmp_path_factory.mktemp("browser")
    text = json.dumps((report / "report.html").read_text(encoding="utf-8")).replace("</", "<\\/")
    outer = folder / "outer.html"
    outer.write_text(
        MEASURE.replace("PAGE", text).replace("WIDTHS", json.dumps(WIDTHS)), encoding="utf-8"
    )
    command = [
        *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
        *("--window-size=1600,900", f"--user-data-dir={folder / 'profile'}"),
        outer.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    found: dict[str, Any] = json.loads(Read(done.stdout).headings[0])
    return found


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", WIDTHS)
def test_a_browser_shows_the_report(report: Path, in_browser: dict[str, Any], width: int) -> None:
    found = in_browser[str(width)]
    assert found["width"] == width
    assert found["pictures"] == [True] * len(list(report.glob("*.png")))
    assert found["overflow"] == 0  # wide tables scroll within themselves
    assert found["broken"] == 0
    assert found["tallest"] < 70  # value, interval, number of images
    assert found["names"] is True
    assert found["colour"] == "rgb(0, 114, 178)"


def test_a_curve_that_keeps_a_patch_says_so(summary: Summary) -> None:
    """Where a model needs a patch, the two orders end at different ones."""
    assert "the last patch stays" in axis_label(curves_figure(summary, "token-dropping"))
    rows = list(rows_of())
    for row in rows:
        for curves in row.get("curves", {}).values():
            curves["lerf"][-1] = curves["morf"][-1]
    ends_at_nothing = summarize(rows, SETTINGS, BETTER, "gmar")
    label = axis_label(curves_figure(ends_at_nothing, "token-dropping"))
    assert label == "share of patches removed"


def axis_label(figure: Figure) -> str:
    label: Any = figure._supxlabel  # type: ignore[attr-defined]
    return " ".join(label.get_text().split())


def test_the_page_begins_with_its_title(report: Path) -> None:
    text = (report / "report.html").read_text(encoding="utf-8")
    places = [text.index(part) for part in ("<h1>", "<nav ", "<h2 ")]
    assert places == sorted(places)


@pytest.mark.parametrize("name", METRICS.built_in)
def test_each_metric_that_is_shown_is_explained(name: str) -> None:
    metric = METRICS[name]
    label = f"{name}:blur" if metric.perturbed else name
    rows = [{"index": 0, "key": "a", "method": "gmar", "values": {label: 0.5}}]
    text = page(summarize(rows, {}, {name: True}))
    explained = text.split("## What the metrics measure")[1].split("\n## ")[0]
    assert explained.strip().splitlines() == [f"- `{name}`: {metric.summary}"]
    assert 20 < len(metric.summary) < 120


def test_a_metric_that_is_not_known_needs_no_words() -> None:
    rows = [{"index": 0, "key": "a", "method": "gmar", "values": {"of-my-own": 0.5}}]
    assert "What the metrics measure" not in page(summarize(rows, {}, {}))
