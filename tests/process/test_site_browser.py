"""The site of the documentation in Chromium, read from disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]
WAIT = 30_000  # milliseconds


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, check=True)
    return folder


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        arguments = ["--no-sandbox", "--disable-gpu"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


def _open(chromium: Any, width: int, *, scripts: bool = True) -> tuple[Any, list[str]]:
    """Open an empty page; the list gets its requests and its errors."""
    seen: list[str] = []
    page = chromium.new_page(viewport={"width": width, "height": 900}, java_script_enabled=scripts)
    page.set_default_timeout(WAIT)
    page.on("request", lambda request: seen.append(request.url))
    page.on("pageerror", lambda error: seen.append(str(error)))
    return page, seen


def test_pages_fit_and_load_nothing_from_elsewhere(chromium: Any, site: Path) -> None:
    page, seen = _open(chromium, 390)
    for file in sorted(site.rglob("*.html")):
        if file.name != "404.html":
            page.goto(file.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, file
    assert all(one.startswith(("file:", "data:", "blob:")) for one in seen), seen
    page.close()


def test_the_search_works_from_disk(chromium: Any, site: Path) -> None:
    page, seen = _open(chromium, 1440)
    page.goto((site / "index.html").as_uri())
    page.locator(".md-search__input").click()
    page.keyboard.type("glossary")
    page.locator(".md-search-result__link", has_text="Glossary").first.click()
    page.wait_for_url(lambda url: "glossary.html" in url)
    assert all(one.startswith("file:") for one in seen), seen
    page.close()


def test_pages_read_without_scripts(chromium: Any, site: Path) -> None:
    page, _ = _open(chromium, 390, scripts=False)
    page.goto((site / "api" / "methods.html").as_uri())
    assert page.locator("article h1").is_visible()
    page.locator(".md-header__button[for=__drawer]").click()
    assert page.locator(".md-nav--primary").first.is_visible()
    assert page.locator("math").first.is_visible()
    page.close()
