"""The table of the methods, from the summaries of evaluations that are committed.

The summaries are made by ``hf-gmar evaluate``; the commands are in docs/evaluate.md. Put another
one in its place with

    python -m benchmarks.evaluation_table FOLDER NAME

where FOLDER is the output of a run and NAME is ``scenes`` or ``photos``. Report and figures go to
docs/results/NAME, without the maps of single images.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_gmar._utils.files import whole_file

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"

COLUMNS: dict[str, str] = {
    "srg:blur": "SRG, blur ↑",
    "srg:token-dropping": "SRG, dropping ↑",
    "average-drop:blur": "average drop, blur ↓",
    "relevance-mass": "relevance mass ↑",
    "average-precision": "average precision ↑",
    "grid-pointing": "GridPG ↑",
    "class-sensitivity": "class sensitivity ↓",
    "parameter-randomization": "parameter randomization ↓",
}
"""What the short table shows of a summary, where it has it."""


def table(name: str) -> str:
    """Means with 95 % intervals, a row for each method; bold where none is better."""
    summary = json.loads((RESULTS / name / "summary.json").read_text(encoding="utf-8"))
    cells = {(one["method"], one["measure"]): one for one in summary["cells"]}
    measured = [one for one in COLUMNS if any(key[1] == one and _has(cells[key]) for key in cells)]
    lines = [
        f"| method | {' | '.join(COLUMNS[one] for one in measured)} |",
        f"|---|{'---|' * len(measured)}",
    ]
    for method in summary["methods"]:
        shown = [_shown(cells, method, one) for one in measured]
        lines.append(f"| {method} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def _has(cell: dict[str, Any]) -> bool:
    return cell["mean"] is not None


def _shown(cells: dict[tuple[str, str], dict[str, Any]], method: str, measure: str) -> str:
    cell = cells.get((method, measure))
    if cell is None or not _has(cell):
        return "-"
    text = f"{cell['mean']:.2f}"
    if cell["low"] is not None:
        text += f" ({cell['low']:.2f} to {cell['high']:.2f})"
    others = [one["mean"] for key, one in cells.items() if key[1] == measure and _has(one)]
    best = max(others) if cell["higher_is_better"] else min(others)
    return f"**{text}**" if cell["mean"] == best else text


def main(
    folder: Annotated[Path, typer.Argument(help="The output of a run.")],
    name: Annotated[str, typer.Argument(help="scenes or photos.")],
) -> None:
    """Copy what the pages show of a run."""
    place = RESULTS / name
    place.mkdir(parents=True, exist_ok=True)
    wanted = ["summary.json", "report.md"]
    wanted += [path.name for path in folder.glob("*.png") if path.stem != "examples"]
    for file in wanted:
        with whole_file(place / file) as part:
            shutil.copyfile(folder / file, part)


if __name__ == "__main__":
    typer.run(main)
