"""Write files atomically: complete or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path that is renamed to the file, or deleted after an error.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "note.txt"
        >>> with whole_file(path) as part:
        ...     _ = part.write_text("done")
        >>> path.read_text(), part.exists()
        ('done', False)
    """
    part = path.with_name(path.name + ".part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def save_arrays(path: Path, **arrays: Any) -> None:
    """Write an ``.npz`` archive atomically."""
    with whole_file(path) as part, part.open("wb") as file:
        np.savez(file, **arrays)


def save_json(path: Path, data: Any) -> None:
    """Write plain data as JSON atomically."""
    with whole_file(path) as part:
        part.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
