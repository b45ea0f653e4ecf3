"""Names of methods as papers write them, wherever a person reads them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hf_gmar import GMAR, compare, explain, load_model
from hf_gmar.comparison import Comparison, MethodSpec
from hf_gmar.data import draw_scene
from hf_gmar.evaluation import evaluate
from hf_gmar.methods import METHODS
from hf_gmar.methods.registry import method_title, title_of_label

TITLES = {
    "gmar": "GMAR",
    "attention-rollout": "Attention rollout",
    "raw-attention": "Raw attention",
    "gradient-rollout": "Gradient rollout",
    "legrad": "LeGrad",
    "grad-sam": "Grad-SAM",
    "token-grad-cam": "Token Grad-CAM",
    "input-x-gradient": "Input × gradient",  # noqa: RUF001  # the sign of a product
    "attn-lrp": "AttnLRP",
    "shapley-values": "Shapley values",
    "random": "Random",
}
KIND = "hf_gmar.methods.gmar.GMAR"


class Untitled(GMAR):
    """A method of one's own, without a title."""


def test_each_method_has_the_title_of_papers() -> None:
    assert {name: METHODS[name].title for name in METHODS.built_in} == TITLES


def test_a_class_without_a_title_has_its_own_name() -> None:
    assert Untitled.title == "Untitled"


def test_titles_can_be_written_on_a_latin_1_console() -> None:
    assert all(title.encode("latin-1") for title in TITLES.values())


@pytest.mark.parametrize(
    ("settings", "title"),
    [
        ({}, "GMAR"),
        ({"norm": "l1", "alpha": 1.0, "model": "bundled"}, "GMAR"),
        (
            {"norm": "l2", "alpha": 0.5, "engine": "dense"},
            "GMAR (norm l2, alpha 0.5, engine dense)",
        ),
    ],
)
def test_options_follow_if_they_differ_from_the_default(
    settings: dict[str, object], title: str
) -> None:
    assert method_title("gmar", settings) == title


@pytest.mark.parametrize(
    ("label", "kind", "title"),
    [
        ("gmar", KIND, "GMAR"),
        ("gmar (2)", KIND, "GMAR (2)"),
        ("gmar (norm=l2, alpha=0.5)", KIND, "GMAR (norm l2, alpha 0.5)"),
        ("gmar (mine)", KIND, "gmar (mine)"),
        ("my gmar", KIND, "my gmar"),
        ("gmar", "hf_gmar.methods.legrad.LeGrad", "gmar"),
        ("not-known", KIND, "not-known"),
    ],
)
def test_only_labels_of_the_registry_become_titles(label: str, kind: str, title: str) -> None:
    assert title_of_label(label, kind) == title


def test_an_explanation_names_the_method_and_its_options() -> None:
    result = explain(draw_scene(18).image, "bundled", method="grad-sam", engine="dense")
    assert repr(result).endswith("image, Grad-SAM (engine dense))")
    assert "method Grad-SAM, engine dense" in result.caption


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    """Registry names, a label of the user's, and a method of Captum."""
    methods = ["gmar:norm=l2", MethodSpec("gmar", "plain one"), "input-x-gradient", "Saliency"]
    return compare("bundled", draw_scene(18).image, methods, measure=False)


def test_a_comparison_shows_titles_and_keeps_labels_as_keys(
    comparison: Comparison, tmp_path: Path
) -> None:
    labels = ["gmar (norm=l2)", "plain one", "input-x-gradient", "Saliency"]
    shown = ["GMAR (norm l2)", "plain one", TITLES["input-x-gradient"], "Saliency"]
    assert list(comparison.maps) == labels
    assert [row[1] for row in comparison.cells()[1]] == shown
    drawn = {text.get_text().replace("\n", " ") for axes in comparison.figure().axes
             for text in axes.texts}  # fmt: skip
    assert drawn >= set(shown)
    assert [row["method"] for row in comparison.records()] == labels
    with np.load(comparison.save_maps(tmp_path)) as archive:
        assert archive["methods"].tolist() == labels


def test_a_failure_is_told_by_the_title(comparison: Comparison) -> None:
    failed = replace(comparison, failures={"input-x-gradient": "no gradient"})
    line = f"{TITLES['input-x-gradient']} failed: no gradient"
    assert list(failed.failure_lines()) == [line]
    assert line in failed.table()


def test_a_report_shows_titles_and_its_rows_keep_labels() -> None:
    methods = ["gmar", MethodSpec("attn-lrp", "mine"), "random"]
    result = evaluate(load_model("bundled"), "scenes:2", methods, ["srg"])
    assert {row["method"] for row in result.rows} == {"gmar", "mine", "random"}
    page = result.markdown()
    for text in ("| GMAR |", "| mine |", "Baseline: Random", "### Differences to Random"):
        assert text in page
    assert {record["method"] for record in result.records()} == {"gmar", "mine", "random"}
