"""Data sets: classes by name, masks, cover, choices among images, synthetic scenes."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hf_gmar._utils.names import make_unique
from hf_gmar.data import CLASSES, Example, ImageDataset, draw_scene, open_data, patch_coverage
from hf_gmar.data.base import digest, stable_hash, take_evenly
from hf_gmar.data.class_names import Classes, Labels
from hf_gmar.data.masks import to_mask
from hf_gmar.errors import DataError, HfGmarError, ImageFileError, InputError, OptionError
from hf_gmar.models import ImageView, LoadedModel, measure_view

LABELS = {0: "tabby, tabby cat", 1: "sea_snake", 2: "crane, bird", 3: "crane, machine", 4: "7"}
SHAPES = dict(enumerate(CLASSES))


class Own(ImageDataset):
    """A data set of a user, of the fewest methods: grey images that get lighter."""

    def __init__(self, count: int) -> None:
        """So many."""
        super().__init__("own", {"kind": "own", "count": count})
        self.count = count

    def __len__(self) -> int:
        """How many."""
        return self.count

    def key(self, index: int) -> str:
        """A name with the number."""
        return f"grey {range(self.count)[index]}"

    def __getitem__(self, index: int) -> Example:
        """Grey of that level."""
        return Example(self.key(index), Image.new("RGB", (4, 4), (index,) * 3), index % 3)


# Classes by name.


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("tabby, tabby cat", 0),
        ("TABBY CAT", 0),
        ("tabby_cat", 0),
        ("sea_snake", 1),
        ("sea snake", 1),
        ("2", 2),
        (" 0 ", 0),
        ("bird", 2),
        ("7", 4),
        ("dog", None),
        ("5", None),
        ("-1", None),
        ("9" * 5000, None),
        ("", None),
        ("²", None),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_class_by_its_name(name: str, index: int | None) -> None:
    assert Classes(LABELS).find(name) == index


@pytest.mark.parametrize(
    ("labels", "name", "choices"),
    [
        (LABELS, "crane", ("2 (crane, bird)", "3 (crane, machine)")),
        ({0: "1", 1: "2"}, "1", ("0 (1)", "1 (2)")),
        ({0: "a_b c", 1: "a b_c"}, "a b c", ("0 (a_b c)", "1 (a b_c)")),
    ],
)
def test_a_name_of_several_classes(
    labels: dict[int, str], name: str, choices: tuple[str, ...]
) -> None:
    with pytest.raises(OptionError, match="label_map") as raised:
        Classes(labels).find(name)
    assert all(choice in str(raised.value) for choice in choices)


def test_a_full_label_goes_before_one_without_underscores() -> None:
    assert Classes({0: "a_b", 1: "a b"}).find("a_b") == 0


def test_a_label_map_goes_before_the_labels() -> None:
    classes = Classes.of(LABELS, {"crane": 3, "n0123": "bird", "tabby": 1, "x": 4})
    found = [classes.find(name) for name in ("crane", "n0123", "tabby", "x", "sea_snake")]
    assert found == [3, 2, 1, 4, 1]


def test_numbers_in_a_label_map_are_indices() -> None:
    labels = {0: "1", 1: "2"}
    assert Classes.of(labels, {"a": 1}).find("a") == 1
    with pytest.raises(OptionError, match="several"):
        Classes.of(labels, {"a": "1"})


@pytest.mark.parametrize("wanted", ["dog", 99, -1])
def test_a_label_map_to_no_class(wanted: str | int) -> None:
    with pytest.raises(OptionError, match=f"'a' the class {wanted!r}.*no such class"):
        Classes.of(LABELS, {"a": wanted})


def test_labels_as_json_has_them() -> None:
    """Keys are text in a config's file."""
    assert Classes.of({"3": "dog"}).find("dog") == 3  # type: ignore[dict-item]


