"""Metrics of the score when only the patches that a map prefers are kept."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_gmar._utils.validation import check_option, check_positive
from hf_gmar.errors import InputError
from hf_gmar.metrics.base import Metric
from hf_gmar.metrics.inputs import ConfidenceChange
from hf_gmar.metrics.patch_ranking import FORMS, Form, kept_patches

_GRAD_CAM = "Chattopadhay et al., WACV 2018, arXiv 1710.11063"
_CAVEAT = "with form=soft, a map that keeps more of the image has an advantage"
_ROUNDING = 1e-6


class ConfidenceMetric(Metric[ConfidenceChange]):
    """Base of the metrics that compare the scores of the whole image and of the kept patches.

    Args:
        keep: share of the patches that stay; half of them, as in Wang et al., Score-CAM (CVPRW
            2020, arXiv 1910.01279).
        form: ``"patches"`` or ``"soft"``, see :func:`~hf_gmar.metrics.patch_ranking.kept_patches`.
            Chattopadhay et al. multiply the image by the map, which is ``"soft"``. Soft maps keep
            different shares of the image; ``"patches"`` keeps the same share for all methods.
    """

    input_kind = "confidence"
    perturbed = True

    def __init__(self, keep: float = 0.5, form: Form = "patches") -> None:
        super().__init__()
        check_option("form", form, FORMS)
        # Above 0: without any patch, all maps would give the same score.
        self.keep = check_positive("keep", keep, 1.0)
        self.form: Form = form

    def keep_mask(self, relevance: Tensor) -> Tensor:
        """Return the share of each patch that a map keeps, (rows, columns)."""
        return kept_patches(relevance, self.keep, self.form)

    def _check(self, change: ConfidenceChange) -> None:
        scores = torch.stack([change.before, change.after])
        outside = (scores < -_ROUNDING) | (scores > 1 + _ROUNDING)
        if outside.any():
            raise InputError(
                f"{self.name} is defined for probabilities from 0 to 1, got scores from "
                f"{scores[outside].min():g} to {scores[outside].max():g}; measure with "
                'score="probability"'
            )


class AverageDrop(ConfidenceMetric):
    """Average drop, from Grad-CAM++.

    Example:
        >>> change = ConfidenceChange(torch.tensor([0.8, 0.5]), torch.tensor([0.2, 0.9]))
        >>> AverageDrop().values(change).tolist()
        [75.0, 0.0]
    """

    name = "average-drop"
    higher_is_better = False
    summary = "Percent of the score that is lost when only the kept patches remain."
    formula = "100 max(0, before - after) / before"
    source = _GRAD_CAM
    caveats = f"{_CAVEAT}; read it together with average-gain"
    probability = True

    def values(self, change: ConfidenceChange) -> Tensor:
        """Return values from 0 to 100, (B,); NaN where the score of the whole image is 0."""
        self._check(change)
        before, after = change.before, change.after
        return 100 * (before - after).clamp(min=0) / torch.where(before > 0, before, torch.nan)


class IncreaseInConfidence(ConfidenceMetric):
    """Increase in confidence, from Grad-CAM++.

    Example:
        >>> change = ConfidenceChange(torch.tensor([0.8, 0.5]), torch.tensor([0.2, 0.9]))
        >>> IncreaseInConfidence().values(change).tolist()
        [0.0, 100.0]
    """

    name = "increase-in-confidence"
    higher_is_better = True
    summary = "Percent of the images whose score is higher with the kept patches alone."
    formula = "100 if after > before, else 0"
    source = _GRAD_CAM
    caveats = f"{_CAVEAT}; a tiny rise counts as much as a large one"

    def values(self, change: ConfidenceChange) -> Tensor:
        """Return 0 or 100, (B,)."""
        rises = (change.after > change.before).double() * 100
        return torch.where((change.before + change.after).isnan(), torch.nan, rises)


class AverageGain(ConfidenceMetric):
    """Average gain, from Opti-CAM; 0 if the score does not rise or is already 1.

    Example:
        >>> change = ConfidenceChange(torch.tensor([0.8, 0.5]), torch.tensor([0.2, 0.75]))
        >>> AverageGain().values(change).tolist()
        [0.0, 50.0]
    """

    name = "average-gain"
    higher_is_better = True
    summary = "Percent of the gap between the score and 1 that the kept patches alone close."
    formula = "100 max(0, after - before) / (1 - before)"
    source = "Zhang et al., CVIU 2024, arXiv 2301.07002"
    caveats = f"{_CAVEAT}; if the score is almost 1, a tiny rise gives a large gain"
    probability = True

    def values(self, change: ConfidenceChange) -> Tensor:
        """Return values from 0 to 100, (B,)."""
        self._check(change)
        gain, room = change.after - change.before, 1 - change.before
        share = torch.where(room > 0, (gain / room).clamp(0, 1), 0.0)
        return 100 * torch.where(gain.isnan(), torch.nan, share)
