"""Put the benchmark's table into README and docs, between its two comments.

python -m benchmarks.tables
"""

from __future__ import annotations

import re
from pathlib import Path

from hf_gmar.files import whole_file

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "engine.md"
PAGES = (ROOT / "README.md", ROOT / "docs" / "engines.md")
_PLACE = re.compile(r"(<!-- benchmark: summary -->\n).*?(<!-- /benchmark -->)", re.DOTALL)


def summary(results: str) -> str:
    """The short table of a benchmark's output."""
    section = results.split("## Time and memory in short\n\n")[1]
    return section.split("\n\n")[0] + "\n"


def with_table(page: str, results: str) -> str:
    """The page with the table of the results in its place."""
    table = summary(results)
    filled, places = _PLACE.subn(lambda found: f"{found[1]}{table}{found[2]}", page)
    if not places:
        raise ValueError("the page has no place for the benchmark's table")
    return filled


def main() -> None:
    """Fill all pages."""
    results = RESULTS.read_text(encoding="utf-8")
    for path in PAGES:
        text = with_table(path.read_text(encoding="utf-8"), results)
        with whole_file(path) as part:
            part.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
