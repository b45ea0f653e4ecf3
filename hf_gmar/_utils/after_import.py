"""Follow the import of another package's module with one of ours, without loading either."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


def import_after(first: str, second: str) -> None:
    """Import the second module as soon as the first one is imported; now, if it is already."""
    if first in sys.modules:
        importlib.import_module(second)
    else:
        sys.meta_path.insert(0, _Follow(first, second))


@dataclass(frozen=True)
class _Follow(MetaPathFinder):
    first: str
    second: str

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find the first module as Python does, and import the second one once it has run."""
        spec = PathFinder.find_spec(fullname, path, target) if fullname == self.first else None
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def run_both(module: ModuleType) -> None:
            run(module)
            importlib.import_module(self.second)

        spec.loader.exec_module = run_both  # type: ignore[method-assign]
        return spec
