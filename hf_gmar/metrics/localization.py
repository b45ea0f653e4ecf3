"""Metrics of localization: how much of a map lies on the object's mask."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from hf_gmar._utils.validation import check_number
from hf_gmar.errors import OptionError
from hf_gmar.metrics.base import Metric
from hf_gmar.metrics.inputs import LocalizationInput
from hf_gmar.metrics.patch_ranking import patch_order, unit_scaled

INSIDE = 0.5
"""A patch belongs to an object if at least this share of its area is inside the mask."""

_CAVEAT = "tells where the object is, not what the model uses, which may be the context"


class LocalizationMetric(Metric[LocalizationInput]):
    """Base of the metrics of maps and masks."""

    input_kind = "localization"

    def __init__(self) -> None:
        super().__init__()


class PointingGame(LocalizationMetric):
    """Pointing game on patches, without the tolerance margin of Zhang et al.

    A patch belongs to the object if at least half of its area is inside the mask. The metric is
    not defined for an image without such a patch. Ties go to the first patch, row by row.

    Example:
        >>> maps, cover = torch.tensor([[[0.1, 0.9], [0.3, 0.2]], [[0.0, 0.6], [0.0, 1.0]]])
        >>> PointingGame().values(LocalizationInput(maps[None], cover[None])).tolist()
        [1.0]
    """

    name = "pointing-game"
    higher_is_better = True
    summary = "Whether the most relevant patch belongs to the object."
    formula = "1 if the most relevant patch is inside the mask, else 0"
    source = "Zhang et al., ECCV 2016, arXiv 1608.00507"
    caveats = f"{_CAVEAT}; one patch decides, and a large object is easy to hit"

    def values(self, measured: LocalizationInput) -> Tensor:
        """Return 0 or 1, (B,)."""
        inside = measured.cover.flatten(1) >= INSIDE
        first = patch_order(measured.maps)[:, :1]
        hit = inside.gather(1, first)[:, 0].double()
        return torch.where(inside.any(1), hit, torch.nan)


class RelevanceMass(LocalizationMetric):
    """Energy-based pointing game of Score-CAM.

    Each patch counts by the share of its area that the mask covers. A constant positive map gives
    the object's share of the image. Not defined without a mask.

    Example:
        >>> maps, cover = torch.tensor([[[1.0, 2.0], [-5.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])
        >>> RelevanceMass().values(LocalizationInput(maps[None], cover[None])).tolist()
        [0.5]
    """

    name = "relevance-mass"
    higher_is_better = True
    summary = "Share of the positive relevance inside the mask; 0 if no relevance is positive."
    formula = "sum of positive relevance inside the mask / sum of all positive relevance"
    source = "Wang et al., CVPRW 2020, arXiv 1910.01279"
    caveats = f"{_CAVEAT}; a map with a high minimum scores low, whatever its ranking"

    def values(self, measured: LocalizationInput) -> Tensor:
        """Return values from 0 to 1, (B,)."""
        return _mass_inside(measured)


class AveragePrecision(LocalizationMetric):
    """Average precision without interpolation, on patches.

    A patch belongs to the object if at least half of its area is inside the mask. The metric is
    not defined for an image without such a patch. Patches of equal relevance share a threshold, so
    their order makes no difference. A constant map gives the object's share of the patches.

    Example:
        >>> maps, cover = torch.tensor([[[0.9, 0.7], [0.7, 0.1]], [[1.0, 1.0], [0.0, 0.0]]])
        >>> value = AveragePrecision().values(LocalizationInput(maps[None], cover[None])).item()
        >>> round(value, 4)
        0.8333
    """

    name = "average-precision"
    higher_is_better = True
    summary = "Average precision of the patches' ranking, with the object's patches as positives."
    formula = "sum over thresholds of (increase of recall) x precision, on patches"
    source = "Everingham et al., IJCV 2010, without interpolation"
    caveats = f"{_CAVEAT}; a constant map gets the object's share of the image"

    def values(self, measured: LocalizationInput) -> Tensor:
        """Return values from 0 to 1, (B,)."""
        inside = (measured.cover >= INSIDE).flatten(1)
        values = [_ap(*pair) for pair in zip(measured.maps.flatten(1), inside, strict=True)]
        return torch.tensor(values, dtype=torch.float64)


class MeanIoU(LocalizationMetric):
    """Segmentation test: mean IoU of object and background.

    A patch is foreground if its relevance is above the threshold; the lowest patch never is. Areas
    are exact: each patch counts by the share that the mask covers. The values are averaged over
    images, while Chefer et al. sum areas over the data set. Not defined without a mask.

    Args:
        threshold: ``"mean"``, the mean of the map, as in Chefer et al.; or a number >= 0 and < 1,
            where 0 is the lowest relevance of the map and 1 the highest.

    Example:
        >>> maps, cover = torch.tensor([[[0.9, 0.7], [0.2, 0.1]], [[1.0, 0.5], [0.0, 0.0]]])
        >>> round(MeanIoU().values(LocalizationInput(maps[None], cover[None])).item(), 4)
        0.775
    """

    name = "miou"
    higher_is_better = True
    summary = (
        "Mean intersection over union of object and background, with the map cut at a threshold."
    )
    formula = "mean of IoU(object) and IoU(background), map cut at its mean or at `threshold`"
    source = "Chefer, Gur and Wolf, CVPR 2021, arXiv 2012.09838"
    caveats = f"{_CAVEAT}; depends on the threshold as much as on the ranking"

    def __init__(self, threshold: float | Literal["mean"] = "mean") -> None:
        super().__init__()
        if isinstance(threshold, str) and threshold != "mean":
            raise OptionError(
                f'threshold must be "mean" or a number >= 0 and < 1, got {threshold!r}'
            )
        self.threshold = (
            threshold if threshold == "mean" else check_number("threshold", threshold, 0, 1)
        )

    def values(self, measured: LocalizationInput) -> Tensor:
        """Return values from 0 to 1, (B,)."""
        if self.threshold == "mean":
            foreground = measured.maps > measured.maps.mean((1, 2), keepdim=True)
        else:
            foreground = unit_scaled(measured.maps) > self.threshold
        overlaps = [_iou(foreground, measured.cover), _iou(~foreground, 1 - measured.cover)]
        return torch.where(_has_mask(measured), torch.stack(overlaps).mean(0), torch.nan)


class GridPointing(Metric[LocalizationInput]):
    """Grid pointing game.

    A mosaic shows four images of different classes. The map of one class should lie in the cell of
    that class. A constant positive map gives a quarter.
    """

    name = "grid-pointing"
    input_kind = "mosaic"
    higher_is_better = True
    summary = (
        "Share of the positive relevance in the right cell of a mosaic; 0 if none is positive."
    )
    formula = "sum of positive relevance in the right cell / sum of all positive relevance"
    source = "Böhle, Fritz and Schiele, CVPR 2021, arXiv 2104.00032"
    caveats = "mosaics are no photos, and attention crosses cells; a map of all classes gives 1/4"

    def values(self, measured: LocalizationInput) -> Tensor:
        """Return values from 0 to 1, (B,)."""
        return _mass_inside(measured)


def _mass_inside(measured: LocalizationInput) -> Tensor:
    positive = measured.maps.clamp(min=0)
    inside, everywhere = (positive * measured.cover).sum((1, 2)), positive.sum((1, 2))
    share = torch.where(everywhere > 0, inside / everywhere, 0.0)
    return torch.where(_has_mask(measured), share, torch.nan)


def _has_mask(measured: LocalizationInput) -> Tensor:
    return (measured.cover > 0).flatten(1).any(1)


def _ap(relevance: Tensor, inside: Tensor) -> float:
    """Return the average precision of the patches (P,) of one image; NaN if none is inside."""
    _, places, counts = (-relevance).unique(return_inverse=True, return_counts=True)
    hits = torch.zeros(len(counts), dtype=torch.float64).index_add_(0, places, inside.double())
    precision = hits.cumsum(0) / counts.cumsum(0)
    return float((hits * precision).sum() / inside.sum())


def _iou(foreground: Tensor, cover: Tensor) -> Tensor:
    """Return intersection over union of the areas, (B,)."""
    intersection = foreground * cover
    return intersection.sum((1, 2)) / (foreground + cover - intersection).sum((1, 2))
