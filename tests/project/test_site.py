"""The site of the documentation, as ``make site`` builds it."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

import hf_gmar
from benchmarks.site_hooks import repository_path
from tests.support.site import Page, broken_links, is_external, read_site

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "app", "comparison", "data", "evaluation", "heads", "methods", "metrics", "models",
    "perturbations", "report", "visualization",
)  # fmt: skip
COUNTED = ("h1", "h2", "h3", "h4", "img", "li", "pre", "table", "tr", "blockquote", "strong")
pytestmark = pytest.mark.extended  # 'make docs' runs it, too


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return read_site(folder)


def _folder(site: dict[Path, Page]) -> Path:
    return next(path.parent for path in site if path.name == "404.html")


def test_links_and_anchors_lead_somewhere(site: dict[Path, Page]) -> None:
    assert list(broken_links(site)) == []


def test_nothing_is_loaded_from_elsewhere(site: dict[Path, Page]) -> None:
    for path, page in site.items():
        for link in page.loads:
            assert not is_external(link), (path, link)
            if path.name != "404.html" and not link.startswith("data:"):
                assert (path.parent / link.partition("?")[0]).is_file(), (path, link)
    for style in _folder(site).rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert not re.search(r"@import|url\(\s*['\"]?(?:https?:)?//", text), style


def test_pages_show_what_the_repository_shows(site: dict[Path, Page]) -> None:
    """GitHub reads lists and tables more leniently than the site's Markdown does."""
    folder, reader, compared = _folder(site), MarkdownIt().enable("table"), 0
    for path, page in site.items():
        uri = path.relative_to(folder).with_suffix(".md").as_posix()
        source = ROOT / repository_path(uri)
        if uri.startswith("api/") or source.suffix != ".md" or not source.is_file():
            continue
        text = re.sub(r"\A---\n.*?\n---\n", "", source.read_text("utf-8"), flags=re.DOTALL)
        expected = Counter(re.findall(r"<(\w+)", reader.render(text)))
        shown = Counter(page.tags)
        assert {tag: shown[tag] for tag in COUNTED} == {tag: expected[tag] for tag in COUNTED}, uri
        compared += 1
    assert compared > 30


def test_every_public_name_is_in_the_reference(site: dict[Path, Page]) -> None:
    anchors = {name for page in site.values() for name in page.anchors}
    for package in ("", *PACKAGES):
        module = importlib.import_module(f"hf_gmar.{package}".rstrip("."))
        for name in module.__all__:
            if package or not (name.startswith("__") or _is_package(name)):
                names = {f"{module.__name__}.{name}", f"hf_gmar.{name}"}
                assert names & anchors, names
    for name, value in vars(hf_gmar.errors).items():
        if isinstance(value, type) and value.__module__ == "hf_gmar.errors":
            assert f"hf_gmar.errors.{name}" in anchors


def _is_package(name: str) -> bool:
    return name in {*PACKAGES, "errors", "pipeline"}


def test_formulas_need_no_script(site: dict[Path, Page]) -> None:
    pages = [page for page in site.values() if "math" in page.tags]
    assert {"methods.html"} <= {page.path.name for page in pages}
    for page in site.values():
        assert "arithmatex" not in page.path.read_text(encoding="utf-8"), page.path


def test_the_checks_see_what_they_look_for(tmp_path: Path) -> None:
    (tmp_path / "b.html").write_text("<article><h1 id='top'>B</h1></article>", "utf-8")
    (tmp_path / "a.html").write_text(
        '<link href="https://x.org/a.css" rel=stylesheet><article><a href="b.html#top">b</a>'
        '<a href="b.html#none">b</a><a href="c.html">c</a><a href="https://x.org">x</a></article>',
        "utf-8",
    )
    pages = read_site(tmp_path)
    assert list(broken_links(pages)) == ["a.html: b.html#none", "a.html: c.html"]
    assert [is_external(link) for link in pages[tmp_path / "a.html"].loads] == [True]
    assert pages[tmp_path / "b.html"].tags == ["article", "h1"]
