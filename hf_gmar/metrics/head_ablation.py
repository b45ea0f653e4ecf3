"""A metric of the order in which a method puts attention heads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from hf_gmar._utils.validation import check_option
from hf_gmar.metrics.context import ContextMetric, MetricContext, one_value
from hf_gmar.metrics.patch_ranking import patch_order


class HeadAblationArea(ContextMetric):
    """Masking of heads step by step, the most important first; ties go to the lower layer and head.

    Below zero, the score falls faster than at random. Not defined for methods without an
    importance of heads.

    Args:
        steps: so many steps from no head to all of them.
        random_orders: so many random orders, drawn for each image.
        images: see :class:`~hf_gmar.metrics.base.Metric`.
    """

    name = "head-ablation"
    higher_is_better = False
    summary = (
        "Area under the score while heads are masked in the method's order, minus that at random."
    )
    formula = "area under score(masked share of heads), most important first, minus random orders"
    source = "masking of Michel, Levy and Neubig, NeurIPS 2019, arXiv 1905.10650"
    caveats = "of the heads' importance, not of the map; a model without heads is off its data"

    def __init__(self, steps: int = 8, random_orders: int = 3, images: int | None = None) -> None:
        super().__init__(images)
        check_option("steps", steps, range(2, 10_001))  # with one, all orders are the same
        check_option("random_orders", random_orders, range(1, 1001))
        self.steps = int(steps)
        self.random_orders = int(random_orders)

    def values(self, context: MetricContext) -> Tensor:
        """From -1 to 1 for probabilities, (1,)."""
        if context.head_importance is None or context.masked_scores is None:
            return one_value(torch.nan)
        importance = context.head_importance()
        heads = importance.numel()
        random = np.random.default_rng(context.seed)
        drawn = [torch.from_numpy(random.permutation(heads)) for _ in range(self.random_orders)]
        # Steps finer than the heads would mask the same ones twice.
        counts = sorted({round(step * heads / self.steps) for step in range(self.steps + 1)})
        masks = _masks([patch_order(importance), *drawn], counts)
        masks = masks.unflatten(-1, importance.shape)
        curves = _curves(context.masked_scores, masks, context.target)
        area, *others = torch.trapezoid(curves, torch.tensor(counts) / heads).tolist()
        return one_value(area - sum(others) / len(others))


def _masks(orders: list[Tensor], counts: list[int]) -> Tensor:
    """Which heads are masked at each count, in each order: (orders, counts, heads)."""
    places = torch.stack([order.argsort() for order in orders])
    return places[:, None] < torch.tensor(counts)[:, None]


def _curves(masked_scores: Callable[[Tensor], Tensor], masks: Tensor, target: int) -> Tensor:
    """The target's score at each count, (orders, counts); no head and all are measured once."""
    orders, between = len(masks), masks[:, 1:-1].flatten(0, 1)
    scores = masked_scores(torch.cat([masks[0, :1], masks[0, -1:], between]))
    scores = scores.double().cpu()[:, target]
    first, last = (score.expand(orders, 1) for score in scores[:2])
    return torch.cat([first, scores[2:].reshape(orders, -1), last], 1)
