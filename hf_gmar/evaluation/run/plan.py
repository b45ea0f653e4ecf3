"""The measurements of a run: model, methods, metrics and perturbations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, get_args

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedConfig

from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar._utils.validation import check_option
from hf_gmar.data.prepared_image import PreparedImage, prepare_image
from hf_gmar.errors import InputError, OptionError
from hf_gmar.evaluation.choices import Autocast, ExplainedClass
from hf_gmar.evaluation.run.method_set import MethodSet
from hf_gmar.metrics.average_drop import ConfidenceMetric
from hf_gmar.metrics.base import Metric
from hf_gmar.metrics.score_choice import ScoreChoice
from hf_gmar.models.hub import LoadedModel
from hf_gmar.models.labels import config_of
from hf_gmar.models.score_kind import ScoreKind
from hf_gmar.perturbations.base import BoundPerturbation, Perturbation
from hf_gmar.perturbations.memory import max_batch_size

_ALLOWED = {
    "explained_class": get_args(ExplainedClass),
    "steps": range(1, 10_001),
    "memory": range(1, 2**60),
    "seed": range(2**32),
    "examples": range(1001),
}
_ALLOWED_OR_NONE = {"score": get_args(ScoreChoice), "autocast": get_args(Autocast)}


@dataclass(frozen=True)
class EvaluationConfig:
    """The settings of a run; see the options of :func:`~hf_gmar.evaluation.evaluate`."""

    score: ScoreChoice | None = None
    explained_class: ExplainedClass = "predicted"
    steps: int = 10
    memory: int = 2**28
    autocast: Autocast | None = None
    seed: int = 0
    examples: int = 4

    def __post_init__(self) -> None:
        """Check the values."""
        for name, allowed in _ALLOWED.items():
            check_option(name, getattr(self, name), allowed)
        for name, allowed in _ALLOWED_OR_NONE.items():
            if getattr(self, name) is not None:
                check_option(name, getattr(self, name), allowed)

    @property
    def fractions(self) -> Tensor:
        """The share of removed patches at each step, (steps + 1,)."""
        return torch.linspace(0, 1, self.steps + 1, dtype=torch.float64)

    def described(self) -> dict[str, Any]:
        """Return the settings that influence the results, as plain data."""
        values = asdict(self)
        return {name: values[name] for name in values if name not in ("memory", "examples")}


@dataclass(frozen=True)
class EvaluatedModel:
    """A model with its methods, processor and score.

    Attributes:
        method_set: the methods.
        loaded: the model with its processor, which prepares the images.
        config: the settings of the run.
        kind: what the model's scores are.

    Raises:
        OptionError: probabilities are asked of a model without any.
    """

    method_set: MethodSet
    loaded: LoadedModel
    config: EvaluationConfig
    kind: ScoreKind

    def __post_init__(self) -> None:
        """Check that the model has the score."""
        self.kind.measured(self.config.score)

    @property
    def score(self) -> str:
        """The measured score: ``"probability"``, ``"logit"`` or ``"value"``."""
        return self.kind.measured(self.config.score)

    @property
    def adapter(self) -> ModelAdapter:
        """The model."""
        return self.method_set.adapter

    @property
    def hf_config(self) -> PreTrainedConfig:
        """The model's config, which names the classes."""
        return config_of(self.adapter)

    @property
    def has_probabilities(self) -> bool:
        """Whether the measured scores are probabilities."""
        return self.score == "probability"

    def prepared(self, image: Image.Image) -> PreparedImage:
        """Prepare an image of the data set.

        Raises:
            InputError: the model takes transparency, and the image has none.
        """
        if self.loaded.channels == 4 and getattr(image, "mode", "") == "RGB":
            raise InputError(
                "the model takes 4 channels, and the image is in RGB, without transparency; give "
                "images in RGBA"
            )
        return prepare_image(self.loaded, image)

    def scores(self, logits: Tensor) -> Tensor:
        """Convert logits (K, C) to the measured scores, float64 on the CPU."""
        logits = logits.detach().double().cpu()
        return self.kind.convert(logits) if self.has_probabilities else logits

    def bind(self, perturbation: Perturbation, pixels: Tensor) -> BoundPerturbation:
        """A perturbation on an image, with as many copies at a time as fit into the memory."""
        name, memory = self.config.autocast, self.config.memory
        half = None if name is None else getattr(torch, name)
        batch = max_batch_size(
            self.adapter, pixels, memory, perturbation=perturbation, autocast=half
        )
        return perturbation.bind(self.adapter, pixels, batch=batch, autocast=half)


@dataclass(frozen=True)
class Plan:
    """All measurements on a model.

    Attributes:
        model: the model with its methods.
        metrics: metrics by label.
        perturbations: perturbations by label.

    Raises:
        OptionError: metrics, perturbations and score do not fit together.
    """

    model: EvaluatedModel
    metrics: Mapping[str, Metric[Any]]
    perturbations: Mapping[str, Perturbation]

    def __post_init__(self) -> None:
        """Check that metrics, perturbations and score fit together."""
        for label, metric in self.metrics.items():
            if metric.probability and not self.model.has_probabilities:
                raise OptionError(
                    f"{label} is defined for probabilities alone; leave it out, or measure "
                    "score='probability' of a model that has them"
                )
        hard = [name for name, item in self.perturbations.items() if not item.soft]
        for label, metric in self.confidence_metrics.items():
            if metric.form == "soft" and hard:
                raise OptionError(
                    f"{label} keeps patches in part, which {', '.join(hard)} can't; use "
                    "form=patches, or perturbations of pixels alone"
                )

    @property
    def confidence_metrics(self) -> dict[str, ConfidenceMetric]:
        """The metrics of the kept patches."""
        metrics = self.metrics.items()
        return {label: item for label, item in metrics if isinstance(item, ConfidenceMetric)}

    @property
    def removal_measures(self) -> list[str]:
        """Labels of the measures of each perturbation."""
        metrics = self.metrics_of("curves", "confidence")
        return [f"{metric}:{name}" for name in self.perturbations for metric in metrics]

    def metrics_of(self, *kinds: str) -> dict[str, Metric[Any]]:
        """Return the metrics of these input kinds."""
        return {label: item for label, item in self.metrics.items() if item.input_kind in kinds}


def evenly_spaced(count: int, most: int) -> set[int]:
    """Choose at most ``most`` of ``count`` indices, spread evenly."""
    size = min(most, count)
    return {place * count // size for place in range(size)}


def number(value: Tensor) -> float | None:
    """Convert one image's value to a float; ``None`` if undefined, as JSON has no NaN."""
    result = float(value.flatten()[0])
    return result if math.isfinite(result) else None
