"""Head ablation: the score of a class while more and more heads are masked.

The output of a masked head is zero, as in Michel, Levy and Neubig, "Are Sixteen Heads Really Better
than One?", NeurIPS 2019 (arXiv 1905.10650).
"""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor

from hf_gmar._core.head_masking import HeadMasker, scores_with_masked_heads, single_head_ablation
from hf_gmar._core.model_adapter import ModelAdapter, ModelLike
from hf_gmar._core.request import ForwardRequest
from hf_gmar._core.targets import Target
from hf_gmar._core.token_layout import ReadoutSpec
from hf_gmar._utils.files import save_arrays, save_json
from hf_gmar._utils.html import html_table
from hf_gmar._utils.stats import Array, Interval, bootstrap
from hf_gmar._utils.text import brief, counted
from hf_gmar._utils.validation import check_option
from hf_gmar._utils.version import __version__
from hf_gmar.errors import InputError, OptionError
from hf_gmar.heads.importance import Batches, HeadImportance, batches

if TYPE_CHECKING:  # matplotlib is loaded when something is drawn
    from matplotlib.figure import Figure

__all__ = [
    "LERF",
    "MORF",
    "RANDOM",
    "HeadAblation",
    "ablate_heads",
    "ranks",
    "scores_with_masked_heads",
    "single_head_ablation",
]

Ranks: TypeAlias = NDArray[np.int64]

MORF = "most important first"
LERF = "least important first"
RANDOM = "random order"
"""The orders in which heads are masked."""


