"""Data sets of image files: folders, folders of classes, tables."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hf_gmar.data import open_data, open_image
from hf_gmar.errors import DataError, HfGmarError, ImageFileError, OptionError

LABELS = {0: "cat", 1: "dog, hound", 2: "sea_snake"}


def picture(path: Path, level: int = 0, size: tuple[int, int] = (6, 4)) -> Path:
    """A grey image in a file, whose folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level,) * 3).save(path)
    return path


@pytest.fixture
def by_class(tmp_path: Path) -> Path:
    """A folder by class, in which two classes have files of one name and one is no class."""
    for number, name in enumerate(
        ("hound/a.png", "cat/a.png", "cat/deep/b.png", "sea snake/c.png")
    ):
        picture(tmp_path / "data" / name, number)
    picture(tmp_path / "data" / "ape" / "d.png")
    (tmp_path / "data" / "notes.txt").write_text("no image")
    return tmp_path / "data"


@pytest.fixture
def masked(tmp_path: Path) -> Path:
    """A table of three images, one of them twice, with labels and masks."""
    for number, name in enumerate(("a.png", "sub/b.png", "c.png")):
        picture(tmp_path / "files" / name, number)
    mask = np.zeros((4, 6), np.uint8)
    mask[1:3, 2:] = 255
    Image.fromarray(mask).save(tmp_path / "files" / "m.png")
    table = tmp_path / "files" / "table.csv"
    rows = (
        "path,label,mask",
        "a.png,cat,m.png",
        "sub/b.png,,m.png",
        "a.png,ape,",
        'c.png,"dog, hound",',
    )
    table.write_text("\n".join(rows))
    return table


def edited(table: Path, old: str, new: str) -> Path:
    """The table with one text in place of another, which it must have."""
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new))
    return table


# Folders.


def test_a_folder_by_class(by_class: Path) -> None:
    data = open_data(by_class, LABELS)
    keys = ["ape/d.png", "cat/a.png", "cat/deep/b.png", "hound/a.png", "sea snake/c.png"]
    assert [data.key(index) for index in range(len(data))] == keys
    assert [data.label(index) for index in range(len(data))] == [None, 0, 0, 1, 2]
    for key, example in zip(keys, data, strict=True):
        assert example.key == key
        assert example.image.tobytes() == open_image(by_class / key).tobytes()
        assert not example.masks
    assert data.name == str(by_class)
    assert "'ape'" in data.notices[0]
    assert "1 image has no label" in data.notices[0]


def test_a_folder_by_class_with_a_label_map(by_class: Path) -> None:
    data = open_data(str(by_class), LABELS, label_map={"ape": "dog", "cat": 2})
    assert [example.label for example in data] == [1, 2, 2, 1, 2]
    assert data.notices == ()


def test_a_flat_folder(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "cat.png"):
        picture(tmp_path / name)
    data = open_data(tmp_path, LABELS)
    assert [example.key for example in data] == ["a.png", "b.png", "cat.png"]
    assert [example.label for example in data] == [None] * 3
    assert "do not say of what class" in data.notices[0]


def test_a_folder_with_images_in_it_and_below_is_neither(by_class: Path) -> None:
    picture(by_class / "x.png")
    with pytest.raises(DataError, match="1 images of its own and 5 in subfolders"):
        open_data(by_class, LABELS)


def test_results_are_left_out(by_class: Path) -> None:
    picture(by_class / "results" / "figure.png")
    assert len(open_data(by_class, LABELS)) == 6
    assert len(open_data(by_class, LABELS, skip=by_class / "results")) == 5


def test_a_folder_of_splits(by_class: Path) -> None:
    root = by_class.with_name("splits")
    for split in ("train", "Test"):
        shutil.copytree(by_class, root / split)
    (root / "train" / "cat" / "a.png").unlink()
    with pytest.raises(DataError, match="look like splits, not classes: Test, train"):
        open_data(root, LABELS)
    for data in (open_data(root, LABELS, split="train"), open_data(f"{root}:train", LABELS)):
        assert [data.key(index) for index in range(2)] == ["ape/d.png", "cat/deep/b.png"]
        assert data.settings["name"] == "train"
    with pytest.raises(DataError, match="no subfolder 'val'"):
        open_data(root, LABELS, split="val")


def test_a_class_that_is_called_as_a_split_is(by_class: Path) -> None:
    picture(by_class / "train" / "engine.png")
    labels = {**LABELS, 3: "train"}
    data = open_data(by_class, labels)
    assert data.label(len(data) - 1) == 3


def test_a_folder_name_of_two_classes(by_class: Path) -> None:
    with pytest.raises(OptionError, match=r"'cat'.*several"):
        open_data(by_class, {0: "cat, pet", 1: "cat, lynx"})
    data = open_data(by_class, {0: "cat, pet", 1: "cat, lynx"}, label_map={"cat": 1})
    assert data.label(1) == 1


def test_a_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(ImageFileError, match="holds no image files"):
        open_data(tmp_path, LABELS)


