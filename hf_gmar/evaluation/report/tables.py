"""The numbers of an evaluation as tables, in Markdown and for the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text as RichText

from hf_gmar._utils.html import html_line, html_table
from hf_gmar._utils.text import markdown, visible
from hf_gmar.evaluation.report.results import ALPHA, Cell, Difference, Measure, Results

LEVELS = {"**": 0.01, "*": ALPHA}
"""The significance level of each number of stars."""

NONE = "–"  # noqa: RUF001  # the dash of an empty cell
_ROUNDING = 1e-9  # an interval narrower than this share of the means counts as zero width
_DECIMALS, _TINY = 4, 0.01  # the largest number of decimals, unless all means are tiny
_ARROWS = {True: "↑ higher is better", False: "↓ lower is better", None: ""}
_MARKS = {"better": "▲", "worse": "▼", "higher": "△", "lower": "▽"}


@dataclass(frozen=True)
class Text:
    """The text of a cell.

    Attributes:
        value: the formatted number.
        mark: the mark of a significant difference to the baseline.
        rest: the interval, and the number of images if other cells have more.
        best: whether no other method has a better number.
    """

    value: str
    mark: str = ""
    rest: str = ""
    best: bool = False


def heading(measure: Measure) -> str:
    """Return the measure's title and its better direction."""
    return f"{measure.title} {direction(measure)}".strip()


def direction(measure: Measure) -> str:
    """Return the better direction as an arrow and words; empty if neither is better."""
    return _ARROWS[measure.higher_is_better]


def mark(difference: Difference | None) -> str:
    """Return the triangle and the significance stars of a difference to the baseline."""
    if difference is None or difference.verdict == "no difference":
        return ""
    stars = next((sign for sign, level in LEVELS.items() if difference.corrected < level), "")
    return _MARKS[difference.verdict] + stars


def counted(cells: Sequence[Cell]) -> str:
    """Return the number, or range of numbers, of images of the means."""
    counts = {cell.images for cell in cells if cell.images} or {0}
    least, most = min(counts), max(counts)
    return f"n = {most}" if least == most else f"n = {least} to {most}"


def means(results: Results, measures: Sequence[Measure]) -> tuple[list[str], list[list[Text]]]:
    """Return the headings and each method's means."""
    heads, columns = [], []
    for measure in measures:
        cells = _cells(results, measure, results.methods)
        heads.append(f"{heading(measure)}, {counted(cells)}")
        columns.append(_column(cells, measure.higher_is_better))
    return heads, _across(map(results.title, results.methods), columns)


def differences(
    results: Results, measures: Sequence[Measure]
) -> tuple[list[str], list[list[Text]]]:
    """Return the headings and each other method's paired differences to the baseline."""
    others = [method for method in results.methods if method != results.baseline]
    columns = [
        _column([cell.difference for cell in _cells(results, measure, others)])
        for measure in measures
    ]
    return [heading(measure) for measure in measures], _across(map(results.title, others), columns)


def markdown_table(
    heads: Sequence[str], rows: Sequence[Sequence[Text]], numbers: bool = True
) -> str:
    """Return a Markdown table; the first column is left-aligned, numbers are right-aligned."""
    ruler = [":--", *["--:" if numbers else ":--"] * (len(heads) - 1)]
    lines = [[*map(markdown, heads)], ruler, *([*map(_markdown, row)] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@dataclass(frozen=True)
class TerminalTables:
    """Means without intervals; each table has as many measures as fit the terminal.

    Attributes:
        results: the results of the evaluation.
    """

    results: Results

    def _repr_html_(self) -> str:
        """Show one table for each group of measures in a notebook."""
        tables = [self._table(title, items) for title, items in self.results.groups.items()]
        return f"{''.join(map(html_table, tables))}{html_line(self._marks)}"

    @property
    def _marks(self) -> str:
        marks = "" if self.results.baseline is None else f"; {legend(self.results)}"
        return f"bold: best mean{marks}"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the tables, then the legend of the marks."""
        for title, measures in self.results.groups.items():
            remaining = list(measures)
            while remaining:
                count = self._count_fitting(remaining, console, options)
                yield self._table(title, remaining[:count])
                del remaining[:count]
        yield RichText(visible(self._marks))

    def _count_fitting(
        self, measures: list[Measure], console: Console, options: ConsoleOptions
    ) -> int:
        """Return how many measures fit the terminal, at least one."""
        for count in range(len(measures), 1, -1):
            table = self._table("", measures[:count])
            wide = options.update(width=10_000)
            if Measurement.get(console, wide, table).maximum <= options.max_width:
                return count
        return 1

    def _table(self, title: str, measures: Sequence[Measure]) -> Table:
        table = Table(title=RichText(visible(title)), title_justify="left")
        table.add_column("method", no_wrap=True)
        for measure in measures:
            title = visible(measure.title).replace("-", "-\n").replace(" ", "\n")
            arrow = _ARROWS[measure.higher_is_better][:1]
            heads = RichText(f"{title} {arrow}".rstrip())
            table.add_column(heads, justify="right", no_wrap=True)
        for name, *cells in means(self.results, measures)[1]:
            table.add_row(*map(_rich, (name, *cells)))
        return table


def legend(results: Results) -> str:
    """Return the meaning of the marks."""
    baseline = results.title(str(results.baseline))
    stars = ", ".join(f"{sign} p < {level}" for sign, level in reversed(LEVELS.items()))
    return f"▲ better, ▼ worse than {baseline}: {stars}"


def _cells(results: Results, measure: Measure, methods: Sequence[str]) -> list[Cell]:
    return [results.by_place[measure.label, method] for method in methods]


def _column(items: Sequence[Cell | Difference | None], better: bool | None = None) -> list[Text]:
    """Format a measure's numbers; the best mean is bold if one direction is better."""
    known = [item for item in items if item is not None]
    form, most = _number_format(known), max((item.images for item in known), default=0)
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


def _number_format(items: Sequence[Cell | Difference]) -> Callable[[float], str]:
    """Choose the number of decimals by the width of the intervals."""
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
    return lambda value: f"{value:z.{max(decimals, 0)}f}"  # z avoids -0


def _across(methods: Iterable[str], columns: Sequence[Sequence[Text]]) -> list[list[Text]]:
    names = map(Text, methods)
    return [list(row) for row in zip(names, *columns, strict=True)]


def _markdown(text: Text) -> str:
    value = f"**{markdown(text.value)}**" if text.best else markdown(text.value)
    return " ".join(filter(None, [value, text.mark.replace("*", r"\*"), text.rest]))


def _rich(text: Text) -> RichText:
    value = RichText(visible(text.value), "bold" if text.best else "")
    return RichText(" ").join([value, RichText(text.mark)]) if text.mark else value
