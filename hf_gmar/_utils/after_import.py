"""Import a module of ours right after another package's module, without loading either now."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def import_after(first: str, second: str) -> None:
    """Import the second module right after the first; at once if the first is loaded already.

    The finder that waits for the first module removes itself after that import.
    """
    if first in sys.modules:
        importlib.import_module(second)
    else:
        sys.meta_path.insert(0, _Follow(first, second))


class _Follow(MetaPathFinder):
    def __init__(self, first: str, second: str) -> None:
        self.first, self.second = first, second

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find the first module as Python does; its loader imports the second one afterwards."""
        if fullname != self.first:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            sys.meta_path.insert(0, self)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_both(module: ModuleType) -> None:
            run(module)
            sys.meta_path.remove(self)
            importlib.import_module(self.second)

        spec.loader.exec_module = run_both  # type: ignore[method-assign]
        return spec
