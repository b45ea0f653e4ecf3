"""The page in Chromium, as a visitor sees and uses it."""

from __future__ import annotations

import base64
import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hf_gmar.data import draw_scene
from tests.support import folders
from tests.support.hostile import MARKUP
from tests.support.page_server import Server, page_server
from tests.support.uploads import file_of

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]
WAIT = 120_000  # milliseconds: a page that waits for longer hangs
MAP = ".gmar-answer .gmar-card > img"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> str:
    labels = {str(index): f"{MARKUP}{index}" for index in range(8)}
    folder = tmp_path_factory.mktemp("models") / "hostile"
    return str(folders.copy(folder, id2label=labels, label2id={}))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, hostile: str) -> Iterator[Server]:
    with page_server(tmp_path_factory.mktemp("page"), "--models", "bundled", hostile) as running:
        yield running


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        arguments = ["--no-sandbox", "--disable-gpu"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Any, server: Server, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page after its first map; its requests and errors are seen."""
    options = {"viewport": {"width": 1440, "height": 900}, **getattr(request, "param", {})}
    context = chromium.new_context(**options)
    context.set_default_timeout(WAIT)
    visited = context.new_page()
    visited.hosts, visited.errors = set(), []
    visited.on("request", lambda one: visited.hosts.add(re.split("[/?#]", one.url)[:3][-1]))
    visited.on("pageerror", lambda error: visited.errors.append(str(error)))
    visited.on("dialog", lambda dialog: visited.errors.append(dialog.message))
    visited.goto(server.address)
    visited.wait_for_selector(MAP)
    yield visited
    assert visited.errors == []
    hosts = {host for host in visited.hosts if host and not host.startswith("image")}
    assert hosts <= {server.address.removeprefix("http://")}
    context.close()


def shown(page: Any) -> str:
    """The map on the page, as data."""
    source: str = page.locator(MAP).first.get_attribute("src")
    return source


def changed(page: Any, before: str) -> str:
    """The next map on the page."""
    page.wait_for_function(
        "([selector, before]) => {const image = document.querySelector(selector);"
        "return image && image.src !== before}",
        arg=[MAP, before],
    )
    return shown(page)


def choose(page: Any, label: str, text: str) -> None:
    """Type into a list and take the first entry, by keyboard."""
    field = page.get_by_label(label, exact=True)
    field.click()
    field.fill(text)
    page.get_by_role("option").filter(has_text=text).first.wait_for()
    field.press("Enter")


def upload(page: Any, name: str, content: bytes) -> None:
    page.get_by_label("Image file").set_input_files(
        {"name": name, "mimeType": "image/png", "buffer": content}
    )


def title(page: Any) -> str:
    text: str = page.locator(".gmar-answer h2").inner_text()
    return text


def test_an_upload_is_explained(page: Any, server: Server) -> None:
    before = shown(page)
    upload(page, "mine.png", file_of(draw_scene(3).image))
    assert changed(page, before) != before
    assert "mine" not in page.content()
    page.wait_for_url(re.compile(f"^{server.address}/?$"))
    assert page.locator("gmar-upload label img").get_attribute("src").startswith("data:image/png")


def test_the_class_and_the_contrast_change_the_map(page: Any) -> None:
    assert title(page).startswith("heart")
    first = shown(page)
    choose(page, "Class", "cross")
    second = changed(page, first)
    assert title(page).startswith("cross")
    assert "class=index%3A4" in page.url
    choose(page, "Contrast: rather than", "heart")
    changed(page, second)
    assert "rather than heart" in title(page)
    page.reload()  # a link leads to the same state
    page.wait_for_selector(MAP)
    page.get_by_role("heading", name="cross").wait_for()
    assert "rather than heart" in title(page)


def test_a_method_is_chosen(page: Any) -> None:
    before = shown(page)
    choose(page, "Method", "LeGrad")
    changed(page, before)
    assert page.locator(".gmar-card strong").first.inner_text() == "LeGrad"
    with page.expect_download() as download:
        page.get_by_role("link", name="Numbers of LeGrad (NPZ)").click()
    assert download.value.suggested_filename == "image.6-heart.legrad.npz"


def test_the_check_has_its_sentence_and_figure(page: Any) -> None:
    page.get_by_role("button", name="Check against random patches").click()
    page.wait_for_selector(".gmar-check img")
    assert page.locator(".gmar-check").count() == 2
    assert "than all 9 random choices" in page.locator(".gmar-check p").first.inner_text()


def pixels(page: Any, selector: str) -> Image.Image:
    """What is drawn on a canvas."""
    data = page.locator(selector).first.evaluate("canvas => canvas.toDataURL()")
    return Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))).convert("RGB")


def grey_share(image: Image.Image) -> float:
    counts = {colour: count for count, colour in image.getcolors(image.width * image.height) or []}
    return counts.get((128, 128, 128), 0) / (image.width * image.height)


def test_the_slider_shows_patches_without_the_server(page: Any) -> None:
    page.get_by_role("tab", name="What it needs").click()
    page.get_by_role("button", name="Show patches one after the other").click()
    page.wait_for_selector("gmar-reveal output")
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


def test_a_head_shows_its_attention(page: Any) -> None:
    page.get_by_role("tab", name="Heads").click()
    page.get_by_role("button", name="Show the heads").click()
    page.wait_for_selector("gmar-heads canvas")
    assert page.locator("gmar-heads td button").count() == 24
    first = pixels(page, "gmar-heads canvas").tobytes()
    page.get_by_role("button", name=re.compile("^Layer 0, head 1:")).click()
    assert pixels(page, "gmar-heads canvas").tobytes() != first
    assert page.locator("gmar-heads p").inner_text().startswith("Layer 0, head 1: ")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowRight")
    assert page.locator("gmar-heads p").inner_text().startswith("Layer 1, head 2: ")


def said_of_the_heads(page: Any, text: str) -> None:
    """Wait for what is said of the head's attention."""
    page.locator("gmar-heads [role=status]").filter(
        has_text=re.compile(f"^{re.escape(text)}")
    ).wait_for()


def test_a_patch_shows_its_attention(page: Any) -> None:
    """By a click, by keyboard, and back; each patch is asked for once."""
    page.get_by_role("tab", name="Heads").click()
    page.get_by_role("button", name="Show the heads").click()
    page.wait_for_selector("gmar-heads canvas")
    canvas = page.locator("gmar-heads canvas")
    readout = pixels(page, "gmar-heads canvas").tobytes()
    back = page.get_by_role("button", name="Back to the whole answer")
    assert not back.is_visible()
    size = canvas.bounding_box()
    place = {"x": size["width"] * 5.5 / 8, "y": size["height"] * 3.5 / 8}
    canvas.click(position=place)
    said_of_the_heads(page, "Attention of patch row 3, column 5 in layer 5, head ")
    assert [page.get_by_label(name, exact=True).input_value() for name in ("Row", "Column")] == [
        "3", "5",
    ]  # fmt: skip
    patch = pixels(page, "gmar-heads canvas").tobytes()
    page.get_by_role("button", name=re.compile("^Layer 0, head 1:")).click()
    said_of_the_heads(page, "Attention of patch row 3, column 5 in layer 0, head 1")
    page.get_by_label("Row", exact=True).fill("7")
    page.get_by_label("Column", exact=True).press("Enter")
    said_of_the_heads(page, "Attention of patch row 7, column 5 in layer 0, head 1")
    back.focus()
    back.press("Enter")
    said_of_the_heads(page, "Layer 0, head 1: ")
    assert not back.is_visible()
    start = page.evaluate("JSON.parse(document.querySelector('gmar-heads').dataset.state).start")
    page.get_by_role("button", name="Layer {}, head {}:".format(*start)).click()
    assert pixels(page, "gmar-heads canvas").tobytes() == readout
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    canvas.click(position=place)
    assert pixels(page, "gmar-heads canvas").tobytes() == patch
    assert [url for url in asked if url.startswith("http")] == []


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"no image", "the image is broken or of another format"),
        (b"\0" * (9 * 2**20), "more than 8 MB"),
    ],
)
def test_a_bad_file_gets_a_message_and_the_page_goes_on(
    page: Any, content: bytes, text: str
) -> None:
    upload(page, "<img src=x onerror=alert(1)>.png", content)
    page.get_by_role("alert").filter(has_text=text).first.wait_for()
    page.get_by_role("button", name=re.compile("^Example: ")).nth(2).click()
    page.wait_for_url(re.compile("example=5"))
    assert page.locator(MAP).count() == 2
    assert page.get_by_role("alert").filter(visible=True).count() == 0


