"""The base of all metrics: one value for each image, their mean, and how parts are merged."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Generic, Literal, Self, TypeAlias, TypeVar

from torch import Tensor

from hf_gmar._utils.validation import check_option
from hf_gmar.errors import InputError

InputKind: TypeAlias = Literal["curves", "confidence", "localization", "mosaic", "context"]
"""What a metric takes: :class:`~hf_gmar.metrics.inputs.Curves`,
:class:`~hf_gmar.metrics.inputs.ConfidenceChange`,
:class:`~hf_gmar.metrics.inputs.LocalizationInput` of an image or of a mosaic, or
:class:`~hf_gmar.metrics.context.MetricContext`."""

Input = TypeVar("Input")


class Metric(ABC, Generic[Input]):
    """Base of all metrics: one number for each image, and the mean over images.

    A subclass says what it is in its class variables and gives its numbers in :meth:`values`. The
    values are kept one by one, so that parts of a data set merge exactly, in any order.

    Args:
        images: measure so many images of a data set at most, spread evenly over it; ``None`` for
            all. For metrics that cost many passes through the model.

    Raises:
        OptionError: an option outside its range; every metric raises it.

    Attributes:
        seen: one number for each image so far; NaN where the metric is not defined for an image.
    """

    name: ClassVar[str]
    """Its name in ``METRICS``."""
    input_kind: ClassVar[InputKind]
    higher_is_better: ClassVar[bool]
    summary: ClassVar[str] = ""
    """What it measures, in a sentence."""
    formula: ClassVar[str]
    """The value of one image, in a line of plain text."""
    source: ClassVar[str]
    """The paper."""
    caveats: ClassVar[str]
    """What it does not tell, in a sentence."""
    perturbed: ClassVar[bool] = False
    """Whether it is measured for each perturbation."""
    probability: ClassVar[bool] = False
    """Whether it is defined for probabilities alone, not for logits."""

    def __init__(self, images: int | None = None) -> None:
        if images is not None:
            check_option("images", images, range(1, 2**31))
        self.images = images
        self.seen: list[float] = []

    @property
    def options(self) -> dict[str, Any]:
        """The options of the constructor with their values."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    @property
    def label(self) -> str:
        """The name, with the options that differ from their defaults."""
        parameters = inspect.signature(type(self)).parameters
        text = ", ".join(
            f"{name}={value}"
            for name, value in self.options.items()
            if name != "images" and value != parameters[name].default
        )
        return f"{self.name} ({text})" if text else self.name

    @abstractmethod
    def values(self, measured: Input) -> Tensor:
        """The metric of each image, (B,) float64; NaN where it is not defined. Keeps nothing."""

    def update(self, measured: Input) -> Tensor:
        """The same, and kept for :meth:`compute`."""
        values = self.values(measured)
        self.seen += values.tolist()
        return values

    def compute(self) -> float:
        """Mean over the images for which the metric is defined.

        The sum is rounded once, so that the order of the images makes no difference.

        Raises:
            InputError: it is defined for no image.
        """
        defined = [value for value in self.seen if not math.isnan(value)]
        if not defined:
            raise InputError(
                f"{self.label} has seen {len(self.seen)} images and is defined for none of them; "
                "update it with one image or more for which it is"
            )
        return math.fsum(defined) / len(defined)

    def merge(self, others: Iterable[Self]) -> None:
        """Add the values of other metrics, such as those of other processes.

        Raises:
            InputError: one is another metric, or has other options.
        """
        others = list(others)
        for other in others:
            if type(other) is not type(self) or other.label != self.label:
                got = other.label if isinstance(other, Metric) else repr(other)
                raise InputError(
                    f"{self.label} can be merged with the same metric with the same options alone, "
                    f"got {got}"
                )
        # Copied first: one of the others may be the metric itself.
        self.seen += [value for other in others for value in list(other.seen)]

    def reset(self) -> None:
        """Forget all images."""
        self.seen = []

    def measures(self, index: int, count: int) -> bool:
        """Whether to measure the image at an index of a data set of ``count`` images.

        Example:
            >>> from hf_gmar.metrics import METRICS
            >>> metric = METRICS.build("class-sensitivity", images=3)
            >>> [index for index in range(10) if metric.measures(index, 10)]
            [0, 4, 7]
        """
        images = count if self.images is None else self.images
        # The first image of each of so many equal parts.
        part = index * images // count
        return index == -(-part * count // images)
