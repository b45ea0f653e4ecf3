"""Names from outside, whatever they hold, in a terminal, in Markdown and in HTML."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from hf_gmar._utils.text import code_span, markdown, visible
from hf_gmar.cli import options
from hf_gmar.comparison.result import Comparison
from hf_gmar.evaluation import summarize
from hf_gmar.evaluation.report.markdown import page
from hf_gmar.evaluation.report.writer import html, pictures_of
from hf_gmar.models.score_kind import ScoreKind
from tests.support.hostile import HOSTILE, hidden_in

TEXTS = st.text(st.characters(exclude_categories=[])) | st.text(
    st.sampled_from("a1 -=+.)(!#<>[]`*_|\\~&:/@\"'\n\t\r\x1b\x07\x9b\u202e\u2066\u2028\ud800.www"),
    max_size=40,
)
"""Any text, halves of characters included, and texts in which marks are close to each other."""


UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode's categories of controls, formats, halves of characters and separators of lines."""


def hostile(test: Callable[..., None]) -> Callable[..., None]:
    """Test with the hostile names of all tests, and with any text."""
    for text in (
        *HOSTILE,
        "javascript:a",
        "https://a.org",
        "www.a.org",
        "``",
        "` ",
        "===",
        "1) a",
        "---",
        "-- -",
        "- - -",
        "--",
        "+",
    ):
        test = example(text)(test)
    return given(TEXTS)(test)


