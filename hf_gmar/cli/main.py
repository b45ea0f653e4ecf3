"""The command line: the commands put together."""

from __future__ import annotations

from typing import Annotated

import typer

from hf_gmar import __version__
from hf_gmar.cli.compare import compare
from hf_gmar.cli.evaluate import evaluate
from hf_gmar.cli.explain import explain
from hf_gmar.cli.heads import heads
from hf_gmar.cli.listing import methods, models
from hf_gmar.cli.options import ManyValues

app = typer.Typer(
    help="Explain Vision Transformers: which patches a class came from.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(cls=ManyValues)(explain)
app.command(cls=ManyValues)(compare)
app.command(cls=ManyValues)(heads)
app.command(cls=ManyValues)(evaluate)
app.command()(methods)
app.command()(models)


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
