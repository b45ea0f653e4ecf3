"""Which module may import which, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import hf_gmar

PACKAGE = Path(hf_gmar.__file__).parent

# From the bottom of the layout to its top: a module imports only from lines before its own.
ORDER = (
    {"errors", "scenes", "files", "modes", "gamma", "measure", "restored", "ranks", "live_bytes"},
    {"families", "chosen"},
    {"propagation", "targets", "tokens", "attention", "threads", "images", "labels"},
    {"subject", "blocks", "rules", "relevance"},
    {"engine", "recording"},
    {"layers"},
    {"dense", "streaming"},
    {"capture"},
    {"hidden", "hiding"},
    {"methods"},
    {"geometry", "wrappers", "hub_errors", "columns", "intervals", "masking"},
    {"together", "perturbed"},
    {"perturbations"},
    {"visualize", "hub", "metrics", "data"},
    {"pipeline", "grid_figure", "head_figures", "per_head", "guests"},
    {"comparison", "heads"},
    {"compare", "ablation"},
    {"evaluation"},
    {"evaluate"},
    {"hf_gmar"},  # the names that users import
    {"explain", "catalogue"},
    {"commands"},
    {"cli"},
    {"__main__"},
)

# Narrower than the order: what a module may import of the package, and no more.
ONLY: dict[str, set[str]] = {
    "errors": set(),
    "scenes": set(),
    "measure": set(),
    "restored": set(),
    "ranks": set(),
    "live_bytes": set(),
    "propagation": set(),
    "targets": {"errors"},
    "families": {"errors"},
    "tokens": {"errors", "families"},
    "attention": {"errors"},
    "threads": set(),
    "modes": set(),
    "gamma": set(),
    "blocks": {"propagation"},
    "rules": {"propagation"},
    "relevance": {"errors", "gamma", "modes"},
}

# How Transformers computes attention is the business of attention.py alone.
ATTENTION_SETTINGS = {
    "ALL_ATTENTION_FUNCTIONS",
    "AttentionInterface",
    "AttentionMaskInterface",
    "_attn_implementation",
    "_attn_implementation_internal",
    "attn_implementation",
    "eager_attention_forward",
    "output_attentions",
    "set_attn_implementation",
}


def sources() -> dict[str, Path]:
    """Module names without the package's, such as ``methods.base``; the package is itself."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name or "hf_gmar"] = path
    return found


def imports(name: str, source: str, known: set[str]) -> Iterator[str]:
    """The package's modules that a module imports anywhere, in functions too."""
    package = name if name == "methods" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = package.split(".")[: len(package.split(".")) - node.level + 1]
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
    found = sources()
    return {
        name: set(imports(name, path.read_text(encoding="utf-8"), set(found)))
        for name, path in found.items()
    }


def rank(name: str) -> int:
    """The line of ORDER that a module is on; all of a subpackage are on one."""
    part = name.split(".", maxsplit=1)[0]
    places = [index for index, line in enumerate(ORDER) if part in line]
    assert places, f"{name} has no place in the layout: add it to ORDER"
    return places[0]


def upward_edges(edges: dict[str, set[str]]) -> set[tuple[str, str]]:
    """Imports that don't go down; within a subpackage the check for cycles is enough."""
    return {
        (name, target)
        for name, targets in edges.items()
        for target in targets
        if rank(target) >= rank(name) and name.split(".")[0] != target.split(".")[0]
    }


def test_imports_go_down() -> None:
    assert upward_edges(graph()) == set()


def test_imports_have_no_cycle() -> None:
    tuple(TopologicalSorter(graph()).static_order())


@pytest.mark.parametrize("name", ONLY)
def test_the_lowest_modules_import_no_more_than_they_may(name: str) -> None:
    assert graph()[name] <= ONLY[name]


def test_methods_do_not_import_each_other() -> None:
    edges = graph()
    shared = {"methods.base", "methods.checks", "methods.attention"}
    files = {name for name in edges if name.startswith("methods.")} - shared
    assert files
    for name in files:
        assert not edges[name] & (files | {"methods"}), name


def test_metrics_know_no_method() -> None:
    edges = graph()
    files = {name for name in edges if name.split(".")[0] == "metrics"}
    assert files
    for name in files:
        found = {target for target in edges[name] if target.split(".")[0] == "methods"}
        assert found <= {"methods.checks"}, name


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
    assert used.pop("recording") == {"output_attentions"}
    assert {name for name, settings in used.items() if settings} == {"attention"}


def test_the_checks_see_what_they_look_for() -> None:
    """Each check on a source that breaks its rule."""
    known = {"errors", "cli", "methods", "methods.base", "methods.gmar", "hf_gmar"}
    source = "def late():\n    from hf_gmar.cli import main\n    import hf_gmar.methods.base\n"
    assert set(imports("errors", source, known)) == {"cli", "methods.base"}
    assert upward_edges({"errors": {"cli"}}) == {("errors", "cli")}
    assert upward_edges({"cli": {"errors"}}) == set()
    assert upward_edges({"hub": {"visualize"}}) == {("hub", "visualize")}
    assert set(imports("cli", "from hf_gmar import errors, __version__", known)) == {
        "errors",
        "hf_gmar",
    }
    assert set(imports("methods.gmar", "from .base import x", known)) == {"methods.base"}
    assert set(imports("methods", "from .gmar import x", known)) == {"methods.gmar"}
    assert set(imports("methods.gmar", "from ..errors import x", known)) == {"errors"}
    assert set(imports("errors", "from . import cli", known)) == {"cli"}
    assert settings_used("model.config._attn_implementation = 'eager'") == {"_attn_implementation"}
    assert settings_used("run(output_attentions=True)") == {"output_attentions"}
    assert settings_used("kwargs = {'output_attentions': True}") == {"output_attentions"}
    assert settings_used("from transformers import AttentionInterface") == {"AttentionInterface"}
    with pytest.raises(CycleError):
        tuple(TopologicalSorter({"a": {"b"}, "b": {"a"}}).static_order())
    with pytest.raises(AssertionError, match="add it to ORDER"):
        rank("brand_new")
