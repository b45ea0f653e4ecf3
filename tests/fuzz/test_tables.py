"""CSV files, label maps, labels as targets and option strings of any text."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import ViTConfig

from hf_gmar._utils.registry import Registry
from hf_gmar.data import open_data
from hf_gmar.errors import DataError, HfGmarError, OptionError, TargetError
from hf_gmar.methods import METHODS
from hf_gmar.metrics import METRICS
from hf_gmar.models import LoadedModel
from hf_gmar.models.labels import find_class, find_classes, labels_of
from hf_gmar.perturbations import PERTURBATIONS
from tests.support.mutations import as_a_user, changed_bytes, no_network

pytestmark = pytest.mark.extended

TABLE = b'path,label,mask\na.png,cat,m.png\n"b,1.png",dog,\nc.png,1,\n'
TABLES = [TABLE, TABLE.replace(b",", b";"), TABLE.replace(b",", b"\t"), b"image\na.png\n",
          b"\xef\xbb\xbf" + TABLE, TABLE.replace(b"\n", b"\r\n"), TABLE.decode().encode("utf-16"),
          b"name,class\nn01,cat\nn02,1\n"]  # fmt: skip
CELLS = st.sampled_from(
    ["path", "label", "mask", "image", "cat", "dog", "1", "01", " 2", "-1", "\u0661", "", " ", "\0",
     '"', "\r", "\n", "a/../b.png", "http://127.0.0.1:9/a.png", "data:image/png;base64,", "/", "~",
     "x" * 300, "9" * 5000, "\ud800", "\x85", "\u2028"]
) | st.text(max_size=5)  # fmt: skip
LABELS = {0: "cat, tabby", 1: "dog", 2: "1", 3: "", 4: "sea_snake"}


def _table(rows: list[list[str]], separator: str) -> bytes:
    return "\n".join(separator.join(row) for row in rows).encode("utf-8", "surrogatepass")


ANY_TABLE = (
    changed_bytes(TABLES)
    | st.binary(max_size=60)
    | st.builds(_table, st.lists(st.lists(CELLS, max_size=4), max_size=4), st.sampled_from(",;\t"))
)


@given(ANY_TABLE)
def test_any_table_is_a_data_set_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "table.csv"
    path.write_bytes(content)
    with as_a_user(), no_network():
        try:
            data = open_data(path, LABELS)
        except HfGmarError:
            return
        for index in range(len(data)):
            assert data.label(index) in (None, *LABELS)
            with pytest.raises(HfGmarError):
                data[index]  # no such file


@given(ANY_TABLE)
def test_any_file_is_a_label_map_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "map.csv").write_bytes(content)
    (folder / "images.csv").write_bytes(TABLE)
    with as_a_user(), suppress(DataError, OptionError):
        open_data(folder / "images.csv", LABELS, label_map=folder / "map.csv")


NAMES = CELLS | st.sampled_from(["index:1", "label:1", "index:", "label:", "index:label:1", ":"])


@given(st.lists(NAMES, max_size=6), NAMES | st.integers(), st.none() | st.integers(0, 8))
def test_a_target_is_a_class_that_it_names_or_an_error(
    labels: list[str], name: str | int, count: int | None
) -> None:
    config = ViTConfig(id2label=dict(enumerate(labels)))
    try:
        index = find_class(config, name, count)
    except TargetError as error:
        assert str(error)  # noqa: PT017
        return
    there = labels_of(config, count)
    assert index in there
    assert find_class(config, index, count) == index
    text = str(name).strip()
    texts = {part.casefold().strip() for part in (text, text.partition(":")[2])}
    own = {there[index].casefold(), *(part.strip() for part in there[index].casefold().split(","))}
    numbers = {int(part) for part in texts if part.lstrip("+-").isdigit() and len(part) < 12}
    assert texts & {part.strip() for part in own} or index in numbers


@given(st.lists(NAMES, max_size=4), st.lists(NAMES | st.integers(-2, 5), max_size=4))
def test_targets_are_different_classes_or_an_error(
    labels: list[str], names: list[str | int]
) -> None:
    config = ViTConfig(id2label=dict(enumerate(labels)))
    try:
        indices = find_classes(config, names)
    except TargetError:
        return
    assert len(set(indices)) == len(names)


VALUE = st.sampled_from(
    ["1", "l1", "true", "null", "[1, 2]", "-1", "1e999", "NaN", "9" * 400, "9" * 5000, "[" * 5000,
     '"\\ud800"', "{}", '{"a": 1}', "", "0.5", "-Infinity", "=,=", "2", "mean", "[[1]]", "1e-400"]
)  # fmt: skip


@given(st.data())
@pytest.mark.parametrize("registry", [METHODS, METRICS, PERTURBATIONS], ids=lambda it: it.kind)
def test_an_option_string_is_a_method_or_an_error(
    bundled: LoadedModel, registry: Registry[Any], data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(list(registry)) | st.text(max_size=5))
    known = list(registry.options(name)) if name in registry else []
    option = st.sampled_from([*known, "__class__", " "])
    options = data.draw(st.lists(st.tuples(option, VALUE), max_size=3))
    text = ":".join([name, *[",".join(map("=".join, options))] * bool(options)])
    model = [bundled.model] if registry is METHODS else []
    try:
        name, values = registry.parse(text)
        registry.build(name, *model, **values)
    except OptionError as error:
        assert str(error)  # noqa: PT017
        return
    assert registry.label(name, values).startswith(name)
