"""From an image and a model to explanations: one call, or one object for many images."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import torch
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor

from hf_gmar._core.targets import NO_CLASS
from hf_gmar._utils.html import html_facts
from hf_gmar._utils.text import brief
from hf_gmar._utils.validation import check_option
from hf_gmar.data.image_files import ImageSource, name_of_image, read_input
from hf_gmar.errors import OptionError, TargetError
from hf_gmar.explanation import Explanation
from hf_gmar.methods.base import AttributionMethod
from hf_gmar.methods.registry import METHODS
from hf_gmar.models.any_model import as_loaded
from hf_gmar.models.hub import LoadedModel
from hf_gmar.models.image_view import ImageView, measure_view
from hf_gmar.models.labels import classes_of_model, label_of
from hf_gmar.models.pixel_values import picture_of_input
from hf_gmar.models.score_kind import ScoreKind
from hf_gmar.models.wrappers import ZeroShotModel
from hf_gmar.questions import (
    SimilarTo,
    check_without_class,
    head_for,
    label_without_class,
    method_on,
    similar_indices,
    similar_targets,
    similarity_model,
)

ClassName: TypeAlias = int | str
"""A class: its index, its label, a comma-separated part of its label, or its prompt."""

Question: TypeAlias = ClassName | SimilarTo
"""What is explained: a class, or the similarity to another image."""

PRECISIONS = ("float32", "bfloat16", "float16")
"""Precisions of a model's forward; the last two by autocast."""


def explain(
    image: Any,
    model: Any,
    target: Question | Sequence[Question] | None = None,
    contrast: Question | None = None,
    method: str = "gmar",
    **options: Any,
) -> Any:
    """Explain why a model sees a class in an image.

    Args:
        image: a path, URL, Pillow image or array, or a list of them.
        model: a name on the Hub, a local folder, ``"bundled"``, what ``load_model`` returns, a
            pipeline, a Trainer, or a model of Transformers or PEFT.
        target: the class, by label, index or prompt, or a list of classes. ``None`` is the most
            probable class of each image. :class:`~hf_gmar.SimilarTo` explains the similarity to
            another image instead.
        contrast: a class whose score is subtracted: why the target rather than this one? Another
            ``SimilarTo`` for a similarity.
        method: the name of the method; ``hf-gmar methods`` lists them.
        **options: further arguments of :class:`Explainer` and of the method.

    Returns:
        An :class:`~hf_gmar.Explanation`; a list of them for a list of classes; and for a list of
        images, a list with what each image gives.

    Raises:
        HfGmarError: see :class:`Explainer`.

    Example:
        >>> from hf_gmar.data import draw_scene
        >>> explain(draw_scene(18).image, "bundled", target=["heart", "cross"])
        [Explanation(heart 99.9%, image, GMAR), Explanation(cross 99.7%, image, GMAR)]
    """
    if similar_targets(target, contrast):
        options = {"head": None, **options}  # a class head is not needed
    explainer = Explainer(model, method, **options)
    if isinstance(image, list | tuple):
        return list(explainer.stream(image, target, contrast))
    return explainer(image, target, contrast)


