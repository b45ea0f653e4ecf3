"""``hf-gmar explain``: heatmaps for images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from hf_gmar._utils.text import visible
from hf_gmar.cli.explain_options import ExplainOptions
from hf_gmar.cli.options import (
    Images,
    ModelOptions,
    command,
    err,
    out,
    print_lines,
    print_table,
)
from hf_gmar.errors import HfGmarError, one_line
from hf_gmar.models.defaults import sample_image

if TYPE_CHECKING:
    from hf_gmar.explanation import Explanation
    from hf_gmar.explanations import Explanations
    from hf_gmar.faithfulness import FaithfulnessCheck


@command
def explain(
    model: ModelOptions,
    question: ExplainOptions,
    images: Images = None,
    check: Annotated[
        bool | None,
        typer.Option(
            help="Ask the model what each map is worth: its score with the map's best patches "
            "alone and without them, beside random patches. Default: for a single image.",
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("explanations"),
) -> None:
    """Run ``hf-gmar explain``."""
    inputs, results = question.prepare(model, images, output)
    rows: list[tuple[str, Explanation]] = []
    files: list[Path] = []
    failed_methods: dict[str, str] = {}

    def explain_one(path: Path, stem: str) -> None:
        name = "bundled scene" if path == sample_image() else str(path)
        found = next(results)
        if isinstance(found, Exception):
            raise found
        if check or (check is None and len(inputs.paths) == 1 and found[0].has_score):
            found = _checked(found, path)
        files.extend(found.save(output, stem))
        rows.extend((name, result) for result in found)
        for title, error in found.failures.items():
            failed_methods[title] = f"{title} failed: {one_line(error)}"

    try:
        failed = inputs.for_each("Explaining", explain_one)
    finally:  # what was finished is listed after a stop as well
        if rows:
            print_table(_table(rows))
            if note := rows[0][1].score_kind.note:
                out.print(note, highlight=False)
        print_lines(failed_methods.values())
        print_lines(files)
    # A method that nobody named may not fit the model.
    raise typer.Exit(1 if failed or inputs.failed or (question.method and failed_methods) else 0)


def _checked(found: Explanations, path: Path) -> Explanations:
    """Check the maps; without a check, if the model can't be asked."""
    try:
        return found.checked()
    except HfGmarError as error:
        err.print(f"{visible(path)} is explained, but not checked: {error}", highlight=False)
        return found


def _table(rows: Sequence[tuple[str, Explanation]]) -> Table:
    """Tabulate the explained classes with their scores, and the checks of their maps."""
    kind = rows[0][1].score_kind
    checks = [result.faithfulness for _, result in rows]
    first = next(filter(None, checks), None)
    images = {name for name, _ in rows}
    several = len(images) > 1  # a single one is named in the title
    table = Table(title="Explanations" if several else f"Explanations of {visible(*images)}")
    has_score = rows[0][1].has_score
    headings = ["image"] * several + (["class", kind.measure] if has_score else ["map"])
    headings.append("method")
    if first is not None:
        share = f"{first.fractions[first.middle]:.0%}"
        headings += [f"top {share} alone (random)", "without them (random)", "than random"]
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for (name, result), check in zip(rows, checks, strict=True):
        cells = [visible(name)] * several + [visible(result.label)]
        cells += [kind.text(result.score)] * has_score + [visible(result.method_title)]
        table.add_row(*cells, *(_cells(check) if first is not None else []))
    return table


def _cells(check: FaithfulnessCheck | None) -> list[str]:
    """Return the scores of a check, beside those of random patches, and its verdict."""
    if check is None:
        return ["", "", "not checked"]
    number, text = check.middle, check.score_kind.text
    pairs = zip((check.keep[number], check.remove[number]), check.random(number), strict=True)
    scores = [f"{text(value)} ({text(random.mean)})" for value, random in pairs]
    return [*scores, check.verdict]
