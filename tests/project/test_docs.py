"""The pages: links that resolve, options that exist, tables that are up to date."""

from __future__ import annotations

import builtins
import re
import symtable
import textwrap
from pathlib import Path

import pytest
from typer.main import get_command

from benchmarks import tables
from benchmarks.tables import TABLES, with_table
from hf_gmar.cli import app
from tests.support.interpreter import run_python

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "hf_gmar").rglob("*.md")]
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


@pytest.mark.parametrize(
    ("page", "name"),
    [(page, name) for page, names in tables.PAGES.items() for name in names],
    ids=lambda value: getattr(value, "name", value),
)
def test_tables_are_what_makes_them_says(
    page: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If not: python -m benchmarks.tables."""
    text = page.read_text(encoding="utf-8")
    assert with_table(text, name) == text
    monkeypatch.setitem(TABLES, name, lambda: "| another | table |\n")
    assert "| another | table |" in with_table(text, name)


def test_every_place_for_a_table_is_known() -> None:
    for page in PAGES:
        found = re.findall(r"<!-- table: (\w+) -->", page.read_text(encoding="utf-8"))
        assert tuple(found) == tables.PAGES.get(page, ())


def test_a_page_without_a_place_for_the_table() -> None:
    with pytest.raises(ValueError, match="no place for the table 'families'"):
        with_table("# Title", "families")


def test_the_benchmarks_table_is_in_its_output() -> None:
    results = tables.RESULTS.read_text(encoding="utf-8")
    assert tables.summary() in results


GOES_ON = "# goes on from above\n"
_BLOCK = re.compile(r"^( *)```python\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[str]:
    """The Python blocks of a page."""
    return [textwrap.dedent(match[2]) for match in _BLOCK.finditer(page.read_text("utf-8"))]


def names_from_elsewhere(code: str) -> set[str]:
    """Names that a block reads and does not define."""
    module = symtable.symtable(code, "block", "exec")
    tables, read = [module], set()
    while tables:
        table = tables.pop()
        tables += table.get_children()
        read |= {
            one.get_name()
            for one in table.get_symbols()
            if one.is_referenced() and (one.is_global() or table is module)
        }
    own = {one.get_name() for one in module.get_symbols() if one.is_assigned() or one.is_imported()}
    own |= {one.get_name() for one in module.get_children()}
    return {name for name in read - own if not hasattr(builtins, name)}


BLOCKS = [
    pytest.param(code, id=f"{page.relative_to(ROOT).as_posix()}-{number}")
    for page in PAGES
    for number, code in enumerate(blocks(page))
]


@pytest.mark.parametrize("code", BLOCKS)
def test_a_block_defines_its_names_or_says_that_it_goes_on(code: str) -> None:
    assert bool(names_from_elsewhere(code)) == code.startswith(GOES_ON)


def test_the_first_block_of_a_page_goes_on_from_nothing() -> None:
    firsts = [blocks(page)[0] for page in PAGES if blocks(page)]
    assert len(firsts) > 10
    assert not any(code.startswith(GOES_ON) for code in firsts)


@pytest.mark.parametrize(
    "code", [one for one in BLOCKS if '"image-attribution"' in str(one.values[0])]
)
def test_a_block_with_the_pipeline_runs_by_itself(code: str, tmp_path: Path) -> None:
    """The task must be registered by the block's own imports."""
    run_python(["-c", code], tmp_path, {"HF_HUB_OFFLINE": "1"})


def test_the_check_of_blocks_sees_names() -> None:
    assert names_from_elsewhere("import a\nb = [c + a.d for c in len(e)]") == {"e"}
    assert names_from_elsewhere("def f(x):\n    return x + g\nclass K(f):\n    y: int = 1") == {"g"}
