"""Puts the questions of the metrics to a model of Transformers and its methods."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, get_args

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from hf_gmar._core.execution import predict
from hf_gmar._core.head_masking import scores_with_masked_heads
from hf_gmar._core.inputs import checked_request, size_errors
from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar._core.token_layout import ReadoutSpec
from hf_gmar._utils.validation import check_option
from hf_gmar.metrics.context import Explain, MetricContext
from hf_gmar.metrics.weight_randomization import Cascade
from hf_gmar.models.labels import probabilities

ScoreKind: TypeAlias = Literal["probability", "logit"]
SCORE_KINDS: tuple[ScoreKind, ...] = get_args(ScoreKind)


class Explainer(Protocol):
    """What is asked for maps: any of the methods; with ``head_importance``, for heads too."""

    def attribute_patches(self, inputs: Tensor, target: int, **kwargs: Any) -> Tensor:
        """Relevance of each patch, (B, rows, columns)."""
        ...


Build: TypeAlias = Callable[[Any], Explainer]
"""Makes the method on a model: on the user's, and on copies of it that lose their weights."""


@dataclass(eq=False)
class ContextBuilder:
    """One model, and what metrics of the kind ``"context"`` may want to know of it.

    It keeps what all images have in common: the methods that were built, and a copy of the model
    for the loss of its weights (one for each seed, made when it is first wanted).

    Args:
        model: see :class:`~hf_gmar.methods.base.AttributionMethod`.
        score: what the metrics see: ``"probability"``, as image classification gives it, or
            ``"logit"``.
        batch: how many images the model is given at a time.
        readout: which tokens a class head of your own reads.
        forward_kwargs: further keyword arguments that the model's forward names.

    Raises:
        UnsupportedModelError: a model that can't be explained.
        OptionError: an option outside its range.

    Example:
        >>> from hf_gmar import GMAR, load_model
        >>> from hf_gmar.metrics import METRICS
        >>> examiner = ContextBuilder(load_model("bundled").model)
        >>> asked = examiner.asked(GMAR, torch.rand(1, 3, 96, 96), target=6)
        >>> 0 < METRICS.build("class-sensitivity").values(asked).item() <= 1
        True
    """

    model: Callable[..., Any]
    score: ScoreKind = "probability"
    batch: int = 8
    readout: ReadoutSpec = None
    forward_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the options and find the Transformers model in the model."""
        check_option("score", self.score, SCORE_KINDS)
        check_option("batch", self.batch, range(1, 2**31))
        self._subject = ModelAdapter.of(self.model, self.readout)
        self._built: dict[tuple[Build, int], Explainer] = {}
        self._cascades: dict[int, Cascade] = {}

    def asked(
        self,
        build: Build,
        pixels: Tensor,
        target: int,
        *,
        seed: int = 0,
        known: Tensor | None = None,
    ) -> MetricContext:
        """What the metrics take, for one image and one method.

        Args:
            build: makes the method on a model; give the same object for every image.
            pixels: the image, (1, channels, height, width).
            target: the class that is explained.
            seed: of what is drawn at random for this image.
            known: the method's map of it, (rows, columns) or (1, rows, columns), if there is one.

        Raises:
            InputError, OptionError, UnsupportedModelError: a method or pixels that do not fit the
                model.
        """
        method = self._method(build, self.model)
        importance = getattr(method, "head_importance", None)
        heads = importance and functools.partial(self._heads, importance, pixels, target)
        return MetricContext(
            explain=self._explain(method),
            scores=self.scores,
            pixels=pixels,
            target=target,
            other=second_class(self.scores(pixels)[0], target),
            seed=seed,
            known=known,
            randomised=functools.partial(self._randomised, build, pixels),
            heads=heads,
            masked=functools.partial(self._masked, pixels),
        )

    def scores(self, pixels: Tensor) -> Tensor:
        """The model's scores (K, classes) of the kind that was chosen, without gradients."""
        parts = []
        for some in pixels.split(self.batch):
            request = checked_request(self._subject, some, None, dict(self.forward_kwargs))
            with size_errors(self._subject, some):
                parts.append(self._kind(predict(self._subject, request)))
        return torch.cat(parts)

    def _kind(self, scores: Tensor) -> Tensor:
        if self.score == "logit":
            return scores
        own = getattr(self._subject.model, "config", None)  # of prompts, where these are classes
        config = own if isinstance(own, PreTrainedConfig) else self._subject.backbone.config
        return probabilities(config, scores)

    def _heads(self, importance: Callable[..., Tensor], pixels: Tensor, target: int) -> Tensor:
        (found,) = importance(pixels, target, **self.forward_kwargs).detach().double().cpu()
        return _all_layers(found, self._subject.layers)

    def _masked(self, pixels: Tensor, masks: Tensor) -> Tensor:
        parts = [
            scores_with_masked_heads(
                self.model,
                pixels.expand(len(some), *pixels.shape[1:]),
                some,
                readout=self.readout,
                **self.forward_kwargs,
            )
            for some in masks.split(self.batch)
        ]
        return self._kind(torch.cat(parts))

    def _randomised(
        self, build: Build, pixels: Tensor, stages: int, seed: int
    ) -> Iterator[Explain]:
        if seed not in self._cascades:
            self._cascades[seed] = Cascade(
                self.model, pixels, seed, self.readout, **self.forward_kwargs
            )
        cascade = self._cascades[seed]
        for parts in cascade.stages(stages):
            cascade.randomise(parts)
            yield self._explain(self._method(build, cascade.model))

    def _method(self, build: Build, model: Any) -> Explainer:
        key = build, id(model)
        if key not in self._built:
            self._built[key] = build(model)
        return self._built[key]

    def _explain(self, method: Explainer) -> Explain:
        def explain(pixels: Tensor, target: int) -> Tensor:
            return method.attribute_patches(pixels, target, **self.forward_kwargs)

        return explain


def second_class(scores: Tensor, target: int) -> int | None:
    """The class with the highest score (of (classes,)) but for one; ``None`` if there is no other.

    Ties go to the lower index.

    Example:
        >>> second_class(torch.tensor([0.1, 0.6, 0.3]), 1), second_class(torch.tensor([0.1]), 0)
        (2, None)
    """
    order = torch.argsort(-scores.double().cpu(), stable=True).tolist()
    return next((index for index in order if index != target), None)


def _all_layers(importance: Tensor, layers: int) -> Tensor:
    """(layers, H): heads of lower layers that a method leaves out come after all others."""
    left_out = layers - len(importance)
    lowest = (importance.min() - 1).expand(left_out, importance.shape[1])
    return torch.cat([lowest, importance])
