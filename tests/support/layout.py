"""The imports of the package, read from its source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import hf_gmar

PACKAGE = Path(hf_gmar.__file__).parent


# The rooms, a floor a line, from the ground up: a room imports only from floors below its own.
FLOORS = (
    {"errors"},
    {"_core", "_utils"},
    {"_engines", "models", "perturbations"},
    {"data", "methods", "metrics", "visualization"},
    {"faithfulness"},
    {"comparison", "explanation", "heads", "questions"},
    {"explanations"},
    {"explainer"},
    {"pipeline", "report"},
    {"app", "evaluation"},
    {"hf_gmar"},  # the names that users import
    {"cli"},
    {"__main__"},
)


# Rooms of one floor that may use each other, in one direction.
BESIDE = {("_core", "_utils")}


def sources() -> dict[str, Path]:
    """Module names without the package's, such as ``methods.base``; the package is itself.

    What a package exports stands in its stub.
    """
    sources = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        stub = path.with_suffix(".pyi")
        sources[name or "hf_gmar"] = stub if stub.exists() else path
    return sources


def imports(name: str, source: str, known: set[str], *, package: bool = False) -> Iterator[str]:
    """The package's modules that a module imports anywhere, in functions too."""
    own = name.split(".") if name != "hf_gmar" else []
    parent = own if package else own[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = parent[: len(parent) - node.level + 1]
                base = ".".join(part for part in ["hf_gmar", *up, base] if part)
            targets = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            if target.split(".")[0] == "hf_gmar":
                yield _module(target, known)


def _module(target: str, known: set[str]) -> str:
    """``hf_gmar.methods.base.AttentionMethod`` is in ``methods.base``."""
    parts = target.split(".")[1:]
    while parts and ".".join(parts) not in known:
        parts.pop()
    return ".".join(parts) or "hf_gmar"


def graph() -> dict[str, set[str]]:
    """The imports of every module of the package."""
    files = sources()
    return {
        name: set(
            imports(
                name,
                path.read_text(encoding="utf-8"),
                set(files),
                package=path.stem == "__init__",
            )
        )
        - {name}
        for name, path in files.items()
    }


def room(name: str) -> str:
    """The entry of the package that a module lies in."""
    return name.split(".", maxsplit=1)[0]


def floor(name: str) -> int:
    """The line of FLOORS that a module's room is on."""
    places = [number for number, rooms in enumerate(FLOORS) if room(name) in rooms]
    assert places, f"{name} has no place in the layout: add it to FLOORS"
    return places[0]


def upward_edges(edges: dict[str, set[str]]) -> set[tuple[str, str]]:
    """Imports that don't go down; within a room the check for cycles is enough."""
    return {
        (name, target)
        for name, targets in edges.items()
        for target in targets
        if floor(target) >= floor(name)
        and room(name) != room(target)
        and (room(name), room(target)) not in BESIDE
    }
