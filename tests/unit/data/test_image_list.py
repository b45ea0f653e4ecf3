"""Lists of images as data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import Saliency
from PIL import Image

from hf_gmar import evaluate
from hf_gmar.data import CLASSES, draw_scene, open_data
from hf_gmar.errors import DataError, ImageFileError, OptionError
from hf_gmar.models import LoadedModel, load_model

LABELS = dict(enumerate(CLASSES))
SCENE = draw_scene(18).image


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of the scene."""
    SCENE.save(tmp_path / "a scene.png")
    return tmp_path / "a scene.png"


def test_every_form_of_an_image(path: Path) -> None:
    values = np.asarray(SCENE)
    np.save(path.with_suffix(".npy"), values)
    with Image.open(path) as opened:
        forms: list[Any] = [
            path, str(path), SCENE, opened, values, values.astype(float),
            torch.from_numpy(values.copy()).permute(2, 0, 1),
        ]  # fmt: skip
        data = open_data(forms, LABELS)
        assert len(data) == 7
        assert [data.key(n) for n in range(7)] == [
            path.as_posix(), f"{path.as_posix()}#2", "image 2", "a scene.png", "image 4", "image 5",
            "image 6",
        ]  # fmt: skip
        for example in data:
            assert example.label is None
            assert np.array_equal(np.asarray(example.image), values)
    assert data.notices == ("the data do not say of what class an image is",)


def test_the_mode_of_the_model() -> None:
    grey = np.arange(30).reshape(5, 6)
    for mode, array in (("L", grey), ("RGBA", np.stack([grey] * 4, -1))):
        (example,) = open_data([array], LABELS, mode=mode)
        assert example.image.mode == mode
        assert np.array_equal(np.asarray(example.image), array)


def test_pairs_have_classes() -> None:
    numbered = {0: "cat", 1: "2", 2: "dog"}
    pairs = [
        (SCENE, 0), [SCENE, "dog"], (SCENE, None), SCENE, (SCENE, np.int64(1)), (SCENE, "lynx"),
        (SCENE, torch.tensor(2)), (SCENE, 9),
    ]  # fmt: skip
    data = open_data(pairs, numbered)
    labels = [data.label(n) for n in range(len(data))]
    assert labels == [0, 2, None, None, 1, None, 2, None]
    assert [example.label for example in data] == labels
    assert "2 of 6 class names of the data ('9', 'lynx') fit no class" in data.notices[0]
    mapped = open_data([(SCENE, "lynx"), (SCENE, 0)], numbered, label_map={"lynx": 0, "0": 2})
    assert [mapped.label(n) for n in range(2)] == [0, 2]
    with pytest.raises(OptionError, match="several of that name or number"):
        open_data([(SCENE, "2")], numbered)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (3, "an item of the type int at 1"),
        (None, "an item of the type NoneType at 1"),
        ({"image": SCENE}, "an item of the type dict at 1"),
        ((SCENE, 1, SCENE), "a tuple of Image, int, Image at 1"),
        ((SCENE, 1.5), "a tuple of Image, float at 1"),
        ((SCENE, True), "a tuple of Image, bool at 1"),
        ((SCENE, torch.tensor([1, 2])), "a tuple of Image, Tensor at 1"),
        ((1, SCENE), "a tuple of int, Image at 1"),
    ],
)
def test_items_that_are_no_images(item: Any, words: str) -> None:
    with pytest.raises(
        DataError, match=rf"{words}; each item must be .* \[\(image, 281\), \.\.\.\]"
    ):
        open_data([SCENE, item], LABELS)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("nothing.png", "there is no image file nothing.png"),
        (np.full((4, 4, 3), 0.5), r"image 0: .* got float64 from 0.5 to 0.5; \(image \* 255\)"),
        (np.full((4, 4, 3), 300), "image 0: .* from 0 to 255 is needed, got int64 from 300 to 300"),
        (np.full((4, 4, 3), np.nan), "image 0: .* whole numbers"),
        (np.zeros((4, 4, 2)), r"image 0: an array of the shape \(4, 4, 2\) has no axis"),
        (Image.new("F", (4, 4)), "image 0: .* mode 'F'"),
    ],
)
def test_images_that_can_not_be_read(image: Any, words: str) -> None:
    data = open_data([image], LABELS)
    with pytest.raises(ImageFileError, match=words):
        data[0]


def test_a_list_has_no_columns() -> None:
    for options in ({"split": "a"}, {"mask_column": "m"}):
        with pytest.raises(OptionError, match="means nothing for a list of images"):
            open_data([SCENE], LABELS, **options)  # type: ignore[arg-type]


def test_settings_tell_other_images_apart(path: Path) -> None:
    first = open_data([path, SCENE], LABELS).settings
    assert first == open_data([path, SCENE.copy()], LABELS).settings
    changed = SCENE.copy()
    changed.putpixel((0, 0), (1, 2, 3))
    assert first != open_data([path, changed], LABELS).settings
    assert first != open_data([path, (SCENE, 3)], LABELS).settings
    path.write_bytes(path.read_bytes() + b"\0")
    assert first != open_data([path, SCENE], LABELS).settings


def test_a_list_is_evaluated(bundled: LoadedModel, path: Path) -> None:
    methods: Any = ["gmar", "IntegratedGradients:n_steps=2", Saliency]
    found = evaluate(bundled, [path, SCENE, "nothing.png"], methods, ["deletion"], steps=2)
    rows = [(row["key"], row["method"], row["target"]) for row in found.rows if row["method"]]
    names = ["gmar", "IntegratedGradients (n_steps=2)", "Saliency"]
    assert rows == [(key, name, 6) for key in (path.as_posix(), "image 1") for name in names]
    assert all(row["values"] for row in found.rows if row["method"])
    described = {label: each["class"] for label, each in found.settings["methods"].items()}
    assert described["Saliency"] == "captum.attr._core.saliency.Saliency"
    assert described[names[1]] == "captum.attr._core.integrated_gradients.IntegratedGradients"
    (broken,) = [row for row in found.rows if not row["method"]]
    assert "there is no image file nothing.png" in broken["error"]
    pairs = [(SCENE, "cross"), (path, 6)]
    found = evaluate(bundled, pairs, ["gmar"], ["deletion"], steps=2, explained_class="label")
    assert [row["target"] for row in found.rows] == [4, 6]


def test_captums_methods_get_the_keywords_of_the_model() -> None:
    large = load_model("bundled", size=120, interpolate_pos_encoding=True)
    found = evaluate(large, [SCENE], ["DeepLift", "gmar"], ["deletion"], steps=2)
    assert [row.get("failure") for row in found.rows] == [None, None]
    assert all(row["values"] for row in found.rows)
