"""The package's synthetic scenes as a data set."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from hf_gmar.data.base import Example, ImageDataset
from hf_gmar.data.class_names import Classes
from hf_gmar.data.scenes import CLASSES, Scene, draw_scene
from hf_gmar.errors import OptionError

HELD_OUT = 1_000_000
"""The bundled model was never trained on seeds below this number."""

SCENES = 300
"""The default number of scenes."""


class SceneDataset(ImageDataset):
    """Synthetic scenes of the seeds 0 to ``count`` - 1, with two or three objects and their masks.

    The label is the class of the first object, and each object has a mask under its class. Objects
    whose class the model lacks have neither label nor mask.

    Args:
        count: number of scenes.
        classes: the model's classes.

    Raises:
        OptionError: the count is less than 1 or exceeds the held-out seeds.

    Example:
        >>> example = SceneDataset(2, Classes({0: "star", 1: "crescent"}))[1]
        >>> example.key, example.label, sorted(example.masks)
        ('scene-1', 1, [1])
    """

    def __init__(self, count: int, classes: Classes) -> None:
        if not 1 <= count <= HELD_OUT:
            raise OptionError(f"there are between 1 and {HELD_OUT} scenes to choose, got {count}")
        self.indices = [classes.find(name) for name in CLASSES]
        absent = [name for name, index in zip(CLASSES, self.indices, strict=True) if index is None]
        notice = (
            f"the model has no class called {', '.join(absent)}: these objects of the scenes have "
            "neither label nor mask"
        )
        settings = {"kind": "scenes", "name": "scenes", "images": count, "classes": self.indices}
        super().__init__(f"scenes:{count}", settings, (notice,) if absent else ())
        self.seeds = range(count)

    def __len__(self) -> int:
        """Return the number of scenes."""
        return len(self.seeds)

    def key(self, index: int) -> str:
        """Return the name of a scene, which has its seed."""
        return f"scene-{self.seeds[index]}"

    def label(self, index: int) -> int | None:
        """Return the class of the first object."""
        return self.indices[_draw(self.seeds[index]).classes[0]]

    def __getitem__(self, index: int) -> Example:
        """Draw the scene."""
        scene = _draw(self.seeds[index])
        masks: dict[int | None, Any] = {
            index_in_model: mask
            for scene_class, mask in zip(scene.classes, scene.masks, strict=True)
            if (index_in_model := self.indices[scene_class]) is not None
        }
        return Example(self.key(index), scene.image, self.indices[scene.classes[0]], masks)


@lru_cache(maxsize=8)
def _draw(seed: int) -> Scene:
    return draw_scene(seed)
