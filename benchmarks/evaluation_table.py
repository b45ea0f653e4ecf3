"""Makes the table of the methods from the committed summaries of evaluations.

The summaries are made by ``hf-gmar evaluate``; the commands are in docs/results.md. Replace a
summary with

    python -m benchmarks.evaluation_table FOLDER NAME

where FOLDER is the output of a run and NAME is ``scenes`` or ``photos``. The report and figures are
copied to docs/results/NAME, without the example maps.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_gmar._utils.files import whole_file
from hf_gmar.methods.registry import title_of_label

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
"""The columns of the short table, if the summary has them."""


def table(name: str) -> str:
    """Return means with 95 % intervals, one row for each method; the best mean is bold."""
    summary = json.loads((RESULTS / name / "summary.json").read_text(encoding="utf-8"))
    cells = {(cell["method"], cell["measure"]): cell for cell in summary["cells"]}
    with_values = {measure for (_, measure), cell in cells.items() if _has_mean(cell)}
    measures = [measure for measure in COLUMNS if measure in with_values]
    lines = [
        f"| method | {' | '.join(COLUMNS[measure] for measure in measures)} |",
        f"|---|{'---|' * len(measures)}",
    ]
    for method in summary["methods"]:
        texts = [_cell_text(cells, method, measure) for measure in measures]
        kind = summary["settings"]["methods"][method]["class"]
        lines.append(f"| {title_of_label(method, kind)} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def _has_mean(cell: dict[str, Any]) -> bool:
    return cell["mean"] is not None


def _cell_text(cells: dict[tuple[str, str], dict[str, Any]], method: str, measure: str) -> str:
    cell = cells.get((method, measure))
    if cell is None or not _has_mean(cell):
        return "-"
    text = f"{cell['mean']:.2f}"
    if cell["low"] is not None:
        text += f" ({cell['low']:.2f} to {cell['high']:.2f})"
    means = [item["mean"] for key, item in cells.items() if key[1] == measure and _has_mean(item)]
    best = max(means) if cell["higher_is_better"] else min(means)
    return f"**{text}**" if cell["mean"] == best else text


def main(
    folder: Annotated[Path, typer.Argument(help="The output of a run.")],
    name: Annotated[str, typer.Argument(help="scenes or photos.")],
) -> None:
    """Copy the files of a run that the pages show."""
    target = RESULTS / name
    target.mkdir(parents=True, exist_ok=True)
    names = ["summary.json", "report.md"]
    names += [path.name for path in folder.glob("*.png") if path.stem != "examples"]
    for file in names:
        with whole_file(target / file) as part:
            shutil.copyfile(folder / file, part)


if __name__ == "__main__":
    typer.run(main)
