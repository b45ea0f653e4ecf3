"""What an attribution map is worth on its own image, with the model as the judge.

The model sees only the patches that a map ranks highest, or all others, and gives its score for the
explained class: sufficiency and comprehensiveness (DeYoung et al., "ERASER", ACL 2020, section 4).
Random patches are the baseline.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import torch
from rich.table import Table
from torch import Tensor

from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar._utils.html import html_line, html_table
from hf_gmar._utils.text import brief, visible
from hf_gmar._utils.validation import check_option, check_positive
from hf_gmar.errors import InputError, OptionError
from hf_gmar.metrics.patch_ranking import kept_count, patch_order
from hf_gmar.models.score_kind import ScoreKind
from hf_gmar.perturbations.base import BoundPerturbation
from hf_gmar.perturbations.memory import max_batch_size
from hf_gmar.perturbations.registry import PERTURBATIONS

if TYPE_CHECKING:  # matplotlib is loaded when something is drawn
    from matplotlib.figure import Figure
    from PIL import Image

Verdict: TypeAlias = Literal["better", "no better", "worse"]
"""How a map compares with random patches."""

FRACTIONS = (0.1, 0.2, 0.4)
"""Shares of the patches that are kept and removed."""

DRAWS = 9
"""Random orders of the patches: one in ten random maps is better than all of the others."""

_TOKENS, _PIXELS = "token-dropping", "mean"

NO_MODEL = (
    "the explanation is from a file or a pickle, without its model; explain the image again to ask "
    "the model about it"
)
"""Why there is no check."""

_MEMORY = 2**28  # bytes of a forward
_SHOWN = 384  # pixels of a small image in a notebook


def perturbation_for(adapter: ModelAdapter, perturbation: str | None) -> str:
    """Return the perturbation, by default the one that leaves least of a missing patch.

    Tokens are dropped; cells of pixels, where there are none, get the mean colour.
    """
    return perturbation or (_PIXELS if adapter.has_cells else _TOKENS)


@dataclass(frozen=True, eq=False, repr=False)
class ModelInput:
    """A model with the pixel values of one image, to ask the model about parts of the image.

    Copies share the model. A pickle does not have it: ``None`` is in its place.

    Attributes:
        adapter: the model.
        pixels: pixel values, (1, channels, height, width).
        forward_kwargs: further keyword arguments of the model's forward.
        autocast: dtype of autocast, or ``None``.
    """

    adapter: ModelAdapter
    pixels: Tensor
    forward_kwargs: Mapping[str, Any] = field(default_factory=dict)
    autocast: torch.dtype | None = None

    def __deepcopy__(self, _: Any) -> ModelInput:
        """Share the model, whose weights are many."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave the model out of a pickle."""
        return type(None), ()

    def bind(self, perturbation: str | None = None) -> BoundPerturbation:
        """Bind a perturbation to the image, see :func:`perturbation_for`.

        Its name may have options, as in ``"blur:radius=8"``.

        Raises:
            OptionError: there is no such perturbation or option.
            UnsupportedModelError: the perturbation does not apply to the model.
        """
        name, options = PERTURBATIONS.parse(perturbation_for(self.adapter, perturbation))
        perturbed = PERTURBATIONS.build(name, **options)
        adapter = self.adapter
        pixels = self.pixels.to(adapter.vision_model.device)
        settings: Any = {"autocast": self.autocast, "forward_kwargs": self.forward_kwargs}
        batch = max_batch_size(adapter, pixels, _MEMORY, perturbation=perturbed, **settings)
        return perturbed.bind(adapter, pixels, batch=batch, **settings)


@dataclass(frozen=True)
class ExplainedScore:
    """The score that an explanation is about, as a number for readers.

    Attributes:
        label: the class, and its contrast if any.
        kind: what the model's scores are.
        target: the index of the class.
        contrast: the index of the contrast class, or ``None``.
    """

    label: str
    kind: ScoreKind
    target: int
    contrast: int | None = None

    def of(self, scores: Tensor) -> list[float]:
        """Convert the scores (K, C) of K copies of an image.

        With a contrast, a probability is that of the target if it is one of the two classes.
        """
        exact = scores.detach().cpu().double()
        if self.contrast is None:
            values = self.kind.convert(exact)[:, self.target]
        else:
            values = exact[:, self.target] - exact[:, self.contrast]
            values = values if self.kind is ScoreKind.VALUE else values.sigmoid()
        result: list[float] = values.tolist()
        return result


