"""A metric of a method's ranking of the attention heads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from hf_gmar._utils.validation import check_option
from hf_gmar.metrics.context import ContextMetric, MetricContext, one_value
from hf_gmar.metrics.patch_ranking import patch_order


class HeadAblationArea(ContextMetric):
    """Area under the score while heads are masked, the most important ones first.

    Ties go to the lower layer, then head. Below zero, the score falls faster than with random
    orders. Not defined for methods without head importance.

    Args:
        steps: number of steps from no masked head to all heads.
        random_orders: number of random orders permutations for each image.
        images: see :class:`~hf_gmar.metrics.base.Metric`.
    """

    name = "head-ablation"
    higher_is_better = False
    summary = "Area under the score while heads are masked by importance, minus random orders."
    formula = "area under score(masked share of heads), most important first, minus random orders"
    source = "masking of Michel, Levy and Neubig, NeurIPS 2019, arXiv 1905.10650"
    caveats = "judges the head importance, not the map; a model with masked heads is out of sample"

    def __init__(self, steps: int = 8, random_orders: int = 3, images: int | None = None) -> None:
        super().__init__(images)
        check_option("steps", steps, range(2, 10_001))  # with one step, all orders are the same
        check_option("random_orders", random_orders, range(1, 1001))
        self.steps = int(steps)
        self.random_orders = int(random_orders)

    def values(self, context: MetricContext) -> Tensor:
        """Return the value (1,), from -1 to 1 for probabilities."""
        if context.head_importance is None or context.masked_scores is None:
            return one_value(torch.nan)
        importance = context.head_importance()
        heads = importance.numel()
        random = np.random.default_rng(context.seed)
        permutations = [
            torch.from_numpy(random.permutation(heads)) for _ in range(self.random_orders)
        ]
        # With more steps than heads, some steps would mask the same heads: each count is kept once.
        counts = sorted({round(step * heads / self.steps) for step in range(self.steps + 1)})
        masks = _masks([patch_order(importance), *permutations], counts)
        masks = masks.unflatten(-1, importance.shape)
        curves = _curves(context.masked_scores, masks, context.target)
        area, *others = torch.trapezoid(curves, torch.tensor(counts) / heads).tolist()
        return one_value(area - sum(others) / len(others))


def _masks(orders: list[Tensor], counts: list[int]) -> Tensor:
    """Return which heads are masked at each count in each order, (orders, counts, heads)."""
    places = torch.stack([order.argsort() for order in orders])
    return places[:, None] < torch.tensor(counts)[:, None]


def _curves(masked_scores: Callable[[Tensor], Tensor], masks: Tensor, target: int) -> Tensor:
    """Return the target's score, (orders, counts); the ends are the same for all orders."""
    orders, between = len(masks), masks[:, 1:-1].flatten(0, 1)
    scores = masked_scores(torch.cat([masks[0, :1], masks[0, -1:], between]))
    scores = scores.double().cpu()[:, target]
    first, last = (score.expand(orders, 1) for score in scores[:2])
    return torch.cat([first, scores[2:].reshape(orders, -1), last], 1)
