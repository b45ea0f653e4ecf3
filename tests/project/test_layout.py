"""Which module may import which, read from the source."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support.layout import floor, graph, imports, room, sources, upward_edges

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


def test_imports_go_down() -> None:
    assert upward_edges(graph()) == set()


def test_imports_have_no_cycle() -> None:
    tuple(TopologicalSorter(graph()).static_order())


def test_methods_do_not_import_each_other() -> None:
    edges = graph()
    shared = {"attention_base", "base", "joint", "layer_rules", "pixel_base", "registry"}
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


def test_no_test_imports_from_another() -> None:
    tests = Path(__file__).parents[1]
    files = [path for path in tests.rglob("*.py") if path.name != "__init__.py"]
    assert len(files) > 60
    for path in files:
        used = set(re.findall(r"^\s*(?:from|import) tests\.(\w+)", path.read_text(), re.MULTILINE))
        assert used <= {"reference", "support"}, path
