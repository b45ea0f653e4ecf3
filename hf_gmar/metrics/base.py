"""The base class of metrics: one value for each image, their mean, and merging."""

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
"""The input of a metric: :class:`~hf_gmar.metrics.inputs.Curves`,
:class:`~hf_gmar.metrics.inputs.ConfidenceChange`,
:class:`~hf_gmar.metrics.inputs.LocalizationInput` of an image or of a mosaic, or
:class:`~hf_gmar.metrics.context.MetricContext`."""

Input = TypeVar("Input")


class Metric(ABC, Generic[Input]):
    """Base class of metrics: one value for each image, and the mean over images.

    A subclass describes itself in its class variables and computes its values in :meth:`values`.
    The value of each image is stored, so that parts of a data set merge exactly, in any order.

    :func:`~hf_gmar.register_metric` or an entry point makes a metric known by its name.

    Args:
        images: measure at most this many images of a data set, spread evenly; ``None`` measures
            all. Meant for metrics that need many passes through the model.

    Raises:
        OptionError: an option is outside its range; every metric raises it.

    Attributes:
        seen: the value of each image so far; NaN if the metric is not defined for the image.
    """

    name: ClassVar[str]
    """The name of the metric in ``METRICS``."""
    input_kind: ClassVar[InputKind]
    higher_is_better: ClassVar[bool]
    summary: ClassVar[str] = ""
    """A sentence on what the metric measures."""
    formula: ClassVar[str]
    """The value of one image as a line of plain text."""
    source: ClassVar[str]
    """The paper that defines the metric."""
    caveats: ClassVar[str]
    """A sentence on the limits of the metric."""
    perturbed: ClassVar[bool] = False
    """Whether the metric is measured once for each perturbation."""
    probability: ClassVar[bool] = False
    """Whether the metric is defined for probabilities only, not for logits."""

    def __init__(self, images: int | None = None) -> None:
        if images is not None:
            check_option("images", images, range(1, 2**31))
        self.images = images
        self.seen: list[float] = []

    @property
    def options(self) -> dict[str, Any]:
        """The constructor's options and their values."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    @property
    def label(self) -> str:
        """The name and the options that differ from their defaults."""
        parameters = inspect.signature(type(self)).parameters
        text = ", ".join(
            f"{name}={value}"
            for name, value in self.options.items()
            if name != "images" and value != parameters[name].default
        )
        return f"{self.name} ({text})" if text else self.name

    @abstractmethod
    def values(self, measured: Input) -> Tensor:
        """Compute the value of each image, (B,) float64, without storing it; NaN if undefined."""

    def update(self, measured: Input) -> Tensor:
        """Compute the value of each image and store it for :meth:`compute`."""
        values = self.values(measured)
        self.seen += values.tolist()
        return values

    def compute(self) -> float:
        """Return the mean over the images for which the metric is defined.

        The sum is rounded once, so the order of the images makes no difference.

        Raises:
            InputError: the metric is defined for no image.
        """
        defined = [value for value in self.seen if not math.isnan(value)]
        if not defined:
            raise InputError(
                f"{self.label} has seen {len(self.seen)} images and is defined for none of them; "
                "update it with one image or more for which it is"
            )
        return math.fsum(defined) / len(defined)

    def merge(self, others: Iterable[Self]) -> None:
        """Add the values of other instances of this metric, for example from other processes.

        Raises:
            InputError: an instance is of another metric or has other options.
        """
        others = list(others)
        for other in others:
            if type(other) is not type(self) or other.label != self.label:
                got = other.label if isinstance(other, Metric) else repr(other)
                raise InputError(
                    f"{self.label} can be merged with the same metric with the same options alone, "
                    f"got {got}"
                )
        # The values are copied first, because `others` may contain the metric itself.
        self.seen += [value for other in others for value in list(other.seen)]

    def reset(self) -> None:
        """Remove the values of all images."""
        self.seen = []

    def measures(self, index: int, count: int) -> bool:
        """Return whether to measure the image at ``index`` in a data set of ``count`` images.

        Example:
            >>> from hf_gmar.metrics import METRICS
            >>> metric = METRICS.build("class-sensitivity", images=3)
            >>> [index for index in range(10) if metric.measures(index, 10)]
            [0, 4, 7]
        """
        images = count if self.images is None else self.images
        # The data set is cut into equal parts; the first image of each part is measured.
        part = index * images // count
        return index == -(-part * count // images)
