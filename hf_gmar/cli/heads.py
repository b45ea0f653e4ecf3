"""``hf-gmar heads``: which attention heads a class depends on."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_gmar._utils.names import file_name
from hf_gmar.cli.options import (
    Images,
    Inputs,
    ModelOptions,
    command,
    err,
    out,
    print_lines,
    print_table,
)

if TYPE_CHECKING:
    from hf_gmar.data.prepared_image import PreparedImage
    from hf_gmar.heads.importance import HeadImportance

_SHOWN = 5  # the most images whose files are listed


@command
def heads(
    model: ModelOptions,
    images: Images = None,
    target: Annotated[
        str | None,
        typer.Option(help="Class, as label (or prompt) or index. Default: each image's top class."),
    ] = None,
    criterion: Annotated[
        str,
        typer.Option(
            help="gmar: share of the gradient; taylor: estimated loss of score without the head."
        ),
    ] = "gmar",
    norm: Annotated[str, typer.Option(help="Norm of the gradient, for gmar: l1 or l2.")] = "l1",
    maps: Annotated[
        bool, typer.Option("--maps", help="Draw where each head attends, for each image.")
    ] = False,
    ablate: Annotated[
        bool, typer.Option("--ablate", help="Mask heads by importance and record the score.")
    ] = False,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("heads"),
) -> None:
    """Run ``hf-gmar heads``."""
    from hf_gmar._utils.validation import check_option
    from hf_gmar.heads.importance import HEAD_CRITERIA, HeadImportance, head_importance
    from hf_gmar.methods.layer_rules import NORMS

    check_option("norm", norm, NORMS)
    check_option("criterion", criterion, HEAD_CRITERIA)
    inputs = Inputs.prepare(model, images, output, [target])
    network = inputs.loaded.model
    options: dict[str, Any] = {"criterion": criterion, "norm": norm, **inputs.loaded.forward_kwargs}
    results: dict[Path, HeadImportance] = {}
    files: list[list[Path]] = []

    def measure(path: Path, stem: str) -> None:
        image = inputs.read(path)
        importance = head_importance(network, image.pixels, inputs.target, **options)
        written = [importance.save_numbers(output, Path(file_name(stem, ".heads.npz")).stem)]
        files.append(written)
        if maps:
            written.append(_draw_maps(image, output / file_name(stem, ".maps.png")))
        results[path] = importance

    joined_files: list[Path] = []
    try:
        failed = inputs.for_each("Measuring", measure)
        if results:
            settings = {
                "model": inputs.loaded.name,
                "images": list(map(str, results)),
                **inputs.loaded.forward_kwargs,
            }
            joined = HeadImportance.joined(list(results.values()))
            joined_files.append(joined.save_numbers(output, "importance"))
            joined_files[:] = replace(joined, settings=settings).save(output, "importance")
            print_table(joined.table())
            if joined.criterion == "gmar":
                out.print(f"An even share is {1 / joined.values.shape[-1]:.1%}.")
    finally:  # what was finished is listed after a stop as well
        few = len(files) <= _SHOWN
        print_lines([*joined_files, *chain(*(files if few else files[:1]))])
        if not few:
            print_lines([f"... and of {len(files) - 1} more"])
    if results and ablate:
        from rich.progress import track

        from hf_gmar.heads.ablation import ablate_heads

        bar = track(results, "Masking", console=err, disable=len(results) < 2)
        ablation = ablate_heads(
            network,
            (inputs.read(path).pixels for path in bar),
            joined,
            **inputs.loaded.forward_kwargs,
        )
        ablation = replace(ablation, settings={**ablation.settings, **settings})
        paths = ablation.save(output)
        print_table(ablation.table())
        print_lines(paths)
    raise typer.Exit(1 if failed or inputs.failed else 0)


def _draw_maps(image: PreparedImage, path: Path) -> Path:
    """Draw where each head attends; return the path of the picture."""
    from hf_gmar.heads.head_methods import head_maps
    from hf_gmar.visualization.head_figures import head_maps_figure
    from hf_gmar.visualization.overlay import save_figure

    loaded, picture, view = image.loaded, image.picture, image.view
    attention = head_maps(loaded.model, image.pixels, **loaded.forward_kwargs)[0]
    save_figure(head_maps_figure(picture, attention, caption=image.name, view=view), path)
    return path