def test_a_large_photo_is_made_smaller_in_the_browser(page: Any) -> None:
    before = shown(page)
    noise = Image.effect_noise((2600, 1300), 90).convert("RGB")
    upload(page, "photo.png", file_of(noise))
    changed(page, before)
    note = page.locator("gmar-upload p").inner_text()
    assert re.fullmatch(r"Made smaller in your browser: 2048 . 1024 pixels\.", note)


def test_names_are_text(page: Any) -> None:
    choose(page, "Model", "hostile")
    page.locator(".gmar-answer h2").filter(has_text=MARKUP[:20]).wait_for()
    assert page.locator("img[src=x]").count() == 0
    choose(page, "Class", MARKUP[:12])
    field = page.get_by_label("Class", exact=True)
    field.fill("<img src=x onerror=alert(1)>")
    field.press("Tab")
    page.get_by_role("alert").filter(has_text="no class is called").first.wait_for()
    assert page.locator("img[src=x]").count() == 0


def test_everything_is_reached_by_keyboard(page: Any) -> None:
    """Tab reaches each part in turn, and none is a trap."""
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "() => {const one = document.activeElement; return one.ariaLabel"
                " || one.labels?.[0]?.innerText.trim() || one.innerText.trim()}"
            )
        )
    text = "\n".join(reached)
    parts = ["Image file", "Example: ", "Model", "Class", "Contrast", "Method", "Second method",
             "Picture (PNG)", "Numbers of GMAR", "Check against random patches"]  # fmt: skip
    places = [text.find(part) for part in parts]
    assert -1 not in places, dict(zip(parts, places, strict=True))
    assert places == sorted(places)


