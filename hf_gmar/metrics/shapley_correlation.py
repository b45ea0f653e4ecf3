"""A metric that compares a map with the Shapley values of the patches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from hf_gmar._utils.validation import check_groups, check_samples
from hf_gmar.metrics.context import ContextMetric, MetricContext, one_value
from hf_gmar.metrics.randomization import rank_similarity


class ShapleyCorrelation(ContextMetric):
    """Spearman's correlation of a map with the Shapley values of the patches for the logit.

    Absent patches are dropped as tokens. The Shapley values are sampled, see
    :class:`~hf_gmar.methods.ShapleyValues`; their sampling error lowers the correlation. All
    methods share one estimate of them for each image and class. With groups of patches, the map is
    averaged over each group first. Not defined for a constant map.

    Args:
        samples: number of permutations, even.
        groups: rows and columns of patches in a player.
        images: see :class:`~hf_gmar.metrics.base.Metric`. Each image costs one forward for each
            player and sample.
    """

    name = "shapley-correlation"
    higher_is_better = True
    summary = "Rank correlation of the map with the Shapley values of the patches."
    formula = "Spearman correlation of map(target) and Shapley values, absent patches dropped"
    source = "values of Castro et al., 2009, by antithetic sampling, arXiv 2104.12199"
    caveats = "sampling error lowers it; a model without most tokens is out of sample"

    def __init__(
        self, samples: int = 16, groups: Sequence[int] = (1, 1), images: int | None = None
    ) -> None:
        super().__init__(images)
        self.samples = check_samples(samples)
        self.groups = check_groups(groups)

    def values(self, context: MetricContext) -> Tensor:
        """Return the value from -1 to 1, (1,)."""
        if context.shapley is None:
            return one_value(torch.nan)
        shapley = context.as_map(context.shapley(self.samples, self.groups))
        means = (self._group_means(patches) for patches in (context.relevance(), shapley))
        return one_value(rank_similarity(*means))

    def _group_means(self, patches: Tensor) -> Tensor:
        """Average a map (rows, columns) over each group; those at the edge may be smaller."""
        return functional.avg_pool2d(patches[None], self.groups, self.groups, ceil_mode=True)[0]