class Explainer:
    """A model with a method, to explain any number of images.

    Args:
        model: see :func:`explain`.
        method: the name of the method.
        processor: the image processor of a model that comes without one, or its name or folder.
        prompts: the classes of an image-text model that is named.
        precision: ``"float32"``, or ``"bfloat16"`` or ``"float16"`` for a faster forward by
            autocast; ``None`` leaves the model's own.
        head: whether a named model is loaded with its class head, see
            :func:`~hf_gmar.load_model`. Methods without gradients need none.
        **options: options of the method, such as ``norm="l2"``.

    Attributes:
        loaded: the model and its processor.
        method: the method on that model.
        settings: the settings that are saved with each result.

    Raises:
        OptionError: an unknown method, option or precision, or no image processor.
        ModelLoadError: the named model can't be loaded.
        UnsupportedModelError: the model's family can't be explained.

    Example:
        >>> from hf_gmar.data import draw_scene
        >>> explainer = Explainer("bundled", method="attn-lrp")
        >>> [result.label for result in explainer.stream(draw_scene(n).image for n in (18, 19))]
        ['heart', 'ring']
    """

    def __init__(
        self,
        model: Any,
        method: str = "gmar",
        *,
        processor: BaseImageProcessor | str | Path | None = None,
        prompts: Sequence[str] | None = None,
        precision: str | None = None,
        head: bool | None = True,
        **options: Any,
    ) -> None:
        METHODS.check(method, options)
        if precision is not None:
            check_option("precision", precision, PRECISIONS)
        self.loaded: LoadedModel = as_loaded(model, processor, prompts, head_for(method, head))
        self.method: AttributionMethod = method_on(method, self.loaded.model, options)
        self._options = options
        self.precision = precision
        self.settings = self._settings(method, options)

    def __repr__(self) -> str:
        """Name the model and the method."""
        name, method = brief(self.loaded.name), brief(self.settings["method"])
        return f"Explainer({name!r}, method={method!r})"

    def _repr_html_(self) -> str:
        """Show the facts of model and method in a notebook."""
        precision = {} if self.precision is None else {"precision": self.precision}
        facts = {**self.loaded.facts(), **self.method.facts(), **precision}
        return html_facts(facts, "Explainer")

    def __call__(
        self,
        image: ImageSource,
        target: Question | Sequence[Question] | None = None,
        contrast: Question | None = None,
        top_k: int = 1,
    ) -> Any:
        """Explain one image.

        Args:
            image: a path, URL, base64 text, Pillow image, or an array (height, width, channels) or
                (channels, height, width) of values from 0 to 255.
            target: see :func:`explain`.
            contrast: see :func:`explain`.
            top_k: without a target, the number of most probable classes to explain.

        Returns:
            An :class:`~hf_gmar.Explanation`; a list of them, in the order of the classes, for a
            list of targets or a ``top_k`` above 1.

        Raises:
            ImageFileError: the image is missing, broken or too large.
            InputError: the image or the processor's pixels do not fit the model.
            TargetError: a class does not exist, is named twice or is its own contrast.
            OptionError: target and top_k are both given, or the method's map is the same for all
                classes, so it takes no contrast.
            ModelOutputError: the model gives no scores or no finite gradient.
        """
        (result,) = self.stream([image], target, contrast, top_k, batch_size=1)
        return result

    def stream(
        self,
        images: Iterable[ImageSource],
        target: Question | Sequence[Question] | None = None,
        contrast: Question | None = None,
        top_k: int = 1,
        *,
        batch_size: int = 4,
        num_workers: int = 0,
        return_errors: bool = False,
    ) -> Iterator[Any]:
        """Explain images one after the other, in batches; yield what :meth:`__call__` returns.

        Args:
            images: any number of images, read as they are needed.
            target: see :func:`explain`.
            contrast: see :func:`explain`.
            top_k: see :meth:`__call__`.
            batch_size: the number of images in a forward; images of other sizes begin a new batch.
            num_workers: threads that read and process images while the model runs.
            return_errors: yield the error of an image in its place instead of raising it.
        """
        if items := similar_targets(target, contrast):
            about = images, *similar_indices(target, contrast), top_k
            how: Any = {"batch_size": batch_size, "num_workers": num_workers}
            yield from self.similar_to(*items).stream(*about, **how, return_errors=return_errors)
            return
        question = self._question(target, contrast, top_k)
        check_option("batch_size", batch_size, range(1, 2**20))
        prepared = _in_threads(self._prepared, images, num_workers, 2 * batch_size)
        for batch in _batches(prepared, batch_size):
            yield from self._explained(batch, question, return_errors)

    def similar_to(self, *items: SimilarTo) -> Explainer:
        """Return an explainer whose classes are the similarities to some images, embedded once."""
        other = copy.copy(self)
        other.loaded = similarity_model(self.loaded, items)
        other.method = METHODS.build(self.settings["method"], other.loaded.model, **self._options)
        settings = {name: value for name, value in self.settings.items() if name != "prompts"}
        other.settings = {**settings, "similar_to": list(map(str, items))}
        return other

    def _settings(self, method: str, options: dict[str, Any]) -> dict[str, Any]:
        values = {**METHODS.options(method), **options}
        known = {name: value for name, value in values.items() if value is not None}
        loaded = self.loaded
        settings = {"model": loaded.name, "method": method, **known, **loaded.forward_kwargs}
        if self.precision is not None:
            settings["precision"] = self.precision
        if isinstance(loaded.model, ZeroShotModel):  # CLIP's probabilities depend on all prompts
            settings["prompts"] = loaded.model.prompts
        return settings

    def _question(self, target: Any, contrast: Any, top_k: int) -> _Question:
        check_option("top_k", top_k, range(1, 2**31))
        if target is not None and top_k > 1:
            raise OptionError("give either target (those classes) or top_k (the best), not both")
        check_without_class(self.method, target, contrast, top_k)
        self.method.check_contrast(contrast)
        names = list(target) if isinstance(target, list | tuple) else [target]
        if not names:
            raise OptionError("target is an empty list; name a class in it, or leave it out")
        targets = None if target is None else classes_of_model(self.loaded.model, names)
        other = None if contrast is None else classes_of_model(self.loaded.model, [contrast])[0]
        if targets is not None and other in targets:
            raise TargetError("target and contrast are the same class; name two")
        is_list = top_k > 1 or isinstance(target, list | tuple)
        return _Question(targets, other, top_k, is_list)

    def _prepared(self, image: Any) -> _Prepared | Exception:
        """Read and process an image; an error is returned, to be raised in its place."""
        try:
            loaded = self.loaded
            value = read_input(image, loaded.channels)
            picture = picture_of_input(value, loaded.channels)
            view = measure_view(loaded.processor, (picture.height, picture.width))
            return _Prepared(name_of_image(image), picture, view, loaded.pixels(value))
        except Exception as error:  # noqa: BLE001  # of any decoder or processor
            return error

    def _explained(
        self, batch: list[_Prepared | Exception], question: _Question, return_errors: bool
    ) -> Iterator[Any]:
        """Explain a batch of one size, or yield or raise the error of a single image."""
        images = [item for item in batch if isinstance(item, _Prepared)]
        try:
            results = self._results(images, question) if images else []
        except Exception as error:
            if not return_errors:
                raise
            several = len(images) > 1  # one image may have failed, and the others need not
            results = [self._alone(image, question) for image in images] if several else [error]
        found = iter(results)
        for item in batch:
            result = next(found) if isinstance(item, _Prepared) else item
            if isinstance(result, Exception) and not return_errors:
                raise result
            yield result

    def _alone(self, image: _Prepared, question: _Question) -> Any:
        """Explain one image, or return the error."""
        try:
            return self._results([image], question)[0]
        except Exception as error:  # noqa: BLE001  # of any model
            return error

    def _results(self, images: list[_Prepared], question: _Question) -> list[Any]:
        loaded = self.loaded
        pixels = torch.cat([image.pixels for image in images])
        with self._autocast(pixels.device):
            found = self.method.attribute_with_scores(
                pixels,
                question.targets,
                contrast=question.contrast,
                top_k=question.top_k,
                **loaded.forward_kwargs,
            )
        kind = ScoreKind.of(loaded.config, found.scores)
        scores = kind.convert(found.scores).flatten(1).cpu()
        if (no_class := label_without_class(self.method, found.scores)) is not None:
            kind = ScoreKind.NONE
        settings, other = self.settings, None
        if question.contrast is not None:
            other = label_of(loaded.config, question.contrast)
            settings = {**settings, "contrast": other, "contrast_target": question.contrast}
        results: list[Any] = []
        for number, image in enumerate(images):
            classes = found.classes[:, number].tolist()
            maps = found.maps[:, number].float().cpu()
            explanations = [
                Explanation(
                    image.source,
                    image.picture,
                    image.view,
                    patches,
                    index if no_class is None else NO_CLASS,
                    label_of(loaded.config, index) if no_class is None else no_class,
                    float(scores[number, index]) if no_class is None else math.nan,
                    kind,
                    settings,
                    other,
                    question.contrast,
                )
                for index, patches in zip(classes, maps, strict=True)
            ]
            results.append(explanations if question.is_list else explanations[0])
        return results

    def _autocast(self, device: torch.device) -> Any:
        if self.precision in (None, "float32"):
            return nullcontext()
        return torch.autocast(device.type, getattr(torch, str(self.precision)))


