"""Small HTML for notebooks; texts may hold anything, and stay text."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from hf_gmar._utils.text import brief

_LONGEST = 300  # letters of a text
_NO_FORMULAS = 'class="tex2jax_ignore mathjax_ignore"'  # notebooks make formulas of dollar signs


def html_text(text: object, most: int = _LONGEST) -> str:
    """Return a text as HTML, in one line; hidden characters become escapes.

    Example:
        >>> html_text("<b>a & b")
        '&lt;b&gt;a &amp; b'
    """
    return html.escape(brief(text, most))


def html_table(table: Table) -> str:
    """Return a table of the terminal as HTML: title, headings, cells, bold and alignment.

    Example:
        >>> table = Table("method", title="Costs")
        >>> table.add_row("gmar")
        >>> html_table(table).removeprefix(f"<table {_NO_FORMULAS}>")[:55]
        '<caption>Costs</caption><tr><th style="text-align: left'
    """
    columns = table.columns
    styles = [f' style="text-align: {column.justify}"' for column in columns]
    rows = [[column.header for column in columns]] if table.show_header else []
    lines = [
        *(("th", row) for row in rows),
        *(("td", row) for row in zip(*(column.cells for column in columns), strict=True)),
    ]
    body = "".join(
        "<tr>"
        + "".join(
            f"<{tag}{style}>{_cell(cell)}</{tag}>" for style, cell in zip(styles, row, strict=True)
        )
        + "</tr>"
        for tag, row in lines
    )
    caption = f"<caption>{html_text(table.title)}</caption>" if table.title else ""
    return f"<table {_NO_FORMULAS}>{caption}{body}</table>"


def html_line(text: object) -> str:
    """Return a text as a paragraph."""
    return f"<p {_NO_FORMULAS}>{html_text(text)}</p>"


def html_facts(facts: Mapping[str, object], title: str = "") -> str:
    """Return names and values as a table of two columns."""
    table = Table("", "", title=title, show_header=False)
    for name, value in facts.items():
        table.add_row(Text(name), Text(str(value)))
    return html_table(table)


def _cell(cell: Any) -> str:
    text = html_text(str(cell).replace("-\n", "-"))  # the terminal breaks headings at hyphens
    is_bold = isinstance(cell, Text) and "bold" in {
        str(cell.style),
        *(str(span.style) for span in cell.spans),
    }
    return f"<b>{text}</b>" if is_bold else text
