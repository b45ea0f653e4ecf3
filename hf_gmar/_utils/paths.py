"""Paths that users give, which may be any text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def path_is(test: Callable[[Path], bool], path: str | Path) -> bool:
    """Return whether a path passes a test such as ``Path.is_file``.

    A path that the system refuses does not pass: too long, in a folder that may not be read, or
    with a loop of links.

    Example:
        >>> path_is(Path.is_dir, "."), path_is(Path.exists, "a photo of a dog " * 1000)
        (True, False)
    """
    try:
        return test(Path(path))
    except (OSError, ValueError, RuntimeError):  # Python 3.11 and 3.12 raise the last for loops
        return False


def expanded(path: str | Path) -> Path:
    """Expand a leading ``~``; a path of an unknown user does not change."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
