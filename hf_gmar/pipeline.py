"""The task "image-attribution" of ``transformers.pipeline``, registered on import."""

from __future__ import annotations

import numbers
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForImageClassification, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from hf_gmar._core.cell_layout import drawn_map
from hf_gmar._core.media import check_takes_images
from hf_gmar._core.model_adapter import find_backbone
from hf_gmar.data.prepared_image import PreparedImage, prepare_image
from hf_gmar.errors import InputError, ModelLoadError, OptionError
from hf_gmar.methods.base import AttributionMethod
from hf_gmar.methods.registry import METHODS
from hf_gmar.models.defaults import DEFAULT_MODEL
from hf_gmar.models.hub import LoadedModel, is_adapter, load_model
from hf_gmar.models.hub_errors import incomplete_error, misfit_error, takes_prompts
from hf_gmar.models.input_size import Size, interpolation, parse_size, with_size
from hf_gmar.models.labels import classes_of_model, label_of
from hf_gmar.models.pixel_values import check_resized, pixel_values, process
from hf_gmar.models.score_kind import ScoreKind

TASK = "image-attribution"
"""The name of the task in ``transformers.pipeline``."""

# The base's type annotations do not allow named parameters in its methods.
_Pipeline: Any = Pipeline
_Array = np.ndarray | Tensor
_REVISION = "3f49326"  # of the default model, as for image classification
_METHOD = "gmar"

_incomplete: WeakKeyDictionary[nn.Module, tuple[list[str], dict[str, Any]]] = WeakKeyDictionary()


