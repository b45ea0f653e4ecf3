"""Mosaics of four images."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hf_gmar.data import CLASSES, Example, ImageDataset, MosaicDataset, open_data, patch_coverage
from hf_gmar.data.mosaics import CELLS
from hf_gmar.errors import DataError, ImageFileError, OptionError
from hf_gmar.models import LoadedModel, measure_view

SHAPES = dict(enumerate(CLASSES))


class Levels(ImageDataset):
    """Images of one grey each, by which they are known in a mosaic; the class is that modulo 5."""

    def __init__(
        self, count: int = 40, broken: tuple[int, ...] = (), masks: dict[int, int] | None = None
    ) -> None:
        """Some are broken, some have masks of another class too, and every eighth has no label."""
        super().__init__("levels", {"kind": "levels"})
        self.count, self.broken, self.masks = count, broken, masks or {}
        self.read: list[int] = []

    def __len__(self) -> int:
        """How many."""
        return self.count

    def key(self, index: int) -> str:
        """The level."""
        return str(range(self.count)[index])

    def label(self, index: int) -> int | None:
        """Known without reading."""
        return None if index % 8 == 7 else range(self.count)[index] % 5

    def __getitem__(self, index: int) -> Example:
        """A picture of the level."""
        self.read.append(index)
        if index in self.broken:
            raise ImageFileError(f"{self.key(index)} is broken")
        image = Image.new("RGB", (5, 9), (index,) * 3)
        masks: dict[int | None, Any] = {}
        if index in self.masks:
            masks[self.masks[index]] = np.ones((9, 5), bool)
        return Example(self.key(index), image, self.label(index), masks)


def test_a_mosaic_is_made_of_its_tiles() -> None:
    mosaics = MosaicDataset(Levels(), (8, 12))
    for index in range(len(mosaics)):
        found = mosaics.mosaic(index)
        assert found.image.size == (12, 8)
        pixels = np.asarray(found.image)[..., 0]
        for key, (row, column) in zip(found.tiles, CELLS, strict=True):
            tile = pixels[row * 4 : row * 4 + 4, column * 6 : column * 6 + 6]
            assert (tile == int(key)).all()
        assert (pixels[found.mask] == int(found.key)).all()
        assert found.mask.sum() == 24
        assert found.key == mosaics.key(index) == found.tiles[CELLS.index(found.cell)]
        assert found.label == mosaics.label(index) == int(found.key) % 5


def test_the_classes_of_a_mosaic_are_four() -> None:
    mosaics = MosaicDataset(Levels(), (4, 4))
    for index in range(len(mosaics)):
        assert len({int(key) % 5 for key in mosaics.mosaic(index).tiles}) == 4


def test_images_without_a_label_are_left_out() -> None:
    mosaics = MosaicDataset(Levels(), (4, 4))
    assert [mosaics.key(index) for index in range(len(mosaics))] == [
        str(index) for index in range(40) if index % 8 != 7
    ]
    tiles = {int(key) for index in range(len(mosaics)) for key in mosaics.mosaic(index).tiles}
    assert all(tile % 8 != 7 for tile in tiles)
    assert len(tiles) > 30  # and all others get their turn


def test_a_mosaic_is_the_same_again_and_another_for_another_seed() -> None:
    def drawn(seed: int, count: int = 40) -> list[tuple[Any, ...]]:
        mosaics = MosaicDataset(Levels(count), (4, 4), seed)
        return [(mosaics.mosaic(index).tiles, mosaics.mosaic(index).cell) for index in range(30)]

    assert drawn(0) == drawn(0)
    assert sum(one == other for one, other in zip(drawn(0), drawn(1), strict=True)) < 3
    cells = Counter(cell for _, cell in drawn(0))
    assert set(cells) == set(CELLS)
    assert max(cells.values()) < 16


def test_cell_classes_and_images_are_each_drawn_by_seed_and_key() -> None:
    def drawn(seed: int, index: int) -> tuple[tuple[int, int], set[int], dict[int, int]]:
        found = MosaicDataset(Levels(), (4, 4), seed).mosaic(index)
        levels = {int(key) % 5: int(key) for key in found.tiles if key != found.key}
        return found.cell, set(levels), levels

    # Images 0, 5 and 10 are of one class, so that all that differs is drawn.
    for asked in ([(seed, 0) for seed in range(6)], [(0, index) for index in (0, 5, 9)]):
        cells, classes, levels = zip(*(drawn(*one) for one in asked), strict=True)
        assert len(set(cells)) > 1
        assert len(set(map(frozenset, classes))) > 1
        assert any(len({one[label] for one in levels if label in one}) > 1 for label in range(1, 5))
        assert all(0 not in found for found in classes)


def test_as_a_data_set_the_cell_is_the_mask() -> None:
    mosaics = MosaicDataset(Levels(), (4, 4))
    for index, example in enumerate(mosaics):
        found = mosaics.mosaic(index)
        assert (example.key, example.label) == (found.key, found.label)
        assert example.image.tobytes() == found.image.tobytes()
        assert list(example.masks) == [found.label]
        assert np.array_equal(example.masks[found.label], found.mask)
    assert mosaics.name == "mosaics of levels"


def test_tiles_that_are_broken_or_show_the_target_are_passed_over() -> None:
    broken = tuple(range(5, 35))
    mosaics = MosaicDataset(Levels(broken=broken), (4, 4))
    tiles = {int(key) for key in mosaics.mosaic(0).tiles}
    assert not tiles & set(broken)
    every = dict.fromkeys(range(1, 40), 0)
    with pytest.raises(ImageFileError, match=r"no mosaic for 0: .*there are 0"):
        MosaicDataset(Levels(masks=every), (4, 4)).mosaic(0)
    few = {index: 0 for index in range(1, 40) if index % 5 != 3 or index > 3}
    with pytest.raises(ImageFileError, match="there are 1"):
        MosaicDataset(Levels(masks=few), (4, 4)).mosaic(0)


def test_a_broken_target_is_no_other() -> None:
    with pytest.raises(ImageFileError, match="3 is broken"):
        MosaicDataset(Levels(broken=(3,)), (4, 4)).mosaic(3)


def test_nothing_is_read_before_it_is_needed_nor_twice() -> None:
    data = Levels()
    mosaics = MosaicDataset(data, (4, 4))
    assert data.read == []
    mosaics.mosaic(2)
    assert len(data.read) == len(set(data.read)) == 4


def test_mosaics_need_four_classes() -> None:
    assert len(MosaicDataset(Levels(4), (4, 4)).mosaic(0).tiles) == 4
    with pytest.raises(DataError, match=r"images of 4 classes .* levels has labels of 3"):
        MosaicDataset(Levels(3), (4, 4))


@pytest.mark.parametrize("size", [(1, 4), (4, 1)])
def test_mosaics_have_a_size(size: tuple[int, int]) -> None:
    with pytest.raises(OptionError, match="at least 2 x 2"):
        MosaicDataset(Levels(), size)


def test_an_odd_size_gives_even_cells() -> None:
    found = MosaicDataset(Levels(), (9, 7)).mosaic(0)
    assert found.image.size == (6, 8)
    assert found.mask.sum() == 12


def test_settings_have_size_and_seed() -> None:
    said = [
        MosaicDataset(Levels(), *how).settings for how in (((4, 4), 0), ((6, 4), 0), ((4, 4), 1))
    ]
    assert all(one["kind"] == "levels" for one in said)
    assert said[0] != said[1] != said[2] != said[0]


def test_mosaics_of_scenes_in_the_bundled_model(bundled: LoadedModel) -> None:
    """No tile shows the target, and the model's grid has a quarter of its patches in the cell."""
    data = open_data("scenes:40", SHAPES)
    scenes = {example.key: example for example in data}
    mosaics = MosaicDataset(data, (96, 96))
    for index in range(5):
        found = mosaics.mosaic(index)
        others = [key for key in found.tiles if key != found.key]
        assert len(others) == 3
        assert not any(found.label in scenes[key].masks for key in others)
        covered = patch_coverage(found.mask, measure_view(bundled.processor, (96, 96)), (8, 8))
        row, column = found.cell
        assert covered[row * 4 : row * 4 + 4, column * 4 : column * 4 + 4].eq(1).all()
        assert covered.sum() == 16


def test_mosaics_of_a_folder_by_class(tmp_path: Path) -> None:
    for number, name in enumerate("abcd"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (30, 20), (number * 50,) * 3).save(tmp_path / name / "x.png")
    data = open_data(tmp_path, dict(enumerate("abcd")))
    found = MosaicDataset(data, (4, 4)).mosaic(2)
    assert found.key == "c/x.png"
    assert sorted(found.tiles) == [f"{name}/x.png" for name in "abcd"]
