"""The page of explanations: its texts, numbers and pictures, and that it needs nothing else."""

from __future__ import annotations

import base64
import gc
import io
import json
import re
import shutil
import subprocess
import weakref
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hf_gmar import Explainer, Explanation, Explanations, explain
from hf_gmar.data import draw_scene
from hf_gmar.errors import InputError, OptionError, UnsupportedModelError
from hf_gmar.faithfulness import FaithfulnessCheck
from hf_gmar.models import LoadedModel
from hf_gmar.models.score_kind import ScoreKind
from hf_gmar.report import ReportWriter, save_report
from hf_gmar.report.chart import charts
from tests.reference.tolerances import PATIENCE
from tests.support.hostile import HOSTILE, hidden_in
from tests.support.limits import NEEDS_LIMITS, largest_file

METHOD_NAMES = ["gmar", "attn-lrp"]
SEEDS = (18, 19)


class Page(HTMLParser):
    """Tags with their attributes, and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text, self.title, self._open = "", "", ""
        self.feed(text)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the tag."""
        self._open = tag
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        """Note the text, unless it is a style."""
        if self._open != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        """The attributes of all elements of a kind."""
        return [attributes for name, attributes in self.tags if name == tag]


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def results(bundled: LoadedModel) -> list[Explanations]:
    scenes = [draw_scene(seed).image for seed in SEEDS]
    return list(Explainer(bundled, METHOD_NAMES).stream(scenes, top_k=2, check=True))


@pytest.fixture(scope="module")
def page(results: list[Explanations], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_report(results, tmp_path_factory.mktemp("page") / "report.html", "Two scenes")


def outside(page: Page, text: str) -> list[str]:
    """What the page would fetch or run."""
    places = [
        value
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in {"href", "src", "srcset", "action", "data", "poster", "background", "xlink:href"}
    ]
    found = [place for place in places if not re.match(r"#|data:image/webp;base64,", place)]
    found += [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    found += [tag for tag, _ in page.tags if tag in {"script", "link", "iframe", "object", "base"}]
    return found + re.findall(r"url\(|@import|javascript:", text)


def test_a_page_needs_nothing_else(page: Path) -> None:
    assert outside(read(page), page.read_text(encoding="utf-8")) == []
    seen = outside(Page('<img src="http:a"><p onclick="b"><script></script>'), "@import url(c)")
    assert seen == ["http:a", "onclick", "script", "@import", "url("]


def test_a_page_says_what_each_check_says(page: Path, results: list[Explanations]) -> None:
    text = read(page).text
    for found in results:
        for result in found:
            assert result.faithfulness is not None
            assert result.faithfulness.sentence in text
            assert " ".join(result.title.split()) in text
            assert result.sufficient_set().sentence in text
            for kept in result.faithfulness.keep:
                assert f"{kept:.1%}" in text
    assert "Two scenes" in text
    assert "GMAR and AttnLRP" in text


def test_the_summary_counts_verdicts(page: Path, results: list[Explanations]) -> None:
    text = page.read_text(encoding="utf-8")
    for title in ("GMAR", "AttnLRP"):
        checks = [each.faithfulness for found in results for each in found
                  if each.method_title == title]  # fmt: skip
        row = re.search(rf"<tr><td data-label=\"method\">{title}</td>(.*?)</tr>", text)
        assert row is not None
        cells = re.findall(r">([^<]+)</td>", row[1])
        better = sum(check is not None and check.verdict == "better" for check in checks)
        assert cells[0] == str(len(checks)) == "4"
        assert cells[1] == f"{better} of 4 ({better / 4:.0%})"
        kept = sum(check.keep[1] for check in checks if check) / 4
        random = sum(sum(check.random_keep[1]) / 9 for check in checks if check) / 4
        assert cells[4] == f"{kept:.1%} ({random:.1%})"


def test_the_pictures_are_whole_and_named(page: Path) -> None:
    pictures = read(page).all("img")
    # For 2 images and 2 classes: the image, and for 2 methods the map, its colours, the fewest.
    assert len(pictures) == 2 * 2 * (1 + 2 * 3)
    for picture in pictures:
        data = base64.b64decode(picture["src"].removeprefix("data:image/webp;base64,"))
        with Image.open(BytesIO(data)) as image:
            image.load()
            assert image.size in {(480, 480), (128, 1)}
            assert bool(picture["alt"]) == (image.width == 480)


def test_contents_lead_to_the_images(page: Path) -> None:
    found = read(page)
    links = [link["href"] for link in found.all("a") if link["href"] != "#top"]
    assert links == ["#image-1", "#image-2"]
    assert [section["id"] for section in found.all("section")] == ["image-1", "image-2"]


def test_one_image_needs_no_contents(results: list[Explanations], tmp_path: Path) -> None:
    for single in (results[0], results[0][0]):
        path = save_report(single, tmp_path / "one.html")
        assert read(path).all("nav") == []
        assert len(read(path).all("section")) == 1


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_text(results: list[Explanations], tmp_path: Path, name: str) -> None:
    def renamed(found: Explanations) -> Explanations:
        settings = {"model": name, "prompts": [name]}
        items = [
            replace(each, source=name, label=name, settings={**each.settings, **settings},
                    faithfulness=each.faithfulness and replace(each.faithfulness, label=name))
            for each in found
        ]  # fmt: skip
        return Explanations(items, {name: UnsupportedModelError(name)})

    items: list[Any] = [*map(renamed, results), InputError(name)]
    path = save_report(items, tmp_path / "report.html", name, check=False)
    text = path.read_text(encoding="utf-8")
    assert hidden_in(text) <= {"\n"}
    assert outside(read(path), text[text.index("<style>") : text.index("</style>")]) == []
    plain = save_report(results, tmp_path / "plain.html", check=False)
    assert {tag for tag, _ in read(path).tags} <= {tag for tag, _ in read(plain).tags} | {"ul"}
    assert " ".join(name.split())[:6].replace("\x1b", r"\x1b") in read(path).text


def test_an_image_that_fails_is_named(bundled: LoadedModel, tmp_path: Path) -> None:
    explainer = Explainer(bundled, "gmar")
    images: list[Any] = [draw_scene(18).image, str(tmp_path / "no.png"), draw_scene(19).image]
    path = save_report(explainer.stream(images, return_errors=True), tmp_path / "report.html")
    text = read(path).text
    assert f"image 2 : there is no image file {tmp_path / 'no.png'}" in text.replace(":", " :")
    assert len(read(path).all("section")) == 2


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError, OSError])
def test_a_stop_leaves_what_was_finished(
    results: list[Explanations], tmp_path: Path, kind: type[BaseException]
) -> None:
    def stopped() -> Iterator[Explanations]:
        yield results[0]
        raise kind

    path = tmp_path / "report.html"
    with pytest.raises(kind):
        save_report(stopped(), path, check=False)
    assert "Stopped before the end: this is 1 image." in read(path).text
    assert read(path).all("section") == [{"class": "image", "id": "image-1"}]
    assert list(tmp_path.iterdir()) == [path]


