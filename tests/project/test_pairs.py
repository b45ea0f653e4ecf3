"""The choice of rows that hold every pair."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from tests.reference.parity import ROWS
from tests.support.pairs import Row, covering_rows, factors_of, sampled_rows

VALUES = st.sampled_from("012")


def pairs_of(rows: Iterable[Row]) -> set[tuple[tuple[str, str], ...]]:
    return {pair for row in rows for pair in itertools.combinations(sorted(row.items()), 2)}


@given(st.lists(st.fixed_dictionaries(dict.fromkeys("abcd", VALUES)), max_size=40))
def test_no_pair_is_lost(rows: list[dict[str, str]]) -> None:
    assert pairs_of(rows[place] for place in covering_rows(rows)) == pairs_of(rows)


def test_the_choice_does_not_depend_on_the_order_of_the_rows() -> None:
    rows = [{"a": a, "b": b, "c": c} for a in "0123" for b in "0123" for c in "0123"]
    chosen = [rows[place] for place in covering_rows(rows)]
    backwards = [rows[::-1][place] for place in covering_rows(rows[::-1])]
    assert sorted(map(str, chosen)) == sorted(map(str, backwards))


def test_a_test_of_one_factor_keeps_all_its_rows() -> None:
    assert covering_rows([{"a": "0"}, {"a": "1"}]) == {0, 1}


def test_parity_in_a_fifth_of_its_rows() -> None:
    rows = [factors_of({"row": row, "dtype": dtype}) for row in ROWS for dtype in ("32", "64")]
    chosen = covering_rows(rows)
    assert {len(row) for row in rows} == {6}
    assert pairs_of(rows[place] for place in chosen) == pairs_of(rows)
    assert len(chosen) < len(rows) / 5


@given(
    st.lists(st.fixed_dictionaries(dict.fromkeys("ab", VALUES)), unique_by=str), st.integers(1, 3)
)
def test_each_value_stands_as_often_as_wanted_or_it_can(
    rows: list[dict[str, str]], times: int
) -> None:
    chosen = [rows[place] for place in sampled_rows(rows, times)]
    for factor, value in {item for row in rows for item in row.items()}:
        there = sum(row[factor] == value for row in rows)
        assert sum(row[factor] == value for row in chosen) >= min(times, there)


def test_a_sample_is_small() -> None:
    rows = [
        {"model": str(model), "method": str(method)} for model in range(17) for method in range(12)
    ]
    assert len(sampled_rows(rows, 4)) < len(rows) * 0.4