class ImageAttributionPipeline(_Pipeline):  # type: ignore[misc]
    """Class scores of images, each with the attribution map of the class.

    The inputs are those of an image-classification pipeline: a path, a URL, a PIL image or an
    array; a list, generator or dataset of them; ``batch_size``, ``device``, ``dtype`` and so on.
    Batches give the same results as single images. The model is not changed.

    Options of the constructor or of a call, which takes precedence:

    - ``method``: name of the method, ``"gmar"`` by default; ``hf-gmar methods`` lists all.
    - ``target``: the class to explain, as label or index, or a list of classes.
    - ``top_k``: without a target, the number of most probable classes to explain for each image, 1
      by default.
    - ``contrast``: a class, as label or index, whose score is subtracted from the explained score.
    - ``overlay``: add a picture of the attribution map over the original image.
    - ``timeout``: seconds to wait for an image from the web.
    - ``size``: height and width that the model gets, instead of the processor's: a number, a pair,
      or text such as ``"224x448"``.
    - ``interpolate_pos_encoding``: interpolate the model's positions, for other sizes than its own.
    - options of the method, for example ``norm="l2"``.

    Returns:
        For each image, a list with one dict for each explained class, most probable first:
        ``label``; ``score``, a float: a probability as in image classification, or the
        plain value of a regression or of a single output; ``attribution``, a float32
        tensor (height, width) on the original image's grid; and on request ``overlay``, a PIL
        image of the same size. A pixel has the relevance of its patch, in the method's range
        (GMAR: from 0 to 1), or NaN outside the processor's crop. With a finer ``resolution`` it
        has that of its cell, or its own, which the overlay averages over a patch around each.

    Raises:
        OptionError: a method or option does not exist, a value is out of range, or both target
            and top_k are given.
        TargetError: a class does not exist.
        UnsupportedModelError: the model can't be explained.
        ModelLoadError: the checkpoint lacks some weights, for example of the class head.
        InputError: an input is not one image, or the processor's geometry can't be measured.

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
        _reject_incomplete(self.model)
        self._check(**self._forward_params)

    def __repr__(self) -> str:
        """Represent any module; the base class needs attributes of Transformers models."""
        return f"{type(self).__name__}: {type(self.model).__name__}, {self.dtype}, {self.device}"

    def _sanitize_parameters(
        self,
        timeout: float | None = None,
        overlay: bool | None = None,
        size: Size | None = None,
        **for_method: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Distribute the keywords of a call over the three steps."""
        for_loading: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
        if size is not None:
            for_loading["size"] = parse_size(size)
        for_drawing = {} if overlay is None else {"overlay": overlay}
        if not for_method.keys().isdisjoint({"target", "top_k"}):
            # Either of them in a call replaces both values of the constructor.
            for_method = {"target": None, "top_k": None, **for_method}
        return {**for_loading, **for_drawing}, for_method, for_drawing

    def preprocess(
        self,
        image: Any,
        timeout: float | None = None,
        overlay: bool = False,
        size: tuple[int, int] | None = None,
    ) -> dict[str, Any]:
        """Make pixel values (1, channels, height, width), and measure the view of the image.

        Args:
            image: a path, a URL, a PIL image, or an array or tensor with one image.
            timeout: seconds to wait for an image from the web.
            overlay: keep the image for the overlay.
            size: height and width of the pixel values, instead of the processor's.

        Raises:
            InputError: an array has several images, or the processor's geometry can't be measured.
        """
        processor = self.image_processor if size is None else with_size(self.image_processor, size)
        prepared = prepare_image(LoadedModel(TASK, self.model, processor), image, timeout)
        pixels = _pixels(prepared)
        if len(pixels) != 1:
            raise InputError(
                f"an array of the shape {tuple(image.shape)} holds {len(pixels)} images; give a "
                "list of arrays, each with one image"
            )
        return {
            "pixel_values": pixels.to(self.dtype),
            "view": prepared.view,
            "image": prepared.picture if overlay else None,
        }

    def _forward(
        self,
        inputs: dict[str, Any],
        method: str = _METHOD,
        target: Any = None,
        top_k: int | None = None,
        contrast: Any = None,
        interpolate_pos_encoding: bool = False,
        **options: Any,
    ) -> dict[str, Any]:
        """Return the explained classes (B, K), scores (B, K) and maps (B, K, rows, columns).

        The drawn maps differ from the maps if these are of pixels.
        """
        explain, pixels = self._method(method, options), inputs.pop("pixel_values")
        keywords = interpolation(self.model, interpolate_pos_encoding)
        targets, against = self._targets(target, top_k), self._contrast(method, contrast)
        found = explain.attribute_with_scores(
            pixels, targets, contrast=against, top_k=_checked_count(top_k), **keywords
        )
        scores = ScoreKind.of(self.model.config, found.scores).convert(found.scores)
        finest = found.maps if found.fine_maps is None else found.fine_maps
        classes, maps = found.classes.T, finest.transpose(0, 1).float()  # images first
        drawn = drawn_map(found.maps, found.fine_maps, explain.resolution).transpose(0, 1).float()
        scores = scores.gather(1, classes)
        order = scores.argsort(dim=1, descending=True, stable=True)
        places = order[..., None, None].expand_as(maps).to(maps.device)
        return {
            "classes": classes.gather(1, order).cpu(),
            "scores": scores.gather(1, order).cpu(),
            "maps": maps.gather(1, places),
            "drawn": drawn.gather(1, places),
            **inputs,
        }

    def _check(
        self,
        method: str = _METHOD,
        target: Any = None,
        top_k: Any = None,
        contrast: Any = None,
        interpolate_pos_encoding: bool = False,
        **options: Any,
    ) -> None:
        """Check the options of the constructor."""
        check_takes_images(find_backbone(self.model))
        self._method(method, options)
        self._targets(target, top_k)
        self._contrast(method, contrast)
        interpolation(self.model, interpolate_pos_encoding)

    def _contrast(self, method: str, contrast: Any) -> int | None:
        METHODS[method].check_contrast(contrast)
        return None if contrast is None else classes_of_model(self.model, [contrast])[0]

    def _method(self, name: str, options: dict[str, Any]) -> AttributionMethod:
        known = METHODS.options(name)
        if unknown := sorted(options.keys() - known):
            raise OptionError(
                f"the pipeline has no option {', '.join(unknown)}; it has method, target, top_k, "
                "contrast, overlay, timeout, size, interpolate_pos_encoding and, for the method "
                f"{name!r}, {', '.join(known)}"
            )
        return METHODS.build(name, self.model, **options)

    def _targets(self, target: Any, top_k: Any) -> list[int] | None:
        """Return the classes to explain; ``None`` for the most probable ones."""
        if target is None:
            _checked_count(top_k)
            return None
        if top_k is not None:
            raise OptionError("give either target (those classes) or top_k (the best), not both")
        names = target if isinstance(target, list | tuple) else [target]
        if not names:
            raise OptionError("target is an empty list; name a class in it, or leave it out")
        return classes_of_model(self.model, names)

    def postprocess(self, outputs: dict[str, Any], overlay: bool = False) -> list[dict[str, Any]]:
        """Make one dict for each explained class of an image, most probable first."""
        parts = (outputs[name][0] for name in ("classes", "scores", "maps", "drawn"))
        results = []
        for index, score, values, drawn in zip(*parts, strict=True):
            heatmap = outputs["view"].project(values)
            label = label_of(self.model.config, int(index))
            result = {"label": label, "score": float(score), "attribution": heatmap}
            if overlay:
                from hf_gmar.visualization.overlay import overlay_image

                smooth = outputs["view"].project(drawn, smooth=True)
                result["overlay"] = overlay_image(outputs["image"], smooth)
            results.append(result)
        return results


