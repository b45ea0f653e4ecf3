"""``hf-gmar models``: the supported families, or the description of one model."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from operator import itemgetter
from typing import Annotated

import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hf_gmar._utils.text import visible
from hf_gmar.cli.options import (
    CacheDir,
    Revision,
    Token,
    TrustRemoteCode,
    command,
    out,
    print_table,
    quiet,
)


@command
def models(
    model: Annotated[
        str | None,
        typer.Argument(help="A model on the Hub or a local folder; default: list the families."),
    ] = None,
    revision: Revision = None,
    token: Token = None,
    cache_dir: CacheDir = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Run ``hf-gmar models``."""
    if model is None:
        _print_families()
        return
    quiet()
    from hf_gmar.cli.catalogue import describe
    from hf_gmar.models.hub import load_config

    config = load_config(
        model,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        trust_remote_code=trust_remote_code,
    )
    description = describe(config, model, trust_remote_code)
    out.print(visible(model), style="bold", soft_wrap=True, highlight=False)
    table = Table(show_header=False)
    for fact in description.facts.items():
        table.add_row(*map(visible, fact))
    table.add_row("can be explained", "yes" if description.explained else "no")
    print_table(table)
    # The command is made to be copied, so it has no frame and no line breaks.
    out.print(visible(description.how), soft_wrap=description.explained, highlight=False)
    raise typer.Exit(0 if description.explained else 1)


def _print_families() -> None:
    """Print a list: class names are too long for columns, and must be easy to copy."""
    from hf_gmar.cli.catalogue import cells, class_counts, families, notes, refusals

    title = Text.assemble(("Families that can be explained", "bold"), ", with their prefix tokens:")
    out.print(title, end="\n\n")
    for (family, tokens), rows in groupby(families(), itemgetter(0, 2)):
        _print_item(f"{family} ({tokens})", 2)
        for row in rows:
            _print_item(f"{row[1]} (pooling: {row[3]})", 6)
    out.print()
    out.print()
    for line in notes():
        _print_item(line)
    out.print()
    _print_reasons("Families that methods without tokens explain", "why not the others", cells())
    _print_item(
        "attn-lrp, input-x-gradient, token-grad-cam, shapley-values and random explain them on "
        "cells of pixels."
    )
    out.print()
    _print_reasons("Families that no method explains", "reason", refusals())
    _print_item(class_counts())
    _print_item("'hf-gmar models MODEL' says whether and how one model can be explained.")


def _print_reasons(title: str, heading: str, rows: Iterable[tuple[str, str]]) -> None:
    table = Table(title=title)
    for name in ("model type", heading):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(visible, row))
    print_table(table)


def _print_item(text: str, indent: int = 0) -> None:
    out.print(Padding(visible(text), (0, 0, 0, indent), expand=False), highlight=False)