class RandomScore(NamedTuple):
    """The score with random patches: mean, lowest and highest of the draws."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> RandomScore:
        """Summarize the scores of the draws."""
        return cls(math.fsum(values) / len(values), min(values), max(values))


@dataclass(frozen=True, repr=False)
class FaithfulnessCheck:
    """The score of the class with a map's patches and with random ones.

    Attributes:
        label: the explained class.
        score_kind: what the scores are.
        score: the score of the whole image.
        fractions: shares of the patches, F of them, rising.
        keep: the score with only the patches of highest relevance, for each fraction.
        remove: the score without them.
        random_keep: the score with only random patches, (F, draws).
        random_remove: the score without them.
        perturbation: how patches are removed.
        seed: seed of the random patches.
    """

    label: str
    score_kind: ScoreKind
    score: float
    fractions: tuple[float, ...]
    keep: tuple[float, ...]
    remove: tuple[float, ...]
    random_keep: tuple[tuple[float, ...], ...]
    random_remove: tuple[tuple[float, ...], ...]
    perturbation: str
    seed: int

    def __repr__(self) -> str:
        """Give the verdict and its numbers."""
        return f"FaithfulnessCheck({brief(self.verdict)!r}, {brief(self.sentence, 300)!r})"

    def _repr_html_(self) -> str:
        """Show the sentence, the table and the figure in a notebook."""
        from hf_gmar.visualization.notebook import html_image

        picture = html_image(self.figure(), self.sentence)
        return html_line(self.sentence) + html_table(self.table()) + picture

    @property
    def advantages(self) -> tuple[float, ...]:
        """The map's advantage over each random choice of patches, from -1 to 1 for probabilities.

        The mean, over the fractions, of half of (keep - random keep) + (random remove - remove).
        """
        own = math.fsum(self.keep) - math.fsum(self.remove)
        others = zip(
            zip(*self.random_keep, strict=True), zip(*self.random_remove, strict=True), strict=True
        )
        differences = (math.fsum(kept) - math.fsum(removed) for kept, removed in others)
        return tuple((own - other) / len(self.fractions) / 2 for other in differences)

    @property
    def verdict(self) -> Verdict:
        """Better or worse than all random choices, or else no better than random.

        One of ``draws + 1`` random maps is better than all others, and one is worse.
        """
        low, high = min(self.advantages), max(self.advantages)
        return "better" if low > 0 else "worse" if high < 0 else "no better"

    @property
    def middle(self) -> int:
        """The index of the fraction that sentences are about."""
        return len(self.fractions) // 2

    @property
    def verdict_text(self) -> str:
        """The verdict as a sentence."""
        draws = len(self.advantages)
        if self.verdict != "no better":
            return f"{self.verdict.capitalize()} than all {draws} random choices."
        beaten = sum(advantage > 0 for advantage in self.advantages)
        return f"No better than random patches: it beats {beaten} of {draws} random choices."

    @property
    def sentence(self) -> str:
        """The scores at the middle fraction, and the verdict."""
        number, text = self.middle, self.score_kind.text
        kept, removed = self.random(number)
        is_value = self.score_kind is ScoreKind.VALUE
        says = "gives {} a value of" if is_value else "says {} at"
        return (
            f"With the {self.fractions[number]:.0%} of the patches that the map names, the model "
            f"{says.format(visible(self.label))} {text(self.keep[number])} (random: "
            f"{text(kept.mean)}); without them {text(self.remove[number])} (random: "
            f"{text(removed.mean)}). {self.verdict_text}"
        )

    @property
    def lines(self) -> list[str]:
        """The verdict, and the scores at the middle fraction, in short."""
        number, text = self.middle, self.score_kind.text
        kept, removed = self.random(number)
        share = f"{self.fractions[number]:.0%}"
        return [
            self.verdict_text,
            f"Its top {share} alone: {text(self.keep[number])} (random {text(kept.mean)})",
            f"Without them: {text(self.remove[number])} (random {text(removed.mean)})",
        ]

    def random(self, number: int) -> tuple[RandomScore, RandomScore]:
        """Return the random scores of a fraction: with only these patches, and without them."""
        return RandomScore.of(self.random_keep[number]), RandomScore.of(self.random_remove[number])

    def table(self) -> Table:
        """Tabulate the scores of each fraction, with the range of random patches."""
        text = self.score_kind.text
        table = Table(title=visible(f"{self.label}: {text(self.score)} with all patches"))
        for heading in ("patches", "only these", "only random ones", "without", "without random"):
            table.add_column(heading, justify="right")
        for number, fraction in enumerate(self.fractions):
            cells = []
            values = self.keep[number], self.remove[number]
            for value, scores in zip(values, self.random(number), strict=True):
                mean, low, high = map(text, scores)
                cells += [text(value), f"{mean} ({low} to {high})"]
            table.add_row(f"{fraction:.0%}", *cells)
        return table

    def figure(self, stacked: bool = False) -> Figure:
        """Draw the scores over the share of patches, beside the range of random patches.

        Args:
            stacked: whether the two panels are one above the other, without the sentence, for a
                narrow page.
        """
        from hf_gmar.visualization.check_figure import Panel, check_figure

        panels = [
            Panel(title, values, list(scores))
            for title, values, scores in zip(
                ("Only these patches", "All but these patches"),
                (self.keep, self.remove),
                zip(*map(self.random, range(len(self.fractions))), strict=True),
                strict=True,
            )
        ]
        measure = f"{self.score_kind.measure} of {self.label}"
        percent = self.score_kind is not ScoreKind.VALUE
        return check_figure(
            self.fractions, panels, self.score, measure, self.sentence, percent, stacked
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as plain data, for JSON."""
        return {**asdict(self), "score_kind": self.score_kind.value}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FaithfulnessCheck:
        """Return the check of :meth:`to_dict`, also after JSON made lists of its tuples."""
        rows = {name: tuple(values[name]) for name in ("fractions", "keep", "remove")}
        draws = {name: tuple(map(tuple, values[name])) for name in ("random_keep", "random_remove")}
        kind = ScoreKind(values["score_kind"])
        return cls(**{**values, **rows, **draws, "score_kind": kind})


