"""The task "image-attribution" for ``transformers.pipeline``; importing this registers it."""

from __future__ import annotations

import numbers
import os
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForImageClassification, Pipeline
from transformers.image_transforms import to_pil_image
from transformers.image_utils import (
    ChannelDimension,
    infer_channel_dimension_format,
    load_image,
)
from transformers.pipelines import PIPELINE_REGISTRY

from hf_gmar.errors import InputError, ModelLoadError, OptionError
from hf_gmar.methods.base import AttributionMethod
from hf_gmar.methods.registry import METHODS
from hf_gmar.models.defaults import DEFAULT_MODEL
from hf_gmar.models.hub_errors import incomplete_error, takes_prompts
from hf_gmar.models.image_view import measure_view
from hf_gmar.models.labels import find_class, label_of, probabilities

TASK = "image-attribution"
"""The name that ``transformers.pipeline`` knows it by."""

# The types of the base's methods leave no room for parameters by name.
_Pipeline: Any = Pipeline
_Array = np.ndarray | Tensor
_REVISION = "3f49326"  # of the default model, as image classification has it
_METHOD = "gmar"

_missing_weights: WeakKeyDictionary[nn.Module, list[str]] = WeakKeyDictionary()


class ImageAttributionPipeline(_Pipeline):  # type: ignore[misc]
    """Class scores of images, each with the map of where the class came from.

    Takes what an image-classification pipeline takes: a path, a URL, a PIL image or an array; a
    list, a generator or a dataset of them; ``batch_size``, ``device``, ``dtype`` and so on.
    Batches give the same as single images. The model comes back as it was.

    Args, when it is made or called; what a call says goes first:
        method: name of the explanation method, ``"gmar"`` unless it is said; ``hf-gmar methods``
            lists them.
        target: the class to explain, as its label or index, or a list of several.
        top_k: without a target, explain so many of the most probable classes of each image, 1
            unless it is said.
        contrast: another class, as its label or index: why the explained one rather than it?
        overlay: add a picture of the attribution map over the original image.
        timeout: seconds to wait for an image from the web.
        **options: of the method, such as ``norm="l2"``.

    Returns:
        For each image a list with one dict for each explained class, most probable first: its
        ``label``; its ``score``, a float, as image classification gives it; ``attribution``, a
        float32 tensor (height, width) on the original image's grid: each pixel has the relevance
        of its patch, in the range of the method (GMAR: from 0 to 1), and NaN where the model did
        not see the image (outside its processor's crop); on request ``overlay``, a PIL image of
        the same size.

    Raises:
        OptionError: no such method or option, a value out of range, or target and top_k together.
        TargetError: no such class.
        UnsupportedModelError: the model can't be explained.
        ModelLoadError: the weights lack some of the model, such as its class head.
        InputError: not one image at a time, or its way through the processor can't be followed.

    Example:
        >>> from transformers import pipeline
        >>> from hf_gmar import load_model
        >>> from hf_gmar.data import draw_scene
        >>> loaded = load_model("bundled")
        >>> explain = pipeline(
        ...     "image-attribution", model=loaded.model, image_processor=loaded.processor, top_k=2
        ... )
        >>> results = explain(draw_scene(18).image)
        >>> [result["label"] for result in results], results[0]["attribution"].shape
        (['heart', 'cross'], torch.Size([96, 96]))
    """

    _load_processor = False
    _load_image_processor = True
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _refuse_incomplete(self.model)
        self._check(**self._forward_params)

    def __repr__(self) -> str:
        """Of any module; the base asks for attributes that only those of Transformers have."""
        return f"{type(self).__name__}: {type(self.model).__name__}, {self.dtype}, {self.device}"

    def _sanitize_parameters(
        self, timeout: float | None = None, overlay: bool | None = None, **explained: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Sort the keywords of a call into those of the three steps."""
        before = {} if timeout is None else {"timeout": timeout}
        drawn = {} if overlay is None else {"overlay": overlay}
        if not explained.keys().isdisjoint({"target", "top_k"}):
            # Either of them in a call replaces whichever was said when the pipeline was made.
            explained = {"target": None, "top_k": None, **explained}
        return {**before, **drawn}, explained, drawn

    def preprocess(
        self, image: Any, timeout: float | None = None, overlay: bool = False
    ) -> dict[str, Any]:
        """Pixel values (1, channels, height, width), and how they lie on the image.

        Args:
            image: a path, a URL, a PIL image, or an array or tensor with one image.
            timeout: seconds to wait for an image from the web.
            overlay: keep the image, to draw on.

        Raises:
            InputError: several images in one array, or a processor that can't be followed.
        """
        # An array goes to the processor as it is, as in image classification.
        if not isinstance(image, _Array):
            place = os.fspath(image) if isinstance(image, os.PathLike) else image
            image = load_image(place, timeout)
        pixels = self.image_processor(images=image, return_tensors="pt").pixel_values
        if len(pixels) != 1:
            raise InputError(
                f"an array of the shape {tuple(image.shape)} holds {len(pixels)} images; give a "
                "list of arrays, each with one image"
            )
        return {
            "pixel_values": pixels.to(self.dtype),
            "view": measure_view(self.image_processor, _size(image)),
            "image": _picture(image) if overlay else None,
        }

    def _forward(
        self,
        inputs: dict[str, Any],
        method: str = _METHOD,
        target: Any = None,
        top_k: int | None = None,
        contrast: Any = None,
        **options: Any,
    ) -> dict[str, Any]:
        """The explained classes (B, K), their scores (B, K), and maps (B, K, rows, columns)."""
        explain, pixels = self._method(method, options), inputs.pop("pixel_values")
        scores = probabilities(self.model.config, explain.scores(pixels)).cpu()
        classes = _most_probable(scores, self._classes(target, top_k))
        against = self._contrast(method, contrast)
        maps = explain.attribute_targets(pixels, list(classes.T), contrast=against)
        return {
            "classes": classes,
            "scores": scores.gather(1, classes),
            "patches": maps.transpose(0, 1).float(),
            **inputs,
        }

    def _check(
        self,
        method: str = _METHOD,
        target: Any = None,
        top_k: Any = None,
        contrast: Any = None,
        **options: Any,
    ) -> None:
        """Refuse wrong options when the pipeline is made."""
        self._method(method, options)
        self._classes(target, top_k)
        self._contrast(method, contrast)

    def _contrast(self, method: str, contrast: Any) -> int | None:
        METHODS[method].check_contrast(contrast)
        return None if contrast is None else find_class(self.model.config, str(contrast))

    def _method(self, name: str, options: dict[str, Any]) -> AttributionMethod:
        known = METHODS.options(name)
        if unknown := sorted(options.keys() - known):
            raise OptionError(
                f"the pipeline has no option {', '.join(unknown)}; it has method, target, top_k, "
                f"contrast, overlay, timeout and, for the method {name!r}, {', '.join(known)}"
            )
        return METHODS.build(name, self.model, **options)

    def _classes(self, target: Any, top_k: Any) -> list[int] | int:
        """The classes to explain, or how many of the most probable ones."""
        if target is None:
            return 1 if top_k is None else _checked_count(top_k)
        if top_k is not None:
            raise OptionError("give either target (those classes) or top_k (the best), not both")
        several = target if isinstance(target, list | tuple) else [target]
        if not several:
            raise OptionError("target is an empty list; name a class in it, or leave it out")
        return [find_class(self.model.config, str(name)) for name in several]

    def postprocess(self, outputs: dict[str, Any], overlay: bool = False) -> list[dict[str, Any]]:
        """One dict for each explained class of an image, most probable first."""
        parts = (outputs[name][0] for name in ("classes", "scores", "patches"))
        results = []
        for index, score, patches in zip(*parts, strict=True):
            heatmap = outputs["view"].project(patches)
            label = label_of(self.model.config, int(index))
            result = {"label": label, "score": float(score), "attribution": heatmap}
            if overlay:
                from hf_gmar.visualization.overlay import overlay_image

                result["overlay"] = overlay_image(outputs["image"], heatmap)
            results.append(result)
        return results


def _checked_count(top_k: Any) -> int:
    if not isinstance(top_k, numbers.Integral) or isinstance(top_k, bool) or int(top_k) < 1:
        raise OptionError(f"top_k must be a whole number >= 1, got {top_k!r}")
    return int(top_k)


def _most_probable(scores: Tensor, classes: list[int] | int) -> Tensor:
    """Of the scores (B, C), these classes or so many of the best, (B, K), best first."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    if isinstance(classes, int):
        return order[:, :classes]
    return order[torch.isin(order, torch.tensor(classes))].view(len(scores), -1)


def _size(image: Image.Image | _Array) -> tuple[int, int]:
    """Height and width."""
    if isinstance(image, Image.Image):
        return image.height, image.width
    first = _layout(image) == ChannelDimension.FIRST
    height, width = image.shape[-2:] if first else image.shape[-3:-1]
    return height, width


def _layout(array: _Array) -> ChannelDimension:
    """Where the channels are, guessed as Transformers' processors do."""
    shaped: Any = array  # tensors too
    return infer_channel_dimension_format(shaped, num_channels=(1, 3, 4))


def _picture(image: Image.Image | _Array) -> Image.Image:
    """The image to draw on."""
    if isinstance(image, Image.Image):
        return image
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else image
    single = array[0] if array.ndim == 4 else array
    return to_pil_image(single, input_data_format=_layout(array)).convert("RGB")


class _MissingWeightsRecorder(AutoModelForImageClassification):
    """Loads a model and notes which weights are missing: Transformers only warns.

    The pipeline then refuses the model. An error here would not reach the user: Transformers would
    try the next class.
    """

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load what ``AutoModelForImageClassification`` would."""
        model, info = AutoModelForImageClassification.from_pretrained(
            *args, output_loading_info=True, **kwargs
        )
        mismatched = {name for name, *_ in info["mismatched_keys"]}  # if the user lets them pass
        _missing_weights[model] = sorted({*info["missing_keys"], *mismatched})
        return model


def _refuse_incomplete(model: Any) -> None:
    missing = _missing_weights.pop(model, [])
    if not missing:
        return
    name = model.config.name_or_path
    if takes_prompts(model.config):
        raise ModelLoadError(
            f"{name!r} is a model of image and text, which scores images by text prompts; give "
            "them with model=hf_gmar.ZeroShotModel(...), or with --prompts on the command line"
        )
    raise incomplete_error(name, missing)


def register() -> None:
    """Make the task known to ``transformers.pipeline``, once."""
    if TASK in PIPELINE_REGISTRY.supported_tasks:
        return
    PIPELINE_REGISTRY.register_pipeline(
        TASK,
        pipeline_class=ImageAttributionPipeline,
        pt_model=_MissingWeightsRecorder,
        default={"model": (DEFAULT_MODEL, _REVISION)},
        type="image",
    )
    # With this mark, save_pretrained would put a copy of this file beside the model, which then
    # could not be loaded again unless its code is trusted.
    del ImageAttributionPipeline._registered_impl


register()
