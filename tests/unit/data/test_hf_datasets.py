"""Data sets of the package ``datasets``: in memory, on disk, and from a server as the Hub is."""

from __future__ import annotations

import json
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_gmar.data import CLASSES, draw_scene, open_data
from hf_gmar.errors import DataError, HfGmarError, ImageFileError, OptionError
from tests.support.hub_server import serve_hub
from tests.support.interpreter import run_python

SHAPES = dict(enumerate(CLASSES))
SCENES = [draw_scene(seed) for seed in range(4)]
CLASS = datasets.ClassLabel(names=list(CLASSES))


@pytest.fixture(autouse=True)
def _without_bars() -> None:
    datasets.disable_progress_bars()


def table(**columns: tuple[list[Any], Any]) -> datasets.Dataset:
    """A data set of columns, each values and their type."""
    return datasets.Dataset.from_dict(
        {name: values for name, (values, _) in columns.items()},
        features=datasets.Features({name: kind for name, (_, kind) in columns.items()}),
    )


def pictures() -> tuple[list[Any], Any]:
    return [scene.image for scene in SCENES], datasets.Image()


def shapes(**more: tuple[list[Any], Any]) -> datasets.Dataset:
    """The scenes with the mask and the class of their first objects."""
    return table(
        image=pictures(),
        mask=([Image.fromarray(scene.masks[0]) for scene in SCENES], datasets.Image()),
        label=([scene.classes[0] for scene in SCENES], CLASS),
        **more,
    )


def labelled(values: list[Any], kind: Any) -> datasets.Dataset:
    return table(image=pictures(), label=(values, kind))


def labels_of(rows: datasets.Dataset, labels: dict[int, str], **options: Any) -> list[int | None]:
    """As the data set says without reading images, and as its examples have them."""
    data = open_data(rows, labels, **options)
    found = [data.label(index) for index in range(len(data))]
    assert found == [example.label for example in data]
    return found


def test_rows_are_images_with_masks_and_labels() -> None:
    data = open_data(shapes(), SHAPES)
    assert [data.key(index) for index in range(4)] == ["0", "1", "2", "3"]
    for index, (scene, example) in enumerate(zip(SCENES, data, strict=True)):
        assert example.key == str(index)
        assert example.label == data.label(index) == scene.classes[0]
        assert example.image.tobytes() == scene.image.tobytes()
        assert list(example.masks) == [example.label]
        assert np.array_equal(example.masks[example.label], scene.masks[0])
    assert (data.notices, data.name) == ((), "the data set")
    with pytest.raises(IndexError):
        data[4]


def test_a_row_without_a_mask() -> None:
    masks = [None, *(Image.fromarray(scene.masks[0]) for scene in SCENES[1:])]
    rows = table(image=pictures(), mask=(masks, datasets.Image()))
    found = [list(example.masks) for example in open_data(rows, SHAPES)]
    assert found == [[], [None], [None], [None]]


@pytest.mark.parametrize(
    ("values", "kind", "found"),
    [
        ([0, 2, -1, None], CLASS, [0, 2, None, None]),
        ([1, 7, -1, None], datasets.Value("int64"), [1, 7, None, None]),
        (["ring", "3", "", None], datasets.Value("string"), [1, 3, None, None]),
        (["dog", "disc", "9", "ring"], datasets.Value("string"), [None, 0, None, 1]),
        ([0, 1, 1, 0], datasets.ClassLabel(names=["Heart", "dog"]), [6, None, None, 6]),
        ([0, 1, 1, 0], datasets.ClassLabel(names=["5", "6"]), [5, 6, 6, 5]),
    ],
    ids=["classes", "numbers", "text", "unknown", "other classes", "names that are numbers"],
)
def test_labels(values: list[Any], kind: Any, found: list[int | None]) -> None:
    assert labels_of(labelled(values, kind), SHAPES) == found


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, -1, None, 7], datasets.Value("int64")),
        ([1, -1, None, 7], CLASS),
        (["ring", "", None, "3"], datasets.Value("string")),
    ],
    ids=["numbers", "classes", "text"],
)
def test_a_class_that_is_not_given_needs_no_notice(values: list[Any], kind: Any) -> None:
    assert open_data(labelled(values, kind), SHAPES).notices == ()


