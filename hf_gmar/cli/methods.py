"""``hf-gmar methods``: how images can be explained."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from hf_gmar.cli.options import command, out


@command
def methods() -> None:
    """List the methods: what they cost, whether they depend on the class, and their papers."""
    from hf_gmar.cli.catalogue import METHOD_COLUMNS, methods_of_registry

    table = Table(title="Methods")
    name, _, *headings = METHOD_COLUMNS  # without the Python class
    table.add_column(name, no_wrap=True)  # so that it can be copied
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for method, _, *facts in methods_of_registry():
        table.add_row(*map(escape, (method, *facts)))
    out.print(table)
    out.print(
        "'hf-gmar explain --method NAME' takes one of them. Cost: passes through the model for "
        "each map; heads: what is above the layers, once more for each layer.",
        highlight=False,
    )
