"""The command line: parse, call, print."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any

import typer
from huggingface_hub.utils import logging as huggingface_logging
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import track
from rich.table import Table
from transformers.utils import logging as transformers_logging
from typer.core import TyperCommand

from hf_gmar import __version__
from hf_gmar.catalogue import describe, families, notes, refusals, unheard_of
from hf_gmar.errors import HfGmarError, OptionError, TargetError
from hf_gmar.explain import Explainer, Explanation
from hf_gmar.hub import BUNDLED, DEFAULT_MODEL, load_config, load_model, sample_image
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

Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")]
Token = Annotated[
    str | None,
    typer.Option(
        help="For private and gated models; else the token of 'hf auth login' or HF_TOKEN."
    ),
]
CacheDir = Annotated[Path | None, typer.Option(help="Where downloads are kept.")]
TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run the Python code in the model's repository."),
]


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


class _ManyValues(TyperCommand):
    """``--prompts "a dog" "a cat"``: all up to the next option; click alone takes one for each."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Say the option anew before each of its values."""
        rest: list[str] = super().parse_args(ctx, list(_each_named("--prompts", args)))
        return rest


def _each_named(option: str, words: list[str]) -> Iterator[str]:
    named = False
    for word, following in zip(words, [*words[1:], "-"], strict=False):
        if word == option and following.startswith("-"):
            raise typer.BadParameter("one or more texts are needed after it", param_hint=option)
        if word.startswith("-"):
            named = word == option
        if named and word != option:
            yield option
        if not (named and word == option):
            yield word


@app.command(cls=_ManyValues)
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
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            help='Texts as classes, for CLIP and SigLIP: --prompts "a photo of a dog" "... cat". '
            "All values up to the next option; put images before it.",
            metavar="TEXT...",
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="The class to explain, as label (or prompt) or index.")
    ] = None,
    top_k: Annotated[
        int, typer.Option(min=1, help="Explain this many of the most probable classes.")
    ] = 1,
    method: Annotated[str, typer.Option(help="The explanation method.")] = "gmar",
    norm: Annotated[str, typer.Option(help="Head score: l1 or l2.")] = "l1",
    alpha: Annotated[float, typer.Option(help="Weight of the residual connection, >= 0.")] = 1.0,
    engine: Annotated[str, typer.Option(help="streaming or dense.")] = "streaming",
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("explanations"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="auto, float32, bfloat16, float16 or float64.")
    ] = "float32",
    attn: Annotated[
        str | None, typer.Option(help="Load with this attention implementation: sdpa, eager, ...")
    ] = None,
    revision: Revision = None,
    token: Token = None,
    cache_dir: CacheDir = None,
    trust_remote_code: TrustRemoteCode = False,
    pickle_weights: Annotated[
        bool, typer.Option("--pickle-weights", help="Read weights that are not safetensors, too.")
    ] = False,
) -> None:
    """Write a heatmap (PNG) and its numbers (NPZ) for each image."""
    with _said_errors():
        if target is not None and top_k > 1:
            raise OptionError("give either --target (one class) or --top-k (several), not both")
        _check_prompts(prompts, images, model)
        _make_folder(output)
        # Before the model: a misspelt file name should not cost a download.
        paths, missing = _expand(images or [sample_image()], output)
        if not paths:
            raise typer.Exit(1)
        name = _model_name(model, bool(images))
        _quiet()
        loaded = load_model(
            name,
            device,
            prompts=prompts,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            dtype=dtype,
            attention=attn,
            trust_remote_code=trust_remote_code,
            pickle_weights=pickle_weights,
        )
        explainer = Explainer.build(loaded, method, norm=norm, alpha=alpha, engine=engine)
        chosen = None if target is None else find_class(loaded.model.config, target)
    failed = _run(explainer, paths, chosen, top_k, output)
    raise typer.Exit(1 if failed or missing else 0)


@app.command()
def models(
    model: Annotated[
        str | None,
        typer.Argument(help="A model on the Hub or a local folder; without it, the families."),
    ] = None,
    revision: Revision = None,
    token: Token = None,
    cache_dir: CacheDir = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Say which families can be explained, or whether and how one model can."""
    if model is None:
        _print_families()
        return
    with _said_errors():
        _quiet()
        config = load_config(
            model,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            trust_remote_code=trust_remote_code,
        )
        found = describe(config, model, trust_remote_code)
    _out.print(f"[bold]{escape(model)}[/bold]", soft_wrap=True, highlight=False)
    table = Table(show_header=False)
    for fact in found.facts.items():
        table.add_row(*map(escape, fact))
    table.add_row("can be explained", "yes" if found.explained else "no")
    _out.print(table)
    # A command is to be copied: no frame around it, and no line breaks in it.
    _out.print(escape(found.how), soft_wrap=found.explained, highlight=False)
    raise typer.Exit(0 if found.explained else 1)


def _print_families() -> None:
    """As a list: names of classes are too long for columns, and are there to be copied."""
    _out.print("[bold]Families that can be explained[/bold], with the tokens before the patches:\n")
    for (family, tokens), rows in groupby(families(), itemgetter(0, 2)):
        _item(f"{family} ({tokens})", 2)
        for row in rows:
            _item(f"{row[1]}: the head reads {row[3]}", 6)
    _out.print()
    for line in (*notes(), *unheard_of()):
        _item(line, 0)
    _out.print()
    _print_refusals()
    _item("'hf-gmar models MODEL' says whether and how one model can be explained.", 0)


def _print_refusals() -> None:
    table = Table(title="Families that can't be explained")
    for heading in ("model type", "why not"):
        table.add_column(heading, overflow="fold")
    for refusal in refusals():
        table.add_row(*map(escape, refusal))
    _out.print(table)


def _item(text: str, indent: int) -> None:
    _out.print(Padding(escape(text), (0, 0, 0, indent), expand=False), highlight=False)


@contextmanager
def _said_errors() -> Iterator[None]:
    """An error of ours is one line and an exit code: 2 for what was typed, 1 for all else."""
    try:
        yield
    except HfGmarError as error:
        _say(error)
        raise typer.Exit(2 if isinstance(error, OptionError | TargetError) else 1) from None


def _check_prompts(prompts: list[str] | None, images: list[Path] | None, model: str | None) -> None:
    files = [prompt for prompt in prompts or () if Path(prompt).exists()]
    if files and not images:
        raise OptionError(
            f"the prompt {files[0]!r} is a file, and no image is given; put images before "
            "--prompts, as it takes all values up to the next option"
        )
    if prompts and model is None:
        raise OptionError(
            "--prompts need a model of image and text, and the default is none; name one with "
            "--model, such as --model openai/clip-vit-base-patch32"
        )


def _make_folder(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise OptionError(
            f"nothing can be written to --output {output}: {error.strerror}; name another folder"
        ) from error


def _model_name(model: str | None, has_images: bool) -> str:
    if model is not None:
        return model
    name = DEFAULT_MODEL if has_images else BUNDLED
    _err.print(f"No --model given: using {name}{' from the Hub' if has_images else ''}.")
    return name


def _quiet() -> None:
    # What the Hub's client says of each retry is noise before the one error that follows.
    huggingface_logging.set_verbosity_error()
    # Results go to the terminal; the bars of a local file that loads in a blink do not.
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


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