def test_the_only_columns_of_their_types_may_have_any_name() -> None:
    rows = table(
        scan=pictures(), kind=([1, 2, 3, 4], CLASS), text=(["a"] * 4, datasets.Value("string"))
    )
    data = open_data(rows, SHAPES)
    assert (data.settings["image_column"], data.settings["label_column"]) == ("scan", "kind")
    assert data.label(3) == 4


def test_class_names_by_a_label_map() -> None:
    rows = labelled([0, 1, 1, 0], datasets.ClassLabel(names=["n01", "n02"]))
    assert labels_of(rows, SHAPES, label_map={"n02": "ring"}) == [None, 1, 1, None]


def test_classes_by_number_only_where_the_model_has_no_names() -> None:
    rows = labelled([2, 1, -1, 0], datasets.ClassLabel(names=["a", "b", "c"]))
    nameless = {index: f"LABEL_{index}" for index in range(3)}
    assert labels_of(rows, nameless) == [2, 1, None, 0]
    assert "same order" in open_data(rows, nameless).notices[0]
    assert labels_of(rows, nameless, label_map={"a": 2}) == [None, None, None, 2]
    assert labels_of(rows, {**nameless, 3: "LABEL_3"}) == [None] * 4
    assert labels_of(rows, {0: "x", 1: "y", 2: "z"}) == [None] * 4


@pytest.mark.parametrize(
    "kind",
    [datasets.Value("float32"), datasets.List(datasets.Value("int64"))],
    ids=["float", "list"],
)
def test_labels_of_another_type(kind: Any) -> None:
    values = [1.0] * 4 if isinstance(kind, datasets.Value) else [[1]] * 4
    with pytest.raises(OptionError, match="column 'label' is of the type"):
        open_data(labelled(values, kind), SHAPES)


def test_no_labels() -> None:
    data = open_data(table(picture=pictures()), SHAPES)
    assert [data.label(index) for index in range(4)] == [None] * 4
    assert "do not say" in data.notices[0]
    assert data.settings["image_column"] == "picture"
    assert not any(example.masks for example in data)


def test_columns_are_chosen() -> None:
    rows = table(
        one=pictures(),
        two=([scene.image.rotate(90) for scene in SCENES], datasets.Image()),
        three=([Image.fromarray(scene.masks[0]) for scene in SCENES], datasets.Image()),
        fine=([1, 2, 3, 4], CLASS),
        coarse=([0, 0, 0, 1], CLASS),
    )
    options: dict[str, Any] = {
        "image_column": "two",
        "label_column": "fine",
        "mask_column": "three",
    }
    data = open_data(rows, SHAPES, **options)
    assert data.label(3) == 4
    assert data[1].image.tobytes() == SCENES[1].image.rotate(90).tobytes()
    assert np.array_equal(data[1].masks[2], SCENES[1].masks[0])
    assert {name: data.settings[name] for name in options} == options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "one, two may be the images; choose one with image_column"),
        ({"image_column": "one"}, "classes: fine, coarse; choose one with label_column"),
        ({"image_column": "x"}, "no column 'x'"),
        ({"image_column": "fine"}, r"'fine' holds no images; .*one \(Image\).*fine \(ClassLabel\)"),
        ({"image_column": "one", "mask_column": "fine"}, "'fine' holds no images"),
        ({"image_column": "one", "mask_column": "x"}, "no column 'x'"),
        ({"image_column": "one", "label_column": "x"}, "no column 'x'"),
        ({"image_column": "one", "label_column": "two"}, "'two' is of the type Image"),
    ],
)
def test_columns_that_must_be_chosen(options: dict[str, str], said: str) -> None:
    rows = table(one=pictures(), two=pictures(), fine=([1] * 4, CLASS), coarse=([0] * 4, CLASS))
    with pytest.raises(OptionError, match=said):
        open_data(rows, SHAPES, **options)  # type: ignore[arg-type]


def test_columns_that_are_known_by_their_names() -> None:
    rows = table(
        Image=pictures(), other=pictures(), label=([1] * 4, CLASS), coarse=([0] * 4, CLASS)
    )
    data = open_data(rows, SHAPES)
    assert (data.settings["image_column"], data.settings["label_column"]) == ("Image", "label")


def test_no_images_at_all() -> None:
    with pytest.raises(OptionError, match="none may be the images"):
        open_data(table(label=([1], CLASS)), SHAPES)
    masks = table(mask=([Image.new("L", (2, 2))], datasets.Image()))
    with pytest.raises(OptionError, match="none may be the images"):
        open_data(masks, SHAPES)


