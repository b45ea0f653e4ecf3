"""``hf-gmar methods``: how images can be explained."""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter
from typing import Annotated

import typer
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from hf_gmar.cli.catalogue import (
    METHOD_COLUMNS,
    describe,
    families,
    methods_of_registry,
    notes,
    refusals,
    unheard_of,
)
from hf_gmar.cli.options import CacheDir, Revision, Token, TrustRemoteCode, out, quiet, said_errors
from hf_gmar.models.hub import load_config


def methods() -> None:
    """List the methods: what they cost, whether they depend on the class, and their papers."""
    table = Table(title="Methods")
    name, _, *others = METHOD_COLUMNS  # the class is for Python
    table.add_column(name, no_wrap=True)  # it is there to be copied
    for heading in others:
        table.add_column(heading, overflow="fold")
    for method, _, *facts in methods_of_registry():
        table.add_row(*map(escape, (method, *facts)))
    out.print(table)
    out.print(
        "'hf-gmar explain --method NAME' takes one of them. Cost: passes through the model for "
        "each map; heads: what is above the layers, once more for each layer.",
        highlight=False,
    )


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
