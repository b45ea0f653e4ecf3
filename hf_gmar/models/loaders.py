"""Which class of Transformers loads a model: with a class head, with texts, or without either."""

from __future__ import annotations

from typing import Any

from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForZeroShotImageClassification,
    PreTrainedConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from hf_gmar._core.media import check_takes_images
from hf_gmar.errors import ModelLoadError, UnsupportedModelError
from hf_gmar.models.hub_errors import CLASSIFIER, IMAGE_TEXT_MODEL, MODEL, Source

LOADERS: dict[str, Any] = {
    CLASSIFIER: AutoModelForImageClassification,
    IMAGE_TEXT_MODEL: AutoModelForZeroShotImageClassification,
    MODEL: AutoModel,
}
"""Classes by the kind of model."""


def loads_head(config: PreTrainedConfig, head: bool | None) -> bool:
    """Whether a class head is loaded; ``None``: if the config names one, or no class at all.

    Example:
        >>> from transformers import Dinov2Config
        >>> loads_head(Dinov2Config(architectures=["Dinov2Model"]), None)
        False
    """
    if head is not None:
        return head
    name = next(iter(config.architectures or ()), None)
    known = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.values()
    heads = {one for names in known for one in ((names,) if isinstance(names, str) else names)}
    has_code = "AutoModelForImageClassification" in (getattr(config, "auto_map", None) or {})
    return name is None or name in heads or has_code


def check_medium(source: Source, config: PreTrainedConfig) -> None:
    """Raise a ModelLoadError for a model of videos, sound or text, before its weights are read."""
    try:
        check_takes_images(config)
    except UnsupportedModelError as error:
        raise ModelLoadError(f"{source.name!r} can't be explained: {error}") from error


def without_untrained_pooler(kind: str, model: Any, missing: set[str]) -> set[str]:
    """Drop a backbone's pooler if all weights that are missing are its own; return the others.

    Classifiers are saved without it. It would be random, and no embedding needs it.
    """
    if kind != MODEL or not missing or not all(name.startswith("pooler.") for name in missing):
        return missing
    model.pooler = None
    return set()
