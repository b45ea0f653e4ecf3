"""The numbers of an evaluation as tables, in Markdown and for the terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from hf_gmar.evaluation.report.results import ALPHA, Cell, Difference, Measure, Results

LEVELS = {"**": 0.01, "*": ALPHA}
"""Stars by the corrected p-value that they stay below."""

NONE = "–"  # noqa: RUF001  # the dash of an empty cell
_ROUNDING = 1e-9  # an interval that is narrower than this share of the means has no width
_DECIMALS, _TINY = 4, 0.01  # so many at most, unless all is tiny
_ARROWS = {True: "↑ higher is better", False: "↓ lower is better", None: ""}
_MARKS = {"better": "▲", "worse": "▼", "higher": "△", "lower": "▽"}


@dataclass(frozen=True)
class Text:
    """The text of a cell.

    Attributes:
        value: the number.
        mark: whether it differs from the baseline's.
        rest: the interval, and how many images if others have more.
        best: whether no other method has a better number.
    """

    value: str
    mark: str = ""
    rest: str = ""
    best: bool = False


def heading(measure: Measure) -> str:
    """The measure and which direction is better, as an arrow and a word."""
    return f"{measure.title} {direction(measure)}".strip()


def direction(measure: Measure) -> str:
    """Which direction is better, as an arrow and a word; nothing if neither is."""
    return _ARROWS[measure.higher_is_better]


def mark(difference: Difference | None) -> str:
    """A triangle for better or worse than the baseline, with stars for how surely."""
    if difference is None or difference.verdict == "no difference":
        return ""
    stars = next((sign for sign, level in LEVELS.items() if difference.corrected < level), "")
    return _MARKS[difference.verdict] + stars


def counted(cells: Sequence[Cell]) -> str:
    """The number of images of the means."""
    counts = {cell.images for cell in cells if cell.images} or {0}
    least, most = min(counts), max(counts)
    return f"n = {most}" if least == most else f"n = {least} to {most}"


def means(results: Results, measures: Sequence[Measure]) -> tuple[list[str], list[list[Text]]]:
    """Headings, and for each method its means."""
    heads, columns = [], []
    for measure in measures:
        cells = _cells(results, measure, results.methods)
        heads.append(f"{heading(measure)}, {counted(cells)}")
        columns.append(_column(cells, measure.higher_is_better))
    return heads, _across(results.methods, columns)


def differences(
    results: Results, measures: Sequence[Measure]
) -> tuple[list[str], list[list[Text]]]:
    """Headings, and for each method but the baseline its paired differences to that."""
    others = [method for method in results.methods if method != results.baseline]
    columns = [
        _column([cell.difference for cell in _cells(results, measure, others)])
        for measure in measures
    ]
    return [heading(measure) for measure in measures], _across(others, columns)


def markdown_table(
    heads: Sequence[str], rows: Sequence[Sequence[Text]], numbers: bool = True
) -> str:
    """A table of Markdown; the first column is left-aligned, numbers in the others right."""
    ruler = [":--", *["--:" if numbers else ":--"] * (len(heads) - 1)]
    lines = [[*map(plain, heads)], ruler, *([*map(_markdown, row)] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@dataclass(frozen=True)
class TerminalTables:
    """Means without intervals, as many measures side by side as the terminal has room for.

    Attributes:
        results: whose means they are.
    """

    results: Results

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Table after table, then what the marks mean."""
        for title, measures in self.results.groups.items():
            rest = list(measures)
            while rest:
                count = self._fitting(rest, console, options)
                yield self._table(title, rest[:count])
                del rest[:count]
        marks = "" if self.results.baseline is None else f"; {legend(self.results.baseline)}"
        yield escape(f"bold: best mean{marks}")

    def _fitting(self, measures: list[Measure], console: Console, options: ConsoleOptions) -> int:
        """How many of them, one at least."""
        for count in range(len(measures), 1, -1):
            table = self._table("", measures[:count])
            wide = options.update(width=10_000)
            if Measurement.get(console, wide, table).maximum <= options.max_width:
                return count
        return 1

    def _table(self, title: str, measures: Sequence[Measure]) -> Table:
        table = Table(title=escape(title), title_justify="left")
        table.add_column("method", no_wrap=True)
        for measure in measures:
            words = measure.title.replace("-", "-\n").replace(" ", "\n")
            arrow = _ARROWS[measure.higher_is_better][:1]
            table.add_column(escape(f"{words} {arrow}".rstrip()), justify="right", no_wrap=True)
        for name, *cells in means(self.results, measures)[1]:
            table.add_row(escape(name.value), *map(_rich, cells))
        return table


