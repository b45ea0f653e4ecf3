"""Answers are those of hf_gmar.explain, to the last bit."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hf_gmar import Explanation, explain, head_importance, head_maps
from hf_gmar.app import answers, markup
from hf_gmar.app.answers import Answer, Question
from hf_gmar.app.limits import Limits
from hf_gmar.app.models import ModelSet
from hf_gmar.app.work import Job
from hf_gmar.data import draw_scene
from hf_gmar.errors import HfGmarError, OptionError, TargetError, UnsupportedModelError
from hf_gmar.methods import METHODS
from hf_gmar.models import LoadedModel
from tests.reference.cell_models import saved
from tests.reference.tolerances import SAME
from tests.support.hostile import HOSTILE, MARKUP
from tests.support.uploads import file_of, sent

LIMITS = Limits()
IN_PYTHON = ("gmar", "attn-lrp:resolution=pixel")
WIDE = draw_scene(7).image.resize((150, 96))


def job() -> Job:
    return Job(1000)


@pytest.fixture(scope="module")
def models() -> ModelSet:
    return ModelSet(["bundled"], "cpu")


@pytest.fixture(scope="module")
def heart(models: ModelSet) -> Answer:
    return answers.answer(Question("example:18", "bundled"), models, LIMITS, job())


@pytest.mark.parametrize(
    ("target", "contrast"), [("", ""), ("heart", ""), ("index:4", "6"), (" Cross ", "label:heart")]
)
def test_maps_are_those_of_explain(
    models: ModelSet, bundled: LoadedModel, target: str, contrast: str
) -> None:
    question = Question(sent(file_of(WIDE)), "bundled", "", target, contrast)
    found = answers.answer(question, models, LIMITS, job()).results
    expected = explain(WIDE, bundled, target.strip() or None, contrast or None, method=IN_PYTHON)
    for mine, one in zip(found, expected, strict=True):
        assert torch.equal(mine.patches, one.patches)
        assert torch.equal(mine.drawn_map, one.drawn_map)
        assert (mine.target, mine.contrast_target, mine.score) == (
            one.target, one.contrast_target, one.score,
        )  # fmt: skip
        assert mine.view == one.view


def test_classes_are_sorted_by_their_scores(heart: Answer) -> None:
    first, second, *_ = heart.classes
    assert (first.label, second.label) == ("heart", "cross")
    assert first.score == heart.results[0].score_kind.text(heart.results[0].score)
    assert sorted(item.index for item in heart.classes) == list(range(8))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"model": "other"}, OptionError, "not offered here"),
        ({"methods": ("gmra",)}, OptionError, "there is no method 'gmra'"),
        ({"methods": ("gmar:norm=l2",)}, OptionError, "there is no method"),
        ({"methods": (MARKUP,)}, OptionError, "there is no method"),
        ({"target": "dog"}, TargetError, "no class is called 'dog'"),
        ({"target": "x" * 301}, TargetError, "at most 300 letters"),
        ({"contrast": "x" * 301}, TargetError, "at most 300 letters"),
        ({"prompts": "x" * 7000}, OptionError, "at most 20 prompts"),
        ({"target": "heart", "contrast": "heart"}, TargetError, "same class"),
        ({"contrast": "heart", "methods": ("raw-attention",)}, HfGmarError, "contrast"),
    ],
    ids=str,
)
def test_a_wrong_question_is_an_error(
    models: ModelSet, change: dict[str, Any], error: type[Exception], text: str
) -> None:
    question = replace(Question("example:18", "bundled"), **change)
    with pytest.raises(error, match=re.escape(text)):
        answers.answer(question, models, LIMITS, job())


def test_methods_are_each_asked_once(models: ModelSet) -> None:
    question = Question("example:18", "bundled", methods=("gmar", "", "gmar"))
    assert len(answers.answer(question, models, LIMITS, job()).results) == 1
    assert replace(question, methods=("", "")).checked(LIMITS).methods == ("gmar",)


def test_all_methods_are_offered_the_first_ones_first() -> None:
    names = [name for _, name in answers.allowed_methods()]
    assert names[:2] == ["gmar", "attn-lrp"]
    assert set(names) == set(METHODS)


def test_a_check_is_that_of_the_explanation(heart: Answer) -> None:
    for mine, one in zip(answers.check(heart, job()), heart.results.check(), strict=True):
        assert mine == one


def test_the_slider_shows_what_the_model_says_of_the_patches(heart: Answer) -> None:
    """The scores are those of the sufficient set and of the whole image."""
    for found in answers.reveal(heart, job()):
        result = found.result
        assert found.counts[0] == 1
        assert found.counts[-1] == result.patches.numel()
        assert found.scores[-1] == pytest.approx(result.score, rel=SAME.float32)
        fewest = result.sufficient_set()
        place = found.counts.index(fewest.count)
        assert found.enough == place
        assert found.scores[place] == pytest.approx(fewest.kept_score, rel=SAME.float32)
        assert torch.equal(found.ranks < fewest.count, fewest.mask)


def test_no_share_is_kept_of_a_score_that_is_not_positive(heart: Answer) -> None:
    found = answers.reveal(heart, job())[0]
    assert replace(found, scores=[-1.0] * len(found.scores)).enough is None


def test_heads_are_those_of_the_package(heart: Answer, bundled: LoadedModel) -> None:
    found, pixels = answers.heads(heart, job()), bundled.pixels(draw_scene(18).image)
    assert torch.equal(found.importance, head_importance(bundled.model, pixels, 6).values[0])
    assert torch.equal(found.maps, head_maps(bundled.model, pixels)[0])


@pytest.mark.parametrize("place", [(0, 0), (3, 5), (7, 7)])
def test_the_attention_of_a_patch_is_that_of_the_package(
    models: ModelSet, bundled: LoadedModel, place: tuple[int, int]
) -> None:
    question = Question(sent(file_of(WIDE)), "bundled")
    found = answers.attention(question, "{}, {}".format(*place), models, LIMITS, job())
    expected = head_maps(bundled.model, bundled.pixels(WIDE), readout=place)[0]
    assert (found.place, found.maps.shape) == (place, (6, 4, 8, 8))
    assert torch.equal(found.maps, expected)


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("", "by its row and column from 0"),
        ("3", "by its row and column from 0"),
        ("-1,0", "by its row and column from 0"),
        ("3,5,7", "by its row and column from 0"),
        ("9" * 5000 + ",1", "by its row and column from 0"),
        (MARKUP, "by its row and column from 0"),
        ("8,0", "outside of the images' grid of 8 x 8 patches"),
    ],
    ids=range(7),
)
def test_another_place_is_an_error(models: ModelSet, place: str, text: str) -> None:
    with pytest.raises(HfGmarError, match=re.escape(text)):
        answers.attention(Question("example:18", "bundled"), place, models, LIMITS, job())


@pytest.mark.parametrize("ask", [answers.check, answers.reveal, answers.heads])
def test_further_questions_stop_when_they_are_told(heart: Answer, ask: Any) -> None:
    stopped = job()
    stopped.stop()
    with pytest.raises(Exception, match=r"^$"):
        ask(heart, stopped)


def test_answers_on_a_model_without_a_grid_of_tokens(tmp_path: Path) -> None:
    """Maps, checks and the slider are of cells; GMAR, heads and attention say why they are not."""
    models, why = ModelSet([str(saved("swin", tmp_path))], "cpu"), "attends within windows"
    (name,) = models.names
    question = Question("example:18", name)
    answer = answers.answer(question, models, LIMITS, job())
    (result,) = answer.results
    explained = explain(draw_scene(18).image, models.get(name, (), LIMITS), method="attn-lrp")
    assert torch.equal(result.patches, explained.patches)
    assert result.patches.shape == (32, 32)
    assert result.fine_map is None
    assert why in str(answer.results.failures["GMAR"])
    page = markup.explanation_html(question, answer)
    assert why in page
    assert page.count("relevance per cell") == 2  # below the picture, and in its description
    assert answer.classes[0].index == result.target
    (check,) = answers.check(answer, job())
    assert check == explained.check()
    (reveal,) = answers.reveal(answer, job())
    assert (reveal.counts[0], reveal.counts[-1]) == (1, 1024)
    assert reveal.scores[-1] == pytest.approx(result.score, rel=SAME.float32)
    with pytest.raises(UnsupportedModelError, match=why):
        answers.heads(answer, job())
    with pytest.raises(UnsupportedModelError, match=why):
        answers.attention(question, "3,5", models, LIMITS, job())


class Parts(HTMLParser):
    """The elements of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        """Keep an element."""
        self.tags.append((tag, dict(attrs)))

    def named(self, name: str) -> list[dict[str, str]]:
        """The attributes of each element of that name."""
        return [attributes for tag, attributes in self.tags if tag == name]


