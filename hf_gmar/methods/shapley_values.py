"""Shapley values of patches, sampled: the exact yardstick of what each patch adds to the score."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from hf_gmar._core.execution import accumulation_dtype, check_finite, exclusive_eval, predict
from hf_gmar._core.inputs import PixelInputs, size_errors
from hf_gmar._core.model_adapter import ModelAdapter, ModelLike
from hf_gmar._core.request import ForwardRequest
from hf_gmar._core.targets import ResolvedTarget, Target, TargetSpec, scores_at
from hf_gmar._core.token_layout import ReadoutSpec
from hf_gmar._utils.validation import check_groups, check_option, check_samples, shown
from hf_gmar.errors import OptionError
from hf_gmar.methods.base import AttributionMethod, Resolution
from hf_gmar.perturbations.base import CopyPlan, PerturbationInput
from hf_gmar.perturbations.pixels import MeanColour
from hf_gmar.perturbations.token_removal import fewest_patches
from hf_gmar.perturbations.tokens import TokenDropping

Advance: TypeAlias = Callable[[int], None]
"""Called with the number of copies that a forward has scored."""


class ShapleyAttribution(NamedTuple):
    """Shapley values of the patches of B images, with their uncertainty.

    Attributes:
        maps: Shapley value of each patch, (B, rows, columns).
        standard_errors: standard error of each value, (B, rows, columns); NaN after one pair of
            permutations.
        samples: number of permutations.
        full_scores: explained score of each image, (B,).
        empty_scores: explained score without any patch, (B,). The map of an image sums to the
            difference of the two.
    """

    maps: Tensor
    standard_errors: Tensor
    samples: int
    full_scores: Tensor
    empty_scores: Tensor


class ShapleyValues(AttributionMethod):
    r"""Estimate the Shapley value of each patch for the score, where absent patches are dropped.

    $$ \phi_i = \frac{1}{n!} \sum_\pi \left[ v(P^\pi_i \cup \{i\}) - v(P^\pi_i) \right] $$

    $v(S)$: explained score of the model on the tokens of the players $S$ alone, see
    :class:`~hf_gmar.perturbations.TokenDropping`; $P^\pi_i$: the players before $i$ in the
    permutation $\pi$. A player is a group of patches; a patch gets its group's value divided by the
    number of patches in the group.

    The mean over all $n!$ permutations is estimated from ``samples`` permutations. They come in
    antithetic pairs: each permutation is followed by its reverse. The estimate is unbiased. It
    always sums to $v(\text{all}) - v(\emptyset)$, as each permutation does.

    A model that averages patches, or that has no other token, gives no score without patches.
    There $v(\emptyset)$ is the mean score of the single players. A player then starts from what an
    average player alone gives.

    A model without a fixed grid of patches loses pixels instead: the cells of its map that are
    absent get the mean colour of the image.

    The permutations depend on the seed and the number of players. They are the same for all images
    and classes, and more samples continue the same sequence.

    Args:
        samples: number of permutations, even. Each costs one forward for each player but one, with
            half of the tokens on average.
        groups: rows and columns of patches in a player, by default one patch, or 4 x 4 cells of a
            map of cells. Groups at the lower and right edge are smaller if the grid does not divide
            evenly.
        seed: seed of the permutations, from 0 to 2^32 - 1.
        batch_size: maximum number of copies of images in one forward.
        progress: show a progress bar on stderr.

    Raises:
        UnsupportedModelError: tokens can't be dropped from the layers of the model.

    Source: Castro, Gomez and Tejada, "Polynomial calculation of the Shapley value based on
    sampling", Computers & Operations Research 2009, equation 3 and section 3; antithetic pairs:
    Mitchell et al., "Sampling Permutations for Shapley Value Estimation", JMLR 2022, section 3.1.

    Example:
        >>> from hf_gmar import load_model
        >>> model = load_model("bundled").model
        >>> shapley = ShapleyValues(model, samples=2, groups=(4, 4))
        >>> result = shapley.attribute_with_errors(torch.zeros(2, 3, 96, 96), target=3)
        >>> result.maps.shape, result.standard_errors.shape, result.samples
        (torch.Size([2, 8, 8]), torch.Size([2, 8, 8]), 2)
        >>> total = result.full_scores - result.empty_scores
        >>> torch.allclose(result.maps.sum((1, 2)), total, atol=1e-5)
        True
    """

    title = "Shapley values"
    shows = "what speaks for the class, and against it"
    source = "Castro et al., 2009; Mitchell et al., JMLR 2022, arXiv 2104.12199"
    cost = "forward for each player and sample"
    signed = True
    unit = "change of the score"
    by_default = False
    needs_tokens = False

    def __init__(
        self,
        model: ModelLike,
        samples: int = 16,
        groups: Sequence[int] | None = None,
        seed: int = 0,
        batch_size: int = 8,
        progress: bool = False,
        readout: ReadoutSpec = None,
        grid: Sequence[int] | None = None,
        resolution: Resolution = "patch",
    ) -> None:
        super().__init__(model, readout, grid, resolution)
        self.adapter.check_images("ShapleyValues")
        if groups is None:
            groups = (4, 4) if self.adapter.has_cells else (1, 1)
        check_option("seed", seed, range(2**32))
        check_option("batch_size", batch_size, range(1, 2**31))
        if not isinstance(progress, bool):
            raise OptionError(f"progress must be True or False, got {shown(progress)}")
        self.samples, self.groups = check_samples(samples), check_groups(groups)
        self.seed = int(seed)
        self.batch_size, self.progress = int(batch_size), progress

    def attribute_with_errors(
        self,
        inputs: PixelInputs = None,
        target: Target = None,
        additional_forward_args: Any = None,
        contrast: Target = None,
        **forward_kwargs: Any,
    ) -> ShapleyAttribution:
        """Return the Shapley values with their standard errors, which shrink with more samples.

        Arguments and errors are those of :meth:`attribute`. The values are those of patches at any
        resolution, without shifts of the image. The standard error of a mean over pairs
        of permutations, which are independent, is the standard deviation of the pairs' means
        divided by the square root of their number.

        Ctrl-C ends the sampling. The result then has the permutations so far, in ``samples``, and
        there is a warning. Before the first pair is complete, and in all other methods of this
        class, KeyboardInterrupt is raised.

        Returns:
            Maps, standard errors, number of permutations and the scores of all and of no patches.
        """
        spec = self._target_spec(target, contrast)
        request = self._request(inputs, additional_forward_args, forward_kwargs)
        with size_errors(self.adapter, request.inputs):
            game, means = self._sample(request, [spec], keep_partial=True)
        return ShapleyAttribution(
            game.maps(means.mean)[0],
            game.maps(means.standard_error())[0],
            2 * means.pairs,
            game.like_scores(game.full[0]),
            game.like_scores(game.empty[0]),
        )

    def _explain(self, request: ForwardRequest, target_specs: Sequence[TargetSpec]) -> list[Tensor]:
        game, means = self._sample(request, target_specs, keep_partial=False)
        return list(game.maps(means.mean))

    def _sample(
        self, request: ForwardRequest, target_specs: Sequence[TargetSpec], *, keep_partial: bool
    ) -> tuple[_Game, _Means]:
        """Sample the permutations in rounds, each of which fills the forwards."""
        game = _Game.of(self.adapter, request, target_specs, self.groups, self.batch_size)
        pairs, per_round = self.samples // 2, max(1, self.batch_size // (2 * len(request.inputs)))
        random, means = np.random.default_rng([self.seed, game.count]), _Means()
        total = self.samples * (game.count - 1) * len(request.inputs)
        try:
            with _bar(total, shown=self.progress) as advance:
                for start in range(0, pairs, per_round):
                    size = min(per_round, pairs - start)
                    orders = [random.permutation(game.count) for _ in range(size)]
                    values = game.pair_values(torch.from_numpy(np.stack(orders)), advance)
                    means = means.with_values(values)  # at once, for an interrupt
        except KeyboardInterrupt:
            if not (keep_partial and means.pairs):
                raise
            warnings.warn(
                f"interrupted after {2 * means.pairs} of {self.samples} permutations; the result "
                "is the mean of these",
                stacklevel=3,
            )
        return game, means


@dataclass(frozen=True, eq=False)
class _Game:
    """The explained scores of images as a game of their players.

    Attributes:
        adapter: the model.
        request: the images and further arguments of the model.
        targets: the explained scores, one for each of T targets.
        players: the player of each patch, (rows, columns).
        plans: how copies without some patches are run: of all images, or of each image.
        batch_size: maximum number of copies in one forward.
        scores: scores of the images, which have the device and dtype of a result.
        full: explained score of all players, (T, B), float64, on the CPU.
        empty: explained score of no player, (T, B).
    """

    adapter: ModelAdapter
    request: ForwardRequest
    targets: list[ResolvedTarget]
    players: Tensor
    plans: list[CopyPlan]
    batch_size: int
    scores: Tensor
    full: Tensor
    empty: Tensor

    @classmethod
    def of(
        cls,
        adapter: ModelAdapter,
        request: ForwardRequest,
        target_specs: Sequence[TargetSpec],
        groups: tuple[int, int],
        batch_size: int,
    ) -> _Game:
        """Run the model on the images, and find the scores of all and of no players."""
        scores = predict(adapter, request).detach()
        check_finite(scores, (), "score")
        targets = [spec.resolve(scores) for spec in target_specs]
        players = player_grid(adapter.layout.grid(*request.inputs.shape[-2:]), groups)
        images = request.inputs.detach().split(1)
        plans = (
            [MeanColour().copies(PerturbationInput(adapter, image, None)) for image in images]
            if adapter.has_cells
            else [TokenDropping().copies(PerturbationInput(adapter, images[0], None))]
        )
        full = _explained(scores, targets, torch.arange(len(scores)))
        game = cls(adapter, request, targets, players, plans, batch_size, scores, full, full)
        if not adapter.has_cells and fewest_patches(adapter):
            singles = torch.eye(game.count, dtype=torch.bool)
            empty = game.values(singles).mean(-1) if game.count > 1 else full
        else:
            empty = game.values(torch.zeros(1, game.count, dtype=torch.bool))[..., 0]
        return cls(adapter, request, targets, players, plans, batch_size, scores, full, empty)

    @property
    def count(self) -> int:
        """Number of players."""
        return int(self.players.max()) + 1

    def pair_values(self, orders: Tensor, advance: Advance) -> Tensor:
        """Return what each player adds in permutations (P, n) and their reverses, on average.

        Returns:
            Tensor (T, B, P, n), float64: the mean of a permutation and its reverse.
        """
        pairs, count = orders.shape
        places = torch.stack([orders, orders.flip(1)], 1).flatten(0, 1).argsort(1)
        # The players at the first 1, 2, ..., n - 1 places of each permutation.
        coalitions = places[:, None] < torch.arange(1, count)[:, None]
        between = self.values(coalitions.flatten(0, 1), advance)
        between = between.reshape(*between.shape[:2], 2 * pairs, count - 1)
        first, last = (
            score[..., None, None].expand(-1, -1, 2 * pairs, 1) for score in (self.empty, self.full)
        )
        gains = torch.cat([first, between, last], -1).diff(dim=-1)  # by place
        by_player = gains.gather(-1, places.expand_as(gains))
        return by_player.reshape(*gains.shape[:2], pairs, 2, count).mean(3)

    def values(self, coalitions: Tensor, advance: Advance = lambda _: None) -> Tensor:
        """Return the explained scores (T, B, M) of coalitions, bool (M, n)."""
        images, copies = torch.arange(len(self.request.inputs)), len(coalitions)
        # All images have the same coalitions, and all coalitions of as many patches share forwards.
        groups = images.chunk(len(self.plans))
        with exclusive_eval(self.adapter), torch.no_grad():
            parts = [
                self._values(plan, coalitions, group.repeat_interleave(copies), advance)
                for plan, group in zip(self.plans, groups, strict=True)
            ]
        return torch.cat(parts, 1).reshape(len(self.targets), len(images), copies)

    def _values(self, plan: CopyPlan, coalitions: Tensor, rows: Tensor, advance: Advance) -> Tensor:
        """Return the explained scores (T, copies) of images, each with all coalitions."""
        keep_mask = coalitions[:, self.players].repeat(len(rows) // max(len(coalitions), 1), 1, 1)
        values = torch.empty(len(self.targets), len(rows), dtype=torch.float64)
        for indices in plan.batches(keep_mask, self.batch_size):
            request = _copies(self.request, rows[indices])
            pixels = plan.pixels(keep_mask[indices]) if self.adapter.has_cells else None
            with plan.inside(keep_mask[indices]):
                scores = request.call(self.adapter, pixels)
            check_finite(scores, (), "score")
            values[:, indices] = _explained(scores, self.targets, rows[indices])
            advance(len(indices))
        return values

    def maps(self, values: Tensor) -> Tensor:
        """Return the values of patches, (T, B, rows, columns), for those of players, (T, B, n)."""
        sizes = self.players.flatten().bincount()
        return self.like_scores((values / sizes)[..., self.players])

    def like_scores(self, values: Tensor) -> Tensor:
        """Move values to the device of the scores, in float32, or float64 for a float64 model."""
        return values.to(self.scores.device, accumulation_dtype(self.scores), copy=True)


class _Means(NamedTuple):
    """Mean of each value over pairs of permutations, and the sum of squared deviations from it."""

    pairs: int = 0
    mean: Tensor = torch.zeros(())
    squares: Tensor = torch.zeros(())

    def with_values(self, values: Tensor) -> _Means:
        """Return the means with more pairs, (T, B, P, n), by the formula of Chan et al., 1979."""
        new, mean = values.shape[2], values.mean(2)
        squares = (values - mean[:, :, None]).square().sum(2)
        pairs, change = self.pairs + new, mean - self.mean
        return _Means(
            pairs,
            self.mean + change * (new / pairs),
            self.squares + squares + change.square() * (self.pairs * new / pairs),
        )

    def standard_error(self) -> Tensor:
        """Return the standard error of the means; NaN for a single pair."""
        if self.pairs < 2:
            return torch.full_like(self.mean, torch.nan)
        return (self.squares / (self.pairs - 1) / self.pairs).sqrt()


def player_grid(grid: tuple[int, int], groups: tuple[int, int]) -> Tensor:
    """Return the player of each patch, (rows, columns), numbered by rows.

    Example:
        >>> player_grid((2, 5), (2, 2))
        tensor([[0, 0, 1, 1, 2],
                [0, 0, 1, 1, 2]])
    """
    rows, columns = (torch.arange(size) // of for size, of in zip(grid, groups, strict=True))
    return rows[:, None] * (int(columns[-1]) + 1) + columns


def _copies(request: ForwardRequest, rows: Tensor) -> ForwardRequest:
    """Return the request for copies of these images.

    As in Captum, a tensor with a row for each image is copied with the images.
    """
    count = len(request.inputs)

    def select(value: Any) -> Any:
        by_image = isinstance(value, Tensor) and value.dim() and len(value) == count
        return value[rows.to(value.device)] if by_image else value

    kwargs = {name: select(value) for name, value in request.kwargs.items()}
    args = tuple(select(value) for value in request.args)
    return ForwardRequest(select(request.inputs), args, kwargs)


def _explained(scores: Tensor, targets: Sequence[ResolvedTarget], rows: Tensor) -> Tensor:
    """Return the explained scores (T, copies), float64, of copies of these images."""
    rows = rows.to(scores.device)

    def of(target: ResolvedTarget) -> Tensor:
        own = scores_at(scores, target.target[rows]).double()
        return own if target.against is None else own - scores_at(scores, target.against[rows])

    return torch.stack([of(target) for target in targets]).detach().cpu()


@contextmanager
def _bar(total: int, *, shown: bool) -> Iterator[Advance]:
    """Show a bar on stderr for a number of copies."""
    if not shown:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    hidden = not (console.is_terminal or console.is_jupyter)
    with Progress(console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("Shapley values", total=total)
        yield lambda count: bar.advance(task, count)
