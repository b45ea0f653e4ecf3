"""The command, held after some images until it is killed: ``python held_command.py 1 evaluate``.

However fast or slow the machine, a test that kills it knows what it was doing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from unittest.mock import patch

from hf_gmar.cli import app
from hf_gmar.evaluation.run.store import Row, Store


def held(after: int) -> None:
    """Run the command; the process never writes the rows of one more image than that."""
    append, written = Store.append, list[None]()

    def appending(self: Store, rows: Iterable[Row]) -> None:
        while len(written) == after:
            time.sleep(0.1)
        append(self, rows)
        written.append(None)

    with patch.object(Store, "append", appending):
        app()


if __name__ == "__main__":
    held(int(sys.argv.pop(1)))