TAGS = {
    "section", "gmar-link", "h2", "h3", "p", "div", "figure", "figcaption", "strong", "span", "img",
    "a", "details", "summary", "table", "caption", "tr", "td", "th", "b", "gmar-reveal",
    "gmar-heads", "gmar-attention",
}  # fmt: skip


def pages(question: Question, answer: Answer) -> list[str]:
    return [
        markup.explanation_html(question, answer),
        markup.checks_html(answer.results, answers.check(answer, job())),
        markup.reveals_html(answers.reveal(answer, job())),
        markup.heads_html(answers.heads(answer, job())),
        markup.attention_html(answers.PatchAttention((3, 5), torch.rand(6, 4, 8, 8))),
    ]


@pytest.mark.filterwarnings("ignore:Glyph")
def test_names_are_text(heart: Answer) -> None:
    name = HOSTILE[-1]  # with all that the others have
    hostile = [
        replace(item, label=name, contrast=name, contrast_target=1) for item in heart.results
    ]
    failures = {name: HfGmarError(name)}
    answer = replace(heart, results=type(heart.results)(hostile, failures))
    question = Question("example:18", name, name, name, name)
    for page in pages(question, answer):
        parts = Parts(page)
        assert {tag for tag, _ in parts.tags} <= TAGS
        for _, attributes in parts.tags:
            assert not [key for key in attributes if key.startswith("on")]
            for key in ("href", "src"):
                assert attributes.get(key, "?").startswith(
                    ("data:image/", "data:application/", "data:text/html;base64,", "?")
                )


