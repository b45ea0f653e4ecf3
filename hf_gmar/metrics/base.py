"""What all metrics share: values of images, their mean, and how parts of a data set are joined."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Generic, Literal, Self, TypeAlias, TypeVar

from torch import Tensor

from hf_gmar._utils.validation import check_option
from hf_gmar.errors import InputError

InputKind: TypeAlias = Literal["curves", "confidence", "localization", "mosaic", "context"]
"""What a metric is given: :class:`~hf_gmar.metrics.inputs.Curves`,
:class:`~hf_gmar.metrics.inputs.ConfidenceChange`, :class:`~hf_gmar.metrics.inputs.LocalizationInput` of an image or of a
mosaic, or :class:`~hf_gmar.metrics.context.MetricContext`."""

Found = TypeVar("Found")

_MOST_IMAGES = 2**31


class Metric(ABC, Generic[Found]):
    """Base of all metrics: one number for each image, and the mean over images.

    A subclass says what it is in its class variables and gives its numbers in :meth:`values`. What
    was seen is kept as single numbers, so that parts of a data set can be joined exactly, in any
    order.

    Args:
        images: measure so many images of a data set at most, spread evenly over it; ``None`` for
            all. For metrics that cost many passes through the model.

    Raises:
        OptionError: an option outside its range.

    Attributes:
        seen: one number for each image so far; NaN where the metric is not defined for an image.
    """

    name: ClassVar[str]
    """By which ``METRICS`` knows it."""
    input_kind: ClassVar[InputKind]
    """What it is given."""
    higher_is_better: ClassVar[bool]
    """Which values speak for an explanation."""
    summary: ClassVar[str]
    """What it is, in a sentence: the first of the class's own docstring."""
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

    def __init_subclass__(cls) -> None:
        """Read the summary."""
        super().__init_subclass__()
        cls.summary = (cls.__doc__ or "").partition("\n")[0]

    def __init__(self, images: int | None = None) -> None:
        if images is not None:
            check_option("images", images, range(1, _MOST_IMAGES))
        self.images = images
        self.seen: list[float] = []

    @property
    def label(self) -> str:
        """The name, with the options that are not as they are by default."""
        said = ", ".join(
            f"{one.name}={value}"
            for one in options_of(type(self))
            if one.name != "images" and (value := getattr(self, one.name)) != one.default
        )
        return f"{self.name} ({said})" if said else self.name

    @abstractmethod
    def values(self, found: Found) -> Tensor:
        """The metric of each image, (B,) float64; NaN where it is not defined. Keeps nothing."""

    def update(self, found: Found) -> Tensor:
        """The same, and kept for :meth:`compute`."""
        values = self.values(found)
        self.seen += values.tolist()
        return values

    def compute(self) -> float:
        """Mean over the images for which the metric is defined.

        The sum is rounded once, so that the order of the images makes no difference.

        Raises:
            InputError: there is none.
        """
        defined = [value for value in self.seen if not math.isnan(value)]
        if not defined:
            raise InputError(
                f"{self.label} has seen {len(self.seen)} images and is defined for none of them; "
                "update it with one image or more for which it is"
            )
        return math.fsum(defined) / len(defined)

    def merge(self, others: Iterable[Self]) -> None:
        """Take over what others have seen, such as those of other processes.

        Raises:
            InputError: one is another metric, or has other options.
        """
        given = list(others)
        for other in given:
            if type(other) is not type(self) or other.label != self.label:
                got = other.label if isinstance(other, Metric) else repr(other)
                raise InputError(
                    f"{self.label} can be merged with the same metric with the same options alone, "
                    f"got {got}"
                )
        # Copied first: one of the others may be the metric itself.
        self.seen += [value for other in given for value in list(other.seen)]

    def reset(self) -> None:
        """Forget all images."""
        self.seen = []

    def measures(self, index: int, count: int) -> bool:
        """Whether the image of that index, of so many in the data set, is to be measured.

        Example:
            >>> from hf_gmar.metrics import METRICS
            >>> metric = METRICS.build("class-sensitivity", images=3)
            >>> [index for index in range(10) if metric.measures(index, 10)]
            [0, 4, 7]
        """
        wanted = count if self.images is None else self.images
        # The first image of each of so many equal parts.
        part = index * wanted // count
        return index == -(-part * count // wanted)


def options_of(metric: type[Metric[Any]]) -> Iterator[inspect.Parameter]:
    """The options of a metric, as its constructor names them."""
    return iter(list(inspect.signature(metric).parameters.values()))
