"""Print how the package is laid out: ``python -m tests.support.report_layout``."""

from __future__ import annotations

import sys

from tests.support.layout import FLOORS, PACKAGE, graph, room


def report() -> str:
    """Rooms, floors and edges by the parse of the layout's test, and lines."""
    edges = graph()
    rooms = {room(name) for name in edges}
    arrows = {
        (room(name), room(target))
        for name, targets in edges.items()
        for target in targets
        if room(name) != room(target)
    }
    flat = [path for path in PACKAGE.glob("*.py") if not path.name.startswith("__")]
    files = [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.pyi")]
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)
    return (
        f"{len(rooms)} rooms on {len(FLOORS)} floors with {len(arrows)} edges between them; "
        f"{len(edges)} modules, {len(flat)} of them at the top; {lines} lines"
    )


if __name__ == "__main__":
    sys.stdout.write(f"{report()}\n")