def test_a_broken_image_is_said_with_its_key(by_class: Path) -> None:
    (by_class / "cat" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    data = open_data(by_class, LABELS)
    assert data.label(1) == 0
    with pytest.raises(ImageFileError, match=r"cat/a\.png"):
        data[1]
    assert data[2].key == "cat/deep/b.png"


def test_an_image_that_goes_meanwhile(by_class: Path) -> None:
    data = open_data(by_class, LABELS)
    (by_class / "cat" / "a.png").unlink()
    with pytest.raises(ImageFileError, match=r"no image file cat/a\.png"):
        data[1]


def test_settings_tell_what_is_in_files_but_not_where_they_are(
    by_class: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = open_data(by_class, LABELS).settings
    moved = shutil.copytree(by_class, by_class.parent / "elsewhere" / "data")
    assert open_data(moved, LABELS).settings == plain
    monkeypatch.chdir(moved)
    assert open_data(".", LABELS).settings == plain
    others = [open_data(moved, LABELS, label_map={"ape": 0}).settings]
    picture(moved / "cat" / "a.png", size=(60, 40))
    others.append(open_data(moved, LABELS).settings)
    picture(moved / "cat" / "e.png")
    others.append(open_data(moved, LABELS).settings)
    assert len({one["content"] for one in (plain, *others)}) == 4
    assert others[-1]["images"] == 6
    assert plain["kind"] == "folder by class"
    (moved / "cat" / "e.png").rename(moved / "cat" / "f.png")
    assert open_data(moved, LABELS).settings["content"] != others[-1]["content"]


# Tables.


def test_a_table(masked: Path) -> None:
    data = open_data(masked, LABELS)
    assert [data.key(index) for index in range(4)] == ["a.png", "sub/b.png", "a.png#2", "c.png"]
    assert [data.label(index) for index in range(4)] == [0, None, None, 1]
    examples = list(data)
    assert [example.label for example in examples] == [0, None, None, 1]
    assert [np.asarray(example.image).max() for example in examples] == [0, 1, 0, 2]
    assert [list(example.masks) for example in examples] == [[0], [None], [], []]
    for example in examples[:2]:
        found = example.mask_of(0)
        assert found is not None
        assert (found.sum(), found.shape) == (8, (4, 6))
    assert "'ape'" in data.notices[0]


@pytest.mark.parametrize(
    ("names", "options"),
    [
        ("Image,CLASS,Mask_Path", {}),
        ("file_name,label,mask", {}),
        ("x,y,z", {"image_column": "x", "label_column": "y", "mask_column": "z"}),
    ],
)
def test_columns_by_name(masked: Path, names: str, options: dict[str, Any]) -> None:
    data = open_data(edited(masked, "path,label,mask", names), LABELS, **options)
    assert (data.label(3), list(data[0].masks)) == (1, [0])
    columns = [data.settings[f"{what}_column"] for what in ("image", "label", "mask")]
    assert columns == names.split(",")


def test_columns_that_no_one_asked_for(masked: Path) -> None:
    data = open_data(edited(masked, "path,label,mask", "path,kind,outline"), LABELS)
    assert [(example.label, dict(example.masks)) for example in data] == [(None, {})] * 4
    assert "do not say of what class" in data.notices[0]


def test_spaces_around_cells(masked: Path) -> None:
    edited(masked, "path,label,mask", "path , label, mask")
    data = open_data(edited(masked, "a.png,cat,m.png", " a.png , cat , m.png "), LABELS)
    assert (data[0].key, data[0].label, list(data[0].masks)) == ("a.png", 0, [0])


def test_settings_of_a_table_tell_its_masks(masked: Path) -> None:
    before = open_data(masked, LABELS).settings
    Image.effect_noise((6, 4), 50).save(masked.parent / "m.png")
    after = open_data(masked, LABELS).settings
    assert (before["kind"], before["name"]) == ("table", "table.csv")
    assert before["content"] != after["content"]


def test_labels_by_number(masked: Path) -> None:
    data = open_data(edited(masked, "ape", "2"), LABELS)
    assert data.label(2) == 2


def test_absolute_paths(masked: Path) -> None:
    path = picture(masked.parent.parent / "far.png", 9)
    data = open_data(edited(masked, "c.png", str(path)), LABELS)
    assert np.asarray(data[3].image).max() == 9


def test_a_table_from_a_spreadsheet(masked: Path) -> None:
    masked.write_bytes(b"\xef\xbb\xbf" + masked.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\r\n")
    assert len(open_data(masked, LABELS)) == 4


@pytest.mark.parametrize(
    ("old", "new", "error", "said"),
    [
        ("path,", "file,", None, ""),
        ("path,label", "path,image", OptionError, "several columns.*image: path, image.*image_col"),
        ("sub/b.png,,m.png", "sub/b.png", DataError, "line 3 .* 1 cells and the first row 3"),
        ("path,", "where,", OptionError, "where, label, mask.*image_column"),
        ("path,label", "path,path", DataError, "two columns of one name"),
        ('"dog, hound"', "dog, hound", DataError, "line 5 .* 4 cells and the first row 3"),
        ("c.png,", ",", DataError, "line 5 .* no path in its column 'path'"),
        (",mask\n", "\n", DataError, "line 2 .* 3 cells and the first row 2"),
        ('"dog, hound"', '"dog, hound', DataError, "can't be read as a CSV file"),
    ],
)
def test_tables_that_are_refused(
    masked: Path, old: str, new: str, error: type[HfGmarError] | None, said: str
) -> None:
    table = edited(masked, old, new)
    if error is None:
        assert len(open_data(table, LABELS)) == 4
        return
    with pytest.raises(error, match=said):
        open_data(table, LABELS)


@pytest.mark.parametrize("content", [b"", b"path,label\n", b"\xff\xfe\x00"])
def test_files_that_are_no_tables(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"table\.csv"):
        open_data(tmp_path / "table.csv", LABELS)


@pytest.mark.parametrize("column", ["image_column", "label_column", "mask_column"])
def test_a_column_that_is_not_there(masked: Path, column: str) -> None:
    with pytest.raises(OptionError, match="no column 'x'; it has path, label, mask"):
        open_data(masked, LABELS, **{column: "x"})  # type: ignore[arg-type]


def test_a_missing_image_or_mask_is_said_when_it_is_read(masked: Path) -> None:
    data = open_data(masked, LABELS)
    (masked.parent / "c.png").unlink()
    (masked.parent / "m.png").unlink()
    with pytest.raises(ImageFileError, match=r"no image file the mask of a\.png"):
        data[0]
    with pytest.raises(ImageFileError, match=r"no image file c\.png"):
        data[3]
    again = open_data(masked, LABELS)
    assert again.settings["content"] != data.settings["content"]


def test_a_mask_of_another_size(masked: Path) -> None:
    Image.new("L", (4, 6)).save(masked.parent / "m.png")
    with pytest.raises(ImageFileError, match=r"mask of a\.png has 4 x 6 pixels.* 6 x 4"):
        open_data(masked, LABELS)[0]


def test_a_mask_in_colour(masked: Path) -> None:
    Image.new("RGB", (6, 4), (255, 0, 0)).save(masked.parent / "m.png")
    with pytest.raises(ImageFileError, match=r"mask of a\.png.*in colour"):
        open_data(masked, LABELS)[0]


# What is no data set, and options that do nothing.


@pytest.mark.parametrize(
    "source", ["./nothing", "a/b/c", "table.csv", "photos.zip", "/nothing", "a b", Path("nothing")]
)
def test_nothing_of_that_name(source: str | Path) -> None:
    with pytest.raises(DataError, match="no folder or file"):
        open_data(source, LABELS)


def test_a_single_image_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no folder and no \.csv file"):
        open_data(picture(tmp_path / "a.png"), LABELS)


@pytest.mark.parametrize("option", ["config", "image_column", "label_column", "mask_column"])
def test_options_that_a_folder_does_not_have(by_class: Path, option: str) -> None:
    with pytest.raises(OptionError, match=f"{option} means nothing for a folder.*has split"):
        open_data(by_class, LABELS, **{option: "x"})  # type: ignore[arg-type]


@pytest.mark.parametrize("option", ["config", "split"])
def test_options_that_a_table_does_not_have(masked: Path, option: str) -> None:
    with pytest.raises(OptionError, match=f"{option} means nothing for a CSV file"):
        open_data(masked, LABELS, **{option: "x"})  # type: ignore[arg-type]


def test_two_splits_are_one_too_many(by_class: Path) -> None:
    assert len(open_data(f"{by_class.parent}:data", LABELS, split="data")) == 5
    with pytest.raises(OptionError, match="names the split 'data' and split is 'other'"):
        open_data(f"{by_class.parent}:data", LABELS, split="other")


def test_a_folder_whose_name_has_a_colon(by_class: Path) -> None:
    assert len(open_data(str(by_class.rename(by_class.with_name("a:b"))), LABELS)) == 5


def test_scenes_go_before_a_folder_of_that_name(
    by_class: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_class.rename(by_class.with_name("scenes"))
    monkeypatch.chdir(by_class.parent)
    found: list[Any] = [open_data(name, LABELS) for name in ("scenes", "./scenes", Path("scenes"))]
    assert [len(data) for data in found] == [300, 5, 5]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_any_separator(masked: Path, separator: str) -> None:
    expected = [file.path.name for file in open_data(masked, LABELS).files]  # type: ignore[attr-defined]
    rows = list(csv.reader(masked.read_text().splitlines()))
    with masked.open("w", newline="") as file:
        csv.writer(file, delimiter=separator).writerows(rows)
    data = open_data(masked, LABELS)
    assert [file.path.name for file in data.files] == expected  # type: ignore[attr-defined]


def test_a_single_column(masked: Path) -> None:
    masked.write_text("path\na.png\n")
    assert len(open_data(masked, LABELS)) == 1