def test_downloads_are_the_files_of_a_saved_explanation(heart: Answer, tmp_path: Any) -> None:
    page = Parts(markup.explanation_html(Question("example:18", "bundled"), heart))
    links = {link["download"]: link["href"] for link in page.named("a")}
    picture, *archives = heart.results.save(tmp_path, "image")
    assert list(links) == [picture.name, *(archive.name for archive in archives)]
    contents = [base64.b64decode(link.partition(",")[2]) for link in links.values()]
    with Image.open(io.BytesIO(contents[0])) as mine, Image.open(picture) as saved:
        assert mine.tobytes() == saved.tobytes()
    for content, archive, result in zip(contents[1:], archives, heart.results, strict=True):
        with np.load(io.BytesIO(content)) as mine, np.load(archive) as saved:
            assert all(np.array_equal(mine[name], saved[name]) for name in saved.files)
        (tmp_path / "loaded.npz").write_bytes(content)
        assert torch.equal(Explanation.load(tmp_path / "loaded").patches, result.patches)


@pytest.mark.parametrize("name", ["attn-lrp", "input-x-gradient"])
def test_a_method_of_pixels_is_drawn_by_pixels(
    models: ModelSet, bundled: LoadedModel, name: str
) -> None:
    """The picture is that of the explanation, within the errors of a JPEG; patches differ."""
    question = Question(sent(file_of(WIDE)), "bundled", methods=(name, "gmar"))
    answer = answers.answer(question, models, LIMITS, job())
    page = markup.explanation_html(question, answer)
    image, of_patches = Parts(page).named("img")[::2]
    bar, _ = re.findall(r"<span>([^<]+ per [^<]+)</span>", page)
    assert bar == f"{METHODS[name].unit} per pixel, mean of a patch around each"
    assert image["alt"].endswith(f": {bar}")
    assert of_patches["alt"].endswith(": share of relevance per patch")
    shown = np.asarray(picture_of(image), int)
    fine, coarse = (
        explain(WIDE, bundled, method=f"{name}:resolution={resolution}")
        for resolution in ("pixel", "patch")
    )
    errors = []
    for result in (fine, coarse):
        size = shown.shape[:2]
        larger = replace(result, image=WIDE.resize(size[::-1]), view=result.view.scaled(*size))
        errors.append(np.abs(np.asarray(larger.overlay(), int) - shown).mean())
    assert errors[0] < 2
    assert errors[1] > 3 * errors[0]