UNNAMED = """() => [...document.querySelectorAll("input, button, select, textarea, canvas, img, a")]
  .filter(one => one.checkVisibility() && !(one.ariaLabel || one.labels?.[0]?.innerText.trim()
    || one.innerText.trim() || one.title || one.hasAttribute("alt")))
  .map(one => one.outerHTML.slice(0, 200))"""


LOOKS = [
    {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
    for width in (390, 1440) for scheme in ("light", "dark")
]  # fmt: skip


@pytest.mark.parametrize("page", LOOKS, indirect=True, ids=str)
def test_the_page_fits_and_has_names_for_screen_readers(page: Any, tmp_path: Path) -> None:
    assert page.evaluate(UNNAMED) == []
    width = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(width) <= 0
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    with Image.open(tmp_path / "page.png") as picture:
        corner: Any = picture.convert("L").getpixel((2, 2))
    is_dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert (corner < 60) if is_dark else (corner > 200)
    contrast = page.evaluate(CONTRAST)
    assert min(contrast.values()) >= 4.5, contrast


CONTRAST = """() => {
  const numbers = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([red, green, blue]) => [red, green, blue].map(value => value / 255)
    .map(value => value <= 0.04 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, place) => sum + value * [0.2126, 0.7152, 0.0722][place], 0);
  const behind = one => {
    for (; one; one = one.parentElement) {
      const colour = numbers(getComputedStyle(one).backgroundColor);
      if (colour.length < 4 || colour[3] > 0.9) return light(colour);
    }
    return 1;
  };
  const found = {};
  for (const selector of ["h1", ".gmar-answer h2", ".gmar-card figcaption span", ".gmar-bar span",
                          ".gmar-downloads a", "label span", ".gmar-drop span"]) {
    const one = document.querySelector(selector);
    const [first, second] = [light(numbers(getComputedStyle(one).color)), behind(one)];
    found[selector] = (Math.max(first, second) + 0.05) / (Math.min(first, second) + 0.05);
  }
  return found;
}"""
