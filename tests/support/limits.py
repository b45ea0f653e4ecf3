"""Disks that are full: no file of this process may grow beyond a size."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

NEEDS_LIMITS = pytest.mark.skipif(sys.platform == "win32", reason="has no limits on files")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Inside the context, the system refuses to write more than ``size`` bytes to a file."""
    import resource  # not on Windows

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
