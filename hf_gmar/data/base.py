"""What a data set is: images with names, classes and, where they are known, masks of objects."""

from __future__ import annotations

import hashlib
import itertools
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hf_gmar.errors import OptionError

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

    A class of your own needs ``name``, ``settings``, ``__len__``, ``key`` and ``__getitem__``.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """What to call the data set."""

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """What tells this data set from others, as JSON can hold it, the same on every machine."""

    @property
    def notices(self) -> tuple[str, ...]:
        """What a user should know of it, a sentence each."""
        return ()

    @property
    def has_masks(self) -> bool:
        """Whether any of its images can have a mask."""
        return True

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


class Part(ImageDataset):
    """Some images of a data set, under the names that they have there.

    Args:
        whole: the data set.
        chosen: which of its images.
        settings: how they were chosen.
    """

    def __init__(
        self, whole: ImageDataset, chosen: Sequence[int], settings: Mapping[str, Any] | None = None
    ) -> None:
        self.whole = whole
        self.chosen = chosen
        self._settings = {**whole.settings, **(settings or {})}

    @property
    def name(self) -> str:
        """That of the whole."""
        return self.whole.name

    @property
    def settings(self) -> Mapping[str, Any]:
        """Those of the whole, and how the part was chosen."""
        return self._settings

    @property
    def notices(self) -> tuple[str, ...]:
        """Those of the whole."""
        return self.whole.notices

    @property
    def has_masks(self) -> bool:
        """As the whole."""
        return self.whole.has_masks

    def __len__(self) -> int:
        """How many images were chosen."""
        return len(self.chosen)

    def key(self, index: int) -> str:
        """The name that it has in the whole."""
        return self.whole.key(self.chosen[index])

    def label(self, index: int) -> int | None:
        """The class that it has in the whole."""
        return self.whole.label(self.chosen[index])

    def __getitem__(self, index: int) -> Example:
        """The image of the whole."""
        return self.whole[self.chosen[index]]


def limited(images: ImageDataset, limit: int | None, seed: int = 0) -> ImageDataset:
    """So many images at most, spread evenly.

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
        >>> some = limited(open_data("scenes:100", {}), 4)
        >>> [some.key(index) for index in range(4)]
        ['scene-10', 'scene-32', 'scene-50', 'scene-89']
    """
    if limit is not None and limit < 1:
        raise OptionError(f"limit must be at least 1, got {limit}; leave it out for all images")
    count = len(images)
    if limit is None or limit >= count:
        return images
    edges = [run * count // limit for run in range(limit + 1)]
    chosen = [
        start + stable_hash(seed, run) % (end - start)
        for run, (start, end) in enumerate(itertools.pairwise(edges))
    ]
    return Part(images, chosen, {"limit": limit, "limit_seed": seed})


def stable_hash(*what: object) -> int:
    """A large number that any machine draws for the same things, and another for others.

    Example:
        >>> stable_hash(0, "a") == stable_hash(0, "a"), stable_hash(0, "a") == stable_hash(1, "a")
        (True, False)
    """
    return int.from_bytes(hashlib.sha256(json.dumps(what).encode()).digest()[:8], "big")


def digest(rows: Iterable[object]) -> str:
    """A short name for the content of a data set.

    Example:
        >>> digest([["a.jpg", 1], ["b.jpg", 2]]) == digest([["b.jpg", 2], ["a.jpg", 1]])
        False
    """
    found = hashlib.sha256()
    for row in rows:
        found.update(json.dumps(row).encode() + b"\n")
    return found.hexdigest()[:16]


def make_unique(names: Iterable[str]) -> list[str]:
    """The same names, where the second of a name gets a number.

    Example:
        >>> make_unique(["a.jpg", "b.jpg", "a.jpg", "a.jpg"])
        ['a.jpg', 'b.jpg', 'a.jpg#2', 'a.jpg#3']
    """
    names = list(names)
    taken, counts = set(names), Counter[str]()
    keys = []
    for name in names:
        counts[name] += 1
        key = name if counts[name] == 1 else f"{name}#{counts[name]}"
        while counts[name] > 1 and key in taken:  # another file may be called that
            counts[name] += 1
            key = f"{name}#{counts[name]}"
        keys.append(key)
    return keys
