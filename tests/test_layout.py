"""Which module may import which, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import hf_gmar

PACKAGE = Path(hf_gmar.__file__).parent

# The rooms, a floor a line, from the ground up: a room imports only from floors below its own.
FLOORS = (
    {"errors"},
    {"_core", "_utils"},
    {"_engines", "models", "perturbations"},
    {"data", "methods", "metrics", "visualization"},
    {"comparison", "explanation", "heads", "pipeline"},
    {"evaluation"},
    {"hf_gmar"},  # the names that users import
    {"cli"},
    {"__main__"},
)

# Rooms of one floor that may use each other, in one direction.
BESIDE = {("_core", "_utils")}

# How Transformers computes attention is the business of attention.py alone.
ATTENTION_SETTINGS = {
    "ALL_ATTENTION_FUNCTIONS",
    "AttentionInterface",
    "AttentionMaskInterface",
    "_attn_implementation",
    "_attn_implementation_internal",
    "eager_attention_forward",
    "output_attentions",
    "set_attn_implementation",
}


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


def test_imports_go_down() -> None:
    assert upward_edges(graph()) == set()


def test_imports_have_no_cycle() -> None:
    tuple(TopologicalSorter(graph()).static_order())


def test_methods_do_not_import_each_other() -> None:
    edges = graph()
    shared = {"attention_base", "base", "joint", "layer_rules", "registry"}
    files = {name for name in edges if room(name) == "methods"} - {
        "methods",
        *(f"methods.{name}" for name in shared),
    }
    assert files
    for name in files:
        assert not edges[name] & (files | {"methods"}), name


def test_metrics_import_no_method() -> None:
    edges = graph()
    files = {name for name in edges if room(name) == "metrics"}
    assert files
    for name in files:
        assert not {target for target in edges[name] if room(target) == "methods"}, name


def test_a_report_imports_nothing_of_a_run() -> None:
    edges = graph()
    files = {name for name in edges if name.startswith("evaluation.report")}
    assert files
    for name in files:
        assert not {one for one in edges[name] if one.startswith("evaluation.run")}, name


def settings_used(source: str) -> set[str]:
    """Names of Transformers' attention settings that a source uses, as code or as a string."""
    used: set[str | None] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            used.add(node.id)
        elif isinstance(node, ast.Attribute):
            used.add(node.attr)
        elif isinstance(node, (ast.keyword, ast.arg)):
            used.add(node.arg)
        elif isinstance(node, ast.alias):
            used.add(node.name.rpartition(".")[2])
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            used.add(node.value)
    return {name for name in used if name in ATTENTION_SETTINGS}


def test_only_attention_touches_attention_settings() -> None:
    used = {
        name: settings_used(path.read_text(encoding="utf-8")) for name, path in sources().items()
    }
    # The dense engine's hooks ask for the maps, as any user may.
    assert used.pop("_core.hooks") == {"output_attentions"}
    assert {name for name, settings in used.items() if settings} == {"_core.attention"}


def test_the_checks_see_what_they_look_for() -> None:
    """Each check on a source that breaks its rule."""
    known = {"errors", "cli", "methods", "methods.base", "methods.gmar", "hf_gmar"}
    source = "def late():\n    from hf_gmar.cli import main\n    import hf_gmar.methods.base\n"
    assert set(imports("errors", source, known)) == {"cli", "methods.base"}
    assert upward_edges({"errors": {"cli"}}) == {("errors", "cli")}
    assert upward_edges({"cli": {"errors"}}) == set()
    assert upward_edges({"models.hub": {"visualization.grid"}}) == {
        ("models.hub", "visualization.grid")
    }
    assert upward_edges({"_core.inputs": {"_utils.validation"}}) == set()
    assert upward_edges({"_utils.validation": {"_core.inputs"}}) == {
        ("_utils.validation", "_core.inputs")
    }
    assert set(imports("cli", "from hf_gmar import errors, __version__", known)) == {
        "errors",
        "hf_gmar",
    }
    assert set(imports("methods.gmar", "from .base import x", known)) == {"methods.base"}
    assert set(imports("methods", "from .gmar import x", known, package=True)) == {"methods.gmar"}
    assert set(imports("hf_gmar", "from .errors import x", known, package=True)) == {"errors"}
    assert set(imports("methods.gmar", "from ..errors import x", known)) == {"errors"}
    assert set(imports("errors", "from . import cli", known)) == {"cli"}
    assert settings_used("model.config._attn_implementation = 'eager'") == {"_attn_implementation"}
    assert settings_used("run(output_attentions=True)") == {"output_attentions"}
    assert settings_used("kwargs = {'output_attentions': True}") == {"output_attentions"}
    assert settings_used("from transformers import AttentionInterface") == {"AttentionInterface"}
    with pytest.raises(CycleError):
        tuple(TopologicalSorter({"a": {"b"}, "b": {"a"}}).static_order())
    with pytest.raises(AssertionError, match="add it to FLOORS"):
        floor("brand_new")
