"""The folder of a run: rows that survive, settings that keep runs apart."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hf_gmar._utils.option_strings import format_spec, parse_spec
from hf_gmar.errors import EvaluationError, OptionError
from hf_gmar.evaluation import summarize
from hf_gmar.evaluation.run.fingerprint import described, differences, digest, digest_of_weights
from hf_gmar.evaluation.run.store import Row, Store, finished, last_of_each

METHODS = ["gmar", "random"]
SETTINGS = {"steps": 10, "data": {"name": "scenes", "limit": None}}


def rows_of(index: int, **more: object) -> list[Row]:
    """The rows of one image."""
    row: Row = {"index": index, "key": f"image {index}", "values": {}, **more}
    return [{**row, "method": one} for one in METHODS]


def test_rows_come_back_in_any_number_of_files(tmp_path: Path) -> None:
    for process in range(3):
        store = Store(tmp_path, process)
        store.open(SETTINGS, resume=True)
        store.append(rows_of(process))
    rows = last_of_each(Store(tmp_path).rows(), METHODS)
    assert rows == rows_of(0) + rows_of(1) + rows_of(2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "rows.1.jsonl", "rows.2.jsonl", "rows.jsonl", "settings.json",
    ]  # fmt: skip


@pytest.mark.parametrize("cut", [1, 10, 90])
def test_a_line_that_was_cut_off_is_not_read_and_does_not_spoil_the_next(
    tmp_path: Path, cut: int
) -> None:
    store = Store(tmp_path)
    store.open(SETTINGS, resume=True)
    store.append(rows_of(0))
    store.append(rows_of(1))
    whole = store.file.read_bytes()
    store.file.write_bytes(whole[:-cut])
    left = 3 if cut < 60 else 2
    assert store.rows() == (rows_of(0) + rows_of(1))[:left]
    assert finished(store.rows(), METHODS) == {0}
    store.mend()
    store.append(rows_of(1))
    assert last_of_each(store.rows(), METHODS) == rows_of(0) + rows_of(1)
    json.loads(store.file.read_text().splitlines()[left])


def test_an_image_that_was_read_in_the_end_has_been_read() -> None:
    broken: Row = {"index": 1, "key": "image 1", "method": None, "error": "cut short"}
    assert finished([broken], METHODS) == set()
    assert last_of_each([*rows_of(0), broken], METHODS) == [*rows_of(0), broken]
    assert last_of_each([broken, *rows_of(1), *rows_of(0)], METHODS) == rows_of(0) + rows_of(1)
    assert last_of_each([*rows_of(1), broken], METHODS) == rows_of(1)


def test_the_last_of_two_rows_counts() -> None:
    assert last_of_each(rows_of(0, n=1) + rows_of(0, n=2), METHODS) == rows_of(0, n=2)


@given(st.permutations([row for index in range(4) for row in rows_of(index)]))
def test_the_order_of_writing_makes_no_difference(rows: list[Row]) -> None:
    assert last_of_each(rows, METHODS) == [row for index in range(4) for row in rows_of(index)]
    assert finished(rows, METHODS) == {0, 1, 2, 3}


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.open(SETTINGS, resume=True)
    store.append(rows_of(0))
    store.open(dict(SETTINGS), resume=True)
    other = {**SETTINGS, "steps": 20, "data": {"name": "photos", "limit": None}}
    with pytest.raises(EvaluationError) as caught:
        store.open(other, resume=True)
    for word in ("data.name", '"scenes" there', '"photos" now', "steps: 10 there, 20 now"):
        assert word in str(caught.value)
    assert store.rows() == rows_of(0)
    store.open(other, resume=False)
    assert store.rows() == []
    assert json.loads((tmp_path / "settings.json").read_text())["steps"] == 20


def test_settings_without_rows_may_change(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.open(SETTINGS, resume=True)
    store.open({"steps": 20}, resume=True)
    assert json.loads((tmp_path / "settings.json").read_text())["steps"] == 20


@pytest.mark.parametrize("text", [None, "{", "[]", '{"steps": 10}', '{"digest": 3}'])
def test_rows_of_unknown_settings_are_refused(tmp_path: Path, text: str | None) -> None:
    store = Store(tmp_path)
    store.open(SETTINGS, resume=True)
    store.append(rows_of(0))
    path = tmp_path / "settings.json"
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    with pytest.raises(EvaluationError, match=r"settings\.json"):
        store.open(SETTINGS, resume=True)
    assert store.rows() == rows_of(0)


def test_rows_of_another_run_are_not_seen(tmp_path: Path) -> None:
    Store(tmp_path, 0, "one").append(rows_of(0))
    Store(tmp_path, 1, "other").append(rows_of(1))
    assert Store(tmp_path, 0, "one").rows() == rows_of(0)
    assert Store(tmp_path, 0, "other").rows() == rows_of(1)


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"mine": 1}')
    (tmp_path / "rows.train.jsonl").write_text('{"index": 0}')
    for resume in (True, False):
        with pytest.raises(EvaluationError, match="not of a run"):
            Store(tmp_path).open(SETTINGS, resume)
    (tmp_path / "settings.json").unlink()
    Store(tmp_path).open(SETTINGS, resume=False)
    assert Store(tmp_path).rows() == []
    assert (tmp_path / "rows.train.jsonl").read_text() == '{"index": 0}'


def test_starting_again_takes_the_report_away(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.open(SETTINGS, resume=True)
    store.append(rows_of(0))
    (tmp_path / "examples").mkdir()
    for name in ("report.md", "curves-blur.png", "examples/000001.npz", "notes.txt"):
        (tmp_path / name).write_text("old")
    store.open(SETTINGS, resume=False)
    left = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["notes.txt", "settings.json"]


def test_a_line_that_is_no_row_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append(rows_of(0))
    store.file.write_text(store.file.read_text() + "no row\n")
    with pytest.raises(EvaluationError, match="line 3 of"):
        store.rows()


GOOD: Row = {
    "run": "", "index": 1, "key": "image 1", "method": "gmar", "values": {"m:p": 0.5},
    "curves": {"p": {"morf": [1, 0.5], "lerf": [1, 1]}}, "fractions": [0.0, 1.0],
}  # fmt: skip


def line_with(**changes: object) -> str:
    """A row with other values; ``...`` leaves one out."""
    return json.dumps({key: value for key, value in {**GOOD, **changes}.items() if value != ...})


NO_ROWS = {
    "list": "[]", "number": "3", "text": '"gmar"', "null": "null", "true": "true", "empty": "{}",
    "not JSON": "{'index': 1}", "cut": line_with()[:-1], "two": line_with() * 2,
    "not UTF-8": b"\xff", "deep": "[" * 100_000,
    "long number": line_with().replace("0.5", "1" * 5000),
    "no run": line_with(run=...), "run is a number": line_with(run=1),
    "no index": line_with(index=...), "index is a text": line_with(index="1"),
    "index is true": line_with(index=True), "index is a fraction": line_with(index=1.0),
    "index is negative": line_with(index=-1), "index of no image": line_with(index=3),
    "no key": line_with(key=...), "key is a number": line_with(key=1),
    "no method": line_with(method=...), "method is a list": line_with(method=["gmar"]),
    "method of another run": line_with(method="magic"),
    "no values": line_with(values=..., curves=...), "values are missing": line_with(values={}),
    "values are a list": line_with(values=[1]), "values are null": line_with(values=None),
    "value is a text": line_with(values={"m:p": "0.5"}),
    "value is true": line_with(values={"m:p": True}),
    "value is NaN": line_with(values={"m:p": float("nan")}),
    "value is infinite": line_with().replace("0.5}", "1e999}"),
    "value is too large": line_with(values={"m:p": 10**400}),
    "error is a list": line_with(error=[1]), "undefined is a text": line_with(undefined="m"),
    "curves are a list": line_with(curves=[1]), "curve is a list": line_with(curves={"p": [1]}),
    "scores are a text": line_with(curves={"p": {"morf": "ab"}}),
    "score is a text": line_with(curves={"p": {"morf": ["a", 1]}}),
    "scores without fractions": line_with(fractions=...),
    "fewer fractions": line_with(fractions=[0.0]),
    "fraction is null": line_with(fractions=[0, None]),
}  # fmt: skip


@pytest.mark.parametrize("line", NO_ROWS.values(), ids=NO_ROWS)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.7.jsonl"])
def test_what_is_no_row_is_refused_with_its_line(
    tmp_path: Path, line: str | bytes, name: str
) -> None:
    store = Store(tmp_path, images=3, methods=METHODS, measures=["m:p"])
    store.open(SETTINGS, resume=True)
    store.append([{key: value for key, value in GOOD.items() if key != "run"}])
    with (tmp_path / name).open("ab") as file:
        file.write(line if isinstance(line, bytes) else line.encode())
        file.write(b"\n" + line_with().encode())  # and a line that was cut off
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    number = 2 if name == "rows.jsonl" else 1
    with pytest.raises(EvaluationError, match=rf"^line {number} of \S+{name} is no row \("):
        store.rows()
    with pytest.raises(EvaluationError, match=rf"^line {number} of \S+{name} is no row \("):
        store.open({**SETTINGS, "model": {"name": "elsewhere"}}, resume=True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda parts: (
        st.lists(parts, max_size=3)
        | st.dictionaries(st.sampled_from(["m:p", "p", "morf", "lerf", "", ":"]), parts, max_size=3)
    ),
    max_leaves=6,
)
CHANGES = st.dictionaries(st.sampled_from([*GOOD, "error", "undefined", "label"]), JSON, max_size=2)


@given(st.lists(CHANGES, max_size=3), st.lists(JSON, max_size=1))
def test_a_line_is_a_row_that_can_be_summarized_or_it_is_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: list[Row], lines: list[object]
) -> None:
    store = Store(tmp_path_factory.mktemp("run"), images=3, methods=METHODS)
    text = [json.dumps({**GOOD, **change}) for change in changes] + list(map(json.dumps, lines))
    store.file.write_text("".join(line + "\n" for line in text))
    try:
        rows = store.rows()
    except EvaluationError as error:
        assert re.match(r"line \d of \S+ is no row \(", str(error))  # noqa: PT017
        return
    summary = summarize(last_of_each(rows, METHODS), {}, {"m": False})
    json.loads(summary.to_json())
    summary.markdown()


def test_rows_of_all_forms_that_a_run_writes_are_read(tmp_path: Path) -> None:
    forms: list[Row] = [
        {}, {"undefined": {"removal": "no reason"}, "values": {}}, {"values": {"m:p": None}},
        {"error": "broken", "values": ..., "curves": ..., "fractions": ...},
        {"method": None, "error": "broken", "values": ..., "curves": ...}, {"curves": {"p": {}}},
        {"values": {"m:p": 1}, "index": 0}, {"run": "of another run", "index": 99},
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(line_with(**form) + "\n" for form in forms))
    store = Store(tmp_path, images=3, methods=METHODS, measures=["m:p"])
    assert len(store.rows()) == len(forms) - 1


def test_settings_that_cannot_be_read_are_said_to_be_so(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    for content, reason in {b"\xff": "UnicodeDecodeError", b"{": "JSONDecodeError",
                            b"[" * 100_000: "RecursionError"}.items():  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(EvaluationError, match=rf"settings.json can't be read.*{reason}"):
            Store(tmp_path).open(SETTINGS, resume=True)
        assert path.read_bytes() == content
    path.unlink()
    path.mkdir()
    with pytest.raises(EvaluationError, match=r"settings.json can't be read.*directory"):
        Store(tmp_path).open(SETTINGS, resume=True)


@pytest.mark.parametrize("model", [3, "gmar", [["name"]], None, True, {}, {"name": []}])
@pytest.mark.parametrize("extra", [{}, {"data": 1, "steps": {"a": [None]}}])
def test_settings_of_any_form_are_other_settings(tmp_path: Path, model: object, extra: Row) -> None:
    store, settings = Store(tmp_path), {**SETTINGS, "model": {"name": "a", "weights": "b"}}
    store.open(settings, resume=True)
    store.append(rows_of(0))
    text = json.dumps({**settings, "digest": "0" * 16, "model": model, **extra})
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(EvaluationError, match=r"other settings \(.*model"):
        store.open(settings, resume=True)
    assert (tmp_path / "settings.json").read_text() == text


@pytest.mark.parametrize("deep", ["[1]", '{"a": 1}'])
def test_settings_of_any_depth_are_refused(tmp_path: Path, deep: str) -> None:
    """At some depth, Python reads what it can't write a few calls further down."""
    store = Store(tmp_path)
    store.open(SETTINGS, resume=True)
    store.append(rows_of(0))
    start, end = deep.split("1")
    depth = sys.getrecursionlimit()
    for levels in range(depth - 150, depth - 20):
        text = f'{{"digest": "0", "steps": {start * levels}1{end * levels}}}'
        (tmp_path / "settings.json").write_text(text)
        with pytest.raises(EvaluationError, match=r"can't be read|other settings"):
            store.open(SETTINGS, resume=True)


