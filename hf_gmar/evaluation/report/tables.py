"""The numbers of an evaluation as texts in tables, for Markdown and for the terminal."""

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
_MARKS = {"better": "▲", "worse": "▼", "higher": "△", "lower": "▽"}


@dataclass(frozen=True)
class Text:
    """What a cell of a table says.

    Attributes:
        value: the number.
        mark: whether it differs from the baseline's.
        rest: the interval, and how many images if others have more.
        best: whether no other method has a better one.
    """

    value: str
    mark: str = ""
    rest: str = ""
    best: bool = False


def heading(measure: Measure) -> str:
    """The measure and which direction is better, as an arrow and a word.

    Example:
        >>> heading(Measure.of("deletion:blur", {"deletion": False}))
        'deletion ↓ lower is better'
    """
    return f"{measure.title} {direction(measure)}".strip()


def direction(measure: Measure) -> str:
    """Which direction is better, as an arrow and a word; nothing if neither is."""
    if measure.higher_is_better is None:
        return ""
    word = "higher" if measure.higher_is_better else "lower"
    return f"{_arrow(measure)} {word} is better"


def _arrow(measure: Measure) -> str:
    return {True: "↑", False: "↓", None: ""}[measure.higher_is_better]


def mark(difference: Difference | None) -> str:
    """A triangle for better or worse than the baseline, with stars for how surely."""
    if difference is None or difference.verdict == "no difference":
        return ""
    stars = next((one for one, level in LEVELS.items() if difference.corrected < level), "")
    return _MARKS[difference.verdict] + stars


def counted(cells: Sequence[Cell]) -> str:
    """How many images the means are of.

    Example:
        >>> one, other = Cell("a", "b", 0.0, None, None, 3), Cell("b", "b", 0.0, None, None, 2)
        >>> counted([one, one]), counted([one, other])
        ('n = 3', 'n = 2 to 3')
    """
    counts = {cell.images for cell in cells if cell.images}
    least, most = min(counts, default=0), max(counts, default=0)
    return f"n = {most}" if least == most else f"n = {least} to {most}"


def means(results: Results, measures: Sequence[Measure]) -> tuple[list[str], list[list[Text]]]:
    """Headings, and for each method its means."""
    columns = [_mean_column(results, measure) for measure in measures]
    heads = [
        f"{heading(one)}, {counted(_cells(results, one, results.methods))}" for one in measures
    ]
    return heads, _across(results.methods, columns)


def differences(
    results: Results, measures: Sequence[Measure]
) -> tuple[list[str], list[list[Text]]]:
    """Headings, and for each method but the baseline its paired differences to that."""
    others = [method for method in results.methods if method != results.baseline]
    columns = [_difference_column(results, measure, others) for measure in measures]
    return [heading(one) for one in measures], _across(others, columns)


def markdown_table(
    heads: Sequence[str], rows: Sequence[Sequence[Text]], numbers: bool = True
) -> str:
    """A table of Markdown; the first column is left-aligned, numbers in the others right."""
    ruler = [":--", *["--:" if numbers else ":--"] * (len(heads) - 1)]
    lines = [[*map(plain, heads)], ruler, *([*map(_cell, row)] for row in rows)]
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
            heading = f"{words} {_arrow(measure)}".rstrip()
            table.add_column(escape(heading), justify="right", no_wrap=True)
        for name, *cells in means(self.results, measures)[1]:
            table.add_row(escape(name.value), *map(_rich, cells))
        return table


def plain(text: str) -> str:
    r"""A text as Markdown shows it, whatever signs it holds; in one line.

    Example:
        >>> print(plain("a_b* <i>|"))
        a\_b\* \<i\>\|
    """
    found = re.sub(r"([!-/:-@\[-`{-~])", _escaped, " ".join(text.split()))
    return re.sub(r"^(\d*)([-+.)])(?= |$)", r"\1\\\2", found)  # the start of a list


def _escaped(found: re.Match[str]) -> str:
    # These mean nothing within a line, and names are full of them.
    return found[0] if found[0] in "(),.:;=%'/?@+-" else rf"\{found[0]}"


def _cells(results: Results, measure: Measure, methods: Sequence[str]) -> list[Cell]:
    return [results.by_place[measure.label, method] for method in methods]


def _mean_column(results: Results, measure: Measure) -> list[Text]:
    cells = _cells(results, measure, results.methods)
    form = _form([(cell.mean, cell.low, cell.high) for cell in cells])
    known = [cell.mean for cell in cells if cell.mean is not None]
    best = {True: max, False: min, None: None}[measure.higher_is_better]
    top = best(known) if best and len(known) > 1 else None
    most = max(cell.images for cell in cells)
    return [_mean(cell, form, top, most) for cell in cells]


def _mean(cell: Cell, form: Callable[[float], str], top: float | None, most: int) -> Text:
    if cell.mean is None:
        return Text(NONE)
    parts = [
        _interval(cell.low, cell.high, form),
        f"n={cell.images}" if cell.images < most else "",
    ]
    rest = " ".join(filter(None, parts))
    return Text(form(cell.mean), mark(cell.difference), rest, cell.mean == top)


def _difference_column(results: Results, measure: Measure, methods: Sequence[str]) -> list[Text]:
    found = [cell.difference for cell in _cells(results, measure, methods)]
    form = _form([(one.mean, one.low, one.high) for one in found if one is not None])
    return [_difference(one, form) for one in found]


def _difference(found: Difference | None, form: Callable[[float], str]) -> Text:
    if found is None:
        return Text(NONE)
    value = form(found.mean)
    sign = "+" if found.mean > 0 and float(value) else ""
    return Text(sign + value, mark(found), _interval(found.low, found.high, form))


def _interval(low: float | None, high: float | None, form: Callable[[float], str]) -> str:
    if low is None or high is None:
        return ""
    return f"[{form(low)},\u00a0{form(high)}]"


def _form(values: Sequence[tuple[float | None, float | None, float | None]]) -> Callable[..., str]:
    """As many decimals as tell something, by how wide the intervals are."""
    widths = [high - low for _, low, high in values if low is not None and high is not None]
    sizes = [abs(mean) for mean, *_ in values if mean]
    some = [one for one in widths if one > _ROUNDING * max(sizes, default=1)]
    scale = median(some or [size / 50 for size in sizes] or [0.1])
    decimals = 1 - math.floor(math.log10(scale))
    if max(sizes, default=0) > _TINY:
        decimals = min(decimals, _DECIMALS)
    if decimals > 6 or max(sizes, default=0) >= 1e6:
        return lambda value: f"{value:.2e}"
    return lambda value: _without_minus_zero(f"{value:.{max(decimals, 0)}f}")


def _without_minus_zero(text: str) -> str:
    return text if float(text) else text.removeprefix("-")


def _across(methods: Sequence[str], columns: Sequence[Sequence[Text]]) -> list[list[Text]]:
    return [
        [Text(method), *(column[place] for column in columns)]
        for place, method in enumerate(methods)
    ]


def _cell(text: Text) -> str:
    value = f"**{plain(text.value)}**" if text.best else plain(text.value)
    return " ".join(filter(None, [value, text.mark.replace("*", r"\*"), text.rest]))


def _rich(text: Text) -> str:
    value = f"[bold]{escape(text.value)}[/bold]" if text.best else escape(text.value)
    return f"{value} {text.mark}".strip()


def legend(baseline: str) -> str:
    """What the marks mean."""
    stars = ", ".join(f"{one} p < {level}" for one, level in reversed(LEVELS.items()))
    return f"▲ better, ▼ worse than {baseline}: {stars}"
