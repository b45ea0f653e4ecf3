"""The command line application with all commands."""

from __future__ import annotations

from typing import Annotated

import typer

from hf_gmar.cli.compare import compare
from hf_gmar.cli.evaluate import evaluate
from hf_gmar.cli.explain import explain
from hf_gmar.cli.heads import heads
from hf_gmar.cli.methods import methods
from hf_gmar.cli.models import models
from hf_gmar.cli.options import ManyValues

app = typer.Typer(
    help="Explain Vision Transformers: which patches a class came from.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (explain, compare, heads, evaluate, methods, models):
    app.command(cls=ManyValues)(_command)


def _show_version(is_given: bool) -> None:
    if is_given:
        from hf_gmar._utils.version import __version__

        typer.echo(f"hf-gmar {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show version.")
    ] = False,
) -> None:
    """Explain Vision Transformers: which patches a class came from."""
