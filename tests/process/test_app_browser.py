"""The page in Chromium, as a visitor sees and uses it."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hf_gmar import explain, load_model
from hf_gmar.data import draw_scene
from tests.support import folders
from tests.support.hostile import MARKUP
from tests.support.page_browser import (
    CHROMIUM,
    MAP,
    UNNAMED,
    WIDE,
    ask,
    axe_findings,
    changed,
    choose,
    chromium_browser,
    grey_share,
    pixels,
    shown,
    tab_to,
    take_entry,
    title,
    upload,
    visit,
)
from tests.support.page_server import IN_PYTHON, Server, page_server
from tests.support.uploads import file_of

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A page with a model whose classes have hostile names, and with a method without end."""
    labels = {str(index): f"{MARKUP}{index}" for index in range(8)}
    folder = tmp_path_factory.mktemp("models") / "hostile"
    hostile = folders.copy(folder, id2label=labels, label2id={})
    words = ["--seconds", "100000", "--models", "bundled", str(hostile)]
    before = "from tests.support import endless_method; endless_method.register()"
    with page_server(tmp_path_factory.mktemp("page"), *words, before=before) as running:
        yield running


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with chromium_browser() as browser:
        yield browser


@pytest.fixture
def page(chromium: Any, server: Server, request: pytest.FixtureRequest) -> Iterator[Any]:
    with visit(chromium, server.address, **getattr(request, "param", WIDE)) as visited:
        yield visited


def test_class_contrast_method_and_upload_change_the_map(page: Any, server: Server) -> None:
    assert title(page).startswith("heart")
    first = shown(page)
    choose(page, "Class", "cross")
    second = changed(page, first)
    assert title(page).startswith("cross")
    assert "class=index%3A4" in page.url
    choose(page, "Rather than", "heart")
    changed(page, second)
    assert "rather than heart" in title(page)
    page.reload()  # a link leads to the same state
    page.get_by_role("heading", name="cross").wait_for()
    assert "rather than heart" in title(page)
    before = shown(page)
    choose(page, "Method", "LeGrad")
    before = changed(page, before)
    assert page.locator(".gmar-card strong").first.inner_text() == "LeGrad"
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the numbers of LeGrad for NumPy").click()
    assert download.value.suggested_filename == "image.4-cross-not-6-heart.legrad.npz"
    upload(page, "mine.png", file_of(draw_scene(3).image))
    assert changed(page, before) != before
    assert "mine" not in page.content()
    page.wait_for_url(re.compile(f"^{server.address}/?$"))
    assert page.locator("gmar-upload label img").get_attribute("src").startswith("data:image/png")


def test_the_check_and_the_slider(page: Any) -> None:
    ask(page, "Check", "check", ".gmar-check img")
    assert page.locator(".gmar-check").count() == 2
    assert "than all 9 random choices" in page.locator(".gmar-check p").first.inner_text()
    ask(page, "Needed patches", "reveal", "gmar-reveal output")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    slider = page.get_by_role("slider").first
    slider.focus()
    slider.press("Home")
    text = page.locator("gmar-reveal output").first
    assert text.inner_text().startswith("1 of 64 patches (2%): heart ")
    assert grey_share(pixels(page, "gmar-reveal canvas")) == pytest.approx(63 / 64, abs=0.005)
    slider.press("ArrowRight")
    assert text.inner_text().startswith("2 of 64 patches")
    assert grey_share(pixels(page, "gmar-reveal canvas")) == pytest.approx(62 / 64, abs=0.005)
    slider.press("End")
    assert text.inner_text().startswith("64 of 64 patches (100%): heart 99.9%")
    assert grey_share(pixels(page, "gmar-reveal canvas")) < 0.01
    assert [url for url in asked if url.startswith("http")] == []


def said_of_the_heads(page: Any, text: str) -> None:
    """Wait for what is said of the head's attention."""
    page.locator("gmar-heads [role=status]").filter(
        has_text=re.compile(f"^{re.escape(text)}")
    ).wait_for()


