"""What a notebook shows of each result: a picture or a table, a short text, and names as text."""

from __future__ import annotations

import base64
import copy
import html.parser
import io
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from hf_gmar import (
    GMAR,
    AttributionMethod,
    Comparison,
    Evaluation,
    Explainer,
    Explanation,
    HeadAblation,
    HeadImportance,
    visualization,
)
from hf_gmar.comparison.cost import Cost
from hf_gmar.data import draw_scene
from hf_gmar.data.base import Example
from hf_gmar.evaluation.report.summary import summarize
from hf_gmar.heads.ablation import MORF
from hf_gmar.methods import METHODS
from hf_gmar.models import ImageView, LoadedModel
from hf_gmar.models.score_kind import ScoreKind
from hf_gmar.visualization import head_maps_figure, spectrogram_figure
from tests.support.hostile import HOSTILE, hidden_in

PICTURE = Image.new("RGB", (8, 8))
NAMES = ("heart", HOSTILE[-1], "a very long name of many words " * 30)
TAGS = {"img", "table", "caption", "tr", "th", "td", "b", "p"}
ATTRIBUTES = {"alt", "src", "style", "class"}


def explanation(name: str, _: LoadedModel) -> Explanation:
    settings = {"model": name, "method": "gmar", "norm": "l1", "n": name}
    return Explanation(
        name, PICTURE, ImageView.whole(PICTURE), torch.rand(2, 2), 6, name, 0.973,
        ScoreKind.SOFTMAX, settings, name, 4,
    )  # fmt: skip


def comparison(name: str, _: LoadedModel, images: int = 2) -> Comparison:
    return Comparison(
        {name: torch.rand(images, 2, 2), "gmar": torch.rand(images, 2, 2)}, {f"{name} 2": name},
        {label: Cost(1, 1, 2) for label in (name, "gmar")}, Cost(1, 1),
        (name, "gmar", f"{name} 2"), (name,) * images, (6,) * images, (name,) * images,
        (0.5,) * images, ScoreKind.SOFTMAX, (name,) * images, (PICTURE,) * images,
        {"model": name},
    )  # fmt: skip


def evaluation(name: str, _: LoadedModel) -> Evaluation:
    rows = [
        {
            "index": index,
            "key": name,
            "method": method,
            "values": {f"own-one ({name}):blur": 0.1 + index * step, "other": step},
        }
        for index in range(3)
        for method, step in ((name, 0.1), ("gmar", 0.2))
    ]
    summary = summarize(rows, {"model": name}, {"own-one": False}, baseline=name)
    return Evaluation(rows, summary, {}, [])


def importance(name: str, _: LoadedModel) -> HeadImportance:
    return HeadImportance(torch.rand(2, 3, 4), torch.tensor([6, 6]), {6: name})


def ablation(name: str, _: LoadedModel) -> HeadAblation:
    curve = np.array([[4.0, 1.0, 0.0]])
    return HeadAblation(np.array([0, 0.5, 1]), {MORF: curve}, np.array([6]), {"order": name})


def explainer(name: str, model: LoadedModel) -> Explainer:
    return Explainer(replace(model, name=name), norm="l2")


def method(name: str, model: LoadedModel) -> AttributionMethod:
    named: Any = type(name, (GMAR,), {"unit": name, "source": name})
    result: AttributionMethod = named(model.model, "l2", alpha=0.5)
    return result


RESULTS: dict[str, tuple[Callable[[str, LoadedModel], Any], int, int]] = {
    "Explanation": (explanation, 1, 0),
    "Comparison": (comparison, 1, 1),
    "Evaluation": (evaluation, 0, 2),
    "Summary": (lambda *given: evaluation(*given).summary, 0, 2),
    "TerminalTables": (lambda *given: evaluation(*given).summary.table(), 0, 2),
    "HeadImportance": (importance, 1, 1),
    "HeadAblation": (ablation, 1, 1),
    "LoadedModel": (lambda name, model: replace(model, name=name), 0, 1),
    "Explainer": (explainer, 0, 2),
    "a method": (method, 0, 1),
}
"""How to make each result with a name everywhere, and the number of its images and tables."""


