"""What a run measures on each image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedConfig

from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar.errors import OptionError
from hf_gmar.evaluation.choices import Autocast, ExplainedClass, Score
from hf_gmar.evaluation.run.explainers import Explainers
from hf_gmar.evaluation.run.model_metrics import Asking
from hf_gmar.metrics.average_drop import ConfidenceMetric
from hf_gmar.metrics.base import Metric
from hf_gmar.models.labels import probabilities
from hf_gmar.perturbations.base import BoundPerturbation, Perturbation
from hf_gmar.perturbations.memory import max_batch_size

_COUNTS = {
    "steps": range(1, 10_001),
    "memory": range(1, 2**60),
    "seed": range(2**32),
    "examples": range(1001),
}


@dataclass(frozen=True)
class EvaluationConfig:
    """How a run measures.

    Attributes:
        score: what falls when patches are removed: the class's probability or its logit.
        explained_class: which class is explained: the predicted one, or the image's label.
        steps: in how many equal steps patches are removed.
        memory: bytes that perturbed copies may take at a time.
        autocast: half precision for the perturbed copies alone; ``None`` keeps the model's own.
        seed: of everything random.
        examples: how many images have their maps kept for the report.
    """

    score: Score = "probability"
    explained_class: ExplainedClass = "predicted"
    steps: int = 10
    memory: int = 2**28
    autocast: Autocast | None = None
    seed: int = 0
    examples: int = 4

    def __post_init__(self) -> None:
        """Check the values."""
        for name, known in (("score", Score), ("explained_class", ExplainedClass)):
            if getattr(self, name) not in get_args(known):
                raise OptionError(
                    f"{name} must be one of {get_args(known)}, got {getattr(self, name)!r}"
                )
        if self.autocast not in (None, *get_args(Autocast)):
            raise OptionError(
                f"autocast must be None or one of {get_args(Autocast)}, got {self.autocast!r}"
            )
        for name, values in _COUNTS.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value not in values:
                raise OptionError(
                    f"{name} must be a whole number from {values[0]} to {values[-1]}, got {value!r}"
                )

    @property
    def fractions(self) -> Tensor:
        """Share of the patches that is removed at each step, (steps + 1,)."""
        return torch.linspace(0, 1, self.steps + 1, dtype=torch.float64)

    def described(self) -> dict[str, Any]:
        """What makes a difference to the results, as plain data."""
        return {
            "score": self.score,
            "explained_class": self.explained_class,
            "steps": self.steps,
            "autocast": self.autocast,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Plan:
    """A model with all that is measured on it.

    Attributes:
        explainers: the methods.
        processor: makes pixel values of an image.
        metrics: by label.
        perturbations: by label.
        how: how it is measured.
        asking: puts the questions of metrics that ask a method again and again.
    """

    explainers: Explainers
    processor: BaseImageProcessor
    metrics: Mapping[str, Metric[Any]]
    perturbations: Mapping[str, Perturbation]
    how: EvaluationConfig
    asking: Asking

    @property
    def adapter(self) -> ModelAdapter:
        """The model."""
        return self.explainers.adapter

    @property
    def config(self) -> Any:
        """The model's config, which names the classes."""
        # The outermost one: of prompts, where these are the classes.
        configs = (getattr(part, "config", None) for part in self.adapter.modules())
        return next(one for one in configs if isinstance(one, PreTrainedConfig))

    def check(self) -> None:
        """Check that what is asked for goes together.

        Raises:
            OptionError: it does not.
        """
        for label, metric in self.metrics.items():
            if metric.probability and not self.has_probabilities:
                raise OptionError(
                    f"{label} is defined for probabilities alone; leave it out, or measure "
                    "score='probability' of a model that has them"
                )
        for label, metric in self.kept.items():
            hard = [name for name, one in self.perturbations.items() if not one.soft]
            if metric.form == "soft" and hard:
                raise OptionError(
                    f"{label} keeps patches in part, which {', '.join(hard)} can't; use "
                    "form=patches, or perturbations of pixels alone"
                )

    @property
    def has_probabilities(self) -> bool:
        """Whether probabilities are measured; the scores of a regression are none."""
        regression = getattr(self.config, "problem_type", None) == "regression"
        return self.how.score == "probability" and not regression

    @property
    def kept(self) -> dict[str, ConfidenceMetric]:
        """The metrics of what is kept."""
        return {
            label: one for label, one in self.metrics.items() if isinstance(one, ConfidenceMetric)
        }

    def needing(self, *input_kind: str) -> dict[str, Metric[Any]]:
        """The metrics that need this."""
        return {label: one for label, one in self.metrics.items() if one.input_kind in input_kind}

    def pixels(self, image: Any) -> Tensor:
        """Pixel values (1, channels, height, width) of an image, where the model is."""
        found = self.processor(images=image, return_tensors="pt").pixel_values
        return torch.as_tensor(found).to(
            self.adapter.vision_model.device, self.adapter.vision_model.dtype
        )

    def score(self, scores: Tensor) -> Tensor:
        """What is measured of class scores (K, C): (K, C) float64 on the CPU."""
        scores = scores.detach().double().cpu()
        return probabilities(self.config, scores) if self.how.score == "probability" else scores

    def bind(self, perturbation: Perturbation, pixels: Tensor) -> BoundPerturbation:
        """A perturbation on an image, with as many copies at a time as fit into the memory."""
        half = None if self.how.autocast is None else getattr(torch, self.how.autocast)
        batch = max_batch_size(
            self.adapter, pixels, self.how.memory, perturbation=perturbation, autocast=half
        )
        return perturbation.bind(self.adapter, pixels, batch=batch, autocast=half)


def spread(count: int, wanted: int) -> set[int]:
    """So many of ``count`` places, spread evenly.

    Example:
        >>> sorted(spread(10, 3)), sorted(spread(2, 5))
        ([0, 3, 6], [0, 1])
    """
    wanted = min(wanted, count)
    return {place * count // wanted for place in range(wanted)}


def number(value: Tensor) -> float | None:
    """One image's value; ``None`` where it is not defined, as JSON has no NaN."""
    found = float(value.flatten()[0])
    return found if math.isfinite(found) else None
