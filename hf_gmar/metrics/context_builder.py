"""Builds the contexts of metrics from a Transformers model and its methods."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, get_args

import torch
from torch import Tensor

from hf_gmar._core.execution import predict
from hf_gmar._core.head_masking import scores_with_masked_heads
from hf_gmar._core.inputs import checked_request, size_errors
from hf_gmar._core.model_adapter import ModelAdapter, ModelLike
from hf_gmar._core.token_layout import ReadoutSpec
from hf_gmar._utils.validation import check_option
from hf_gmar.metrics.context import Explain, MetricContext
from hf_gmar.metrics.score_choice import ScoreChoice
from hf_gmar.metrics.weight_randomization import Cascade
from hf_gmar.models.labels import config_of
from hf_gmar.models.score_kind import ScoreKind


class PatchAttributor(Protocol):
    """Makes maps; a method with ``head_importance`` also gives the importance of heads."""

    def attribute_patches(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the relevance of each patch, (B, rows, columns), for pixel values and a class."""
        ...


MakeAttributor: TypeAlias = Callable[[Any], PatchAttributor]
"""Makes the method on a model: on the user's model and on copies with randomized weights."""


@dataclass(eq=False)
class ContextBuilder:
    """Builds the contexts of all images for one model.

    The builder caches the methods that it made and, for each seed, a copy of the model whose
    weights are randomized.

    Args:
        model: see :class:`~hf_gmar.methods.base.AttributionMethod`.
        score: the score that metrics measure: ``"probability"``, as in image classification, or
            ``"logit"``. ``None`` is the probability, or the value of a model without any.
        batch: images in one forward.
        readout: which tokens a class head of your own reads.
        forward_kwargs: further keyword arguments that the model's forward names.

    Raises:
        UnsupportedModelError: the model can't be explained.
        OptionError: an option is outside its range.

    Example:
        >>> from hf_gmar import GMAR, load_model
        >>> from hf_gmar.metrics import METRICS
        >>> builder = ContextBuilder(load_model("bundled").model)
        >>> context = builder.context(GMAR, torch.rand(1, 3, 96, 96), target=6)
        >>> 0 < METRICS.build("class-sensitivity").values(context).item() <= 1
        True
    """

    model: ModelLike
    score: ScoreChoice | None = None
    batch: int = 8
    readout: ReadoutSpec = None
    forward_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the options and find the Transformers model in the model."""
        if self.score is not None:
            check_option("score", self.score, get_args(ScoreChoice))
        check_option("batch", self.batch, range(1, 2**31))
        self._adapter = ModelAdapter.of(self.model, self.readout)
        self._attributors: dict[tuple[MakeAttributor, int], PatchAttributor] = {}
        self._cascades: dict[int, Cascade] = {}

    def context(
        self,
        make: MakeAttributor,
        pixels: Tensor,
        target: int,
        *,
        seed: int = 0,
        known_map: Tensor | None = None,
        **method_kwargs: Any,
    ) -> MetricContext:
        """Build the context of one image and one method.

        Args:
            make: makes the method on a model; pass the same object for every image.
            pixels: the image, (1, channels, height, width).
            target: the explained class.
            seed: seed of everything drawn at random for this image.
            known_map: the method's map, (rows, columns) or (1, rows, columns), if it is known.
            **method_kwargs: further keyword arguments of the method.

        Raises:
            InputError, OptionError, UnsupportedModelError: the method or the pixels do not fit
                the model.
        """
        kwargs = {**self.forward_kwargs, **method_kwargs}

        def explain_on(model: Any) -> Explain:
            explainer = self._attributor(make, model)
            return lambda pixels, target: explainer.attribute_patches(pixels, target, **kwargs)

        importance = getattr(self._attributor(make, self.model), "head_importance", None)
        return MetricContext(
            explain=explain_on(self.model),
            scores=self.scores,
            pixels=pixels,
            target=target,
            other_class=second_class(self.scores(pixels)[0], target),
            seed=seed,
            known_map=known_map,
            explain_randomized=functools.partial(self._explain_randomized, explain_on, pixels),
            head_importance=importance
            and (lambda: self._all_layers(importance(pixels, target, **kwargs)[0])),
            masked_scores=functools.partial(self._masked_scores, pixels),
        )

    def scores(self, pixels: Tensor) -> Tensor:
        """Return the model's scores (K, classes) of the chosen kind, without gradients."""
        parts = []
        for images in pixels.split(self.batch):
            request = checked_request(self._adapter, images, None, dict(self.forward_kwargs))
            with size_errors(self._adapter, images):
                parts.append(predict(self._adapter, request))
        return self._of_kind(torch.cat(parts))

    def _of_kind(self, logits: Tensor) -> Tensor:
        kind = ScoreKind.of(config_of(self._adapter), logits)
        return kind.convert(logits) if kind.measured(self.score) == "probability" else logits

    def _masked_scores(self, pixels: Tensor, masks: Tensor) -> Tensor:
        parts = [
            scores_with_masked_heads(
                self.model,
                pixels.expand(len(part), *pixels.shape[1:]),
                part,
                readout=self.readout,
                **self.forward_kwargs,
            )
            for part in masks.split(self.batch)
        ]
        return self._of_kind(torch.cat(parts))

    def _explain_randomized(
        self, explain_on: Callable[[Any], Explain], pixels: Tensor, stages: int, seed: int
    ) -> Iterator[Explain]:
        if seed not in self._cascades:
            self._cascades[seed] = Cascade(
                self.model, pixels, seed, self.readout, **self.forward_kwargs
            )
        cascade = self._cascades[seed]
        for parts in cascade.stages(stages):
            cascade.randomize(parts)
            yield explain_on(cascade.model)

    def _attributor(self, make: MakeAttributor, model: Any) -> PatchAttributor:
        key = make, id(model)
        if key not in self._attributors:
            self._attributors[key] = make(model)
        return self._attributors[key]

    def _all_layers(self, importance: Tensor) -> Tensor:
        """Extend the importance to (layers, H); heads of left-out lower layers rank last."""
        importance = importance.detach().double().cpu()
        left_out = self._adapter.layers - len(importance)
        lowest = (importance.min() - 1).expand(left_out, importance.shape[1])
        return torch.cat([lowest, importance])


def second_class(scores: Tensor, target: int) -> int | None:
    """Return the class with the highest score except the target; ``None`` if there is no other.

    The scores have the shape (classes,). Ties go to the lower index.

    Example:
        >>> second_class(torch.tensor([0.1, 0.6, 0.3]), 1), second_class(torch.tensor([0.1]), 0)
        (2, None)
    """
    order = torch.argsort(-scores.double().cpu(), stable=True).tolist()
    return next((index for index in order if index != target), None)
