"""Classes by name or number."""

from __future__ import annotations

import pytest
from transformers import ViTConfig

from hf_gmar.errors import TargetError
from hf_gmar.models import find_class, label_of

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
