"""Models that take no images: videos, sound, text or time series.

Methods explain some models of videos and sound by their tensors. All that begins with an image
refuses them, and the others are refused everywhere.
"""

from __future__ import annotations

from inspect import signature
from typing import Any, NamedTuple

import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from hf_gmar._core.families import FAMILIES, UNSUPPORTED, Medium, model_type
from hf_gmar.errors import UnsupportedModelError

_VIDEO_TYPES = {*MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES, "tvp", "xclip", "xclip_vision_model"}
"""Model types of videos: some of their classes name the frames ``pixel_values``."""

_LIST = "'hf-gmar models' lists what is supported"

INPUT_NAMES = ("pixel_values", "input_values")
"""Names of the inputs of images or videos, and of spectrograms."""


class InputShape(NamedTuple):
    """The inputs of a kind of models.

    Attributes:
        name: the inputs in words.
        dimensions: the name of each dimension.
        item: one of the inputs.
    """

    name: str
    dimensions: tuple[str, ...]
    item: str

    @property
    def channel_dimension(self) -> int | None:
        """The dimension of the channels; ``None`` without any."""
        return self.dimensions.index("channels") if "channels" in self.dimensions else None

    @property
    def needed(self) -> str:
        """What is needed, for messages."""
        return f"{self.name} of shape ({', '.join(self.dimensions)}) are needed"


INPUT_SHAPES: dict[Medium, InputShape] = {
    "images": InputShape("pixel values", ("images", "channels", "height", "width"), "image"),
    "videos": InputShape(
        "pixel values", ("videos", "frames", "channels", "height", "width"), "video"
    ),
    "sound": InputShape("spectrograms", ("sounds", "time", "mel bins"), "sound"),
}

_INPUTS = {
    "pixel_values_videos": "videos",
    "input_values": "sound",
    "input_features": "sound",
    "input_ids": "text",
    "past_values": "time series",
}
"""What a model takes instead of images, by the name of the input; the first name counts."""


def takes_pixels(part: nn.Module) -> bool:
    """Return whether a module is a Transformers model with the input ``pixel_values``."""
    return isinstance(part, PreTrainedModel) and "pixel_values" in _inputs_of(type(part))


def check_takes_images(model: PreTrainedModel | PreTrainedConfig) -> None:
    """Check that a model, or the model that a config describes, takes images.

    Example:
        >>> from transformers import VJEPA2Config
        >>> check_takes_images(VJEPA2Config())
        Traceback (most recent call last):
        hf_gmar.errors.UnsupportedModelError: hf_gmar explains images, and VJEPA2Model takes \
videos; of these it explains VideoMAE, ViViT, TimeSformer

    Raises:
        UnsupportedModelError: it takes videos, sound, text or time series.
    """
    kind = type(model) if isinstance(model, PreTrainedModel) else _class_of(model)
    name = (kind or type(model)).__name__
    family = FAMILIES.get(model_type(model))
    if family is not None and family.medium != "images":
        method = "GMAR" if family.engines else "AttnLRP"
        raise UnsupportedModelError(
            f"images are needed here, and {name} takes {family.medium}; in Python, methods such as "
            f"{method}(model).attribute(inputs) explain it by the tensor that its processor gives"
        )
    if medium := _other_medium(model, kind):
        others = [part.title for part in FAMILIES.values() if medium.startswith(part.medium)]
        explained = f"of these it explains {', '.join(others)}" if others else _LIST
        raise UnsupportedModelError(
            f"hf_gmar explains images, and {name} takes {medium}; {explained}"
        )


def _other_medium(model: PreTrainedModel | PreTrainedConfig, kind: type | None) -> str:
    """Return what a model takes instead of images, or an empty string."""
    if model_type(model) in _VIDEO_TYPES:
        return "videos"
    if model_type(model) in UNSUPPORTED or kind is None:  # the table has a reason of its own
        return ""
    inputs = _inputs_of(kind)
    towers = model.modules() if isinstance(model, nn.Module) else ()
    if "pixel_values" in inputs or any(map(takes_pixels, towers)):
        return ""
    return next((f"{text} ({name})" for name, text in _INPUTS.items() if name in inputs), "")


def _class_of(config: PreTrainedConfig) -> type | None:
    """Return the class that a config names, or else the bare model; ``None`` if code defines it."""
    if getattr(config, "auto_map", None):
        return None
    names = (*(config.architectures or ()), MODEL_MAPPING_NAMES.get(model_type(config)))
    classes = (getattr(transformers, name, None) for name in names if isinstance(name, str))
    return next((kind for kind in classes if _fits(kind, config)), None)


def _fits(kind: Any, config: PreTrainedConfig) -> bool:
    is_model = isinstance(kind, type) and issubclass(kind, PreTrainedModel)
    return is_model and isinstance(config, kind.config_class or PreTrainedConfig)


def _inputs_of(kind: type) -> tuple[str, ...]:
    return tuple(signature(kind.forward).parameters)  # type: ignore[attr-defined]
