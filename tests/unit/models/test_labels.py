"""Classes by name or number."""

from __future__ import annotations

import pytest
import torch
from transformers import ViTConfig

from hf_gmar.errors import TargetError
from hf_gmar.models import find_class, label_of, probabilities
from hf_gmar.models.labels import find_classes

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


def test_softmax_unless_the_config_says_multi_label() -> None:
    scores = torch.tensor([[0.0, 0.0, 2.0]])
    assert probabilities(CONFIG, scores).sum().item() == pytest.approx(1)
    multi = ViTConfig(problem_type="multi_label_classification")
    assert probabilities(multi, scores)[0].tolist() == pytest.approx([0.5, 0.5, 0.880797])


def test_half_precision_scores_become_float32() -> None:
    assert probabilities(CONFIG, torch.zeros(1, 3).bfloat16()).dtype == torch.float32


def test_several_are_found_in_their_order() -> None:
    assert find_classes(CONFIG, ["crane", "0", "bird"]) == [2, 0, 3]
    assert find_classes(CONFIG, []) == []


def test_a_class_is_named_once() -> None:
    with pytest.raises(TargetError, match=r"'tabby' and '0' are the same class, 0 \(tabby, tabby"):
        find_classes(CONFIG, ["crane", "tabby", "0"])