@dataclass(frozen=True)
class _Question:
    """The classes to explain: some targets, or the most probable ones."""

    targets: list[int] | None
    contrast: int | None
    top_k: int
    is_list: bool


@dataclass(frozen=True)
class _Prepared:
    """One image, ready for the model."""

    source: str
    picture: Image.Image
    view: ImageView
    pixels: Tensor


def _in_threads(
    function: Callable[[Any], Any], items: Iterable[Any], threads: int, ahead: int
) -> Iterator[Any]:
    """Map items in order; threads work ``ahead`` items before they are needed."""
    check_option("num_workers", threads, range(1025))
    if not threads:
        yield from map(function, items)
        return
    source = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        waiting = [pool.submit(function, item) for item in islice(source, ahead)]
        while waiting:
            yield waiting.pop(0).result()
            waiting += [pool.submit(function, item) for item in islice(source, 1)]


def _batches(
    items: Iterable[_Prepared | Exception], size: int
) -> Iterator[list[_Prepared | Exception]]:
    """Group images of one size; errors stay in their places."""
    batch: list[_Prepared | Exception] = []
    shape: torch.Size | None = None
    for item in items:
        if isinstance(item, _Prepared):
            if batch and shape is not None and item.pixels.shape != shape:
                yield batch
                batch = []
            shape = item.pixels.shape
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch, shape = [], None
    if batch:
        yield batch
