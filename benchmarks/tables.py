"""Writes generated tables into README and docs, each between its two comments.

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
_BETTER = {True: "higher", False: "lower"}


def summary() -> str:
    """Return the short table of the benchmark's committed output."""
    section = RESULTS.read_text(encoding="utf-8").split("## Time and memory in short\n\n")[1]
    return section.split("\n\n")[0] + "\n"


def metrics() -> str:
    """Return the table of the metrics."""
    rows = [
        (metric.name, metric.formula, _BETTER[metric.higher_is_better], metric.source)
        for _, metric in METRICS.items()
    ]
    return _table(("metric", "value of one image", "better", "source"), rows)


def metric_limits() -> str:
    """Return the table of the metrics' limits."""
    return _table(
        ("metric", "limits"), [(name, metric.caveats) for name, metric in METRICS.items()]
    )


def families() -> str:
    """Return the table of the supported families."""
    return _table(catalogue.COLUMNS, catalogue.families())


def methods() -> str:
    """Return the table of the methods."""
    return _table(catalogue.METHOD_COLUMNS, catalogue.methods_of_registry())


def classes() -> str:
    """Return the table of the library's classes and what explains them, with its counts."""
    table = _table(catalogue.CLASS_COLUMNS, catalogue.classes())
    return f"{table}\n{catalogue.class_counts()}\n"


def cells() -> str:
    """Return the table of the families that are explained on cells of pixels."""
    return _table(("model type", "why attention methods do not apply"), catalogue.cells())


def prompts() -> str:
    """Return the committed table of maps by prompts that name one of two objects."""
    text = RESULTS.with_name("prompts.md").read_text(encoding="utf-8")
    rows = text.split("## Prompts that name one object\n")[1].split("\n## ")[0].splitlines()
    return "".join(f"{row}\n" for row in rows if row.startswith("|"))


def refusals() -> str:
    """The families that can't be explained."""
    return _table(("model type", "reason"), catalogue.refusals())


def sharper() -> str:
    """Return the committed table of maps finer than a patch."""
    return RESULTS.with_name("sharper.md").read_text(encoding="utf-8")


def sharper_photos() -> str:
    """Return the committed table of insertion and deletion by maps finer than a patch."""
    return RESULTS.with_name("sharper_photos.md").read_text(encoding="utf-8")


def videos_and_sound() -> str:
    """Return the committed table of the example."""
    return RESULTS.with_name("videos_and_sound.md").read_text(encoding="utf-8")


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


TABLES: dict[str, Callable[[], str]] = {
    "benchmark": summary,
    "evaluation_photos": functools.partial(evaluation, "photos"),
    "evaluation_scenes": functools.partial(evaluation, "scenes"),
    "cells": cells,
    "classes": classes,
    "families": families,
    "methods": methods,
    "metric_limits": metric_limits,
    "metrics": metrics,
    "prompts": prompts,
    "refusals": refusals,
    "sharper": sharper,
    "sharper_photos": sharper_photos,
    "videos_and_sound": videos_and_sound,
}
"""The content between ``<!-- table: NAME -->`` and ``<!-- /table -->``, by NAME."""

PAGES: dict[Path, tuple[str, ...]] = {
    ROOT / "README.md": ("methods",),
    ROOT / "docs" / "engines.md": ("benchmark",),
    ROOT / "docs" / "guides" / "large-images.md": ("sharper", "sharper_photos"),
    ROOT / "docs" / "guides" / "prompts.md": ("prompts",),
    ROOT / "docs" / "guides" / "videos.md": ("videos_and_sound",),
    ROOT / "docs" / "methods.md": ("methods",),
    ROOT / "docs" / "metrics.md": ("metrics", "metric_limits"),
    ROOT / "docs" / "models.md": ("families", "cells", "classes", "refusals"),
    ROOT / "docs" / "results.md": ("evaluation_scenes", "evaluation_photos"),
}
"""The tables of each page."""


def with_table(page: str, name: str) -> str:
    """Insert a table into a page between its comments.

    Raises:
        ValueError: the page lacks these comments.
    """
    pattern = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- /table -->)", re.DOTALL)
    table = TABLES[name]()
    filled, count = pattern.subn(lambda match: f"{match[1]}{table}{match[2]}", page)
    if not count:
        raise ValueError(f"the page has no place for the table {name!r}")
    return filled


def main() -> None:
    """Write the tables into all pages."""
    for path, names in PAGES.items():
        text = path.read_text(encoding="utf-8")
        for name in names:
            text = with_table(text, name)
        with whole_file(path) as part:
            part.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
