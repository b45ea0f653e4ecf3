"""Metrics of keeping what an explanation points at, and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_gmar._utils.validation import check_option
from hf_gmar.errors import InputError
from hf_gmar.metrics.base import Metric
from hf_gmar.metrics.inputs import ConfidenceChange
from hf_gmar.metrics.patch_ranking import FORMS, Form, checked_keep, kept_patches

_GRAD_CAM = "Chattopadhay et al., WACV 2018, arXiv 1710.11063"
_MISLEADS = "an explanation that keeps more of the image by its form has the better of it"
_ROUNDING = 1e-6


class ConfidenceMetric(Metric[ConfidenceChange]):
    """A metric of the scores before and after.

    Args:
        keep: share of the patches that stay; half of them, as in Wang et al., Score-CAM (CVPRW
            2020, arXiv 1910.01279).
        form: ``"patches"`` or ``"soft"``, see :func:`~hf_gmar.metrics.patch_ranking.kept_patches`.
            Chattopadhay et al. multiply the image by the map, which is ``"soft"``; a map with a
            higher floor then keeps more of the image, so methods are compared better at one share.

    Raises:
        OptionError: an option outside its range.
    """

    input_kind = "confidence"
    perturbed = True

    def __init__(self, keep: float = 0.5, form: Form = "patches") -> None:
        super().__init__()
        check_option("form", form, FORMS)
        self.keep = checked_keep(keep)
        self.form: Form = form

    def kept(self, relevance: Tensor) -> Tensor:
        """What is to be kept of an image by a map (rows, columns)."""
        return kept_patches(relevance, self.keep, self.form)

    def _checked(self, found: ConfidenceChange) -> ConfidenceChange:
        scores = torch.stack([found.before, found.after])
        outside = (scores < -_ROUNDING) | (scores > 1 + _ROUNDING)
        if outside.any():
            raise InputError(
                f"{self.name} is defined for probabilities from 0 to 1, got scores from "
                f"{scores[outside].min():g} to {scores[outside].max():g}; measure with "
                'score="probability"'
            )
        return found


class AverageDrop(ConfidenceMetric):
    """Percent of the score that is lost with all but the kept patches.

    Source: Chattopadhay et al., Grad-CAM++, WACV 2018 (arXiv 1710.11063).

    Example:
        >>> found = ConfidenceChange(torch.tensor([0.8, 0.5]), torch.tensor([0.2, 0.9]))
        >>> AverageDrop().values(found).tolist()
        [75.0, 0.0]
    """

    name = "average-drop"
    higher_is_better = False
    formula = "100 max(0, before - after) / before"
    source = _GRAD_CAM
    caveats = f"{_MISLEADS}; read it together with average-gain"
    probability = True

    def values(self, found: ConfidenceChange) -> Tensor:
        """From 0 to 100, (B,); not defined where the score is 0 before."""
        self._checked(found)
        before, after = found.before, found.after
        return 100 * (before - after).clamp(min=0) / torch.where(before > 0, before, torch.nan)


class IncreaseInConfidence(ConfidenceMetric):
    """Percent of the images whose score is higher with the kept patches alone.

    Source: Chattopadhay et al., Grad-CAM++, WACV 2018 (arXiv 1710.11063).

    Example:
        >>> metric = IncreaseInConfidence()
        >>> metric.update(ConfidenceChange(torch.tensor([0.8, 0.5]), torch.tensor([0.2, 0.9]))).tolist()
        [0.0, 100.0]
        >>> metric.compute()
        50.0
    """

    name = "increase-in-confidence"
    higher_is_better = True
    formula = "100 if after > before, else 0"
    source = _GRAD_CAM
    caveats = f"{_MISLEADS}; a tiny rise counts as much as a large one"

    def values(self, found: ConfidenceChange) -> Tensor:
        """0 or 100, (B,)."""
        rises = (found.after > found.before).double() * 100
        return torch.where((found.before + found.after).isnan(), torch.nan, rises)


class AverageGain(ConfidenceMetric):
    """Percent of what the score could still gain that it gains with the kept patches alone.

    Where it does not gain it is 0, for a score that is 1 already too.

    Source: Zhang et al., Opti-CAM, CVIU 2024 (arXiv 2301.07002).

    Example:
        >>> AverageGain().values(ConfidenceChange(torch.tensor([0.8, 0.5]), torch.tensor([0.2, 0.75]))).tolist()
        [0.0, 50.0]
    """

    name = "average-gain"
    higher_is_better = True
    formula = "100 max(0, after - before) / (1 - before)"
    source = "Zhang et al., CVIU 2024, arXiv 2301.07002"
    caveats = f"{_MISLEADS}; where the score is almost 1 a tiny rise counts in full"
    probability = True

    def values(self, found: ConfidenceChange) -> Tensor:
        """From 0 to 100, (B,)."""
        self._checked(found)
        gain, room = found.after - found.before, 1 - found.before
        share = torch.where(room > 0, (gain / room).clamp(0, 1), 0.0)
        return 100 * torch.where(gain.isnan(), torch.nan, share)