def _checked_count(top_k: Any) -> int:
    if top_k is None:
        return 1
    if not isinstance(top_k, numbers.Integral) or isinstance(top_k, bool) or int(top_k) < 1:
        raise OptionError(f"top_k must be a whole number >= 1, got {top_k!r}")
    return int(top_k)


def _pixels(image: PreparedImage) -> Tensor:
    """Return pixel values on the CPU; arrays of three channels as in image classification."""
    loaded, value = image.loaded, image.value
    if isinstance(value, Image.Image) or loaded.channels != 3:
        return pixel_values(loaded.processor, value, loaded.channels)
    check_resized(loaded.processor, *image.size)
    what = f"an array of the shape {tuple(value.shape)}"
    return process(loaded.processor, value, what, return_tensors="pt")


class _MissingWeightsRecorder(AutoModelForImageClassification):
    """Loads a model and records missing and misshapen weights, of which Transformers only warns.

    The pipeline then raises the error. An error here would not reach the user, because Transformers
    would try the next class.
    """

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load the model by ``AutoModelForImageClassification``."""
        access: dict[str, Any] = {
            key: kwargs.get(key) for key in ("revision", "token", "cache_dir")
        }
        if is_adapter(args[0], **access):  # Transformers does not load its class head
            return load_model(
                args[0],
                dtype=kwargs.get("dtype") or "auto",
                attn_implementation=kwargs.get("attn_implementation"),
                trust_remote_code=bool(kwargs.get("trust_remote_code")),
                **access,
            ).model
        kwargs["ignore_mismatched_sizes"] = True  # Transformers' error does not say which ones
        model, info = AutoModelForImageClassification.from_pretrained(
            *args, output_loading_info=True, **kwargs
        )
        misfits = {name: shapes for name, *shapes in info["mismatched_keys"]}
        _incomplete[model] = sorted(info["missing_keys"]), misfits
        return model


def _reject_incomplete(model: Any) -> None:
    missing, misfits = _incomplete.pop(model, ([], {}))
    name = model.config.name_or_path
    if misfits:
        raise misfit_error(name, misfits)
    if not missing:
        return
    if takes_prompts(model.config):
        raise ModelLoadError(
            f"{name!r} is a model of image and text, which scores images by text prompts; give "
            "them with model=hf_gmar.ZeroShotModel(...), or with --prompts on the command line"
        )
    raise incomplete_error(name, missing)


def register() -> None:
    """Register the task with ``transformers.pipeline``, once."""
    if TASK in PIPELINE_REGISTRY.supported_tasks:
        return
    PIPELINE_REGISTRY.register_pipeline(
        TASK,
        pipeline_class=ImageAttributionPipeline,
        pt_model=_MissingWeightsRecorder,
        default={"model": (DEFAULT_MODEL, _REVISION)},
        type="image",
    )
    # With this attribute, save_pretrained would copy this file beside the model, and loading the
    # model again would need trust_remote_code.
    del ImageAttributionPipeline._registered_impl


register()
