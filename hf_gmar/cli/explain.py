"""``hf-gmar explain``: heatmaps for images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from hf_gmar._utils.text import visible
from hf_gmar.cli.no_class import FromPatch, NoClass, SimilarFile
from hf_gmar.cli.options import (
    Images,
    Inputs,
    ModelOptions,
    command,
    method_options,
    out,
    print_lines,
    print_table,
)
from hf_gmar.errors import OptionError
from hf_gmar.evaluation.choices import Autocast
from hf_gmar.methods.registry import METHODS
from hf_gmar.models.defaults import sample_image

if TYPE_CHECKING:
    from hf_gmar.explanation import Explanation


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
        str | None,
        typer.Option(
            help="The explanation method; 'hf-gmar methods' lists them. Default: gmar, with "
            "--from-patch raw-attention."
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            help="An option of the method, such as --option head_fusion=max; may be repeated.",
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
        Autocast | None,
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
    method = no_class.method(method)
    options = method_options(option, norm=norm, alpha=alpha, engine=engine, readout=no_class.place)
    METHODS.check(method, options)
    METHODS[method].check_contrast(contrast)
    head = no_class.head(method)
    inputs = Inputs.prepare(model, images, output, target or (), contrast, head=head)
    from hf_gmar.explainer import Explainer

    explainer = Explainer(inputs.loaded, method, precision=precision, **options)
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
    rows: list[tuple[str, Explanation]] = []
    files: list[Path] = []

    def explain_one(path: Path, stem: str) -> None:
        name = "bundled scene" if path == sample_image() else str(path)
        found = next(results)
        if isinstance(found, Exception):
            raise found
        for result in found if isinstance(found, list) else [found]:
            files.extend(result.save(output / result.file_name(stem)))
            rows.append((name, result))

    try:
        failed = inputs.for_each("Explaining", explain_one)
    finally:  # what was finished is listed after a stop as well
        if rows:
            print_table(_table(rows))
            if note := rows[0][1].score_kind.note:
                out.print(note, highlight=False)
        print_lines(files)
    raise typer.Exit(1 if failed or inputs.failed else 0)


def _table(rows: Sequence[tuple[str, Explanation]]) -> Table:
    """Tabulate the explained classes with their scores."""
    from hf_gmar.models.score_kind import ScoreKind

    kind = rows[0][1].score_kind
    table = Table(title="Explanations")
    has_score = kind is not ScoreKind.NONE
    for heading in ("image", "class", kind.measure) if has_score else ("image", "map"):
        table.add_column(heading, overflow="fold")
    for name, result in rows:
        cells = visible(name), visible(result.label), kind.text(result.score)
        table.add_row(*cells[: len(table.columns)])
    return table
