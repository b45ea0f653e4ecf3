"""Mosaics of four images, of which one shows the class that is explained.

For the grid pointing game of Böhle, Fritz and Schiele, "Convolutional Dynamic Alignment Networks
for Interpretable Classifications", CVPR 2021 (arXiv 2104.00032): evidence for a class belongs into
the cell with its image. It needs no masks, so that any data set with labels will do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from hf_gmar.data.base import Example, ImageDataset, Mask, stable_hash
from hf_gmar.errors import DataError, ImageFileError, OptionError

CELLS = ((0, 0), (0, 1), (1, 0), (1, 1))
"""Row and column of the cells of a mosaic."""


@dataclass(frozen=True, eq=False)
class Mosaic:
    """Four images in a square.

    Attributes:
        key: that of the image of the target.
        image: the mosaic, in RGB.
        cell: row and column of the cell with the target, each 0 or 1.
        label: the target, an index of the model.
        tiles: the keys of the images in the order of :data:`CELLS`.
    """

    key: str
    image: Image.Image
    cell: tuple[int, int]
    label: int
    tiles: tuple[str, ...]

    @property
    def mask(self) -> Mask:
        """Which pixels are the target's cell, bool (height, width)."""
        found = np.zeros(self.image.size[::-1], np.bool_)
        row, column = self.cell
        height, width = (side // 2 for side in found.shape)
        found[row * height : (row + 1) * height, column * width : (column + 1) * width] = True
        return found


class Mosaics(ImageDataset):
    """A mosaic for each image with a label: itself and three images of three other classes.

    The other classes, their images and the target's cell are drawn by the seed and the image's key,
    so that a mosaic is the same whatever else is measured. An image that is broken, or that has a
    mask of the target's class, is passed over for another. Each tile is resized to half of the
    model's input, so that a mosaic has its size and no image is cut.

    As a data set, the target's cell is the mask of its class.

    Args:
        data: with labels of four classes at least.
        size: height and width of the model's input, in pixels; both at least 2.
        seed: of the draws.

    Raises:
        DataError: fewer than four classes.
        OptionError: a size under 2.

    Example:
        >>> from hf_gmar.data import open_data
        >>> from hf_gmar.data import CLASSES
        >>> mosaics = Mosaics(open_data("scenes:20", dict(enumerate(CLASSES))), (96, 96))
        >>> found = mosaics.mosaic(0)
        >>> found.image.size, CLASSES[found.label], found.cell, int(found.mask.sum()) == 48 * 48
        ((96, 96), 'heart', (1, 0), True)
    """

    def __init__(self, data: ImageDataset, size: tuple[int, int], seed: int = 0) -> None:
        if min(size) < 2:
            raise OptionError(f"a mosaic has at least 2 x 2 pixels, got {size[0]} x {size[1]}")
        self.data, self.size, self.seed = data, (int(size[0]), int(size[1])), seed
        self.by_class: dict[int, list[int]] = {}
        for index in range(len(data)):
            if (label := data.label(index)) is not None:
                self.by_class.setdefault(label, []).append(index)
        if len(self.by_class) < len(CELLS):
            raise DataError(
                f"a mosaic needs images of {len(CELLS)} classes of the model, and {data.name} has "
                f"labels of {len(self.by_class)}; give a data set with labels, or name their "
                "classes in label_map"
            )
        self.indices = sorted(index for found in self.by_class.values() for index in found)

    @property
    def name(self) -> str:
        """That of the data set."""
        return f"mosaics of {self.data.name}"

    @property
    def settings(self) -> Mapping[str, Any]:
        """Those of the data set, with size and seed."""
        return {**self.data.settings, "mosaics": {"size": self.size, "seed": self.seed}}

    @property
    def notices(self) -> tuple[str, ...]:
        """Those of the data set."""
        return self.data.notices

    def __len__(self) -> int:
        """How many images have a label."""
        return len(self.indices)

    def key(self, index: int) -> str:
        """That of the target's image."""
        return self.data.key(self.indices[index])

    def label(self, index: int) -> int | None:
        """The target."""
        return self.data.label(self.indices[index])

    def __getitem__(self, index: int) -> Example:
        """The mosaic, with the target's cell as the mask of its class."""
        found = self.mosaic(index)
        return Example(found.key, found.image, found.label, {found.label: found.mask})

    def mosaic(self, index: int) -> Mosaic:
        """The mosaic for one of the images with a label.

        Raises:
            IndexError: no image of that number.
            ImageFileError: the target's image is broken, or too few of the others can be used.
        """
        example = self.data[self.indices[index]]
        if example.label is None:  # an image of one's own that changes its mind
            raise DataError(f"the image {example.key} has no label any more")
        place = stable_hash(self.seed, example.key, "cell") % len(CELLS)
        tiles = self._others(example.key, example.label)
        tiles.insert(place, example)
        return Mosaic(
            example.key,
            self._assembled([tile.image for tile in tiles]),
            CELLS[place],
            example.label,
            tuple(tile.key for tile in tiles),
        )

    def _others(self, key: str, target: int) -> list[Example]:
        """Three images of other classes, none of which shows the target."""
        found: list[Example] = []
        classes = sorted(
            self.by_class, key=lambda label: stable_hash(self.seed, key, "class", label)
        )
        for label in classes:
            if label != target and len(found) < len(CELLS) - 1:
                found.extend(self._first_good(key, label, target))
        if len(found) < len(CELLS) - 1:
            raise ImageFileError(
                f"no mosaic for {key}: it needs images of {len(CELLS) - 1} other classes that can "
                f"be read and don't show its own, and there are {len(found)}"
            )
        return found

    def _first_good(self, key: str, label: int, target: int) -> Iterator[Example]:
        """One image of a class, if any can be used."""
        images = self.by_class[label]
        first = stable_hash(self.seed, key, "image", label)
        for step in range(len(images)):
            try:
                example = self.data[images[(first + step) % len(images)]]
            except ImageFileError:
                continue  # reported where that image's own turn is
            if target not in example.masks:
                yield example
                return

    def _assembled(self, images: list[Image.Image]) -> Image.Image:
        height, width = (side // 2 for side in self.size)
        mosaic = Image.new("RGB", (2 * width, 2 * height))
        for image, (row, column) in zip(images, CELLS, strict=True):
            tile = image.resize((width, height), Image.Resampling.BICUBIC)
            mosaic.paste(tile, (column * width, row * height))
        return mosaic