def content_of(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "png")
    return file.getvalue()


def test_broken_and_missing_images_are_said_with_their_row(tmp_path: Path) -> None:
    whole = content_of(SCENES[0].image)
    cells = [{"bytes": whole, "path": None}, {"bytes": whole[:900], "path": "x.png"},
             None, {"bytes": None, "path": str(tmp_path / "gone.png")}]  # fmt: skip
    data = open_data(table(image=(cells, datasets.Image())), SHAPES)
    assert data[0].image.size == (96, 96)
    for index, said in ((1, "row 1 is broken"), (2, "row 2 is empty"), (3, "no image file")):
        with pytest.raises(ImageFileError, match=f"{said}.*" if index < 3 else "row 3"):
            data[index]


def test_a_broken_mask_and_one_of_another_size() -> None:
    masks = [{"bytes": b"x", "path": None}, Image.new("L", (96, 95)), None, None]
    data = open_data(table(image=pictures(), mask=(masks, datasets.Image())), SHAPES)
    with pytest.raises(ImageFileError, match="the mask of row 0"):
        data[0]
    with pytest.raises(ImageFileError, match="the mask of row 1 has 96 x 95"):
        data[1]


def test_a_format_of_the_users_does_not_matter() -> None:
    rows = shapes().with_format("torch", columns=["label"])
    data = open_data(rows, SHAPES)
    assert data[1].label == SCENES[1].classes[0]
    assert rows.format["type"] == "torch"


def test_settings_tell_what_is_in_the_rows() -> None:
    plain = open_data(shapes(), SHAPES).settings
    assert open_data(shapes(), SHAPES).settings == plain
    assert json.loads(json.dumps(plain)) == plain
    other = shapes().select([0, 1, 3, 2])
    assert open_data(other, SHAPES).settings["content"] != plain["content"]
    unlabelled = shapes().remove_columns("label")
    assert open_data(unlabelled, SHAPES).settings["content"] != plain["content"]
    blank = [Image.new("RGB", (96, 96)), *(scene.image for scene in SCENES[1:])]
    painted, plain = (
        open_data(table(image=(images, datasets.Image())), SHAPES).settings
        for images in (blank, [scene.image for scene in SCENES])
    )
    assert painted["content"] != plain["content"]


def test_the_split_that_rows_know_of_themselves() -> None:
    rows = datasets.Dataset.from_dict({"image": pictures()[0]}, split=datasets.Split.TEST)
    rows = rows.cast_column("image", datasets.Image())
    assert open_data(rows, SHAPES).settings["split"] == "test"
    assert len(open_data(rows, SHAPES, split="test")) == 4
    assert open_data(shapes(), SHAPES).settings["split"] is None


# On disk.


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A data set without splits, and one with two."""
    shapes().save_to_disk(tmp_path / "one")
    splits = {"train": shapes(), "test": shapes().select([2, 3])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "two")
    datasets.DatasetDict({"val": shapes()}).save_to_disk(tmp_path / "single")
    return tmp_path


def test_a_folder_of_datasets(saved: Path) -> None:
    data = open_data(saved / "one", SHAPES)
    assert data[3].image.tobytes() == SCENES[3].image.tobytes()
    assert data.name == str(saved / "one")
    assert (data.settings["name"], data.settings["split"]) == ("one", None)


def test_a_split_on_disk(saved: Path) -> None:
    for data in (
        open_data(saved / "two", SHAPES, split="test"),
        open_data(f"{saved / 'two'}:test", SHAPES),
    ):
        assert (len(data), data.settings["split"]) == (2, "test")
        assert data[0].image.tobytes() == SCENES[2].image.tobytes()
    assert len(open_data(saved / "single", SHAPES)) == 4


def test_a_dictionary_in_memory(saved: Path) -> None:
    found = datasets.load_from_disk(str(saved / "two"))
    assert len(open_data(found, SHAPES, split="test")) == 2
    with pytest.raises(DataError, match="the splits train, test"):
        open_data(found, SHAPES)


@pytest.mark.parametrize(
    ("source", "options", "error", "said"),
    [
        ("two", {}, DataError, "has the splits train, test; choose one.*two:train"),
        ("two:val", {}, DataError, "no split 'val'; it has train, test"),
        ("one:val", {}, DataError, "no split 'val': it is one data set without splits"),
        ("one", {"config": "x"}, OptionError, "config means nothing"),
        ("one", {"label_column": "x"}, OptionError, "no column 'x'"),
    ],
)
def test_what_a_folder_does_not_have(
    saved: Path, source: str, options: dict[str, Any], error: type[HfGmarError], said: str
) -> None:
    with pytest.raises(error, match=said):
        open_data(f"{saved}/{source}", SHAPES, **options)


def test_a_folder_that_is_damaged(saved: Path) -> None:
    (saved / "one" / "state.json").write_text("{")
    with pytest.raises(DataError, match=r"the folder .*one can't be loaded: \w+"):
        open_data(saved / "one", SHAPES)


def test_a_folder_of_images_with_a_file_of_that_name(tmp_path: Path) -> None:
    SCENES[0].image.save(tmp_path / "a.png")
    (tmp_path / "dataset_info.json").write_text("{}")
    assert open_data(tmp_path, SHAPES).key(0) == "a.png"


def test_a_stream_is_no_data_set() -> None:
    with pytest.raises(DataError, match="type IterableDataset; needed is a Dataset"):
        open_data(shapes().to_iterable_dataset(), SHAPES)


def test_without_the_package_it_is_said(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    for source in (saved / "one", "org/shapes"):
        with pytest.raises(DataError, match=r'pip install "hf-gmar\[datasets\]"'):
            open_data(source, SHAPES)


# From the Hub, in a process of its own: the Hub's settings are read at import.

_OPEN = """
import json, sys
from hf_gmar.data import open_data
from hf_gmar.errors import HfGmarError
from hf_gmar.data import CLASSES