@dataclass(frozen=True, eq=False, repr=False)
class HeadAblation:
    """The target's score while more and more heads are masked.

    Attributes:
        fractions: share of masked heads at each step, (steps,), from 0 to 1.
        curves: the target's score for each order of masking, (images, steps). The curve of the
            random order is the mean over its draws.
        targets: class index of each image, (images,).
        settings: how the scores were measured.

    Example:
        >>> ablation = HeadAblation(
        ...     np.array([0.0, 0.5, 1.0]),
        ...     {MORF: np.array([[4.0, 0.0, 0.0]]), RANDOM: np.array([[4.0, 2.0, 0.0]])},
        ...     np.array([3]),
        ... )
        >>> float(ablation.areas()[MORF][0]), float(ablation.areas()[RANDOM][0])
        (0.25, 0.5)
        >>> float(ablation.differences()[MORF].mean)
        -0.25
    """

    fractions: Array
    curves: Mapping[str, Array]
    targets: NDArray[np.int64]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Count images and steps, and name the orders."""
        images = counted(len(self.targets), "image")
        steps = counted(len(self.fractions) - 1, "step")
        return f"HeadAblation({images}, {steps}, {brief(', '.join(self.curves), 200)})"

    def _repr_html_(self) -> str:
        """Show the figure and the table in a notebook."""
        from hf_gmar.visualization.notebook import html_image

        text = f"{self!r}: {self.caption}"
        return html_image(self.figure(), text) + html_table(self.table())

    def areas(self) -> dict[str, Array]:
        """Return the area under each curve of each image, (images,), by the trapezoidal rule.

        The score with all heads masked counts as 0. Areas are divided by the distance between the
        score without masking and the score with all heads masked, averaged over the images. With
        one divisor for each image, an image whose score hardly changes would outweigh the others.
        """
        first = next(iter(self.curves.values()))
        scale = np.abs(first[:, 0] - first[:, -1]).mean() or 1.0
        return {
            name: np.asarray(np.trapezoid(curve - curve[:, -1:], self.fractions, axis=1) / scale)
            for name, curve in self.curves.items()
        }

    def differences(self, seed: int = 0) -> dict[str, Interval]:
        """Return each order's area minus the random order's area, as the mean over images.

        Below zero, the score falls faster than with random orders. The 95 % interval is by
        bootstrap over images. Without random orders, the result is empty.
        """
        areas = self.areas()
        return {
            name: bootstrap(area - areas[RANDOM], seed)
            for name, area in areas.items()
            if name != RANDOM and RANDOM in areas
        }

    def bands(self, seed: int = 0) -> dict[str, Interval]:
        """Return the mean curve of each order with its 95 % band, each (steps,)."""
        return {name: bootstrap(curve, seed) for name, curve in self.curves.items()}

    def table(self) -> Table:
        """Make a table of areas and differences to the random order, for the terminal."""
        images = counted(len(self.targets), "image")
        table = Table(title=f"Masking heads: area under the score, {images}")
        for heading in ("order", "area", "minus random order"):
            table.add_column(heading)
        areas, differences = self.areas(), self.differences()
        for name, area in areas.items():
            table.add_row(name, str(bootstrap(area)), str(differences.get(name, "")))
        return table

    def figure(self) -> Figure:
        """Draw the mean curves with 95 % bands."""
        from hf_gmar.visualization.head_figures import ablation_figure

        return ablation_figure(self.fractions, self.bands(), len(self.targets), self.caption)

    @property
    def caption(self) -> str:
        """The settings, without the list of images."""
        settings = (item for item in self.settings.items() if item[0] != "images")
        return ", ".join(f"{key} {value}" for key, value in settings)

    def save(self, folder: Path | str, stem: str = "ablation") -> tuple[Path, Path, Path]:
        """Write ``STEM.npz``, ``STEM.json`` and ``STEM.png``; an error leaves no partial file.

        The archive has ``fractions``, ``targets`` and a curve for each order
        (``most_important_first``, ...). The JSON has mean areas and differences with intervals.
        """
        from hf_gmar.visualization.overlay import save_figure

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        archive, summary, picture = (folder / f"{stem}.{end}" for end in ("npz", "json", "png"))
        curves = {name.replace(" ", "_"): curve for name, curve in self.curves.items()}
        save_arrays(archive, fractions=self.fractions, targets=self.targets, **curves)
        save_json(summary, self._summary())
        save_figure(self.figure(), picture)
        return archive, summary, picture

    def _summary(self) -> dict[str, Any]:
        areas = {name: bootstrap(area) for name, area in self.areas().items()}
        return {
            "images": len(self.targets),
            "targets": self.targets.tolist(),
            "settings": dict(self.settings),
            "version": __version__,
            "fractions": self.fractions.tolist(),
            "areas": {name: _numbers(area) for name, area in areas.items()},
            "minus random order": {
                name: _numbers(difference) for name, difference in self.differences().items()
            },
        }


def ablate_heads(
    model: ModelLike,
    inputs: Batches,
    order_by: HeadImportance | Tensor,
    target: Target = None,
    *,
    steps: int | Sequence[float] = 8,
    random_orders: int = 3,
    seed: int = 0,
    mean_order: bool = False,
    within_layers: bool = False,
    readout: ReadoutSpec = None,
    **forward_kwargs: Any,
) -> HeadAblation:
    """Mask more and more heads, and measure the target's score.

    Heads are masked in three orders: most important first, least important first, and random. With
    a good importance, the score falls faster in the first order than in random order, and slower in
    the second.

    Args:
        model: see :class:`~hf_gmar.methods.base.AttributionMethod`.
        inputs: the images of the importance, in the same order: a tensor (B, channels, height,
            width), or an iterable of such batches or of (batch, targets) pairs.
        order_by: a :class:`~hf_gmar.heads.importance.HeadImportance`, or scores of the heads,
            (images, layers, H) or (layers, H); the highest is the most important. GMAR's
            importance is a share within its layer, so its order over all layers compares shares.
        target: the class of each image in any form of Captum's; ``None`` takes the targets of the
            importance, else the top class of the unmasked model.
        steps: number of steps from no head to all heads, or the fractions, from 0 to 1. The number
            of masked heads is rounded.
        random_orders: number of random orders for each image, from 0 to 1000.
        seed: seed of the random orders, which do not depend on the batch size.
        mean_order: use one order for all images, by the mean importance.
        within_layers: mask the same share of each layer, by the order within the layer.
        readout: which tokens a class head of your own reads.
        **forward_kwargs: further keyword arguments that the model's forward names.

    Returns:
        The curves, from ``2 + steps_between * (2 + random_orders)`` forwards of each image.

    Raises:
        UnsupportedModelError, ModelOutputError: see
            :func:`~hf_gmar._core.head_masking.scores_with_masked_heads`.
        InputError: there are no images, or the importance is of other images or heads.
        TargetError: the target does not fit the scores.
        OptionError: the steps or random orders are out of range.

    Example:
        >>> from hf_gmar import head_importance, load_model
        >>> model, images = load_model("bundled").model, torch.zeros(1, 3, 96, 96)
        >>> ablation = ablate_heads(model, images, head_importance(model, images, 3), steps=4)
        >>> ablation.curves[MORF].shape
        (1, 5)
    """
    masker = HeadMasker(ModelAdapter.of(model, readout), forward_kwargs)
    schedule = _Schedule.of(masker.shape, steps, random_orders, seed, within_layers)
    importance = _Importance.of(order_by, mean_order, masker.shape)
    parts: list[dict[str, Array]] = []
    targets: list[Tensor] = []
    dimensions = len(masker.adapter.input_shape.dimensions)
    for pixels, batch_target in batches(inputs, target, dimensions):
        start = sum(map(len, targets))
        explained = importance.target(batch_target, start, pixels)
        request, classes, plain = masker.begin(pixels, explained)
        orders = schedule.orders(importance.of_images(start, len(plain)), start)
        parts.append(_curves(masker, request, classes, plain, orders, schedule.counts))
        targets.append(classes.cpu())
    if not parts:
        raise InputError("there are no images; give one batch or more")
    importance.check_count(sum(map(len, targets)))
    settings = {
        "masked": "within layers" if within_layers else "over all layers",
        "order": "the mean over images" if mean_order else "each image's own",
    }
    curves = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    fractions = np.array(schedule.counts) / schedule.size
    return HeadAblation(fractions, curves, torch.cat(targets).numpy(), settings)


@dataclass(frozen=True)
class _Schedule:
    """The number of masked heads at each step, and the orders of masking.

    Attributes:
        counts: number of masked heads at each step.
        size: number of all heads, or of the heads of a layer.
        draws: number of random orders for each image.
        seed: seed of the random orders.
        within: whether orders are within layers.
    """

    counts: list[int]
    size: int
    draws: int
    seed: int
    within: bool

    @classmethod
    def of(
        cls,
        shape: tuple[int, int],
        steps: int | Sequence[float],
        draws: int,
        seed: int,
        within: bool,
    ) -> _Schedule:
        size = shape[1] if within else shape[0] * shape[1]
        check_option("random_orders", draws, range(1001))
        check_option("seed", seed, range(2**32))
        counts = {round(fraction * size) for fraction in _fractions(steps)}
        return cls(sorted(counts), size, draws, seed, within)

    def orders(self, scores: Array, start: int) -> dict[str, list[Ranks]]:
        """Return the rank of each head in each order, (B, layers, H), for images from ``start``."""
        morf = ranks(scores, self.within)
        orders = {MORF: [morf], LERF: [self.size - 1 - morf]}
        if self.draws:
            images = range(start, start + len(scores))
            generators = [np.random.default_rng([self.seed, image]) for image in images]
            draws = (
                np.stack([generator.random(scores.shape[1:]) for generator in generators])
                for _ in range(self.draws)
            )
            orders[RANDOM] = [ranks(draw, self.within) for draw in draws]
        return orders


def ranks(scores: Array, within_layers: bool = False) -> Ranks:
    """Rank the heads, 0 for the highest score; ties go to the lower layer, then head.

    Args:
        scores: (images, layers, H).
        within_layers: rank the heads of each layer separately, from 0 to H - 1.

    Example:
        >>> ranks(np.array([[[0.1, 0.9], [0.9, 0.5]]])).tolist()
        [[[3, 0], [1, 2]]]
        >>> ranks(np.array([[[0.1, 0.9], [0.9, 0.5]]]), within_layers=True).tolist()
        [[[1, 0], [0, 1]]]
    """
    rows = scores if within_layers else scores.reshape(len(scores), -1)
    order = np.argsort(-rows, axis=-1, kind="stable")
    return np.argsort(order, axis=-1, kind="stable").reshape(scores.shape)


@dataclass(frozen=True)
class _Importance:
    """Scores of the heads, (images, layers, H), or (1, layers, H) shared by all images."""

    values: Array
    targets: Tensor | None
    shared: bool

    @classmethod
    def of(cls, heads: HeadImportance | Tensor, mean: bool, shape: tuple[int, int]) -> _Importance:
        values = heads.values if isinstance(heads, HeadImportance) else heads
        if not isinstance(values, Tensor) or not torch.isfinite(values).all():
            raise InputError(
                "the importance must be a HeadImportance or a tensor of finite numbers, got "
                f"{'NaN or infinity' if isinstance(values, Tensor) else repr(heads)}"
            )
        values = values.detach().cpu().double()
        if values.dim() not in (2, 3) or tuple(values.shape[-2:]) != shape:
            raise InputError(
                f"the importance has shape {tuple(values.shape)}, and the model {shape[0]} layers "
                f"of {shape[1]} heads; (images, layers, heads) or (layers, heads) is needed"
            )
        shared = mean or values.dim() == 2
        values = values.mean(0, keepdim=True) if values.dim() == 3 and mean else values
        targets = heads.targets if isinstance(heads, HeadImportance) else None
        return cls(values.reshape(-1, *shape).numpy(), targets, shared)

    def target(self, target: Target, start: int, pixels: Any) -> Target:
        """Return the user's target, or else the targets of the importance."""
        if target is not None or self.targets is None or not isinstance(pixels, Tensor):
            return target
        self._check_enough(start + len(pixels), len(self.targets))
        return self.targets[start : start + len(pixels)]

    def of_images(self, start: int, count: int) -> Array:
        if self.shared:
            return np.repeat(self.values, count, axis=0)
        self._check_enough(start + count, len(self.values))
        return self.values[start : start + count]

    def check_count(self, images: int) -> None:
        if not self.shared:
            self._check_enough(images, len(self.values), exact=True)

    @staticmethod
    def _check_enough(images: int, known: int, exact: bool = False) -> None:
        if images > known or (exact and images != known):
            raise InputError(
                f"the importance is of {known} images, but {images}{'' if exact else ' or more'} "
                "are masked; give the same images in the same order, or mean_order=True"
            )


