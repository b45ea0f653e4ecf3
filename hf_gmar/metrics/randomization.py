"""Sanity checks: a map fails if it is the same for another class or for other weights."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from hf_gmar._utils.stats import rank_correlations
from hf_gmar._utils.validation import check_option
from hf_gmar.metrics.context import ContextMetric, MetricContext, one_value
from hf_gmar.metrics.patch_ranking import unit_scaled

Similarity: TypeAlias = Literal["rank", "ssim"]


class ClassSensitivity(ContextMetric):
    """Class sensitivity; not defined for a constant map or a model with one class."""

    name = "class-sensitivity"
    higher_is_better = False
    summary = "Rank correlation between the maps of the explained class and of another class."
    formula = "Spearman correlation of map(target) and map(other class)"
    source = "Spearman, for maps as in Adebayo et al., NeurIPS 2018, arXiv 1810.03292"
    caveats = "random maps drawn anew for each class score well; two classes may share evidence"

    def values(self, context: MetricContext) -> Tensor:
        """Return the value from -1 to 1, (1,)."""
        if context.other_class is None:
            return one_value(torch.nan)
        return one_value(
            rank_similarity(context.relevance(), context.relevance(context.other_class))
        )


class ParameterRandomization(ContextMetric):
    """Cascading randomization of "Sanity Checks for Saliency Maps"; signed maps stay signed.

    The weights are randomized from the top down: the head, then each layer, then everything below
    the layers. After each stage, the map is compared with the map of the original model. A map that
    stays the same does not depend on what the model learned.

    Args:
        similarity: ``"rank"`` is Spearman's correlation; ``"ssim"`` is the structural similarity
            of the maps scaled to [0, 1], see :func:`ssim`.
        stages: number of stages in which the whole model is randomized.
        seed: seed of the new weights, which are the same for all images.
        images: see :class:`~hf_gmar.metrics.base.Metric`.
    """

    name = "parameter-randomization"
    higher_is_better = False
    summary = "How similar the map stays while the weights are randomized, from the head down."
    formula = "mean over stages of similarity(map, map with randomized weights)"
    source = "Adebayo et al., NeurIPS 2018, arXiv 1810.03292"
    caveats = "a random map drawn anew for each model scores best; uses one draw of the new weights"

    def __init__(
        self,
        similarity: Similarity = "rank",
        stages: int = 4,
        seed: int = 0,
        images: int | None = None,
    ) -> None:
        super().__init__(images)
        check_option("similarity", similarity, get_args(Similarity))
        check_option("stages", stages, range(1, 1001))
        check_option("seed", seed, range(2**32))
        self.similarity: Similarity = similarity
        self.stages = int(stages)
        self.seed = int(seed)

    def values(self, context: MetricContext) -> Tensor:
        """Return the mean over the stages where it is defined, from -1 to 1, (1,); else NaN."""
        if context.explain_randomized is None:
            return one_value(torch.nan)
        similarity = rank_similarity if self.similarity == "rank" else ssim
        relevance = context.relevance()
        similarities = [
            similarity(relevance, context.as_map(explain(context.pixels, context.target)))
            for explain in context.explain_randomized(self.stages, self.seed)
        ]
        return torch.tensor(similarities, dtype=torch.float64).nanmean(0, keepdim=True)


def rank_similarity(left: Tensor, right: Tensor) -> float:
    """Return Spearman's correlation of two maps (rows, columns); NaN if a map is constant."""
    return float(rank_correlations([left[None], right[None]])[0, 1])


def ssim(left: Tensor, right: Tensor) -> float:
    """Return the structural similarity of two maps (rows, columns), each first scaled to [0, 1].

    The value is the mean over all windows of 7 x 7 patches that fit into the map; a smaller map
    has smaller windows. The constants are 0.01 and 0.03 of the range.

    Source: Wang et al., "Image Quality Assessment: From Error Visibility to Structural
    Similarity", IEEE TIP 2004, equation 13. All patches of a window have equal weight, because the
    paper's Gaussian of 11 pixels would not fit into most maps.

    Example:
        >>> up = torch.arange(64.0).reshape(8, 8)
        >>> ssim(up, 3 * up + 1), ssim(up, -up) < 0
        (1.0, True)
    """
    x, y = unit_scaled(left), unit_scaled(right)
    sizes = [min(7, size) for size in x.shape]

    def mean(values: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(values[None], sizes, 1)[0]

    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float((numerator / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean())
