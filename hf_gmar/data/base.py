"""The base class of data sets: images with names, classes and optional masks of objects."""

from __future__ import annotations

import hashlib
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hf_gmar.data.class_names import Labels
from hf_gmar.errors import ImageFileError, OptionError

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Example:
    """One image of a data set.

    Attributes:
        key: the image's stable name in its data set: a path, or the number of a row or scene.
        image: the image in RGB, upright.
        label: the class as an index of the model; ``None`` if unknown.
        masks: for each class, the pixels that show it, bool (height, width). The key ``None``
            stands for an object of unknown class.
    """

    key: str
    image: Image.Image
    label: int | None = None
    masks: Mapping[int | None, Mask] = field(default_factory=dict, repr=False)

    def mask_of(self, target: int) -> Mask | None:
        """Return the mask of a class, else the mask of an unknown class, else ``None``.

        Example:
            >>> example = Example("a", Image.new("RGB", (2, 1)), 3, {3: np.array([[True, False]])})
            >>> example.mask_of(3), example.mask_of(4)
            (array([[ True, False]]), None)
        """
        return self.masks.get(target, self.masks.get(None))


class ImageDataset(ABC):
    """Base class of data sets; each image is read on access.

    A subclass calls this constructor and defines ``__len__``, ``key`` and ``__getitem__``.

    Args:
        name: the name of the data set.
        settings: JSON values that identify the data set, the same on every machine.
        notices: sentences that a user should read about the data set.
    """

    def __init__(
        self, name: str, settings: Mapping[str, Any], notices: tuple[str, ...] = ()
    ) -> None:
        self.name = name
        self.settings = settings
        self.notices = notices

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def key(self, index: int) -> str:
        """Return the unique name of an image, without reading the image.

        Raises:
            IndexError: there is no image of that number.
        """

    def label(self, index: int) -> int | None:
        """Return the class of an image; the package's data sets do not read the image for it.

        Raises:
            IndexError: there is no image of that number.
        """
        return self[index].label

    @abstractmethod
    def __getitem__(self, index: int) -> Example:
        """Read an image.

        Raises:
            IndexError: there is no image of that number.
            ImageFileError: the image or its mask is missing or broken; the message has the key.
        """

    def __iter__(self) -> Iterator[Example]:
        """Read all images in turn."""
        return (self[index] for index in range(len(self)))


class Subset(ImageDataset):
    """Some images of a data set, under their original names.

    Args:
        dataset: the whole data set.
        indices: the indices of the chosen images.
        settings: how the images were chosen.
    """

    def __init__(
        self, dataset: ImageDataset, indices: Sequence[int], settings: Mapping[str, Any]
    ) -> None:
        super().__init__(dataset.name, {**dataset.settings, **settings}, dataset.notices)
        self.dataset = dataset
        self.indices = indices

    def __len__(self) -> int:
        """Return the number of chosen images."""
        return len(self.indices)

    def key(self, index: int) -> str:
        """Return the name of the image in the whole data set."""
        return self.dataset.key(self.indices[index])

    def label(self, index: int) -> int | None:
        """Return the class of the image in the whole data set."""
        return self.dataset.label(self.indices[index])

    def __getitem__(self, index: int) -> Example:
        """Read the image from the whole data set."""
        return self.dataset[self.indices[index]]


class LabelledDataset(ImageDataset):
    """A data set whose names and classes are known before any image is read.

    Args:
        name: the name of the data set.
        settings: what the data set is and how it was read.
        keys: the name of each image.
        labels: the class of each image.
        contents: JSON values that distinguish each image from others of the same name.

    Attributes:
        mode: the mode in which images are read: ``"RGB"``, ``"L"`` or ``"RGBA"``.
    """

    mode = "RGB"

    def __init__(
        self,
        name: str,
        settings: Mapping[str, Any],
        keys: Sequence[str],
        labels: Labels,
        contents: Iterable[object],
    ) -> None:
        settings = {**settings, "images": len(keys), "content": digest(contents)}
        super().__init__(name, settings, labels.notices)
        self.keys = keys
        self.labels = labels.of_images

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.keys)

    def key(self, index: int) -> str:
        """Return the name of the image in its folder, table or data set."""
        return self.keys[index]

    def label(self, index: int) -> int | None:
        """Return the class that the folder, table or data set gives the image."""
        return self.labels[index]

    def _example(self, index: int, name: str, image: Image.Image, mask: Mask | None) -> Example:
        """Make the example of an image; raise an ImageFileError for a mask of another size."""
        key, label = self.keys[index], self.labels[index]
        if mask is None:
            return Example(key, image, label)
        if mask.shape[::-1] != image.size:
            raise ImageFileError(
                f"the mask of {name} has {mask.shape[1]} x {mask.shape[0]} pixels and its image "
                f"{image.width} x {image.height}; a mask has the size of its image"
            )
        return Example(key, image, label, {label: mask})


def take_evenly(images: ImageDataset, limit: int | None, seed: int = 0) -> ImageDataset:
    """Take at most ``limit`` images, spread evenly.

    The data set is cut into ``limit`` runs of equal length, to within one image, and one image of
    each run is drawn at random. So a folder sorted by class gives each class its share, and a data
    set that cycles through its classes does not always give the same class.

    Args:
        images: any data set.
        limit: the largest number of images; ``None`` takes all.
        seed: seed of the draws.

    Raises:
        OptionError: the limit is less than 1.

    Example:
        >>> from hf_gmar.data import open_data
        >>> subset = take_evenly(open_data("scenes:100", {}), 4)
        >>> [subset.key(index) for index in range(4)]
        ['scene-10', 'scene-32', 'scene-50', 'scene-89']
    """
    if limit is not None and limit < 1:
        raise OptionError(f"limit must be at least 1, got {limit}; leave it out for all images")
    count = len(images)
    if limit is None or limit >= count:
        return images
    edges = [run * count // limit for run in range(limit + 1)]
    indices = [
        start + stable_hash(seed, run) % (end - start)
        for run, (start, end) in enumerate(itertools.pairwise(edges))
    ]
    return Subset(images, indices, {"limit": limit, "limit_seed": seed})


def stable_hash(*values: object) -> int:
    """Hash values to a large number that is the same on every machine.

    Example:
        >>> stable_hash(0, "a") == stable_hash(0, "a"), stable_hash(0, "a") == stable_hash(1, "a")
        (True, False)
    """
    return int.from_bytes(hashlib.sha256(json.dumps(values).encode()).digest()[:8], "big")


def digest(rows: Iterable[object]) -> str:
    """Hash the rows of a data set to a short name.

    Example:
        >>> digest([["a.jpg", 1], ["b.jpg", 2]]) == digest([["b.jpg", 2], ["a.jpg", 1]])
        False
    """
    content = hashlib.sha256()
    for row in rows:
        content.update(json.dumps(row).encode() + b"\n")
    return content.hexdigest()[:16]