@pytest.mark.parametrize("header", ["", "name,class\n", "\ufeffName, Class\n"])
def test_a_label_map_in_a_file(tmp_path: Path, header: str) -> None:
    path = tmp_path / "map.csv"
    path.write_text(header + 'n01,1\n\nn02,"tabby, tabby cat"\n', encoding="utf-8")
    classes = Classes.of(LABELS, path)
    assert dict(classes.named) == {"n01": 1, "n02": 0}
    assert Classes.of(LABELS, str(path)) == classes


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a,b,c\n", "two columns"),
        (b"a,1\na,2\n", "a name twice"),
        (b"\xff\xfe,1\n", "can't be read"),
        (None, "can't be read"),
    ],
)
def test_a_file_that_is_no_label_map(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "map.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=said):
        Classes.of(LABELS, path)


def test_names_that_fit_no_class_are_said_and_counted() -> None:
    names = ["dog", "sea_snake", None, "ape", "dog"]
    found = Labels.find(names, Classes(LABELS))
    assert found.of_images == (None, 1, None, None, None)
    assert len(found.notices) == 1
    assert "2 of 3 class names" in found.notices[0]
    assert "'ape', 'dog')" in found.notices[0]
    assert "3 images have no label" in found.notices[0]
    assert "1 image has no label" in Labels.find(["dog"], Classes(LABELS)).notices[0]


def test_many_names_that_fit_no_class_are_cut() -> None:
    notice = Labels.find(list("abcdefg"), Classes(LABELS)).notices[0]
    assert "'a', 'b', 'c', 'd', 'e', ...)" in notice
    assert "7 of 7" in notice


def test_no_notice_where_all_is_known_and_one_where_nothing_is() -> None:
    assert Labels.find(["bird", "7", None], Classes(LABELS)).notices == ()
    assert "do not say" in Labels.find([None, None], Classes(LABELS)).notices[0]


# Masks.


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P", "I;16", "I"])
def test_masks_of_two_levels(mode: str) -> None:
    drawn_mask = np.array([[True, False, False], [False, True, True]])
    picture = {
        "1": lambda: Image.fromarray(drawn_mask),
        "L": lambda: Image.fromarray(drawn_mask.astype(np.uint8)),
        "RGB": lambda: Image.fromarray(drawn_mask.astype(np.uint8) * 255).convert("RGB"),
        "P": lambda: _palette(drawn_mask.astype(np.uint8)),
        "I;16": lambda: Image.fromarray(drawn_mask.astype(np.uint16) * 65535),
        "I": lambda: Image.fromarray(drawn_mask.astype(np.int32) * 3),
    }[mode]()
    assert picture.mode == mode
    assert to_mask(picture).dtype == np.bool_
    assert np.array_equal(to_mask(picture), drawn_mask)


def _palette(levels: np.ndarray[Any, Any]) -> Image.Image:
    picture = Image.fromarray(levels)
    picture.putpalette([200, 0, 0, 0, 0, 0, 9, 9, 9])  # black is 1: colours don't count
    return picture


def test_smooth_masks_are_cut_at_half() -> None:
    levels = np.array([[0, 1, 127, 128, 200, 255]], np.uint8)
    assert to_mask(Image.fromarray(levels)).tolist() == [[False, False, False, True, True, True]]


@pytest.mark.parametrize("level", [0, 1, 255])
def test_masks_of_one_level(level: int) -> None:
    assert to_mask(Image.new("L", (3, 2), level)).all() == (level > 0)


@pytest.mark.parametrize(
    "picture",
    [
        Image.fromarray(np.array([[0, 1, 2]], np.uint8)),
        Image.fromarray(np.array([[0, 1, 2, 255]], np.uint8)),
        Image.fromarray(np.array([[0, 127, 255]], np.uint8)),
        Image.fromarray(np.array([[0, 90, 100]], np.uint8)),
        _palette(np.array([[0, 200, 255]], np.uint8)),
    ],
    ids=["numbers", "numbers and 255", "nothing above the middle", "dark", "palette"],
)
def test_maps_of_class_numbers_are_no_masks(picture: Image.Image) -> None:
    with pytest.raises(ImageFileError, match="map of class numbers"):
        to_mask(picture)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_coloured_pictures_are_no_masks(mode: str) -> None:
    picture = Image.new("RGB", (2, 2), (255, 0, 0)).convert(mode)
    with pytest.raises(ImageFileError, match=f"in colour .mode '{mode}'"):
        to_mask(picture)


def test_a_transparent_picture_is_no_mask() -> None:
    with pytest.raises(ImageFileError, match="'RGBA'"):
        to_mask(Image.new("RGBA", (2, 2), (255, 255, 255, 255)))


def test_the_mask_of_a_class_goes_before_one_of_no_class() -> None:
    image, one, other = Image.new("RGB", (2, 2)), np.eye(2, dtype=bool), np.ones((2, 2), bool)
    example = Example("a", image, 3, {3: one, None: other})
    assert example.mask_of(3) is one
    assert example.mask_of(4) is other
    assert Example("a", image, 3, {3: one}).mask_of(4) is None
    assert Example("a", image).mask_of(4) is None


# Cover.


def _overlap(start: Fraction, end: Fraction, pixel: int) -> Fraction:
    return max(Fraction(0), min(end, Fraction(pixel + 1)) - max(start, Fraction(pixel)))


def _plain_cover(
    mask: np.ndarray[Any, Any], box: tuple[float, float, float, float], grid: tuple[int, int]
) -> list[list[float]]:
    """Pixel by pixel, in exact fractions."""
    top, left, bottom, right = map(Fraction, box)
    height, width = (bottom - top) / grid[0], (right - left) / grid[1]
    found: list[list[float]] = []
    for row in range(grid[0]):
        found.append([])
        for column in range(grid[1]):
            area = Fraction(0)
            for y, x in zip(*np.nonzero(mask), strict=True):
                down = _overlap(top + row * height, top + (row + 1) * height, int(y))
                across = _overlap(left + column * width, left + (column + 1) * width, int(x))
                area += down * across
            found[-1].append(float(area / (height * width)))
    return found


edges = st.tuples(st.floats(-4, 3), st.floats(-4, 3), st.floats(4, 12), st.floats(4, 12))


@given(
    mask=st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=6),
    box=edges,
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_cover_is_the_exact_share_of_area(
    mask: list[list[bool]], box: tuple[float, float, float, float], grid: tuple[int, int]
) -> None:
    drawn_mask = np.array(mask)
    found = patch_coverage(drawn_mask, ImageView((len(mask), 5), box), grid)
    wanted = torch.tensor(_plain_cover(drawn_mask, box, grid), dtype=torch.float64)
    assert found.dtype == torch.float64
    assert torch.allclose(found, wanted, rtol=0, atol=5e-9)
    assert 0 <= found.min() <= found.max() <= 1


def test_cover_of_whole_pixels() -> None:
    mask = np.zeros((4, 6), bool)
    mask[:2, :3] = True
    found = patch_coverage(mask, ImageView((4, 6), (0, 0, 4, 6)), (2, 3))
    assert found.tolist() == [[1, 0.5, 0], [0, 0, 0]]


def test_half_a_patch_is_exactly_half() -> None:
    """Thirds have no exact float, and whether a patch counts as covered depends on a half."""
    for parts in range(1, 40):
        mask = np.zeros((2 * parts, 3), bool)
        mask[:parts] = True
        found = patch_coverage(mask, ImageView(mask.shape, (0.0, 0.0, 2.0 * parts, 3.0)), (1, 7))
        assert found.tolist() == [[0.5] * 7]


def test_padding_is_not_covered_and_a_crop_is_cut() -> None:
    mask = np.ones((4, 4), bool)
    assert patch_coverage(mask, ImageView((4, 4), (-4, 0, 4, 4)), (2, 1)).tolist() == [[0], [1]]
    assert patch_coverage(mask, ImageView((4, 4), (1, 1, 3, 3)), (1, 1)).tolist() == [[1]]
    mask[1:3, 1:3] = False
    assert patch_coverage(mask, ImageView((4, 4), (1, 1, 3, 3)), (1, 1)).tolist() == [[0]]


def test_cover_through_a_processor(bundled: LoadedModel) -> None:
    """The bundled model sees the whole scene, with 12 x 12 pixels in a patch."""
    scene = draw_scene(5)
    view = measure_view(bundled.processor, (96, 96))
    found = patch_coverage(scene.masks[0], view, (8, 8))
    plain = scene.masks[0].reshape(8, 12, 8, 12).mean(axis=(1, 3))
    assert torch.allclose(found, torch.from_numpy(plain), rtol=0, atol=5e-9)


@pytest.mark.parametrize(
    ("shape", "grid", "said"), [((4, 5), (2, 2), "shape"), ((4, 4), (0, 2), "grid")]
)
def test_cover_refuses(shape: tuple[int, int], grid: tuple[int, int], said: str) -> None:
    with pytest.raises(InputError, match=said):
        patch_coverage(np.ones(shape, bool), ImageView((4, 4), (0, 0, 4, 4)), grid)


# Choices among images, names and numbers.


@given(names=st.lists(st.sampled_from(["a", "a#2", "a#3", "b", "a#2#2"]), max_size=12))
def test_names_are_told_apart(names: list[str]) -> None:
    keys = make_unique(names)
    assert len(set(keys)) == len(keys) == len(names)
    firsts = {name: key for key, name in reversed(list(zip(keys, names, strict=True)))}
    assert all(name == key for name, key in firsts.items())
    assert all(key.startswith(name) for key, name in zip(keys, names, strict=True))


@given(count=st.integers(1, 60), limit=st.integers(1, 70), seed=st.integers(0, 5))
def test_a_limit_takes_one_of_each_equal_run(count: int, limit: int, seed: int) -> None:
    whole = Own(count)
    part = take_evenly(whole, limit, seed)
    assert len(part) == min(count, limit)
    if limit >= count:
        assert part is whole
        return
    numbers = [int(part.key(index).split()[1]) for index in range(len(part))]
    for run, number in enumerate(numbers):
        assert math.floor(run * count / limit) <= number < math.floor((run + 1) * count / limit)
    assert [int(example.key.split()[1]) for example in part] == numbers
    assert [part.label(index) for index in range(limit)] == [number % 3 for number in numbers]


def test_a_limit_is_the_same_again_and_another_for_another_seed() -> None:
    def keys(seed: int) -> list[str]:
        return [example.key for example in take_evenly(Own(1000), 20, seed)]

    assert keys(0) == keys(0)
    assert keys(0) != keys(1)
    gaps = np.diff([int(key.split()[1]) for key in keys(0)])
    assert len(set(gaps.tolist())) > 5  # not every fiftieth: classes may take turns


def test_a_part_is_told_from_the_whole_and_from_others() -> None:
    whole = Own(30)
    said = [dict(take_evenly(whole, *how).settings) for how in ((None, 0), (5, 0), (6, 0), (5, 1))]
    assert len({digest([one]) for one in said}) == 4
    assert all(one["kind"] == "own" for one in said)


def test_a_part_says_what_the_whole_says() -> None:
    part = open_data("scenes", {0: "disc"}, limit=3)
    assert part.name == "scenes:300"
    assert set(part[0].masks) | set(part[1].masks) | set(part[2].masks) == {0}
    assert "no class called ring" in part.notices[0]
    with pytest.raises(IndexError):
        part[3]
    assert not any(example.masks for example in open_data("scenes", LABELS, limit=3))


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_under_one(limit: int) -> None:
    with pytest.raises(OptionError, match=f"got {limit}"):
        take_evenly(Own(5), limit)


def test_what_is_drawn_never_changes() -> None:
    """A resumed run must draw what the first did, on any machine."""
    assert stable_hash(0, "a", 1) == 10705455295234442595
    assert digest([["a", 1], None]) == "e2f3a58f568dc425"


# A data set of one's own.


def test_a_data_set_of_ones_own() -> None:
    data = open_data(Own(5), LABELS, limit=3, seed=4)
    assert len(data) == 3
    assert data.settings["limit_seed"] == 4
    assert data.name == "own"
    assert data.notices == ()
    assert [example.label for example in data] == [data.label(index) for index in range(3)]


@pytest.mark.parametrize(
    "options",
    [{"split": "a"}, {"label_map": {}}, {"mask_column": "m"}],
    ids=lambda o: next(iter(o)),
)
def test_a_data_set_of_ones_own_has_no_options(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=f"{next(iter(options))} means nothing"):
        open_data(Own(5), LABELS, **options)


@pytest.mark.parametrize("source", [3, None, Image.new("RGB", (4, 4))], ids=["3", "None", "image"])
def test_what_is_no_data_set(source: Any) -> None:
    with pytest.raises(DataError, match=f"type {type(source).__name__} is not known"):
        open_data(source, LABELS)


# Synthetic scenes.


def test_scenes_are_those_of_their_seeds() -> None:
    data = open_data("scenes:4", SHAPES)
    assert [data.key(index) for index in range(4)] == [f"scene-{seed}" for seed in range(4)]
    for seed, example in enumerate(data):
        scene = draw_scene(seed)
        assert example.image.tobytes() == scene.image.tobytes()
        assert example.label == data.label(seed) == scene.classes[0]
        assert set(example.masks) == set(scene.classes)
        for index, mask in zip(scene.classes, scene.masks, strict=True):
            assert np.array_equal(example.mask_of(index), mask)  # type: ignore[arg-type]
    assert data.name == "scenes:4"
    assert data.notices == ()


def test_scenes_for_a_model_with_other_numbers() -> None:
    turned = {len(CLASSES) - 1 - index: name for index, name in SHAPES.items()}
    data, plain = open_data("scenes:3", turned), open_data("scenes:3", SHAPES)
    for one, other in zip(data, plain, strict=True):
        assert one.label == len(CLASSES) - 1 - (other.label or 0)
        assert {7 - (index or 0) for index in one.masks} == set(other.masks)
    assert data.settings != plain.settings


def test_scenes_for_a_model_of_something_else() -> None:
    data = open_data("scenes:2", LABELS)
    assert all(example.label is None and not example.masks for example in data)
    assert "disc, ring, square" in data.notices[0]


def test_300_scenes_unless_the_user_says() -> None:
    assert len(open_data("scenes", SHAPES)) == 300


@pytest.mark.parametrize("number", ["-1", "1e3", "", " 3", "9" * 30, "x" * 500])
def test_a_number_of_scenes_that_is_none_is_not_looked_for_on_the_hub(number: str) -> None:
    with pytest.raises(OptionError, match="number of scenes is a whole number, as in 'scenes:300'"):
        open_data(f"scenes:{number}", SHAPES)


@pytest.mark.parametrize("source", ["scenes:0", "scenes:1000001"])
def test_as_many_scenes_as_are_held_out(source: str) -> None:
    with pytest.raises(OptionError, match=r"between 1 and 1000000"):
        open_data(source, SHAPES)


@pytest.mark.parametrize("index", [4, -5])
def test_no_scene_of_that_number(index: int) -> None:
    data = open_data("scenes:4", SHAPES)
    for call in (data.key, data.label, data.__getitem__):
        with pytest.raises(IndexError):
            call(index)


def test_scenes_have_no_options() -> None:
    with pytest.raises(HfGmarError, match="split means nothing for scenes"):
        open_data("scenes", SHAPES, split="test")