def test_a_head_and_a_patch_show_their_attention(page: Any) -> None:
    """By a click, by keyboard, and back; each patch is asked for once."""
    ask(page, "Heads", "heads", "gmar-heads canvas")
    assert page.locator("gmar-heads td button").count() == 24
    canvas = page.locator("gmar-heads canvas")
    readout = pixels(page, "gmar-heads canvas").tobytes()
    start = page.evaluate("JSON.parse(document.querySelector('gmar-heads').dataset.state).start")
    page.get_by_role("button", name=re.compile("^Layer 0, head 1:")).click()
    assert pixels(page, "gmar-heads canvas").tobytes() != readout
    said_of_the_heads(page, "Layer 0, head 1: ")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowRight")
    said_of_the_heads(page, "Layer 1, head 2: ")

    back = page.get_by_role("button", name="Back to the whole answer")
    assert not back.is_visible()
    size = canvas.bounding_box()
    place = {"x": size["width"] * 5.5 / 8, "y": size["height"] * 3.5 / 8}
    canvas.click(position=place)
    said_of_the_heads(page, "Attention of patch row 3, column 5 in layer 1, head 2.")
    assert [page.get_by_label(name, exact=True).input_value() for name in ("Row", "Column")] == [
        "3", "5",
    ]  # fmt: skip
    patch = pixels(page, "gmar-heads canvas").tobytes()
    page.get_by_label("Row", exact=True).fill("7")
    page.get_by_label("Column", exact=True).press("Enter")
    said_of_the_heads(page, "Attention of patch row 7, column 5 in layer 1, head 2.")
    assert pixels(page, "gmar-heads canvas").tobytes() != patch
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    canvas.click(position=place)
    assert pixels(page, "gmar-heads canvas").tobytes() == patch
    assert [url for url in asked if url.startswith("http")] == []
    back.focus()
    back.press("Enter")
    said_of_the_heads(page, "Layer 1, head 2: ")
    assert not back.is_visible()
    page.get_by_role("button", name="Layer {}, head {}:".format(*start)).click()
    assert pixels(page, "gmar-heads canvas").tobytes() == readout


def test_a_bad_file_gets_a_message_and_the_page_goes_on(page: Any) -> None:
    for content, text in (
        (b"no image", "the image is broken or of another format"),
        (b"\0" * (9 * 2**20), "more than 8 MB"),
    ):
        upload(page, "<img src=x onerror=alert(1)>.png", content)
        alert = page.get_by_role("alert").filter(has_text=text, visible=True)
        alert.first.wait_for()
        assert alert.count() == 1  # and no second message over the page
        page.get_by_role("button", name=re.compile("^Example: ")).nth(2).click()
        page.wait_for_url(re.compile("example=5"))
        page.wait_for_selector(MAP)
        assert page.locator(MAP).count() == 2
        assert page.get_by_role("alert").filter(visible=True).count() == 0
    before = shown(page)
    photo = file_of(Image.effect_noise((2200, 1100), 90), compress_level=1)
    assert len(photo) > 2 * 2**20
    upload(page, "photo.png", photo)
    changed(page, before)
    note = page.locator("gmar-upload [role=status]").inner_text()
    assert re.fullmatch(r"Made smaller in your browser: 2048 . 1024 pixels\.", note)


def test_names_are_text(page: Any) -> None:
    choose(page, "Model", "hostile")
    page.locator(".gmar-answer h2").filter(has_text=MARKUP[:20]).wait_for()
    assert page.locator("img[src=x]").count() == 0
    choose(page, "Class", MARKUP[:12])
    page.wait_for_function("location.search.includes('class=')")  # or the list is filled meanwhile
    field = page.get_by_label("Class", exact=True)
    field.fill("<img src=x onerror=alert(1)>")
    field.press("Tab")
    page.get_by_role("alert").filter(has_text="no class is called").first.wait_for()
    assert page.locator("img[src=x]").count() == 0