def picture_of(image: dict[str, str]) -> Image.Image:
    """The picture of an element."""
    return Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2])))


def test_further_answers_say_what_a_patch_has(heart: Answer) -> None:
    """The model is asked about patches, of maps of pixels, too."""
    text = "A patch has the sum of its pixels."
    gmar, lrp = heart.results
    assert lrp.fine_map is not None
    sums = lrp.fine_map.unflatten(1, (8, 12)).unflatten(0, (8, 12)).sum((1, 3))
    assert torch.allclose(lrp.patches, sums, atol=1e-6)
    for page in (
        markup.checks_html(heart.results, answers.check(heart, job())),
        markup.reveals_html(answers.reveal(heart, job())),
    ):
        assert page.count(text) == 1
        assert page.index(text) > page.index(lrp.method_title) > page.index(gmar.method_title)


def test_an_answer_writes_no_file(heart: Answer) -> None:
    written: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            written.append(str(arguments[0]))

    watching = True
    sys.addaudithook(watch)
    try:
        pages(Question("example:18", "bundled"), heart)
    finally:
        watching = False
    assert written == []


def test_a_link_leads_to_the_same_question(heart: Answer) -> None:
    question = Question("example:18", "bundled", "", "heart", "", ("gmar", ""))
    (link,) = Parts(markup.explanation_html(question, heart)).named("gmar-link")
    assert link["href"] == "?example=18&model=bundled&class=index%3A6&methods=gmar"
    own = replace(question, image=sent(file_of(draw_scene(18).image)))
    (link,) = Parts(markup.explanation_html(own, heart)).named("gmar-link")
    assert link["href"] == "?"


def test_elements_get_their_numbers(heart: Answer) -> None:
    found = answers.heads(heart, job())
    (element,) = Parts(markup.heads_html(found)).named("gmar-heads")
    state = json.loads(element["data-state"])
    layers, heads, rows, columns = found.maps.shape
    levels = np.frombuffer(base64.b64decode(state["levels"]), np.uint8)
    peaks = np.array(state["peaks"])[..., None, None]
    drawn = levels.reshape(layers, heads, rows, columns) / 255 * peaks
    assert np.abs(drawn - found.maps.numpy()).max() < 0.03 * float(found.maps.max())
    assert np.allclose(state["importance"], found.importance, atol=1e-4)
    reveals = answers.reveal(heart, job())
    elements = Parts(markup.reveals_html(reveals)).named("gmar-reveal")
    for reveal, part in zip(reveals, elements, strict=True):
        state = json.loads(part["data-state"])
        assert sorted(state["ranks"]) == list(range(64))
        assert len(state["counts"]) == len(state["texts"]) == len(state["heights"])
        assert state["start"] == reveal.enough


def test_the_report_of_the_checks_is_a_page(heart: Answer) -> None:
    checks = answers.check(heart, job())
    page = markup.checks_html(heart.results, checks)
    (link,) = re.findall(r'<a download="report.html" href="data:text/html;base64,([^"]+)"', page)
    text = base64.b64decode(link).decode()
    assert text.startswith("<!DOCTYPE html>")
    for check in checks:
        assert check.verdict_text in text