def check_maps(
    subject: ModelInput | None,
    maps: Sequence[tuple[Tensor, ExplainedScore]],
    fractions: Sequence[float] = FRACTIONS,
    draws: int = DRAWS,
    perturbation: str | None = None,
    seed: int = 0,
) -> list[FaithfulnessCheck]:
    """Check maps of one image; all of them share the forwards with random patches.

    Patches of equal relevance come in a random order, so a constant map is a random map.

    Args:
        subject: the model with the image; ``None`` if it is from a file or a pickle.
        maps: maps (rows, columns), each with the score that it explains.
        fractions: shares of the patches, above 0 and below 1.
        draws: number of random orders of the patches, at least 3.
        perturbation: how patches are removed, see :func:`perturbation_for`.
        seed: seed of the random orders.

    Raises:
        OptionError: an option is outside its range, or there is no model.
        InputError: the image has a single patch.
        UnsupportedModelError: the perturbation does not apply to the model.
    """
    if subject is None:
        raise OptionError(NO_MODEL)
    fractions = _checked_fractions(fractions)
    check_option("draws", draws, range(3, 10_001))
    check_option("seed", seed, range(2**32))
    perturbation = perturbation_for(subject.adapter, perturbation)
    bound = subject.bind(perturbation)
    count = bound.grid[0] * bound.grid[1]
    if count < 2:
        raise InputError(
            "the image has a single patch, so no patch can be removed from the others; a check "
            "needs two patches or more"
        )
    draws, seed = int(draws), int(seed)  # NumPy's too, for PyTorch and JSON
    generator = torch.Generator().manual_seed(seed)
    random = [torch.randperm(count, generator=generator) for _ in range(draws)]
    # The first row of an image is no guess for patches of equal relevance.
    shuffled = torch.randperm(count, generator=generator)
    orders = [_order_of(patches, shuffled) for patches, _ in maps] + random
    kept = torch.stack(
        [_first(order, min(kept_count(count, share), count - 1)) for share in fractions
         for order in orders]
    )  # fmt: skip
    whole = torch.ones(1, count, dtype=torch.bool)
    scores = bound.scores(torch.cat([whole, kept, ~kept]).unflatten(1, bound.grid))
    return [
        _check_of(number, len(maps), explained, scores, fractions, perturbation, seed)
        for number, (_, explained) in enumerate(maps)
    ]


def _check_of(
    number: int,
    maps: int,
    explained: ExplainedScore,
    scores: Tensor,
    fractions: tuple[float, ...],
    perturbation: str,
    seed: int,
) -> FaithfulnessCheck:
    """Read the check of one map from the scores (1 + 2 F (maps + draws), C) of all copies."""
    values = torch.tensor(explained.of(scores), dtype=torch.float64)
    keep, remove = values[1:].unflatten(0, (2, len(fractions), -1))
    return FaithfulnessCheck(
        explained.label,
        explained.kind,
        float(values[0]),
        fractions,
        tuple(keep[:, number].tolist()),
        tuple(remove[:, number].tolist()),
        tuple(map(tuple, keep[:, maps:].tolist())),
        tuple(map(tuple, remove[:, maps:].tolist())),
        perturbation,
        seed,
    )


def _order_of(patches: Tensor, shuffled: Tensor) -> Tensor:
    """Rank the patches of a map (rows, columns); equal ones come in a shuffled order."""
    return shuffled[patch_order(patches.flatten()[shuffled][None])]