def plain(text: str) -> str:
    r"""A text as Markdown shows it, whatever signs it holds; in one line.

    Example:
        >>> print(plain("a_b* <i>|"))
        a\_b\* \<i\>\|
    """
    # Left as they are: signs that mean nothing within a line, and that names are full of.
    escaped = re.sub(r"([!\"#$&*<>\[\\\]^_`{|}~])", r"\\\1", " ".join(text.split()))
    return re.sub(r"^(\d*)([-+.)])(?= |$)", r"\1\\\2", escaped)  # the start of a list


def legend(baseline: str) -> str:
    """The meaning of the marks."""
    stars = ", ".join(f"{sign} p < {level}" for sign, level in reversed(LEVELS.items()))
    return f"▲ better, ▼ worse than {baseline}: {stars}"


def _cells(results: Results, measure: Measure, methods: Sequence[str]) -> list[Cell]:
    return [results.by_place[measure.label, method] for method in methods]


def _column(items: Sequence[Cell | Difference | None], better: bool | None = None) -> list[Text]:
    """The numbers of a measure, the best mean in bold where one direction is better."""
    known = [item for item in items if item is not None]
    form, most = _form(known), max((item.images for item in known), default=0)
    numbers = [item.mean for item in known if item.mean is not None]
    choose = {True: max, False: min, None: None}[better]
    best = choose(numbers) if choose and len(numbers) > 1 else None
    texts = []
    for item in items:
        if item is None or item.mean is None:
            texts.append(Text(NONE))
            continue
        value, interval, mean = form(item.mean), "", item.mean
        if item.low is not None and item.high is not None:
            interval = f"[{form(item.low)},\u00a0{form(item.high)}]"
        if isinstance(item, Difference):
            sign = "+" if mean > 0 and float(value) else ""
            texts.append(Text(sign + value, mark(item), interval))
        else:
            count = f"n={item.images}" if item.images < most else ""
            rest = f"{interval} {count}".strip()
            texts.append(Text(value, mark(item.difference), rest, mean == best))
    return texts


def _form(items: Sequence[Cell | Difference]) -> Callable[[float], str]:
    """As many decimals as tell something, by how wide the intervals are."""
    widths = [
        item.high - item.low for item in items if item.low is not None and item.high is not None
    ]
    sizes = [abs(item.mean) for item in items if item.mean]
    largest = max(sizes, default=0)
    widths = [width for width in widths if width > _ROUNDING * max(sizes, default=1)]
    scale = median(widths or [size / 50 for size in sizes] or [0.1])
    decimals = 1 - math.floor(math.log10(scale))
    if largest > _TINY:
        decimals = min(decimals, _DECIMALS)
    if decimals > 6 or largest >= 1e6:
        return lambda value: f"{value:.2e}"
    return lambda value: f"{value:z.{max(decimals, 0)}f}"  # z: no -0


def _across(methods: Sequence[str], columns: Sequence[Sequence[Text]]) -> list[list[Text]]:
    names = map(Text, methods)
    return [list(row) for row in zip(names, *columns, strict=True)]


def _markdown(text: Text) -> str:
    value = f"**{plain(text.value)}**" if text.best else plain(text.value)
    return " ".join(filter(None, [value, text.mark.replace("*", r"\*"), text.rest]))


def _rich(text: Text) -> str:
    value = f"[bold]{escape(text.value)}[/bold]" if text.best else escape(text.value)
    return f"{value} {text.mark}".strip()