class Elements(HTMLParser):
    """The elements of a page, each with its attributes, and its text."""

    def __init__(self, page: str) -> None:
        """Read it at once."""
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the tag with its attributes."""
        self.found.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        """Add to the text."""
        self.text += data


def rendered(page: str) -> Elements:
    """The elements of a page of Markdown, as a reader of Markdown that lets HTML pass shows it."""
    return Elements(MarkdownIt("commonmark", {"html": True}).enable("table").render(page))


def in_one_line(text: str) -> str:
    """The text that a reader of Markdown must see."""
    return " ".join(visible(text, keep="\n\t").split())


@hostile
def test_no_hidden_character_stays(text: str) -> None:
    shown = visible(text)
    assert hidden_in(shown) == set()
    if not any(unicodedata.category(letter) in UNSEEN for letter in text):
        assert shown == text
    shown.encode("utf-8")


def test_hidden_characters_are_all_that_unicode_calls_controls() -> None:
    """And what formats, but joiners of letters and the marks of Arabic numbers."""
    letters = map(chr, range(0x110000))
    hidden = {letter for letter in letters if unicodedata.category(letter) in UNSEEN}
    kept = {letter for letter in hidden if visible(letter) == letter}
    assert {"\u200c", "\u200d", "\u0600"} <= kept
    names = [unicodedata.name(letter) for letter in kept]
    used = re.compile("^(ARABIC|SYRIAC|KAITHI|EGYPTIAN|SHORTHAND|MUSICAL|ZERO WIDTH (NON-)?JOINER)")
    assert [name for name in names if not used.match(name)] == []


@hostile
def test_markdown_shows_the_text_and_nothing_else(text: str) -> None:
    name = markdown(text)
    page = rendered(f"{name}\n\n- {name}: {name}\n\n| a |\n|---|\n| {name} |\n")
    tags = [tag for tag, attributes in page.found if not attributes]
    assert len(tags) == len(page.found)
    assert tags == [
        *["p"] * bool(in_one_line(text)),
        *("ul", "li", "table", "thead", "tr", "th", "tbody", "tr", "td"),
    ]
    line = in_one_line(text)
    assert page.text.split() == f"{line} {line}: {line} a {line}".split()


@hostile
def test_code_spans_hold_the_text_and_nothing_else(text: str) -> None:
    page = rendered(f"Settings: {code_span(text)}, and no `more`.")
    assert page.found == [("p", ()), ("code", ()), ("code", ())]
    assert page.text.strip() == f"Settings: {visible(text) or '  '}, and no more."


@hostile
def test_a_comparison_shows_names_as_text(text: str) -> None:
    """Of methods, classes, images, models, failures and settings."""
    comparison = Comparison(
        maps={f"1{text}": torch.rand(1, 2, 2)},
        failures={f"2{text}": text},
        costs={},
        forward=None,
        order=(f"1{text}", f"2{text}"),
        names=(text,),
        targets=(0,),
        labels=(text,),
        scores=(0.5,),
        score_kind=ScoreKind.SOFTMAX,
        contrasts=(text,),
        pictures=(Image.new("RGB", (4, 4)),),
        settings={"model": text, "prompts": [text]},
    )
    plain = "plain"
    other = replace(
        comparison,
        maps={f"1{plain}": torch.rand(1, 2, 2)},
        failures={f"2{plain}": plain},
        order=(f"1{plain}", f"2{plain}"),
        names=(plain,),
        labels=(plain,),
        contrasts=(plain,),
        settings={"model": plain, "prompts": [plain]},
    )
    page = comparison._page()
    assert hidden_in(page) <= {"\n"}
    found = rendered(page)
    assert found.found == rendered(other._page()).found
    line = f"{in_one_line(text)}: {in_one_line(text)}, 50.0%"
    assert line.split() in [item.split() for item in found.text.splitlines()]


@settings(max_examples=25)
@hostile
def test_a_report_shows_names_as_text(text: str) -> None:
    """In Markdown, and in the HTML that is made of it, with the captions of figures."""

    def pages(name: str) -> tuple[str, str]:
        inside = re.sub("[():]", "", name)  # these have a meaning in the name of a measure
        rows: list[dict[str, Any]] = [
            {"index": 0, "key": name, "method": None, "error": name},
            {"index": 1, "key": name, "method": f"1{name}", "values": {f"deletion ({inside})": 1}},
            {"index": 1, "key": name, "method": f"2{name}", "values": {f"deletion ({inside})": 0}},
            {"index": 1, "key": name, "method": f"3{name}", "error": name},
        ]
        facts = {"model": name, "data": {"name": name}, "score": name, "prompts": [name]}
        summary = summarize(rows, facts, {"deletion": False}, f"1{name}")
        pictures = pictures_of(summary, [])
        assert pictures
        markdown = page(summary, pictures)
        return markdown, html(markdown, {picture.file: b"" for picture in pictures})

    text = re.sub("[▲▼△▽]", "", f"x{text}")  # marks are shown in colours; a fact has a name
    (shown, made), (plain, made_plain) = pages(text), pages("plain")
    assert hidden_in(shown + made) <= {"\n"}
    assert rendered(shown).found == rendered(plain).found
    assert Elements(made).found == Elements(made_plain).found


@pytest.mark.extended
@pytest.mark.parametrize(
    "test",
    [
        test_no_hidden_character_stays,
        test_markdown_shows_the_text_and_nothing_else,
        test_code_spans_hold_the_text_and_nothing_else,
        test_a_comparison_shows_names_as_text,
        test_a_report_shows_names_as_text,
    ],
)
def test_thousands_of_texts(test: Any) -> None:
    settings(max_examples=1000)(given(TEXTS)(test.hypothesis.inner_test))()


COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[], StringIO]:
    """Makes the commands' output that of a terminal with colours; it is caught."""

    def caught() -> StringIO:
        stream = StringIO()
        for console in (options.out, options.err):
            monkeypatch.setattr(console, "_file", stream)
            monkeypatch.setattr(console, "_color_system", 1)
            monkeypatch.setattr(console, "_force_terminal", True)
        return stream

    return caught


def print_everywhere(name: str) -> None:
    """Print a name in every way in which a command prints."""
    table = Table(title=name)
    table.add_column(name)
    table.add_row(name)
    table.add_row(Text(name))
    options.print_table(table)
    options.print_lines([name, Path(name.replace("\0", ""))])
    options.say(ValueError(name), Path(name.replace("\0", "")))
    options.note(name)
    options.out.print(name)
    options.out.print(Text(name, "bold"))
    columns = TextColumn("{task.description}", markup=False), TextColumn("{task.description}")
    with Progress(*columns, console=options.err, transient=True) as bar:
        bar.add_task(name.replace("[", ""), total=1)


@pytest.mark.parametrize("width", [20, 200])
def test_a_terminal_is_sent_nothing_of_a_name(
    width: int, terminal: Callable[[], StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But its own colours, and what moves the cursor to draw a bar again."""

    @hostile
    def check(text: str) -> None:
        stream = terminal()
        for console in (options.out, options.err):
            monkeypatch.setattr(console, "_width", width)
        print_everywhere(text)
        sent = stream.getvalue()
        bar = re.compile(r"\x1b\[\?25[lh]|\x1b\[[0-9]?[AK]|\r")
        assert "\x1b[" in sent
        assert hidden_in(bar.sub("", COLOURS.sub("", sent))) <= {"\n"}

    check()
