"""From an image and a model to explanations: one call, or one object for many images."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import BaseImageProcessor

from hf_gmar._core.targets import NO_CLASS
from hf_gmar._utils.html import html_facts
from hf_gmar._utils.option_strings import plain_value
from hf_gmar._utils.precision import autocast_dtype, check_precision, forward_precision
from hf_gmar._utils.text import brief
from hf_gmar._utils.validation import check_option
from hf_gmar.data.batches import batches, in_threads
from hf_gmar.data.image_files import ImageSource
from hf_gmar.data.prepared_image import PreparedImage, prepare_image
from hf_gmar.errors import HfGmarError, OptionError, TargetError, UnsupportedModelError
from hf_gmar.explanation import Explanation
from hf_gmar.explanations import Explanations
from hf_gmar.faithfulness import ModelInput
from hf_gmar.methods.base import AttributionMethod, ScoredAttribution
from hf_gmar.methods.registry import METHODS, method_title, with_options
from hf_gmar.models.any_model import as_loaded
from hf_gmar.models.hub import LoadedModel
from hf_gmar.models.labels import classes_of_model, label_of
from hf_gmar.models.score_kind import ScoreKind
from hf_gmar.models.wrappers import ZeroShotModel
from hf_gmar.questions import (
    NoQuestion,
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


def explain(
    image: Any,
    model: Any,
    target: Question | Sequence[Question] | None = None,
    contrast: Question | None = None,
    method: str | Sequence[str] = "gmar",
    *,
    check: bool = False,
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
        method: the name of the method, or a list of names; ``hf-gmar methods`` lists them.
        check: ask the model what each map is worth, see :meth:`Explanation.check`; the answer is
            drawn below the map.
        **options: further arguments of :class:`Explainer` and of the method.

    Returns:
        An :class:`~hf_gmar.Explanation`; :class:`~hf_gmar.Explanations`, a list of them, for a list
        of classes or of methods; and for a list of images, a list with what each image gives.

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
        return list(explainer.stream(image, target, contrast, check=check))
    return explainer(image, target, contrast, check=check)


class Explainer:
    """A model with one method or several, to explain any number of images.

    Args:
        model: see :func:`explain`.
        method: the name of the method, or a list of names; options may follow a name, as in
            ``"gmar:norm=l2"``.
        processor: the image processor of a model that comes without one, or its name or folder.
        prompts: the classes of an image-text model that is named.
        precision: ``"float32"``, or ``"bfloat16"`` or ``"float16"`` for a faster forward by
            autocast; ``None`` leaves the model's own.
        head: whether a named model is loaded with its class head, see
            :func:`~hf_gmar.load_model`. Methods without gradients need none.
        **options: options of the methods, such as ``norm="l2"``; each method takes those that it
            has.

    Attributes:
        loaded: the model and its processor.
        methods: the methods on that model, by name and options, such as ``"gmar (norm=l2)"``.

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
        method: str | Sequence[str] = "gmar",
        *,
        processor: BaseImageProcessor | str | Path | None = None,
        prompts: Sequence[str] | None = None,
        precision: str | None = None,
        head: bool | None = True,
        **options: Any,
    ) -> None:
        self._specs = with_options(method, options)
        check_precision(precision)
        head = head_for([name for name, _ in self._specs], head)
        self.loaded: LoadedModel = as_loaded(model, processor, prompts, head)
        self.precision = precision
        self._is_list = not isinstance(method, str)
        self._build()

    def __repr__(self) -> str:
        """Name the model and the methods."""
        methods = ", ".join(settings["method"] for settings in self._settings.values())
        return f"Explainer({brief(self.loaded.name)!r}, method={brief(methods)!r})"

    def _repr_html_(self) -> str:
        """Show the facts of the model and the methods in a notebook."""
        precision = {} if self.precision is None else {"precision": self.precision}
        tables = html_facts({**self.loaded.facts(), **precision}, "Explainer")
        return tables + "".join(html_facts(method.facts()) for method in self.methods.values())

    def __call__(
        self,
        image: ImageSource,
        target: Question | Sequence[Question] | None = None,
        contrast: Question | None = None,
        top_k: int = 1,
        *,
        check: bool = False,
    ) -> Any:
        """Explain one image.

        Args:
            image: a path, URL, base64 text, Pillow image, or an array (height, width, channels) or
                (channels, height, width) of values from 0 to 255.
            target: see :func:`explain`.
            contrast: see :func:`explain`.
            top_k: without a target, the number of most probable classes to explain.
            check: see :func:`explain`.

        Returns:
            An :class:`~hf_gmar.Explanation`; :class:`~hf_gmar.Explanations`, in the order of the
            classes and for each of them of the methods, for a list of targets, a list of methods or
            a ``top_k`` above 1.

        Raises:
            ImageFileError: the image is missing, broken or too large.
            InputError: the image or the processor's pixels do not fit the model.
            TargetError: a class does not exist, is named twice or is its own contrast.
            OptionError: target and top_k are both given, or the method's map is the same for all
                classes, so it takes no contrast.
            ModelOutputError: the model gives no scores or no finite gradient.
        """
        (result,) = self.stream([image], target, contrast, top_k, check=check, batch_size=1)
        return result

    def stream(
        self,
        images: Iterable[ImageSource],
        target: Question | Sequence[Question] | None = None,
        contrast: Question | None = None,
        top_k: int = 1,
        *,
        check: bool = False,
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
            check: see :func:`explain`.
            batch_size: the number of images in a forward; images of other sizes begin a new batch.
            num_workers: threads that read and process images while the model runs.
            return_errors: yield the error of an image in its place instead of raising it.
        """
        if items := similar_targets(target, contrast):
            yield from self.similar_to(*items).stream(
                images,
                *similar_indices(target, contrast),
                top_k,
                check=check,
                batch_size=batch_size,
                num_workers=num_workers,
                return_errors=return_errors,
            )
            return
        question = self._question(target, contrast, top_k, check)
        check_option("batch_size", batch_size, range(1, 2**20))
        prepared = in_threads(self._prepared, images, num_workers, 2 * batch_size)
        for batch in batches(prepared, batch_size):
            yield from self._explained(batch, question, return_errors)

    def similar_to(self, *items: SimilarTo) -> Explainer:
        """Return an explainer whose classes are the similarities to some images, embedded once."""
        other = copy.copy(self)
        other.loaded = similarity_model(self.loaded, items)
        other._build(similar_to=list(map(str, items)))
        return other

    def _build(self, **settings: Any) -> None:
        """Build the methods on the model; note those that do not fit it."""
        self.methods: dict[str, AttributionMethod] = {}
        self._settings: dict[str, dict[str, Any]] = {}
        self._failures: dict[str, HfGmarError] = {}
        for name, options in self._specs:
            label = METHODS.label(name, options)
            self._settings[label] = {**self._settings_of(name, options), **settings}
            try:
                self.methods[label] = method_on(name, self.loaded.model, options)
            except UnsupportedModelError as error:
                self._failures[method_title(name, options)] = error
        if not self.methods:
            raise next(iter(self._failures.values()))

    @property
    def _waiting(self) -> dict[str, HfGmarError]:
        """The methods that wait for ``SimilarTo``, with the error of other questions."""
        models = {label: method.adapter.model for label, method in self.methods.items()}
        return {
            label: model.error for label, model in models.items() if isinstance(model, NoQuestion)
        }

    def _title_of(self, label: str) -> str:
        settings = self._settings[label]
        return method_title(settings["method"], settings)

    def _settings_of(self, method: str, options: Mapping[str, Any]) -> dict[str, Any]:
        values = {**METHODS.options(method), **options}
        known = {name: plain_value(value) for name, value in values.items() if value is not None}
        loaded = self.loaded
        settings = {"model": loaded.name, "method": method, **known, **loaded.forward_kwargs}
        if self.precision is not None:
            settings["precision"] = self.precision
        if isinstance(loaded.model, ZeroShotModel):  # CLIP's probabilities depend on all prompts
            settings["prompts"] = loaded.model.prompts
        return settings

    def _question(self, target: Any, contrast: Any, top_k: int, check: bool) -> _Question:
        check_option("top_k", top_k, range(1, 2**31))
        if target is not None and top_k > 1:
            raise OptionError("give either target (those classes) or top_k (the best), not both")
        waiting = self._waiting
        if len(waiting) == len(self.methods):
            raise next(iter(waiting.values()))
        for label, method in self.methods.items():
            if label not in waiting:
                check_without_class(method, target, contrast, top_k)
                method.check_contrast(contrast)
        names = list(target) if isinstance(target, list | tuple) else [target]
        if not names:
            raise OptionError("target is an empty list; name a class in it, or leave it out")
        targets = None if target is None else classes_of_model(self.loaded.model, names)
        other = None if contrast is None else classes_of_model(self.loaded.model, [contrast])[0]
        if targets is not None and other in targets:
            raise TargetError("target and contrast are the same class; name two")
        is_list = self._is_list or top_k > 1 or isinstance(target, list | tuple)
        return _Question(targets, other, top_k, is_list, check)

    def _prepared(self, image: Any) -> PreparedImage | Exception:
        """Read and process an image; an error is returned, to be raised in its place."""
        try:
            return prepare_image(self.loaded, image).ready()
        except Exception as error:  # noqa: BLE001  # of any decoder or processor
            return error

    def _explained(
        self, batch: list[PreparedImage | Exception], question: _Question, return_errors: bool
    ) -> Iterator[Any]:
        """Explain a batch of one size, or yield or raise the error of a single image."""
        images = [item for item in batch if isinstance(item, PreparedImage)]
        try:
            results = self._results(images, question) if images else []
        except Exception as error:
            if not return_errors:
                raise
            several = len(images) > 1  # one image may have failed, and the others need not
            results = [self._alone(image, question) for image in images] if several else [error]
        found = iter(results)
        for item in batch:
            result = next(found) if isinstance(item, PreparedImage) else item
            if isinstance(result, Exception) and not return_errors:
                raise result
            yield result

    def _alone(self, image: PreparedImage, question: _Question) -> Any:
        """Explain one image, or return the error."""
        try:
            return self._results([image], question)[0]
        except Exception as error:  # noqa: BLE001  # of any model
            return error

    def _results(self, images: list[PreparedImage], question: _Question) -> list[Any]:
        """Explain images of one size in a batch."""
        found, failures = self._attributions(
            torch.cat([image.pixels for image in images]), question
        )
        if failures and len(images) > 1:  # perhaps of one image, and the others need not fail
            return [self._results([image], question)[0] for image in images]
        waiting = {self._title_of(label): error for label, error in self._waiting.items()}
        failures = {**self._failures, **waiting, **failures}
        results: list[Any] = []
        for number, image in enumerate(images):
            explanations = Explanations(self._of_image(image, number, found, question), failures)
            explanations = explanations.checked() if question.check else explanations
            results.append(explanations if question.is_list else explanations[0])
        return results

    def _attributions(
        self, pixels: Tensor, question: _Question
    ) -> tuple[dict[str, ScoredAttribution], dict[str, HfGmarError]]:
        """Return the maps of each method, all of the same classes, and the errors of others."""
        found: dict[str, ScoredAttribution] = {}
        failures: dict[str, HfGmarError] = {}
        targets: Any = question.targets
        for label, method in self.methods.items():
            if label in self._waiting:
                continue
            try:
                with forward_precision(self.precision, pixels.device):
                    found[label] = method.attribute_with_scores(
                        pixels,
                        targets,
                        contrast=question.contrast,
                        top_k=question.top_k if targets is None else 1,
                        **self.loaded.forward_kwargs,
                    )
            except HfGmarError as error:
                failures[self._title_of(label)] = error
            else:  # the classes of each image, which rounding might change in another forward
                targets = list(found[label].classes)
        if not found:
            raise next(iter(failures.values()))
        return found, failures

    def _of_image(
        self,
        image: PreparedImage,
        number: int,
        found: Mapping[str, ScoredAttribution],
        question: _Question,
    ) -> Iterator[Explanation]:
        """Yield the explanations of an image in a batch."""
        loaded, contrast = self.loaded, question.contrast
        first = next(iter(found.values()))
        kind = ScoreKind.of(loaded.config, first.scores)
        scores = kind.convert(first.scores[number : number + 1]).flatten().tolist()
        other = None if contrast is None else label_of(loaded.config, contrast)
        more = {} if contrast is None else {"contrast": other, "contrast_target": contrast}
        half = autocast_dtype(self.precision)
        for rank, index in enumerate(first.classes[:, number].tolist()):
            for label, attribution in found.items():
                method = self.methods[label]
                no_class = label_without_class(method, attribution.scores)
                is_class, fine = no_class is None, attribution.fine_maps
                yield Explanation(
                    image.name,
                    image.picture,
                    image.view,
                    attribution.maps[rank, number].float().cpu(),
                    index if is_class else NO_CLASS,
                    label_of(loaded.config, index) if no_class is None else no_class,
                    scores[index] if is_class else math.nan,
                    kind if is_class else ScoreKind.NONE,
                    {**self._settings[label], **more},
                    other,
                    contrast,
                    subject=ModelInput(method.adapter, image.pixels, loaded.forward_kwargs, half),
                    fine_map=None if fine is None else fine[rank, number].float().cpu(),
                )


@dataclass(frozen=True)
class _Question:
    """The classes to explain: some targets, or the most probable ones."""

    targets: list[int] | None
    contrast: int | None
    top_k: int
    is_list: bool
    check: bool
