"""``hf-gmar methods``: the table of methods."""

from __future__ import annotations

from rich.table import Table

from hf_gmar._utils.text import visible
from hf_gmar.cli.options import command, out, print_table


@command
def methods() -> None:
    """Run ``hf-gmar methods``."""
    from hf_gmar.cli.catalogue import METHOD_COLUMNS, methods_of_registry

    table = Table(title="Methods")
    title, name, _, *others = METHOD_COLUMNS  # the class name is for Python
    for heading in (title, name, *others):
        table.add_column(heading)
    for method, name, _, *facts in methods_of_registry():
        table.add_row(*map(visible, (method, name, *facts)))
    print_table(table)
    out.print(
        "'hf-gmar explain --method NAME' takes these names. Cost: passes through the model for "
        "each map; head re-evaluation: the class head runs once more for each layer; player and "
        "sample: each patch or group of patches, and each random order of them.",
        highlight=False,
    )