def test_two_visitors_at_once_each_get_their_own_map(chromium: Any, server: Server) -> None:
    seeds, bundled = (3, 4), load_model("bundled")
    with visit(chromium, server.address) as one, visit(chromium, server.address) as other:
        before = [shown(page) for page in (one, other)]
        for page, seed in zip((one, other), seeds, strict=True):
            upload(page, "scene.png", file_of(draw_scene(seed).image))
        for page, seed, source in zip((one, other), seeds, before, strict=True):
            changed(page, source)
            link = page.get_by_role(
                "link", name="Download the numbers of GMAR for NumPy"
            ).get_attribute("href")
            found = np.load(io.BytesIO(base64.b64decode(link.partition(",")[2])))
            expected = explain(draw_scene(seed).image, bundled, method=IN_PYTHON)[0]
            assert np.array_equal(found["patches"], expected.patches.numpy())


def test_a_visitor_who_leaves_stops_the_work(chromium: Any, server: Server) -> None:
    """There are two workers, so a third visitor would wait for two requests without end."""
    for _ in range(3):
        with visit(chromium, server.address) as page:
            choose(page, "Method", "Endless")
            page.get_by_role("status").filter(has_text="Explaining").wait_for()
    with visit(chromium, server.address) as page:
        assert title(page).startswith("heart")


def test_the_page_is_used_by_keyboard_alone(page: Any) -> None:
    """Tab reaches each part in turn; keys alone choose a class, a tab, a head and a patch."""
    requests: list[str] = []
    page.on("request", lambda request: requests.append(f"{request.method} {request.url}"))
    names = "\n".join(tab_to(page, "Check against random patches"))
    assert not any(request.startswith("POST") for request in requests)  # nothing was chosen yet
    parts = [
        "Image file", "Example: ", "Model", "Class", "Rather than", "Method", "Second method",
        "Download the picture", "Download the numbers of GMAR", "Check against random patches",
    ]  # fmt: skip
    places = [names.find(part) for part in parts]
    assert -1 not in places, dict(zip(parts, places, strict=True))
    assert places == sorted(places)
    page.keyboard.press("Enter")
    page.wait_for_selector(".gmar-check img")
    page.get_by_label("Image file").focus()
    before = shown(page)
    tab_to(page, "Class")
    take_entry(page, "cross")
    changed(page, before)
    assert title(page).startswith("cross")
    tab_to(page, "Heads")
    page.keyboard.press("Enter")
    tab_to(page, "Show the heads")
    page.keyboard.press("Enter")
    page.wait_for_selector("gmar-heads canvas")
    tab_to(page, "Layer 5, head ")
    page.keyboard.press("ArrowDown")
    said_of_the_heads(page, "Layer 4, head ")
    tab_to(page, "Column")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    said_of_the_heads(page, "Attention of patch row 0, column 1 in layer 4, head ")
    tab_to(page, "Back to the whole answer")
    page.keyboard.press("Enter")
    said_of_the_heads(page, "Layer 4, head ")


LOOKS = [
    {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
    for width in (390, 1440) for scheme in ("light", "dark")
]  # fmt: skip
OVERFLOW = """() => [document.documentElement, ...document.querySelectorAll(".gmar-check")]
  .map(one => one.scrollWidth - one.clientWidth)"""


@pytest.mark.parametrize("page", LOOKS, indirect=True, ids=str)
def test_each_look_fits_and_is_accessible(page: Any, tmp_path: Path) -> None:
    """Without a serious finding of axe-core, in each state of the page."""
    page.screenshot(path=tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as picture:
        corner: Any = picture.convert("L").getpixel((2, 2))
    is_dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert (corner < 60) if is_dark else (corner > 200)
    for tab, kind, selector, part in (
        ("Check", "check", ".gmar-check img", "html"),
        ("Needed patches", "reveal", "gmar-reveal output", "#reveal"),
        ("Heads", "heads", "gmar-heads canvas", "#heads"),
    ):
        ask(page, tab, kind, selector)
        assert max(page.evaluate(OVERFLOW)) <= 0
        assert page.evaluate(UNNAMED) == []
        assert axe_findings(page, part) == []
    upload(page, "bad.png", b"no image")
    page.get_by_role("alert").filter(visible=True).wait_for()
    assert axe_findings(page) == []
