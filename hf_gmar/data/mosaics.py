"""Mosaics of four images, one of which shows the explained class.

They are for the grid pointing game of Böhle, Fritz and Schiele, "Convolutional Dynamic Alignment
Networks for Interpretable Classifications", CVPR 2021 (arXiv 2104.00032): evidence for a class
should lie in the cell of its image. Mosaics need labels, but no masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from hf_gmar.data.base import Example, ImageDataset, Mask, Subset, stable_hash
from hf_gmar.errors import DataError, ImageFileError, OptionError

CELLS = ((0, 0), (0, 1), (1, 0), (1, 1))
"""Row and column of the cells of a mosaic."""


@dataclass(frozen=True, eq=False)
class Mosaic:
    """Four images in a square.

    Attributes:
        key: the key of the target's image.
        image: the mosaic, in the mode of its images.
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
        """The target's cell as a mask, bool (height, width)."""
        mask = np.zeros(self.image.size[::-1], np.bool_)
        row, column = self.cell
        height, width = (side // 2 for side in mask.shape)
        mask[row * height : (row + 1) * height, column * width : (column + 1) * width] = True
        return mask


class MosaicDataset(Subset):
    """A mosaic for each labelled image: the image itself and images of three other classes.

    The seed and the image's key determine the other classes, their images and the target's cell, so
    a mosaic does not depend on the other measurements. A broken image, or an image with a mask of
    the target's class, is replaced by the next one. Each tile is resized to half the height and
    width of the model's input, so no image is cropped.

    The mask of an example is the target's cell.

    Args:
        data: a data set with labels of at least four classes.
        size: height and width of the model's input, in pixels; both at least 2.
        seed: seed of the draws.

    Raises:
        DataError: the data set has fewer than four classes.
        OptionError: a side is less than 2 pixels.

    Example:
        >>> from hf_gmar.data import CLASSES, open_data
        >>> mosaics = MosaicDataset(open_data("scenes:20", dict(enumerate(CLASSES))), (96, 96))
        >>> mosaic = mosaics.mosaic(0)
        >>> mosaic.image.size, CLASSES[mosaic.label], mosaic.cell, mosaic.mask.sum() == 48 * 48
        ((96, 96), 'heart', (1, 0), np.True_)
    """

    def __init__(self, data: ImageDataset, size: tuple[int, int], seed: int = 0) -> None:
        if min(size) < 2:
            raise OptionError(f"a mosaic has at least 2 x 2 pixels, got {size[0]} x {size[1]}")
        self.size, self.seed = (int(size[0]), int(size[1])), seed
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
        indices = sorted(index for images in self.by_class.values() for index in images)
        super().__init__(data, indices, {"mosaics": {"size": self.size, "seed": seed}})
        self.name = f"mosaics of {data.name}"

    def __getitem__(self, index: int) -> Example:
        """Make the mosaic as an example, with the target's cell as its mask."""
        mosaic = self.mosaic(index)
        return Example(mosaic.key, mosaic.image, mosaic.label, {mosaic.label: mosaic.mask})

    def mosaic(self, index: int) -> Mosaic:
        """Make the mosaic of a labelled image.

        Raises:
            IndexError: there is no image of that number.
            ImageFileError: the target's image is broken, or too few other images can be used.
        """
        example = self.dataset[self.indices[index]]
        if example.label is None:  # a user's data set whose labels changed
            raise DataError(f"the image {example.key} has no label any more")
        place = stable_hash(self.seed, example.key, "cell") % len(CELLS)
        tiles = self._others(example.key, example.label)
        tiles.insert(place, example)
        return Mosaic(
            example.key,
            self._assemble([tile.image for tile in tiles]),
            CELLS[place],
            example.label,
            tuple(tile.key for tile in tiles),
        )

    def _others(self, key: str, target: int) -> list[Example]:
        """Choose three images of other classes that do not show the target."""
        others: list[Example] = []
        for label in sorted(self.by_class, key=lambda n: stable_hash(self.seed, key, "class", n)):
            if label != target and len(others) < len(CELLS) - 1:
                others.extend(self._first_good(key, label, target))
        if len(others) < len(CELLS) - 1:
            raise ImageFileError(
                f"no mosaic for {key}: it needs images of {len(CELLS) - 1} other classes that can "
                f"be read and don't show its own, and there are {len(others)}"
            )
        return others

    def _first_good(self, key: str, label: int, target: int) -> Iterator[Example]:
        """Yield the first usable image of a class, if any."""
        images = self.by_class[label]
        first = stable_hash(self.seed, key, "image", label)
        for step in range(len(images)):
            try:
                example = self.dataset[images[(first + step) % len(images)]]
            except ImageFileError:
                continue  # this image's own mosaic reports the error
            if target not in example.masks:
                yield example
                return

    def _assemble(self, images: list[Image.Image]) -> Image.Image:
        height, width = (side // 2 for side in self.size)
        mosaic = Image.new(images[0].mode, (2 * width, 2 * height))
        for image, (row, column) in zip(images, CELLS, strict=True):
            tile = image.resize((width, height), Image.Resampling.BICUBIC)
            mosaic.paste(tile, (column * width, row * height))
        return mosaic