def _curves(
    masker: HeadMasker,
    request: ForwardRequest,
    classes: Tensor,
    plain: Tensor,
    orders: Mapping[str, list[Ranks]],
    counts: Sequence[int],
) -> dict[str, Array]:
    """Return the score of each image, (B, steps), for each order; all orders share both ends."""

    def score(masked: NDArray[np.bool_]) -> Tensor:
        return masker.target_scores(request, classes, torch.from_numpy(masked))

    all_masked = score(np.ones((1, *masker.shape), dtype=bool))
    curves: dict[str, Array] = {}
    for name, draws in orders.items():
        between = [
            torch.stack([score(head_ranks < count) for head_ranks in draws]).mean(0)
            for count in counts[1:-1]
        ]
        curves[name] = torch.stack([plain, *between, all_masked], 1).double().cpu().numpy()
    return curves


def _fractions(steps: Any) -> list[float]:
    is_count = isinstance(steps, numbers.Integral) and not isinstance(steps, bool)
    if is_count and steps >= 1:
        return [float(fraction) for fraction in np.linspace(0, 1, int(steps) + 1)]
    are_numbers = isinstance(steps, Iterable) and not isinstance(steps, str)
    try:
        fractions = sorted(map(float, steps)) if are_numbers else []
    except (TypeError, ValueError):
        fractions = []
    if not np.isfinite(fractions).all() or fractions[:1] + fractions[-1:] != [0, 1]:
        raise OptionError(
            f"steps must be a whole number >= 1, or fractions from 0 to 1 with both, got {steps!r}"
        )
    return fractions


def _numbers(interval: Interval) -> list[float | None]:
    """Convert mean and interval to JSON values."""
    return [None if np.isnan(value) else float(value) for value in interval]
