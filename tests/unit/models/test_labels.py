"""Classes by name or number."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import ViTConfig

from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar.errors import TargetError
from hf_gmar.models import find_class, label_of
from hf_gmar.models.labels import class_count, find_classes, labels_of
from tests.reference.cases import LABELS, MODELS, MORE_MODELS, ModelCase

CONFIG = ViTConfig(
    id2label={0: "tabby, tabby cat", 1: "Egyptian cat", 2: "crane", 3: "crane, bird"}
)


@pytest.mark.parametrize(
    ("text", "index"),
    [("0", 0), (" 3 ", 3), ("Tabby Cat", 0), ("EGYPTIAN CAT", 1), ("crane", 2), ("bird", 3)],
)
def test_found(text: str, index: int) -> None:
    assert find_class(CONFIG, text) == index


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("4", "0 to 3"),
        ("-1", "out of range"),
        ("egyptian", "similar: Egyptian cat"),
        ("zebra", "4 classes"),
        ("", "no class"),
    ],
)
def test_not_found_says_what_there_is(text: str, said: str) -> None:
    with pytest.raises(TargetError, match=said):
        find_class(CONFIG, text)


def test_a_label_of_two_classes_asks_for_the_number() -> None:
    config = ViTConfig(id2label={0: "crane, bird", 1: "crane, machine"})
    with pytest.raises(TargetError, match=r"0 \(crane, bird\), 1 \(crane, machine\)"):
        find_class(config, "crane")


def test_label_of_a_class_without_a_name() -> None:
    assert label_of(CONFIG, 1) == "Egyptian cat"
    assert label_of(CONFIG, 99) == "class 99"


def test_the_number_of_scores_goes_before_the_names() -> None:
    assert labels_of(CONFIG, 6) == {**labels_of(CONFIG), 4: "class 4", 5: "class 5"}
    assert labels_of(CONFIG, 2) == {0: "tabby, tabby cat", 1: "Egyptian cat"}
    assert find_class(CONFIG, "5", 6) == find_class(CONFIG, "class 5", 6) == 5
    assert find_class(CONFIG, "bird", 6) == 3
    for text, count in (("6", 6), ("bird", 3), ("3", 3), ("class 6", 6)):
        with pytest.raises(TargetError, match=f"{count} classes"):
            find_class(CONFIG, text, count)


@pytest.mark.parametrize("case", [*MODELS, *MORE_MODELS], ids=lambda case: case.name)
def test_the_number_of_scores_of_a_model(case: ModelCase) -> None:
    options: Any = dict(case.options)
    adapter = ModelAdapter.of(case.build(), options.get("readout"))
    assert class_count(adapter) == LABELS


def test_several_are_found_in_their_order() -> None:
    assert find_classes(CONFIG, ["crane", "0", "bird"]) == [2, 0, 3]
    assert find_classes(CONFIG, []) == []


def test_a_class_is_named_once() -> None:
    with pytest.raises(TargetError, match=r"'tabby' and '0' are the same class, 0 \(tabby, tabby"):
        find_classes(CONFIG, ["crane", "tabby", "0"])
