"""What users pass as a model: a name, a model with or without its processor, a pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import BaseImageProcessor

from hf_gmar._core.media import check_takes_images
from hf_gmar._core.model_adapter import find_backbone, model_in
from hf_gmar.errors import HfGmarError, OptionError
from hf_gmar.models.hub import LoadedModel, load_model, load_processor
from hf_gmar.models.labels import config_of


def as_loaded(
    model: Any,
    processor: BaseImageProcessor | str | Path | None = None,
    prompts: Sequence[str] | None = None,
    head: bool | None = True,
) -> LoadedModel:
    """Return any model with its image processor.

    Args:
        model: a name for :func:`~hf_gmar.load_model`, which is loaded onto the accelerator if there
            is one; what ``load_model`` returns; a pipeline or a Trainer; or a model of Transformers
            or PEFT, or a module around one.
        processor: an image processor, or its name or folder. By default, that of the name, of the
            pipeline or Trainer, or of the checkpoint from which the model was loaded.
        prompts: the classes of an image-text model that is named.
        head: whether a named model is loaded with a class head, see
            :func:`~hf_gmar.load_model`; with prompts, it is always loaded with them.

    Raises:
        OptionError: there is no image processor, or prompts are given for a model that is loaded.
        ModelLoadError: the named model can't be loaded.
        UnsupportedModelError: the model takes no images.
    """
    if isinstance(model, str | Path):
        place = processor if isinstance(processor, str | Path) else None
        head = head if prompts is None else True
        loaded = load_model(model, device="auto", prompts=prompts, processor=place, head=head)
        own = processor if isinstance(processor, BaseImageProcessor) else loaded.processor
        return replace(loaded, processor=own)
    if prompts is not None:
        raise OptionError(
            "prompts= is for a model that is named; give a loaded one its prompts with "
            "hf_gmar.ZeroShotModel(model, processor, prompts)"
        )
    if isinstance(processor, str | Path):
        processor = load_processor(processor)
    if isinstance(model, LoadedModel):
        return model if processor is None else replace(model, processor=processor)
    module = model_in(model)
    checkpoint = _checkpoint_of(module)
    name = checkpoint or type(module).__name__
    processor = processor or _processor_beside(model) or _processor_of(checkpoint)
    check_takes_images(find_backbone(module))
    if processor is None:
        raise OptionError(
            f"images need the image processor of the model, and none is known for {name}: give "
            "processor=..., or what hf_gmar.load_model returns as the model"
        )
    return LoadedModel(name, module, processor)


def _checkpoint_of(module: Any) -> str:
    """Return the name or folder from which a model was loaded, if it says so."""
    try:
        return config_of(module).name_or_path or ""
    except (AttributeError, StopIteration):  # no module, or one without a config
        return ""


def _processor_beside(holder: Any) -> BaseImageProcessor | None:
    """Return the image processor of a pipeline, a Trainer or a processor of image and text."""
    for name in ("image_processor", "processing_class"):
        part = getattr(holder, name, None)
        part = getattr(part, "image_processor", part)
        if isinstance(part, BaseImageProcessor):
            return part
    return None


def _processor_of(checkpoint: str) -> BaseImageProcessor | None:
    try:
        return load_processor(checkpoint) if checkpoint else None
    except HfGmarError:
        return None
