"""``hf-gmar models``: what can be explained."""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter
from typing import Annotated

import typer
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from hf_gmar.catalogue import describe, families, notes, refusals, unheard_of
from hf_gmar.commands.common import (
    CacheDir,
    Revision,
    Token,
    TrustRemoteCode,
    out,
    quiet,
    said_errors,
)
from hf_gmar.hub import load_config


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
    with said_errors():
        quiet()
        config = load_config(
            model,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            trust_remote_code=trust_remote_code,
        )
        found = describe(config, model, trust_remote_code)
    out.print(f"[bold]{escape(model)}[/bold]", soft_wrap=True, highlight=False)
    table = Table(show_header=False)
    for fact in found.facts.items():
        table.add_row(*map(escape, fact))
    table.add_row("can be explained", "yes" if found.explained else "no")
    out.print(table)
    # A command is to be copied: no frame around it, and no line breaks in it.
    out.print(escape(found.how), soft_wrap=found.explained, highlight=False)
    raise typer.Exit(0 if found.explained else 1)


def _print_families() -> None:
    """As a list: names of classes are too long for columns, and are there to be copied."""
    out.print("[bold]Families that can be explained[/bold], with the tokens before the patches:\n")
    for (family, tokens), rows in groupby(families(), itemgetter(0, 2)):
        _item(f"{family} ({tokens})", 2)
        for row in rows:
            _item(f"{row[1]}: the head reads {row[3]}", 6)
    out.print()
    for line in (*notes(), *unheard_of()):
        _item(line, 0)
    out.print()
    _print_refusals()
    _item("'hf-gmar models MODEL' says whether and how one model can be explained.", 0)


def _print_refusals() -> None:
    table = Table(title="Families that can't be explained")
    for heading in ("model type", "why not"):
        table.add_column(heading, overflow="fold")
    for refusal in refusals():
        table.add_row(*map(escape, refusal))
    out.print(table)


def _item(text: str, indent: int) -> None:
    out.print(Padding(escape(text), (0, 0, 0, indent), expand=False), highlight=False)
