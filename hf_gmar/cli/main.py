"""The command line: one application with all commands."""

from __future__ import annotations

from typing import Annotated

import typer

from hf_gmar.cli.card import card
from hf_gmar.cli.compare import compare
from hf_gmar.cli.evaluate import evaluate
from hf_gmar.cli.explain import explain
from hf_gmar.cli.heads import heads
from hf_gmar.cli.methods import methods
from hf_gmar.cli.models import models
from hf_gmar.cli.options import SafeGroup, StrictCommand
from hf_gmar.cli.report import report
from hf_gmar.cli.web_page import app as web_page

app = typer.Typer(
    cls=SafeGroup,
    help="Explain Vision Transformers: which patches led to a class.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_HELP = {  # no docstrings: they are gone under python -OO
    explain: "Write a heatmap (PNG) and its numbers (NPZ) for each image.",
    report: "Explain images on one HTML page that needs no other file, with all checks.",
    compare: "Explain images by several methods; write one figure, a table and the maps.",
    heads: "Rank the attention heads that a class depends on, over all images.",
    evaluate: (
        "Measure methods on a data set: faithfulness, localization and robustness of their "
        "maps.\n\nRuns on several processes under 'accelerate launch', and resumes after a stop."
    ),
    card: "Write a section for a model's card: examples, and what maps are worth on your images.",
    web_page: "Serve a web page that explains images, on this machine unless --host is given.",
    methods: "List the methods with their cost, class dependence, values and papers.",
    models: "List the supported families, or say whether and how one model can be explained.",
}
for _command, _help in _HELP.items():
    app.command(cls=StrictCommand, help=_help)(_command)


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
    """Explain Vision Transformers: which patches led to a class."""