def _first(order: Tensor, count: int) -> Tensor:
    """Return a mask (patches,) of the first patches in an order."""
    mask = torch.zeros(len(order), dtype=torch.bool)
    mask[order[:count]] = True
    return mask


def _checked_fractions(fractions: Any) -> tuple[float, ...]:
    try:
        values = tuple(sorted(float(share) for share in fractions))
    except (TypeError, ValueError):
        values = ()
    if not values or not all(0 < share < 1 for share in values):
        raise OptionError(
            f"fractions must be shares of the patches above 0 and below 1, such as {FRACTIONS}; "
            f"got {fractions!r}"
        )
    return values


@dataclass(frozen=True, eq=False, repr=False)
class SufficientSet:
    """The fewest patches of highest relevance with which the model still gives the class.

    Attributes:
        label: the explained class.
        score_kind: what the scores are.
        score: the score of the whole image.
        share: the share of this score that the patches must keep.
        kept_score: the score with these patches alone.
        mask: the patches, bool (rows, columns).
        drawn: draws the image with nothing else on it.
    """

    label: str
    score_kind: ScoreKind
    score: float
    share: float
    kept_score: float
    mask: Tensor
    drawn: Callable[[Tensor], Image.Image]

    def __repr__(self) -> str:
        """Give the number of patches and the scores."""
        return f"SufficientSet({brief(self.sentence, 300)!r})"

    def _repr_html_(self) -> str:
        """Show the picture and the sentence in a notebook."""
        from hf_gmar.visualization.notebook import html_image

        picture = self.picture()
        times = max(_SHOWN // max(picture.size), 1)  # a small image would be hard to see
        enlarged = picture.resize((picture.width * times, picture.height * times))
        return html_image(enlarged, self.sentence) + html_line(self.sentence)

    @property
    def count(self) -> int:
        """The number of patches."""
        return int(self.mask.sum())

    @property
    def sentence(self) -> str:
        """The number of patches and the scores."""
        total, text = self.mask.numel(), self.score_kind.text
        return (
            f"{self.count} of {total} patches ({self.count / total:.0%}) suffice for "
            f"{visible(self.label)}: {text(self.kept_score)} with them alone, {text(self.score)} "
            "with all."
        )

    def picture(self) -> Image.Image:
        """Draw the image with these patches alone; the rest is grey."""
        return self.drawn(self.mask)


def sufficient_set(
    subject: ModelInput,
    patches: Tensor,
    explained: ExplainedScore,
    share: float,
    perturbation: str | None,
    drawn: Callable[[Tensor], Image.Image],
) -> SufficientSet:
    """Find the fewest top patches of a map (rows, columns) that keep a share of the score.

    The model is asked for each number of patches from the smallest on: every number up to 40, then
    in steps of 5 %, and within the first step that keeps the share, for every number again.

    Raises:
        OptionError: the share is outside its range.
        InputError: the score of the whole image is not positive.
    """
    check_positive("share", share, 1.0)
    bound = subject.bind(perturbation)
    order, count = patch_order(patches), patches.numel()
    masks = functools.partial(_first, order)

    def scores(counts: Sequence[int]) -> list[float]:
        kept = torch.stack([masks(number) for number in counts]).unflatten(1, bound.grid)
        return explained.of(bound.scores(kept))

    (whole,) = scores([count])
    if whole <= 0:
        raise InputError(
            f"the score of {explained.label} is {whole:.4g}, and a share is of a positive score; "
            "explain a class that the model sees"
        )

    def smallest(counts: Sequence[int]) -> tuple[int, float] | None:
        for start in range(0, len(counts), _AT_ONCE):
            part = counts[start : start + _AT_ONCE]
            for number, score in zip(part, scores(part), strict=True):
                if score >= share * whole:
                    return number, score
        return None

    sizes = _sizes(count)
    found = smallest(sizes) or (count, whole)  # all patches, if rounding lost the last one
    before = max((size for size in sizes if size < found[0]), default=0)
    found = smallest(range(before + 1, found[0])) or found
    mask = masks(found[0]).unflatten(0, bound.grid)
    return SufficientSet(explained.label, explained.kind, whole, share, found[1], mask, drawn)


_AT_ONCE = 4  # numbers of patches between two looks at the scores


def _sizes(count: int) -> list[int]:
    """Return rising numbers of patches up to ``count``, in steps of at most 5 % or one patch.

    Example:
        >>> _sizes(30)[-6:]
        [25, 26, 27, 28, 29, 30]
    """
    sizes = [1]
    while sizes[-1] < count:
        sizes.append(min(max(sizes[-1] + 1, math.floor(sizes[-1] * 1.05)), count))
    return sizes
