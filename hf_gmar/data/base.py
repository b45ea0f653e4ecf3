"""What a data set is: images with names, classes and, where they are known, masks of objects."""

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
        key: its stable name in its data set: a path, the number of a row or of a scene.
        image: in RGB, upright.
        label: its class, an index of the model; ``None`` if it is not known.
        masks: for a class, which pixels of the image show it, bool (height, width). The key
            ``None`` is an object whose class is not known.
    """

    key: str
    image: Image.Image
    label: int | None = None
    masks: Mapping[int | None, Mask] = field(default_factory=dict)

    def mask_of(self, target: int) -> Mask | None:
        """The mask of a class, else that of an object of unknown class, else ``None``.

        Example:
            >>> example = Example("a", Image.new("RGB", (2, 1)), 3, {3: np.array([[True, False]])})
            >>> example.mask_of(3), example.mask_of(4)
            (array([[ True, False]]), None)
        """
        return self.masks.get(target, self.masks.get(None))


class ImageDataset(ABC):
    """A data set: so many images, each read when it is asked for.

    A class of your own calls this constructor and has ``__len__``, ``key`` and ``__getitem__``.

    Args:
        name: what the data set is called.
        settings: what distinguishes it from others, as JSON can hold it, the same on every machine.
        notices: what a user should know of it, a sentence each.
    """

    def __init__(
        self, name: str, settings: Mapping[str, Any], notices: tuple[str, ...] = ()
    ) -> None:
        self.name = name
        self.settings = settings
        self.notices = notices

    @abstractmethod
    def __len__(self) -> int:
        """How many images."""

    @abstractmethod
    def key(self, index: int) -> str:
        """The name of an image, without reading it; no two have the same.

        Raises:
            IndexError: no image of that number.
        """

    def label(self, index: int) -> int | None:
        """The class of an image; those of the package know it without reading the image.

        Raises:
            IndexError: no image of that number.
        """
        return self[index].label

    @abstractmethod
    def __getitem__(self, index: int) -> Example:
        """Read an image.

        Raises:
            IndexError: no image of that number.
            ImageFileError: the image, or its mask, is missing or broken; it says the key.
        """

    def __iter__(self) -> Iterator[Example]:
        """All images in turn."""
        return (self[index] for index in range(len(self)))


class Subset(ImageDataset):
    """Some images of a data set, under the names that they have there.

    Args:
        dataset: the whole data set.
        indices: which of its images.
        settings: how they were chosen.
    """

    def __init__(
        self, dataset: ImageDataset, indices: Sequence[int], settings: Mapping[str, Any]
    ) -> None:
        super().__init__(dataset.name, {**dataset.settings, **settings}, dataset.notices)
        self.dataset = dataset
        self.indices = indices

    def __len__(self) -> int:
        """How many images were chosen."""
        return len(self.indices)

    def key(self, index: int) -> str:
        """The name of the image in the whole data set."""
        return self.dataset.key(self.indices[index])

    def label(self, index: int) -> int | None:
        """The class of the image in the whole data set."""
        return self.dataset.label(self.indices[index])

    def __getitem__(self, index: int) -> Example:
        """The image of the whole data set."""
        return self.dataset[self.indices[index]]


class LabelledDataset(ImageDataset):
    """Images whose names and classes are known before any is read.

    Args:
        name: what the data set is called.
        settings: what it is and how it was read.
        keys: the name of each image.
        labels: the class of each image.
        contents: what tells each image from another of its name, as JSON can hold it.
    """

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
        """How many images."""
        return len(self.keys)

    def key(self, index: int) -> str:
        """The name of the image in its folder, table or data set."""
        return self.keys[index]

    def label(self, index: int) -> int | None:
        """The class that the folder, table or data set gives the image."""
        return self.labels[index]

    def _example(self, index: int, name: str, image: Image.Image, mask: Mask | None) -> Example:
        """The example of an image that was read; an ImageFileError for a mask of another size."""
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
    """Take so many images at most, spread evenly.

    The data set is cut into ``limit`` runs of equal length, to within one image; of each run, the
    seed draws one. A folder sorted by class gives each class its share, and a data set that goes
    round through its classes does not give the same one always.

    Args:
        images: any data set.
        limit: how many images at most; ``None`` for all.
        seed: of the draws.

    Raises:
        OptionError: a limit under 1.

    Example:
        >>> from hf_gmar.data import open_data
        >>> some = take_evenly(open_data("scenes:100", {}), 4)
        >>> [some.key(index) for index in range(4)]
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
    """A large number that any machine gives for the same values, and another for others.

    Example:
        >>> stable_hash(0, "a") == stable_hash(0, "a"), stable_hash(0, "a") == stable_hash(1, "a")
        (True, False)
    """
    return int.from_bytes(hashlib.sha256(json.dumps(values).encode()).digest()[:8], "big")


def digest(rows: Iterable[object]) -> str:
    """A short name for the content of a data set.

    Example:
        >>> digest([["a.jpg", 1], ["b.jpg", 2]]) == digest([["b.jpg", 2], ["a.jpg", 1]])
        False
    """
    content = hashlib.sha256()
    for row in rows:
        content.update(json.dumps(row).encode() + b"\n")
    return content.hexdigest()[:16]
