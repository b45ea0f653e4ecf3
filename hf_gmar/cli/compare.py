"""``hf-gmar compare``: several methods side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_gmar._utils.files import kind_of
from hf_gmar._utils.precision import Precision
from hf_gmar._utils.text import visible
from hf_gmar.cli.options import (
    Images,
    Inputs,
    ModelOptions,
    command,
    err,
    out,
    print_lines,
    print_table,
    say,
    stop_if_interrupted,
)
from hf_gmar.errors import HfGmarError, OptionError, one_line
from hf_gmar.methods.registry import METHODS

if TYPE_CHECKING:
    from hf_gmar.comparison.result import Comparison

_MOST = 16  # images: the model takes all of them in one batch, several times for some methods


@command
def compare(
    model: ModelOptions,
    images: Images = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            help="Methods of hf_gmar; by default all that apply to the model. Takes all values up "
            "to the next option; put images before it.",
            metavar="NAME...",
        ),
    ] = None,
    captum: Annotated[
        list[str] | None,
        typer.Option(
            help="Captum's methods: IntegratedGradients, Saliency, Occlusion, ...",
            metavar="NAME...",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="Class to explain, as label (or prompt) or index; default: the top one."),
    ] = None,
    contrast: Annotated[
        str | None, typer.Option(help="Class whose score is subtracted: why not this one?")
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(help="Measure time and memory of each method, in two to six runs of it."),
    ] = True,
    precision: Annotated[
        Precision | None,
        typer.Option(
            help="Precision of the forwards, by autocast; default: the model's.",
            rich_help_panel="Model",
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Ask the model whether each map is better than random."),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of Captum's random methods.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("comparison"),
) -> None:
    """Run ``hf-gmar compare``."""
    _check_methods(methods or [], captum or [])
    inputs = Inputs.prepare(model, images, output, [target], contrast, _MOST)
    from rich.progress import Progress, TextColumn

    from hf_gmar.comparison.method_specs import as_method_specs, titles_of
    from hf_gmar.comparison.run import compare as side_by_side

    images_by_name = _read(inputs)
    specs = as_method_specs([*as_method_specs(methods or None), *(captum or [])])
    titles = titles_of(specs)
    files: list[Path] = []
    columns = TextColumn("{task.description}", markup=False), *Progress.get_default_columns()[1:]

    def save_maps(result: Comparison) -> None:
        if result.maps:
            files[:] = [result.save_maps(output)]
        stop_if_interrupted()

    try:
        with Progress(*columns, console=err, transient=True) as bar:
            task = bar.add_task("Comparing", total=len(specs) + 1)
            result = side_by_side(
                inputs.loaded,
                list(images_by_name.values()),
                specs,
                inputs.target,
                inputs.contrast,
                names=list(images_by_name),
                measure=measure,
                precision=precision,
                seed=seed,
                progress=lambda label: bar.update(
                    task, description=f"Comparing: {visible(titles[label])}", advance=1
                ),
                finished=save_maps,
            )
        result = _checked(result) if check else result
        _print_table(result)
        print_lines(result.failure_lines())
        files[:] = result.save(output)
    finally:  # what was finished is listed after a stop as well
        print_lines(files)
    failed = inputs.failed or len(images_by_name) < len(inputs.paths)
    raise typer.Exit(1 if failed or not result.maps else 0)


def _checked(result: Comparison) -> Comparison:
    """Check the maps; without a check, if the model can't be asked."""
    try:
        return result.checked()
    except HfGmarError as error:
        err.print(f"The maps are not checked: {one_line(error)}", highlight=False)
        return result


def _check_methods(methods: Sequence[str], captum: Sequence[str]) -> None:
    for option, names in (("--methods", methods), ("--captum", captum)):
        files = [name for name in names if kind_of(name) == "file"]
        if files:
            raise OptionError(
                f"{option} got the file {files[0]!r}; put images before {option}, as it takes all "
                "values up to the next option"
            )
    for spec in methods:
        if not spec[:1].isupper():  # Captum's names begin with a capital letter
            METHODS.parse(spec)
            continue
        from hf_gmar.comparison.method_specs import as_method_specs

        as_method_specs([spec])
    if captum:
        from hf_gmar.comparison.method_specs import check_captum_names

        check_captum_names(captum)


def _read(inputs: Inputs) -> dict[str, Any]:
    """Open the images that can be read, by unique names."""
    images = {}
    count = Counter(path.name for path in inputs.paths)
    for path in inputs.paths:
        try:
            images[path.name if count[path.name] == 1 else str(path)] = inputs.read(path).value
        except HfGmarError as error:
            say(error, path)
    if not images:
        raise typer.Exit(1)
    return images


def _print_table(result: Comparison) -> None:
    """Print as many columns as the terminal has room for."""
    from hf_gmar.comparison.result import R_EXPLAINED

    headings, _ = result.cells()
    first_r = next((n for n, text in enumerate(headings) if text.startswith("r with")), 1)
    for count in (len(headings), first_r + 1):
        table = result.terminal_table(count)
        if out.measure(table, options=out.options.update(width=10_000)).maximum <= out.width:
            break
    print_table(table)
    notes = [R_EXPLAINED]
    if result.forward is not None:
        notes.append("time: as a multiple of a plain forward of the same images")
    if result.checks:
        notes.append("better than random: than all random choices of patches")
    out.print(f"{'; '.join(notes)}.", highlight=False)
