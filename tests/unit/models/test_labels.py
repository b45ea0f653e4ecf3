"""Classes by name or number."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import ViTConfig, ViTForImageClassification

from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar.errors import TargetError
from hf_gmar.models import find_class, label_of
from hf_gmar.models.labels import class_count, classes_of_model, find_classes, labels_of
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


NUMBERS = ViTConfig(id2label={0: "5", 1: "1", 2: "0", 3: "two, 3", 4: "index:9"})


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("5", 0),  # out of range as an index
        ("1", 1),
        ("3", 3),
        ("index:0", 0),
        ("label:0", 2),
        (0, 0),
        (2, 2),
        ("index: 2", 2),
        ("index:9", 4),  # the whole label goes before
        ("4", 4),
    ],
)
def test_labels_that_are_numbers(name: str | int, index: int) -> None:
    assert find_class(NUMBERS, name) == index


@pytest.mark.parametrize("name", ["0", " 0 "])
def test_a_number_that_is_an_index_and_the_name_of_another_class(name: str) -> None:
    said = r"'0' is the index of the class '5' and the name of .* 2 \(0\).* index:0 or label:0"
    with pytest.raises(TargetError, match=said):
        find_class(NUMBERS, name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (5, "5 is out of range: .* 5 classes, 0 to 4"),
        ("index:7", "7 is out of range"),
        ("label:7", "no class is called '7'"),
        ("index:two", "target two is out of range"),
        (-1, "-1 is out of range"),
    ],
)
def test_no_such_index_and_no_such_label(name: str | int, said: str) -> None:
    with pytest.raises(TargetError, match=said):
        find_class(NUMBERS, name)


def test_a_config_without_names() -> None:
    config = ViTConfig(id2label={})
    with pytest.raises(TargetError, match=r"no class is called '0': .* names no classes"):
        find_class(config, "0")
    assert find_class(config, "0", 3) == 0
    model = ViTForImageClassification(ViTConfig(num_hidden_layers=1, image_size=32, id2label={}))
    assert classes_of_model(model, ["5", "class 7"]) == [5, 7]
