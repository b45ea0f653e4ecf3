"""The command line: parse, call, print."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from huggingface_hub.utils import logging as huggingface_logging
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from transformers.utils import logging as transformers_logging

from hf_gmar import __version__
from hf_gmar.errors import HfGmarError, OptionError, TargetError
from hf_gmar.explain import Explainer, Explanation
from hf_gmar.hub import BUNDLED, DEFAULT_MODEL, load_model, sample_image
from hf_gmar.images import find_images, open_image, unique_stems
from hf_gmar.labels import find_class

app = typer.Typer(
    help="Explain Vision Transformers: which patches a class came from.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_out = Console()
_err = Console(stderr=True)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hf-gmar {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show version.")
    ] = False,
) -> None:
    """Explain Vision Transformers: which patches a class came from."""


@app.command()
def explain(
    images: Annotated[
        list[Path] | None,
        typer.Argument(help="Image files or folders; without any, the bundled scene."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help=f"A model on the Hub, a local folder, or '{BUNDLED}'. "
            f"Default: {DEFAULT_MODEL} for images, '{BUNDLED}' without any."
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="The class to explain, as label or index.")
    ] = None,
    top_k: Annotated[
        int, typer.Option(min=1, help="Explain this many of the most probable classes.")
    ] = 1,
    method: Annotated[str, typer.Option(help="The explanation method.")] = "gmar",
    norm: Annotated[str, typer.Option(help="Head score: l1 or l2.")] = "l1",
    alpha: Annotated[float, typer.Option(help="Weight of the residual connection, >= 0.")] = 1.0,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("explanations"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
) -> None:
    """Write a heatmap (PNG) and its numbers (NPZ) for each image."""
    try:
        if target is not None and top_k > 1:
            raise OptionError("give either --target (one class) or --top-k (several), not both")
        _make_folder(output)
        # Before the model: a misspelt file name should not cost a download.
        paths, missing = _expand(images or [sample_image()], output)
        if not paths:
            raise typer.Exit(1)
        explainer = _explainer(model, bool(images), method, norm, alpha, device)
        chosen = None if target is None else find_class(explainer.loaded.model.config, target)
    except HfGmarError as error:
        _say(error)
        raise typer.Exit(2 if isinstance(error, OptionError | TargetError) else 1) from None
    failed = _run(explainer, paths, chosen, top_k, output)
    raise typer.Exit(1 if failed or missing else 0)


def _make_folder(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise OptionError(
            f"nothing can be written to --output {output}: {error.strerror}; name another folder"
        ) from error


def _explainer(
    model: str | None, has_images: bool, method: str, norm: str, alpha: float, device: str
) -> Explainer:
    if model is None:
        model = DEFAULT_MODEL if has_images else BUNDLED
        _err.print(f"No --model given: using {model}{' from the Hub' if has_images else ''}.")
    # What the Hub's client says of each retry is noise before the one error that follows.
    huggingface_logging.set_verbosity_error()
    # Results go to the terminal; the bars of a local file that loads in a blink do not.
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    return Explainer.build(load_model(model, device), method, norm=norm, alpha=alpha)


def _run(
    explainer: Explainer, paths: list[Path], target: int | None, top_k: int, output: Path
) -> int:
    """Explain every image, print the table, return how many failed."""
    failed = 0
    table = Table(title="Explanations")
    for heading in ("image", "class", "probability", "files"):
        table.add_column(heading, overflow="fold")
    stems = unique_stems(paths)
    for path, stem in track(
        list(zip(paths, stems, strict=True)), "Explaining", console=_err, disable=len(paths) < 2
    ):
        try:
            for result in explainer.explain(open_image(path), path.name, target, top_k):
                _add_row(table, path, result, result.save(output, stem))
        except Exception as error:  # noqa: BLE001  # whatever one image provokes, the others go on
            failed += 1
            _say(error, path)
    if table.row_count:
        _out.print(table)
    return failed


def _expand(sources: list[Path], output: Path) -> tuple[list[Path], int]:
    paths: list[Path] = []
    failed = 0
    for source in sources:
        try:
            paths.extend(find_images(source, skip=output))
        except HfGmarError as error:
            failed += 1
            _say(error, source)
    return paths, failed


def _add_row(table: Table, path: Path, result: Explanation, files: tuple[Path, ...]) -> None:
    table.add_row(
        "bundled scene" if path == sample_image() else escape(str(path)),
        escape(result.label),
        f"{result.probability:.1%}",
        "\n".join(escape(str(file)) for file in files),
    )


def _say(error: Exception, path: Path | None = None) -> None:
    where = f"{path}: " if path is not None and str(path) not in str(error) else ""
    kind = "" if isinstance(error, HfGmarError) else f"{type(error).__name__}: "
    text = " ".join(f"{where}{kind}{error}".split())  # one line, whatever it says
    _err.print(f"[red]error:[/red] {escape(text)}", soft_wrap=True, highlight=False)


def main() -> None:
    """Run the command line."""
    app()