def outcome(source, options):
    try:
        data = open_data(source, dict(enumerate(CLASSES)), **options)
    except HfGmarError as error:
        return {"error": type(error).__name__, "said": str(error)}
    labels = [data.label(index) for index in range(len(data))]
    return {"labels": labels, "size": data[0].image.size, "settings": dict(data.settings)}

assert "datasets" not in sys.modules
print(json.dumps([outcome(*call) for call in json.loads(sys.argv[1])]))
"""


def _open_elsewhere(calls: list[Any], home: Path, **environment: str) -> list[dict[str, Any]]:
    words = ["-c", _OPEN, json.dumps(calls)]
    done = run_python(words, home.parent, {"HF_HOME": str(home), **environment})
    return list(json.loads(done.stdout))


def test_a_data_set_of_the_hub(tmp_path: Path) -> None:
    for name in ("two", "configs"):
        (tmp_path / name).mkdir()
    for split in ("train", "test"):
        shapes().remove_columns("mask").to_parquet(tmp_path / "two" / f"{split}.parquet")
        shapes().to_parquet(tmp_path / "configs" / f"{split}.parquet")
    (tmp_path / "configs" / "README.md").write_text(
        "---\nconfigs:\n- config_name: a\n  data_files: train.parquet\n"
        "- config_name: b\n  data_files: test.parquet\n---\n"
    )
    served = {f"datasets/org/{name}": tmp_path / name for name in ("two", "configs")}
    calls = [
        ("org/two", {"split": "train[:3]"}), ("org/two", {}), ("org/two:val", {}),
        ("org/configs:train", {"config": "b", "limit": 2}), ("org/configs", {}),
        ("org/nothing", {}),
    ]  # fmt: skip
    with serve_hub(served) as (url, requests):
        found = _open_elsewhere(calls, tmp_path / "home", HF_ENDPOINT=url)
        asked = len(requests)
        offline = _open_elsewhere(
            [calls[0], calls[5]], tmp_path / "home", HF_ENDPOINT=url, HF_HUB_OFFLINE="1"
        )
        assert len(requests) == asked
    labels = [scene.classes[0] for scene in SCENES]
    assert (found[0]["labels"], found[0]["size"]) == (labels[:3], [96, 96])
    settings = found[0]["settings"]
    assert (settings["name"], settings["split"]) == ("org/two", "train[:3]")
    assert offline[0] == found[0]
    assert "org/two has the splits" in found[1]["said"]
    assert "val" in found[2]["said"]
    assert "chosen by config and split" in found[2]["said"]
    assert found[3]["settings"]["config"] == "b"
    assert len(found[3]["labels"]) == 2
    assert "'a', 'b'" in found[4]["said"]
    for lost in (found[5], offline[1]):
        assert lost["error"] == "DataError"
        assert "no file or folder 'org/nothing', and as a data set of the Hub" in lost["said"]
