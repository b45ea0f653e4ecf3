"""The page in Chromium: what a visitor sees, and does."""

from __future__ import annotations

import base64
import io
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
WAIT = 120_000  # milliseconds: a page that waits for longer hangs, on a busy machine, too
MAP = ".gmar-answer .gmar-card > img"
WIDE = {"viewport": {"width": 1440, "height": 900}}


@contextmanager
def chromium_browser() -> Iterator[Any]:
    """The browser, until the end of the context."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        arguments = ["--no-sandbox", "--disable-gpu"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@contextmanager
def visit(browser: Any, address: str, **options: Any) -> Iterator[Any]:
    """A visitor's page after its first map; it must ask no other server and raise no error."""
    context = browser.new_context(**(options or WIDE))
    context.set_default_timeout(WAIT)
    page = context.new_page()
    hosts: set[str] = set()
    errors: list[str] = []
    page.on("request", lambda one: hosts.add(re.split("[/?#]", one.url)[:3][-1]))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("dialog", lambda dialog: errors.append(dialog.message))
    try:
        page.goto(address)
        page.wait_for_selector(MAP)
        yield page
    finally:
        context.close()
    assert errors == []
    outside = {host for host in hosts if host and not host.startswith("image")}
    assert outside <= {address.removeprefix("http://")}


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


def title(page: Any) -> str:
    """The class on the page, with its score."""
    text: str = page.locator(".gmar-answer h2").inner_text()
    return text


def choose(page: Any, label: str, text: str) -> None:
    """Type into a list and take the first entry."""
    field = page.get_by_label(label, exact=True)
    field.click()
    field.fill("")
    take_entry(page, text)


def take_entry(page: Any, text: str) -> None:
    """Type into a list, and take the first entry that has the text."""
    page.keyboard.type(text)
    page.locator("[role=option].active").filter(has_text=text).first.wait_for()
    page.keyboard.press("Enter")


def upload(page: Any, name: str, content: bytes) -> None:
    """Choose a file."""
    page.get_by_label("Image file").set_input_files(
        {"name": name, "mimeType": "image/png", "buffer": content}
    )


def ask(page: Any, tab: str, kind: str, selector: str) -> None:
    """Open a tab, press its button and wait for the answer."""
    page.get_by_role("tab", name=tab).click()
    page.locator(f"#{kind}-button").click()
    page.wait_for_selector(selector)


def pixels(page: Any, selector: str) -> Image.Image:
    """What is drawn on a canvas."""
    data = page.locator(selector).first.evaluate("canvas => canvas.toDataURL()")
    return Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))).convert("RGB")


def grey_share(image: Image.Image) -> float:
    """The share of the grey of patches that are not shown."""
    counts = {colour: count for count, colour in image.getcolors(image.width * image.height) or []}
    return counts.get((128, 128, 128), 0) / (image.width * image.height)


FOCUSED = """() => {const one = document.activeElement;
  return one.ariaLabel || one.labels?.[0]?.innerText.trim() || one.innerText.trim()}"""


def tab_to(page: Any, name: str) -> list[str]:
    """Press Tab until a part whose name begins so has the focus; the names of all on the way."""
    names: list[str] = []
    while not names or not names[-1].startswith(name):
        assert len(names) < 60, names
        page.keyboard.press("Tab")
        names.append(page.evaluate(FOCUSED))
    return names


UNNAMED = """() => [...document.querySelectorAll("input, button, select, textarea, canvas, img, a")]
  .filter(one => one.checkVisibility() && !(one.ariaLabel || one.labels?.[0]?.innerText.trim()
    || one.innerText.trim() || one.title || one.hasAttribute("alt")))
  .map(one => one.outerHTML.slice(0, 200))"""


def axe_findings(page: Any, selector: str = "html") -> list[str]:
    """What axe-core finds in a part that is serious or critical: rule, element and its markup."""
    from axe_playwright_python.base import AXE_SCRIPT

    page.evaluate(AXE_SCRIPT)
    found = page.evaluate("part => axe.run(part, {resultTypes: ['violations']})", selector)
    return [
        f"{rule['id']}: {node['target']} {node['html'][:200]}"
        for rule in found["violations"]
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]