def test_a_long_name_in_the_settings_is_cut(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.open(SETTINGS, resume=True)
    store.append(rows_of(0))
    (tmp_path / "settings.json").write_text(json.dumps({"digest": "0", "x" * 5000: 1}))
    with pytest.raises(EvaluationError, match=r"x{77}\.\.\.: 1 there, nothing now"):
        store.open(SETTINGS, resume=True)


def test_a_changed_digest_is_said(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.open(SETTINGS, resume=True)
    store.append(rows_of(0))
    path = tmp_path / "settings.json"
    whole = path.read_text()
    digest_there = json.loads(whole)["digest"]
    path.write_text(whole.replace(digest_there, "0" * 16))
    with pytest.raises(EvaluationError) as caught:
        store.open(SETTINGS, resume=True)
    assert f"has the digest {'0' * 16}, and its settings have {digest_there}" in str(caught.value)
    path.write_text(whole)
    store.open(SETTINGS, resume=True)


def test_numbers_come_back_to_the_last_bit(tmp_path: Path) -> None:
    values = {"a": 0.1 + 0.2, "b": 1e-300, "c": None, "d": -0.0}
    Store(tmp_path).append(rows_of(0, values=values))
    assert Store(tmp_path).rows()[0]["values"] == values
    with pytest.raises(ValueError, match="JSON"):  # it would be no JSON
        Store(tmp_path).append(rows_of(0, values={"a": float("nan")}))


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    with Store(tmp_path).lock():
        other = Store(tmp_path)
        with pytest.raises(EvaluationError, match="another run"), other.lock():
            pass
    with Store(tmp_path).lock():
        pass


def test_digests_tell_settings_and_weights_apart() -> None:
    assert digest(SETTINGS) == digest(json.loads(json.dumps(SETTINGS)))
    assert digest(SETTINGS) != digest({**SETTINGS, "steps": 11})
    model = nn.Linear(3, 3, dtype=torch.bfloat16)
    before = digest_of_weights(model)
    assert before == digest_of_weights(model)
    with torch.no_grad():
        model.weight[2, 2] += 1
    assert digest_of_weights(model) != before
    assert digest_of_weights(nn.Linear(3, 3, dtype=torch.float16)) != before


def test_differences_say_what_is_new() -> None:
    old = {"a": {"x": 1}, "b": [1, 2], "same": 3}
    new = {"a": {"x": 2, "y": None}, "c": "z" * 200, "same": 3}
    assert differences(old, new)[:3] == [
        "a.x: 1 there, 2 now", "b: [1, 2] there, nothing now",
        f'c: nothing there, "{"z" * 76}... now',
    ]  # fmt: skip
    assert len(differences(old, new)) == 3


def test_things_are_described_by_their_plain_attributes() -> None:
    found = described(nn.Linear(2, 3))
    assert found["class"] == "torch.nn.modules.linear.Linear"
    assert (found["in_features"], found["out_features"]) == (2, 3)
    json.dumps(found)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("gmar", ("gmar", {})),
        ("gmar:alpha=0.5", ("gmar", {"alpha": 0.5})),
        ("gmar:norm=l2, alpha=2", ("gmar", {"norm": "l2", "alpha": 2})),
        ("dataset-mean:colour=[0.1,0.2,0.3]", ("dataset-mean", {"colour": [0.1, 0.2, 0.3]})),
        ("x:a=true,b=null,c=one=two", ("x", {"a": True, "b": None, "c": "one=two"})),
    ],
)
def test_names_with_options_are_read(text: str, found: tuple[str, dict[str, object]]) -> None:
    assert parse_spec(text) == found


@pytest.mark.parametrize("text", ["", ":a=1", "gmar:", "gmar:alpha", "gmar:=1", "gmar:a=1,a=2"])
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(OptionError):
        parse_spec(text)


def test_labels_say_the_options() -> None:
    assert format_spec(*parse_spec("gmar:norm=l2,alpha=0.5")) == "gmar (norm=l2, alpha=0.5)"
