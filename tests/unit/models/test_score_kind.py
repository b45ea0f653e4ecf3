"""What the scores of a model are, and how they are written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import ViTConfig

from hf_gmar.errors import OptionError
from hf_gmar.models import ScoreKind

TWO, ONE = torch.tensor([[0.0, 2.0]]), torch.tensor([[58.3]])
PER_PLACE = torch.zeros(1, 3, 4, 4)
KINDS: list[tuple[Any, Tensor, str, list[float]]] = [
    (None, TWO, "softmax", [0.119203, 0.880797]),
    ("single_label_classification", TWO, "softmax", [0.119203, 0.880797]),
    ("multi_label_classification", TWO, "sigmoid", [0.5, 0.880797]),
    ("multi_label_classification", torch.tensor([[2.0]]), "sigmoid", [0.880797]),
    ("regression", TWO, "value", [0.0, 2.0]),
    ("regression", ONE, "value", [58.3]),
    (None, ONE, "value", [58.3]),
    ("single_label_classification", ONE, "value", [58.3]),
    (None, PER_PLACE, "value", PER_PLACE[0].tolist()),
    ("regression", -ONE, "value", [-58.3]),
]


@pytest.mark.parametrize(("problem", "scores", "kind", "expected"), KINDS)
def test_what_scores_are(problem: Any, scores: Tensor, kind: str, expected: list[float]) -> None:
    # The config may say another number of classes than the head that was put in its place.
    config = ViTConfig(problem_type=problem, id2label={0: "a", 1: "b", 2: "c", 3: "d"})
    found = ScoreKind.of(config, scores)
    assert found == kind
    torch.testing.assert_close(found.convert(scores)[0], torch.tensor(expected))


def test_half_precision_becomes_float32_and_double_stays() -> None:
    for kind in ScoreKind:
        assert kind.convert(torch.zeros(1, 3).bfloat16()).dtype == torch.float32
        assert kind.convert(torch.zeros(1, 3).double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (58.3, "58.3"), (0.5, "0.5"), (1.0, "1"), (0.0, "0"), (-3.14159, "-3.142"),
        (12345.6, "12346"), (1e-7, "1e-07"), (-2.5e12, "-2.5e+12"), (float("nan"), "nan"),
        (float("inf"), "inf"), (9999.96, "10000"),
    ],
)  # fmt: skip
def test_a_value_has_no_percentage(value: float, text: str) -> None:
    assert ScoreKind.VALUE.text(value) == text


def test_a_probability_is_a_percentage() -> None:
    assert ScoreKind.SOFTMAX.text(0.9994) == ScoreKind.SIGMOID.text(0.9994) == "99.9%"


@pytest.mark.parametrize("kind", [ScoreKind.SOFTMAX, ScoreKind.SIGMOID])
def test_what_is_measured_of_probabilities(kind: ScoreKind) -> None:
    choices = None, "probability", "logit"
    assert [kind.measured(choice) for choice in choices] == ["probability", "probability", "logit"]


def test_what_is_measured_of_values() -> None:
    assert ScoreKind.VALUE.measured(None) == ScoreKind.VALUE.measured("logit") == "value"
    with pytest.raises(OptionError, match=r"this one gives values .* leave score out"):
        ScoreKind.VALUE.measured("probability")
