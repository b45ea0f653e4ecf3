"""The pages: links that resolve, and options that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from hf_gmar.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "hf_gmar").rglob("*.md")]
_LINK = re.compile(r"\]\((?!https?:)([^)#]+)?(#[^)]+)?\)")


def _anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in _LINK.findall(page.read_text()):
        target = (page.parent / path) if path else page
        assert target.exists(), path
        assert not anchor or anchor[1:] in _anchors(target), anchor


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_page_waits_for_a_number(page: Path) -> None:
    assert not re.search(r"\b[A-Z]+_TEXT\b|TODO|-->\n<!-- /", page.read_text())


def test_the_command_line_page_names_every_option() -> None:
    page = (ROOT / "docs" / "command-line.md").read_text()
    for command in get_command(app).commands.values():  # type: ignore[attr-defined]
        for parameter in command.params:
            for option in parameter.opts:
                assert not option.startswith("--") or option in page, option


def test_the_readme_shows_pictures_that_are_there() -> None:
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    assert pictures
    assert all((ROOT / picture).is_file() for picture in pictures)