class Page(html.parser.HTMLParser):
    """The tags, attributes and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        """Note a text."""
        self.texts.append(data)

    @property
    def all_text(self) -> str:
        """The texts and the descriptions of images."""
        return " ".join(
            [*self.texts, *(text or "" for key, text in self.attributes if key == "alt")]
        )


@pytest.mark.parametrize("name", NAMES, ids=("plain", "hostile", "long"))
@pytest.mark.parametrize("kind", RESULTS)
def test_each_result_draws_itself(kind: str, name: str, bundled: LoadedModel) -> None:
    make, images, tables = RESULTS[kind]
    result = make(name, bundled)
    text, page = repr(result), result._repr_html_()
    assert len(text) < 400
    assert "tensor(" not in text
    assert "array(" not in text
    assert hidden_in(text) == hidden_in(page) == set()
    parsed = Page(page)
    assert (parsed.tags.count("img"), parsed.tags.count("table")) == (images, tables)
    assert set(parsed.tags) <= TAGS
    assert {key for key, _ in parsed.attributes} <= ATTRIBUTES
    assert name[:20].split(maxsplit=1)[0] in parsed.all_text
    assert len(re.sub('base64,[^"]+', "", page)) < 20_000
    for source in (value or "" for key, value in parsed.attributes if key == "src"):
        data = base64.b64decode(source.removeprefix("data:image/png;base64,"), validate=True)
        with Image.open(io.BytesIO(data)) as picture:
            assert 200 < picture.width < 4000


@pytest.mark.parametrize("kind", RESULTS)
def test_dollar_signs_make_no_formula(kind: str, bundled: LoadedModel) -> None:
    """Notebooks typeset texts between dollar signs, unless their element says no."""
    page = RESULTS[kind][0]("$x$", bundled)._repr_html_()
    for element in re.findall(r"<(?:table|p)\b[^>]*>", page):
        assert "mathjax_ignore" in element
    outside = re.sub(r"<table.*?</table>|<p.*?</p>|<img[^>]*>", "", page)
    assert outside == ""


def test_a_long_name_hides_no_probability(bundled: LoadedModel) -> None:
    assert " 97.3% rather than a very long" in repr(explanation(NAMES[-1], bundled))


@pytest.mark.parametrize("count", [1, 4, 6])
def test_a_comparison_of_many_images_shows_the_first(count: int, bundled: LoadedModel) -> None:
    page = comparison("a", bundled, count)._repr_html_()
    assert ("and 2 more images: figure() draws all" in page) == (count == 6)
    assert "a 2 failed: a" in page
    heights = [
        comparison("a", bundled, images).figure().get_size_inches()[1] for images in (4, count)
    ]
    assert (heights[1] > heights[0]) == (count == 6)


def test_tables_are_those_of_the_terminal(bundled: LoadedModel) -> None:
    page = Page(evaluation("a", bundled)._repr_html_())
    assert page.texts[:6] == [
        "Faithfulness, patches removed by blur", "method", "own-one (a) ↓", "a", "0.20", "gmar",
    ]  # fmt: skip
    assert "b" in page.tags
    ranking = Page(importance("a", bundled)._repr_html_()).texts
    assert ranking[1:6] == ["rank", "layer", "head", "share of its layer", "std over images"]
    assert len(ranking) == 6 + 5 * 10


@pytest.mark.parametrize("name", METHODS.built_in)
def test_a_method_names_its_options(name: str, bundled: LoadedModel) -> None:
    given = METHODS.build(name, bundled.model)
    assert repr(given) == f"{type(given).__name__}(ViTForImageClassification)"
    assert given.source in html.unescape(given._repr_html_())
    options = {key: value for key, value in METHODS.options(name).items() if key != "readout"}
    values = [f"{key}={value!r}" for key, value in options.items()]
    given = METHODS.build(name, bundled.model, **options)
    assert repr(given) == f"{type(given).__name__}({', '.join([MODEL, *values])})"
    assert repr(copy.copy(given)) == repr(given)


MODEL = "ViTForImageClassification"


def test_options_by_place(bundled: LoadedModel) -> None:
    assert repr(GMAR(bundled.model, "l2")) == f"GMAR({MODEL}, norm='l2')"
    assert repr(GMAR(model=bundled.model, norm="l2")) == f"GMAR({MODEL}, norm='l2')"


def test_a_method_that_names_no_source(bundled: LoadedModel) -> None:
    kind: Any = type("Own", (AttributionMethod,), {"_explain": lambda *_: []})
    assert repr(kind(bundled.model)) == f"Own({MODEL})"
    assert kind(bundled.model)._repr_html_().count("not named") == 2


def test_a_model_without_weights_or_names(bundled: LoadedModel) -> None:
    plain = replace(bundled, name="own", model=nn.Identity())
    assert repr(plain) == "LoadedModel('own', Identity)"
    assert "not named" in plain._repr_html_()


def test_images_of_data_are_no_dumps() -> None:
    scene = draw_scene(18)
    assert len(repr(scene)) < 400
    masks: Any = dict(zip(scene.classes, scene.masks, strict=True))
    assert len(repr(Example("a", scene.image, 6, masks))) < 400


FIGURES: dict[str, Callable[[LoadedModel], Any]] = {
    "overlay_figure": lambda model: explanation("a", model).figure(),
    "grid_figure": lambda model: comparison("a", model).figure(),
    "importance_figure": lambda model: importance("a", model).figure(),
    "ablation_figure": lambda model: ablation("a", model).figure(),
    "head_maps_figure": lambda _: head_maps_figure(PICTURE, torch.rand(2, 3, 4, 4)),
    "spectrogram_figure": lambda _: spectrogram_figure(torch.rand(20, 8), torch.rand(20, 8)),
}


def test_every_kind_of_figure_is_tested() -> None:
    assert set(FIGURES) == {name for name in visualization.__all__ if "figure" in name} - {
        "save_figure"
    }


@pytest.mark.parametrize("kind", FIGURES)
def test_figures_show_without_pyplot(kind: str, bundled: LoadedModel) -> None:
    """Notebooks show a plain matplotlib figure as its size, until pyplot has drawn one."""
    figure = FIGURES[kind](bundled)
    with Image.open(io.BytesIO(figure._repr_png_())) as picture:
        assert picture.size == pytest.approx(figure.get_size_inches() * 100, abs=1)
    assert len(repr(figure)) < 400
