"""``hf-gmar explain``: heatmaps for images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from hf_gmar._utils.precision import Precision
from hf_gmar._utils.text import visible
from hf_gmar.cli.no_class import FromPatch, NoClass, SimilarFile
from hf_gmar.cli.options import (
    Images,
    Inputs,
    ModelOptions,
    command,
    err,
    method_options,
    out,
    print_lines,
    print_table,
)
from hf_gmar.errors import HfGmarError, OptionError, one_line
from hf_gmar.methods.registry import METHODS, with_options
from hf_gmar.models.defaults import sample_image

if TYPE_CHECKING:
    from hf_gmar.explanation import Explanation
    from hf_gmar.explanations import Explanations
    from hf_gmar.faithfulness import FaithfulnessCheck

_METHODS = ("gmar", "attn-lrp")  # what the model looks at, and what speaks for the class


@command
def explain(
    model: ModelOptions,
    images: Images = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="The class to explain, as label (or prompt) or index; may be repeated.",
            metavar="LABEL",
        ),
    ] = None,
    top_k: Annotated[
        int, typer.Option(min=1, help="Explain this many of the most probable classes.")
    ] = 1,
    contrast: Annotated[
        str | None,
        typer.Option(help="Class whose score is subtracted, as label or index: why not this one?"),
    ] = None,
    similar_to: SimilarFile = None,
    from_patch: FromPatch = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help=f"One or more methods, side by side; default: {' '.join(_METHODS)}, with "
            "--from-patch raw-attention. 'hf-gmar methods' lists them.",
            metavar="NAME...",
        ),
    ] = None,
    check: Annotated[
        bool | None,
        typer.Option(
            help="Ask the model what each map is worth: its score with the map's best patches "
            "alone and without them, beside random patches. Default: for a single image.",
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            help="An option of the methods that have it, such as --option head_fusion=max; may be "
            "repeated.",
            metavar="NAME=VALUE",
        ),
    ] = None,
    norm: Annotated[str | None, typer.Option(help="Norm of GMAR's head score: l1 or l2.")] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Weight of the residual connection, >= 0.")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="Engine: streaming or dense.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a forward.")] = 4,
    precision: Annotated[
        Precision | None,
        typer.Option(
            help="Precision of the forward, by autocast; default: the model's.",
            rich_help_panel="Model",
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("explanations"),
) -> None:
    """Run ``hf-gmar explain``."""
    if target and top_k > 1:
        raise OptionError("give either --target (those classes) or --top-k (the best), not both")
    no_class = NoClass.parse(similar_to, from_patch)
    no_class.check(target=target, contrast=contrast, top_k=top_k > 1, prompts=model.prompts)
    options = method_options(option, norm=norm, alpha=alpha, engine=engine, readout=no_class.place)
    methods = method or no_class.methods or list(_METHODS)
    names = [name for name, _ in with_options(methods, options)]
    no_class.check_methods(names)
    for name in names:
        METHODS[name].check_contrast(contrast)
    head = no_class.head(names)
    inputs = Inputs.prepare(model, images, output, target or (), contrast, head=head)
    from hf_gmar._core.targets import NO_CLASS
    from hf_gmar.explainer import Explainer

    explainer = Explainer(inputs.loaded, methods, precision=precision, **options)
    explainer, targets = no_class.asked(explainer, inputs.targets)
    results = explainer.stream(
        inputs.paths,
        targets or None,
        inputs.contrast,
        top_k,
        batch_size=batch_size,
        num_workers=1,  # reads images while the model runs
        return_errors=True,
    )
    asked = len(inputs.paths) == 1 if check is None else check
    rows: list[tuple[str, Explanation]] = []
    files: list[Path] = []
    failed_methods: dict[str, str] = {}

    def explain_one(path: Path, stem: str) -> None:
        name = "bundled scene" if path == sample_image() else str(path)
        found = next(results)
        if isinstance(found, Exception):
            raise found
        found = _checked(found, path) if asked and found[0].target != NO_CLASS else found
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
    raise typer.Exit(1 if failed or inputs.failed or (method and failed_methods) else 0)


def _checked(found: Explanations, path: Path) -> Explanations:
    """Check the maps; without a check, if the model can't be asked."""
    try:
        return found.checked()
    except HfGmarError as error:
        err.print(f"{visible(path)} is explained, but not checked: {error}", highlight=False)
        return found


def _table(rows: Sequence[tuple[str, Explanation]]) -> Table:
    """Tabulate the explained classes with their scores, and the checks of their maps."""
    from hf_gmar.models.score_kind import ScoreKind

    kind = rows[0][1].score_kind
    checks = [result.faithfulness for _, result in rows]
    first = next(filter(None, checks), None)
    images = {name for name, _ in rows}
    several = len(images) > 1  # a single one is named in the title
    table = Table(title="Explanations" if several else f"Explanations of {visible(*images)}")
    has_scores = kind is not ScoreKind.NONE
    headings = ["image"] * several + (["class", kind.measure] if has_scores else ["map"])
    headings.append("method")
    if first is not None:
        share = f"{first.fractions[first.middle]:.0%}"
        headings += [f"top {share} alone (random)", "without them (random)", "than random"]
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for (name, result), check in zip(rows, checks, strict=True):
        cells = [visible(name)] * several + [visible(result.label)]
        cells += [kind.text(result.score)] * has_scores
        cells.append(visible(result.method_title))
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
