"""Put generated tables into README and docs, each between its two comments.

python -m benchmarks.tables
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks.evaluation_table import table as evaluation
from hf_gmar._utils.files import whole_file
from hf_gmar.cli import catalogue
from hf_gmar.metrics import METRICS

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "engine.md"


def summary() -> str:
    """The short table of the benchmark's last committed output."""
    section = RESULTS.read_text(encoding="utf-8").split("## Time and memory in short\n\n")[1]
    return section.split("\n\n")[0] + "\n"


def metrics() -> str:
    """The metrics of the registry."""
    rows = [
        (one.name, one.formula, "higher" if one.higher_is_better else "lower", one.source)
        for _, one in METRICS.items()
    ]
    return _table(("metric", "value of one image", "better", "source"), rows)


def metric_limits() -> str:
    """What each metric does not tell."""
    return _table(("metric", "limits"), [(one.name, one.caveats) for _, one in METRICS.items()])


def families() -> str:
    """The families that can be explained."""
    return _table(catalogue.COLUMNS, catalogue.families())


def methods() -> str:
    """The methods of the registry."""
    return _table(catalogue.METHOD_COLUMNS, catalogue.methods_of_registry())


def refusals() -> str:
    """The families that can't be explained."""
    return _table(("model type", "reason"), catalogue.refusals())


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


TABLES: dict[str, Callable[[], str]] = {
    "benchmark": summary,
    "evaluation_photos": functools.partial(evaluation, "photos"),
    "evaluation_scenes": functools.partial(evaluation, "scenes"),
    "families": families,
    "methods": methods,
    "metric_limits": metric_limits,
    "metrics": metrics,
    "refusals": refusals,
}
"""What stands between ``<!-- table: NAME -->`` and ``<!-- /table -->``."""

PAGES: dict[Path, tuple[str, ...]] = {
    ROOT / "README.md": ("methods",),
    ROOT / "docs" / "engines.md": ("benchmark",),
    ROOT / "docs" / "evaluate.md": ("evaluation_scenes", "evaluation_photos"),
    ROOT / "docs" / "methods.md": ("methods",),
    ROOT / "docs" / "metrics.md": ("metrics", "metric_limits"),
    ROOT / "docs" / "models.md": ("families", "refusals"),
}
"""Which page has which tables."""


def with_table(page: str, name: str) -> str:
    """The page with the table of that name in its place.

    Raises:
        ValueError: the page has no such place.
    """
    place = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- /table -->)", re.DOTALL)
    table = TABLES[name]()
    filled, places = place.subn(lambda found: f"{found[1]}{table}{found[2]}", page)
    if not places:
        raise ValueError(f"the page has no place for the table {name!r}")
    return filled


def main() -> None:
    """Fill all pages."""
    for path, names in PAGES.items():
        text = path.read_text(encoding="utf-8")
        for name in names:
            text = with_table(text, name)
        with whole_file(path) as part:
            part.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
