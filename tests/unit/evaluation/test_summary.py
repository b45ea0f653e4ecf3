"""The summary of an evaluation's rows: numbers by hand, whatever order the rows come in."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_gmar._utils.stats import bootstrap
from hf_gmar.errors import InputError, OptionError
from hf_gmar.evaluation import Summary, summarize
from hf_gmar.evaluation.report.results import Cell, Curve, Difference, Failure, Measure
from hf_gmar.evaluation.report.statistics import holm

BETTER = {"deletion": False, "insertion": True, "pointing-game": True, "spread": None}


def row(index: int, method: str, values: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"index": index, "key": f"{index}.png", "method": method, "values": values, **more}


def failure(index: int, method: str | None, error: str = "no good") -> dict[str, Any]:
    return {"index": index, "key": f"{index}.png", "method": method, "error": error}


def rows_of(measure: str, found: Mapping[str, Sequence[float | None]]) -> list[dict[str, Any]]:
    """One row for each image and method."""
    return [
        row(index, method, {measure: value})
        for method, values in found.items()
        for index, value in enumerate(values)
    ]


def cell(summary: Summary, method: str, measure: str = "deletion:blur") -> Cell:
    return summary.by_place[measure, method]


def difference(summary: Summary, method: str, measure: str = "deletion:blur") -> Difference:
    found = cell(summary, method, measure).difference
    assert found is not None
    return found


BLUR = rows_of(
    "deletion:blur",
    {
        "one": [0.25, 0.5, 0.75, None, 0.5],
        "two": [0.5, 1.0, 1.75, 2.0, None],
        "three": [0.25, 0.5, 0.75, 4.0, 0.5],
    },
)


def test_means_are_over_the_images_that_have_a_value() -> None:
    found = summarize(BLUR, {}, BETTER)
    assert (found.images, found.methods) == (5, ("one", "three", "two"))
    for method, values in {"one": [0.25, 0.5, 0.75, 0.5], "two": [0.5, 1.0, 1.75, 2.0]}.items():
        mean, low, high = bootstrap(np.array(values))
        wanted = Cell(method, "deletion:blur", float(mean), float(low), float(high), 4)
        got = cell(found, method)
        assert (got.images, got.difference) == (4, None)
        assert (got.mean, got.low, got.high) == pytest.approx(
            (wanted.mean, wanted.low, wanted.high)
        )


def test_differences_are_in_pairs_of_one_image() -> None:
    found = summarize(BLUR, {}, BETTER, baseline="one")
    two = difference(found, "two")
    mean, low, high = bootstrap(np.array([0.25, 0.5, 1.0]))
    assert (two.mean, two.low, two.high) == pytest.approx((mean, low, high))
    assert two.images == 3
    assert two.p == 0.25  # two of the eight flips of three differences
    assert two.corrected == 0.5  # of two methods
    assert difference(found, "three") == Difference(0, 0, 0, 4, 1, 1, "no difference")
    assert cell(found, "one").difference is None


@pytest.mark.parametrize(
    ("metric", "sign", "verdict"),
    [
        ("deletion", 1, "worse"),
        ("deletion", -1, "better"),
        ("insertion", 1, "better"),
        ("insertion", -1, "worse"),
        ("spread", 1, "higher"),
        ("spread", -1, "lower"),
        ("unknown", 1, "higher"),
    ],
)
def test_the_verdict_goes_by_the_direction_that_is_better(
    metric: str, sign: int, verdict: str
) -> None:
    other = [sign * (1 + 0.1 * one) for one in range(8)]
    found = summarize(rows_of(metric, {"a": [0.0] * 8, "b": other}), {}, BETTER, "a")
    assert difference(found, "b", metric).verdict == verdict
    assert difference(found, "b", metric).p == 2 / 256


def test_the_correction_is_over_the_methods_of_one_measure() -> None:
    generator = np.random.default_rng(0)
    rows = []
    for place, method in enumerate(("a", "b", "c", "d")):
        values = generator.normal(0.3 * place, 1, size=(12, 2)).tolist()
        rows += [
            row(index, method, {"deletion:blur": left, "insertion:blur": right})
            for index, (left, right) in enumerate(values)
        ]
    found = summarize(rows, {}, BETTER, "a")
    for measure in ("deletion:blur", "insertion:blur"):
        tests = [difference(found, method, measure) for method in "bcd"]
        wanted = holm(np.array([one.p for one in tests]))
        assert [one.corrected for one in tests] == pytest.approx(wanted.tolist())
        assert all((one.verdict == "no difference") == (one.corrected >= 0.05) for one in tests)


def test_a_level_that_is_just_reached_is_no_difference() -> None:
    """Six differences of one sign: p = 2 / 64 for one method, and 4 / 64 for two."""
    values = {"a": [0.0] * 6, "b": [1.0] * 6}
    alone = summarize(rows_of("deletion", values), {}, BETTER, "a")
    assert difference(alone, "b", "deletion").verdict == "worse"
    pair = summarize(rows_of("deletion", {**values, "c": [1.0] * 6}), {}, BETTER, "a")
    assert difference(pair, "b", "deletion").corrected == 0.0625
    assert difference(pair, "b", "deletion").verdict == "no difference"


def everything(seed: int) -> list[dict[str, Any]]:
    """Rows with all that can be in them."""
    generator = random.Random(seed)  # noqa: S311
    rows: list[dict[str, Any]] = [failure(3, None), failure(4, None, "twice"), failure(4, None)]
    for index in (0, 1, 2, 5, 6):
        for method in ("gmar", "legrad", "random"):
            if (index, method) == (5, "legrad"):
                rows += [failure(5, "legrad"), failure(5, "legrad", "another reason")]
                continue
            curve = [generator.random() for _ in range(3)]
            rows.append(
                row(
                    index,
                    method,
                    {
                        "deletion:blur": generator.random(),
                        "insertion:blur": generator.choice([None, generator.random()]),
                        "pointing-game": float(generator.random() < 0.5),
                    },
                    label=index % 2,
                    target=0,
                    predicted=0,
                    before=0.9,
                    curves={"blur": {"morf": curve, "lerf": curve[::-1]}},
                    fractions=[0, 0.5, 1],
                )
            )
    return rows


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 3), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(seed: int, order: random.Random) -> None:
    rows = everything(seed)
    first = summarize(rows, {"methods": ["random", "gmar"]}, BETTER, "gmar")
    order.shuffle(rows)
    again = summarize(iter(rows), {"methods": ["random", "gmar"]}, BETTER, "gmar")
    assert first == again
    assert first.to_json().encode() == again.to_json().encode()
    assert first.markdown() == again.markdown()


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 3), st.integers(-5, 5))
def test_a_shift_of_all_values_leaves_the_differences(seed: int, by: int) -> None:
    rows = rows_of(
        "deletion",
        {
            name: np.random.default_rng([seed, place]).integers(0, 9, 12).tolist()
            for place, name in enumerate("abc")
        },
    )
    shifted = [{**one, "values": {"deletion": one["values"]["deletion"] + by}} for one in rows]
    left, right = (summarize(each, {}, BETTER, "a") for each in (rows, shifted))
    for method in "bc":
        assert difference(left, method, "deletion") == difference(right, method, "deletion")


def test_equal_summaries_see_what_differs() -> None:
    rows = everything(0)
    first = summarize(rows, {"a": 1}, BETTER, "gmar")
    assert first != summarize(rows, {"a": 2}, BETTER, "gmar")
    assert first != summarize(rows, {"a": 1}, BETTER, "random")
    assert first != summarize(rows, {"a": 1}, BETTER, "gmar", seed=1)
    assert first != summarize(rows[:-1], {"a": 1}, BETTER, "gmar")


def test_what_failed_is_counted_with_its_reason() -> None:
    found = summarize(everything(0), {}, BETTER)
    assert found.broken == [
        Failure(3, "3.png", None, "no good"),
        Failure(4, "4.png", None, "no good"),
    ]
    assert found.failed == {"legrad": [Failure(5, "5.png", "legrad", "another reason")]}
    assert found.images == 5


def test_what_went_well_at_last_did_not_fail() -> None:
    rows = [failure(0, None), failure(0, "gmar"), failure(1, "gmar"), failure(1, "legrad")]
    rows += [row(0, "gmar", {"deletion": 1.0}), row(1, "legrad", {"deletion": 1.0})]
    for each in (rows, rows[::-1]):
        assert summarize(each, {}, BETTER).failures == (Failure(1, "1.png", "gmar", "no good"),)


def test_failures_come_by_image_and_then_by_method() -> None:
    rows = [failure(2, "a"), failure(1, "b"), failure(1, "a"), {**failure(2, "a"), "key": "0.png"}]
    for each in (rows, rows[::-1]):
        found = summarize(each, {}, BETTER).failures
        places = [(one.index, one.method, one.key) for one in found]
        assert places == [(1, "a", "1.png"), (1, "b", "1.png"), (2, "a", "0.png")]


def test_the_seed_is_that_of_all_draws() -> None:
    values = np.random.default_rng(2).normal(0.3, 1, size=(20, 2)).T.tolist()
    found = [
        summarize(rows_of("deletion", dict(zip("ab", values, strict=True))), {}, BETTER, "a", seed)
        for seed in (0, 1)
    ]
    first, other = (cell(one, "b", "deletion") for one in found)
    assert (first.low, first.high) != (other.low, other.high)
    left, right = (difference(one, "b", "deletion") for one in found)
    assert (left.low, left.high) != (right.low, right.high)
    assert left.p != right.p
    rows = curve_rows({n: [1.0, n / 7, 0.0] for n in range(7)})
    bands = [summarize(rows, {}, BETTER, seed=seed).curves[0].low for seed in (0, 1)]
    assert bands[0] != bands[1]


def test_a_method_that_always_failed_is_in_the_tables() -> None:
    found = summarize([*BLUR, failure(0, "four", "out\nof  memory")], {}, BETTER, baseline="four")
    assert cell(found, "four") == Cell("four", "deletion:blur", None, None, None, 0)
    assert found.failed["four"][0].reason == "out of memory"
    assert all(one.difference is None for one in found.cells)


def test_rows_that_came_twice_count_once() -> None:
    rows = everything(0)
    assert summarize([*rows, *rows], {}, BETTER) == summarize(rows, {}, BETTER)


@pytest.mark.parametrize(
    ("first", "other"),
    [
        ({"values": {"deletion": 1.0}}, {"values": {"deletion": 2.0}}),
        ({"curves": {"blur": {"morf": [1, 0]}}}, {"curves": {"blur": {"morf": [1, 1]}}}),
        (
            {"curves": {"blur": {"morf": [1, 0]}}, "fractions": [0, 1]},
            {"curves": {"blur": {"morf": [1, 0]}}, "fractions": [0, 0.5]},
        ),
    ],
    ids=["values", "curves", "fractions"],
)
def test_rows_that_contradict_each_other_are_refused(
    first: dict[str, Any], other: dict[str, Any]
) -> None:
    base = {**row(7, "gmar", {}), "fractions": [0, 1]}
    with pytest.raises(InputError, match=r"two rows of image 7 .*gmar"):
        summarize([{**base, **first}, {**base, **other}], {}, BETTER)


@pytest.mark.parametrize(
    "bad",
    [
        {"key": "a", "method": "gmar", "values": {}},
        {"index": "0", "method": "gmar", "values": {}},
        {"index": 0, "values": {}},
        {"index": 0, "method": None, "values": {}},
    ],
    ids=["no index", "index as text", "no method", "no error"],
)
def test_rows_that_name_nothing_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="a row must have"):
        summarize([bad], {}, BETTER)


def test_order_of_methods_and_measures_is_that_of_settings_and_metrics() -> None:
    keys = ["zeta", "pointing-game", "insertion:noise", "insertion:blur", "deletion (steps=5):blur"]
    keys += ["deletion:blur", "deletion:noise", "infidelity"]
    rows = [row(0, name, dict.fromkeys(keys, 0.0)) for name in ("c", "a", "b", "d")]
    plan = {"methods": ["b", "absent", "a"], "perturbations": ["noise", "blur"]}
    found = summarize(rows, plan, BETTER)
    assert found.methods == ("b", "a", "c", "d")
    assert [one.label for one in found.measures] == [
        "deletion:noise",
        "insertion:noise",
        "deletion (steps=5):blur",
        "deletion:blur",
        "insertion:blur",
        "pointing-game",
        "infidelity",
        "zeta",
    ]
    assert list(found.groups) == [
        "Faithfulness, patches removed by noise",
        "Faithfulness, patches removed by blur",
        "Localisation",
        "Robustness and sanity checks",
        "Other measures",
    ]
    assert [(one.measure, one.method) for one in found.cells[:5]] == [
        *(("deletion:noise", name) for name in "bacd"),
        ("insertion:noise", "b"),
    ]


def test_methods_may_be_the_keys_of_a_mapping() -> None:
    rows = [row(0, name, {"deletion": 0.0}) for name in "abc"]
    assert summarize(rows, {"methods": {"c": {}, "b": {}}}, BETTER).methods == ("c", "b", "a")
    assert summarize(rows, {"methods": [["c", {}], "b"]}, BETTER).methods == ("b", "a", "c")
    assert summarize(rows, {"methods": 3}, BETTER).methods == ("a", "b", "c")


@pytest.mark.parametrize(
    ("label", "title", "metric", "perturbation"),
    [
        ("deletion", "deletion", "deletion", None),
        ("deletion:blur", "deletion", "deletion", "blur"),
        ("a (b=c:d):blur", "a (b=c:d)", "a", "blur"),
        ("a (b=(1, 2), c=3):blur (radius=2)", "a (b=(1, 2), c=3)", "a", "blur (radius=2)"),
        ("a:b:c", "a", "a", "b:c"),
        ("a:b\nc", "a", "a", "b\nc"),
        ("a (b=c:d)", "a (b=c:d)", "a", None),
    ],
)
def test_keys_name_metric_options_and_perturbation(
    label: str, title: str, metric: str, perturbation: str | None
) -> None:
    wanted = Measure(label, title, metric, perturbation, True)
    assert Measure.of(label, {metric: True}) == wanted


def test_what_is_no_number_is_not_defined() -> None:
    values = [None, math.inf, -math.inf, math.nan, True, 3]
    found = summarize(rows_of("deletion", {"a": values}), {}, BETTER)
    assert (cell(found, "a", "deletion").mean, cell(found, "a", "deletion").images) == (2.0, 2)
    assert found.images == 6


def test_one_image_has_no_interval() -> None:
    found = summarize(rows_of("deletion", {"a": [0.5], "b": [1.0]}), {}, BETTER, "a")
    assert cell(found, "a", "deletion") == Cell("a", "deletion", 0.5, None, None, 1)
    assert difference(found, "b", "deletion") == Difference(
        0.5, None, None, 1, 1, 1, "no difference"
    )


def test_no_value_at_all() -> None:
    found = summarize(rows_of("deletion", {"a": [None, None]}), {}, BETTER, "a")
    assert (found.images, found.measures, found.cells) == (2, (), ())
    nothing = summarize([], {}, BETTER)
    assert (nothing.images, nothing.methods, nothing.cells, nothing.curves) == (0, (), (), ())
    for each in (found, nothing):
        assert json.loads(each.to_json())["cells"] == []
        assert each.markdown()


def test_no_image_in_common_with_the_baseline() -> None:
    found = summarize(rows_of("deletion", {"a": [1.0, None], "b": [None, 1.0]}), {}, BETTER, "a")
    assert cell(found, "b", "deletion").difference is None
    assert cell(found, "b", "deletion").images == 1


def test_a_baseline_must_be_one_of_the_methods() -> None:
    with pytest.raises(OptionError, match="baseline must be one of the methods, one, three, two"):
        summarize(BLUR, {}, BETTER, "gmar")
    found = summarize(BLUR, {"methods": ["gmar", "one"]}, BETTER, "gmar")  # without rows as yet
    assert found.baseline == "gmar"
    assert all(one.difference is None for one in found.cells)


def test_a_direction_must_be_one() -> None:
    with pytest.raises(OptionError, match=r"higher_is_better of deletion must be .* got 'down'"):
        summarize(BLUR, {}, {"deletion": "down"})  # type: ignore[dict-item]


def curve_rows(curves: dict[int, Any], fractions: Any = (0, 0.5, 1)) -> list[dict[str, Any]]:
    return [
        row(index, "gmar", {}, curves={"blur": {"morf": curve}}, fractions=list(fractions))
        for index, curve in curves.items()
    ]


def only_curve(rows: list[dict[str, Any]]) -> Curve:
    (found,) = summarize(rows, {}, BETTER).curves
    return found


def test_curves_are_means_with_bands() -> None:
    scores = {0: [0.8, 0.4, 0.0], 1: [0.6, 0.6, 0.2], 4: [1.0, 0.5, 0.1]}
    found = only_curve(curve_rows(scores))
    interval = bootstrap(np.array(list(scores.values())))
    assert (found.method, found.perturbation, found.order) == ("gmar", "blur", "morf")
    assert (found.fractions, found.images) == ((0, 0.5, 1), 3)
    for got, wanted in zip((found.mean, found.low, found.high), interval, strict=True):
        assert got == pytest.approx(tuple(wanted))


def test_a_curve_with_a_gap_does_not_count() -> None:
    found = only_curve(curve_rows({0: [1.0, 0.5, 0.0], 1: [1.0, None, 0.0], 2: None}))
    assert (found.mean, found.low, found.high, found.images) == ((1.0, 0.5, 0.0), None, None, 1)


def test_curves_at_other_fractions_are_read_between_them() -> None:
    rows = curve_rows({3: [0.9, 0.9, 0.9]})
    rows += curve_rows({5: [1.0, 0.6, 0.4, 0.2, 0.0]}, (0, 0.4, 0.6, 0.8, 1))
    for each in (rows, rows[::-1]):
        found = only_curve(each)
        assert found.fractions == (0, 0.5, 1)
        assert found.mean == pytest.approx((0.95, 0.7, 0.45))


@pytest.mark.parametrize("fractions", [None, [0, 1]], ids=["none", "too few"])
def test_a_curve_needs_its_fractions(fractions: Any) -> None:
    curves = {"blur": {"morf": [1.0, 0.5, 0.0]}}
    with pytest.raises(InputError, match=r"the curve of gmar under blur .* 3 scores"):
        summarize([row(2, "gmar", {}, curves=curves, fractions=fractions)], {}, BETTER)


def test_curves_come_by_perturbation_method_and_order() -> None:
    curves = {name: {"lerf": [1, 0], "morf": [1, 0]} for name in ("blur", "noise")}
    rows = [row(0, name, {}, curves=curves, fractions=[0, 1]) for name in ("b", "a")]
    found = summarize(rows, {"perturbations": ["noise", "blur"], "methods": ["b", "a"]}, BETTER)
    assert [(one.perturbation, one.method, one.order) for one in found.curves] == [
        (name, method, order)
        for name in ("noise", "blur")
        for method in ("b", "a")
        for order in ("morf", "lerf")
    ]


def test_the_json_has_all_numbers_and_no_others() -> None:
    plan = {"score": "logit", "limit": math.inf, "classes": {3, 1}, "path": object}
    found = summarize(everything(0), plan, BETTER, "gmar", seed=5)
    read = json.loads(found.to_json(), parse_constant=pytest.fail)
    assert read["settings"]["score"] == "logit"
    assert read["settings"]["limit"] == "inf"
    assert read["settings"]["classes"] == ["1", "3"]
    assert read["statistics"]["seed"] == 5
    assert read["images"] == 5
    assert read["methods"] == ["gmar", "legrad", "random"]
    assert read["baseline"] == "gmar"
    assert read["cells"] == found.records()
    assert len(read["curves"]) == len(found.curves) == 6
    assert read["failures"][0] == {"index": 3, "key": "3.png", "method": None, "reason": "no good"}
    first = found.cells[1]
    assert first.difference is not None
    assert read["cells"][1] == {
        "method": "legrad",
        "measure": "deletion:blur",
        "metric": "deletion",
        "perturbation": "blur",
        "higher_is_better": False,
        "mean": first.mean,
        "low": first.low,
        "high": first.high,
        "images": 4,
        "baseline": "gmar",
        "difference": {
            "mean": first.difference.mean,
            "low": first.difference.low,
            "high": first.difference.high,
            "images": 4,
            "p": first.difference.p,
            "corrected": first.difference.corrected,
            "verdict": first.difference.verdict,
        },
    }
