"""The package's drawn scenes as a data set."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from hf_gmar.data.base import Example, ImageDataset
from hf_gmar.data.class_names import Classes
from hf_gmar.data.scenes import CLASSES, Scene, draw_scene
from hf_gmar.errors import OptionError

HELD_OUT = 1_000_000
"""Seeds below this are never trained on by the bundled model."""

SCENES = 300
"""How many scenes there are, unless the user says."""


class Scenes(ImageDataset):
    """Drawn scenes of the seeds from 0, each with two or three objects and their masks.

    The label is the class of the first object; each object has a mask under its class. Objects
    of classes that the model does not have are left out.

    Args:
        count: how many.
        classes: of the model.

    Raises:
        OptionError: none, or more than there are held-out seeds.

    Example:
        >>> example = Scenes(2, Classes({0: "star", 1: "crescent"}))[1]
        >>> example.key, example.label, sorted(example.masks)
        ('scene-1', 1, [1])
    """

    def __init__(self, count: int, classes: Classes) -> None:
        if not 1 <= count <= HELD_OUT:
            raise OptionError(f"there are between 1 and {HELD_OUT} scenes to choose, got {count}")
        self.count = count
        self.indices = [classes.find(name) for name in CLASSES]

    @property
    def name(self) -> str:
        """As the user gives it."""
        return f"scenes:{self.count}"

    @property
    def settings(self) -> Mapping[str, Any]:
        """The number of scenes, and the model's indices of their classes."""
        return {"kind": "scenes", "name": "scenes", "images": self.count, "classes": self.indices}

    @property
    def notices(self) -> tuple[str, ...]:
        """Classes that the model does not have."""
        lost = [name for name, index in zip(CLASSES, self.indices, strict=True) if index is None]
        said = (
            f"the model has no class called {', '.join(lost)}: these objects of the scenes have "
            "neither label nor mask"
        )
        return (said,) if lost else ()

    @property
    def has_masks(self) -> bool:
        """Unless the model has none of the classes."""
        return any(index is not None for index in self.indices)

    def __len__(self) -> int:
        """How many scenes."""
        return self.count

    def key(self, index: int) -> str:
        """The seed."""
        return f"scene-{range(self.count)[index]}"

    def label(self, index: int) -> int | None:
        """The class of the first object."""
        return self.indices[_draw(range(self.count)[index]).classes[0]]

    def __getitem__(self, index: int) -> Example:
        """Draw a scene."""
        scene = _draw(range(self.count)[index])
        masks: dict[int | None, Any] = {
            place: mask
            for name, mask in zip(scene.classes, scene.masks, strict=True)
            if (place := self.indices[name]) is not None
        }
        return Example(self.key(index), scene.image, self.indices[scene.classes[0]], masks)


@lru_cache(maxsize=8)
def _draw(seed: int) -> Scene:
    return draw_scene(seed)