def test_without_an_explanation_there_is_no_page(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to report"):
        save_report([InputError("broken")], tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OptionError, match="there is no folder"):
        save_report([], tmp_path / "no" / "report.html")


@NEEDS_LIMITS
def test_a_full_disk_keeps_the_older_page(results: list[Explanations], tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("older", encoding="utf-8")
    with largest_file(30_000), pytest.raises(OSError, match="File too large"):
        save_report(results, path, check=False)
    assert path.read_text(encoding="utf-8") == "older"
    assert list(tmp_path.iterdir()) == [path]


def test_images_are_forgotten_once_they_are_written(bundled: LoadedModel, tmp_path: Path) -> None:
    alive: list[weakref.ref[Explanation]] = []

    def watched() -> Iterator[Explanation]:
        for seed in range(4):
            result = explain(draw_scene(seed).image, bundled)
            alive.append(weakref.ref(result))
            yield result
            del result
            gc.collect()
            assert sum(item() is not None for item in alive) <= 1

    save_report(watched(), tmp_path / "report.html", check=False)
    assert len(alive) == 4


def test_a_saved_explanation_shows_its_check(results: list[Explanations], tmp_path: Path) -> None:
    original = results[0][1]
    original.save(tmp_path / "saved")
    loaded = Explanation.load(tmp_path / "saved.npz")
    path = save_report(loaded, tmp_path / "report.html")
    assert original.faithfulness is not None
    assert original.faithfulness.sentence in read(path).text
    assert "suffice" not in read(path).text


def test_a_map_that_cannot_be_checked_says_why(bundled: LoadedModel, tmp_path: Path) -> None:
    result = explain(draw_scene(18).image, bundled, target="heart")
    assert result.subject is not None
    small = replace(result.subject, pixels=result.subject.pixels[..., :8, :8])
    path = save_report(replace(result, subject=small), tmp_path / "report.html")
    text = read(path).text
    assert "The maps are not checked: the image is 8 x 8 pixels" in text
    assert "No sufficient set: the image is 8 x 8 pixels" in text


def test_a_map_of_no_class_has_no_check(bundled: LoadedModel, tmp_path: Path) -> None:
    result = explain(draw_scene(18).image, bundled, method="raw-attention", readout=(3, 5))
    text = read(save_report(result, tmp_path / "report.html")).text
    assert result.label in text
    assert "suffic" not in text
    assert "not checked" not in text


def check_of(kind: ScoreKind, *scores: float) -> FaithfulnessCheck:
    whole, kept, removed = scores
    random = ((kept / 2,) * 3,)
    return FaithfulnessCheck("heart", kind, whole, (0.2,), (kept,), (removed,), random, random,
                             "token-dropping", 0)  # fmt: skip


@pytest.mark.parametrize("kind", [ScoreKind.SOFTMAX, ScoreKind.SIGMOID, ScoreKind.VALUE])
@pytest.mark.parametrize("scores", [(0.9, 0.8, 0.1), (0.0, 0.0, 0.0), (1.0, 1.0, 0.0)])
def test_marks_of_a_chart_stand_at_their_scores(kind: ScoreKind, scores: Any) -> None:
    check = check_of(kind, *scores)
    drawn = "".join(charts(check))
    dots = [float(place) for place in re.findall(r'class="own" cx="[\d.]+" cy="([\d.]+)"', drawn)]
    (dotted,) = set(re.findall(r'class="whole".*?y1="([\d.]+)"', drawn))
    order = sorted([(scores[1], dots[0]), (scores[2], dots[1]), (scores[0], float(dotted))])
    heights = [-height for _, height in order]
    assert heights == sorted(heights)
    assert (dots[0] == dots[1]) == (scores[1] == scores[2])
    assert all(20 <= dot <= 132 for dot in dots)


def test_a_writer_is_for_one_page(results: list[Explanations], tmp_path: Path) -> None:
    path, buffer = tmp_path / "a.html", io.StringIO()
    for place in (path, buffer):
        with ReportWriter(place, check=False, total=1) as writer:
            checked = writer.add(results[0], "the name")
        assert checked == results[0]
        assert writer.images == 1
    assert "the name" in read(path).text
    assert "Stopped" not in read(path).text
    assert buffer.getvalue() == path.read_text(encoding="utf-8")


CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)

WIDTHS = (390, 1440)

MEASURE = """<!DOCTYPE html><body><script>
const found = {}, page = PAGE;
for (const width of WIDTHS) {
  const frame = document.createElement("iframe");
  frame.style.cssText = `width: ${width}px; height: 900px; border: 0`;
  frame.onload = () => {
    const inner = frame.contentDocument, root = inner.documentElement;
    const all = name => [...inner.querySelectorAll(name)];
    found[width] = {
      pictures: all("img").filter(one => !one.complete || one.naturalWidth < 100).length,
      overflow: root.scrollWidth - root.clientWidth,
      hidden: all(".wide").filter(one => one.scrollWidth > one.clientWidth).length,
      smallest: Math.min(...all("svg").map(one => one.getBoundingClientRect().width)),
      names: all("nav a").every(one => inner.getElementById(one.hash.slice(1))),
      paper: frame.contentWindow.getComputedStyle(inner.body).backgroundColor,
    };
    if (Object.keys(found).length === WIDTHS.length)
      document.body.innerHTML = "<h1>" + JSON.stringify(found) + "</h1>";
  };
  frame.srcdoc = page;
  document.body.append(frame);
}
</script></body>"""


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_the_page(page: Path, tmp_path: Path, dark: bool) -> None:
    text = json.dumps(page.read_text(encoding="utf-8")).replace("</", "<\\/")
    outer = tmp_path / "outer.html"
    outer.write_text(
        MEASURE.replace("PAGE", text).replace("WIDTHS", json.dumps(WIDTHS)), encoding="utf-8"
    )
    command = [
        *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
        *("--window-size=1600,900", f"--user-data-dir={tmp_path / 'profile'}"),
        *("--enable-logging=stderr", f"--blink-settings=preferredColorScheme={0 if dark else 1}"),
        outer.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert "CONSOLE" not in done.stderr
    written = re.search(r"<h1>(.*)</h1>", done.stdout)
    assert written is not None
    paper = "rgb(20, 22, 26)" if dark else "rgb(255, 255, 255)"
    for found in json.loads(written[1]).values():
        assert found.pop("smallest") > 140
        assert found == {"pictures": 0, "overflow": 0, "hidden": 0, "names": True, "paper": paper}
