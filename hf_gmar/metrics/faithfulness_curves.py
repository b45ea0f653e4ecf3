"""Metrics of removing patches step by step."""

from __future__ import annotations

from torch import Tensor

from hf_gmar.metrics.base import Metric
from hf_gmar.metrics.inputs import Curves

_PETSIUK = "Petsiuk, Das and Saenko, BMVC 2018, arXiv 1806.07421"
_CAVEAT = "a removed patch may look like something itself; it depends on the perturbation"


class CurveMetric(Metric[Curves]):
    """A metric of the curves of removal, (B, S) each."""

    input_kind = "curves"
    perturbed = True

    def __init__(self) -> None:
        super().__init__()


class Deletion(CurveMetric):
    """Deletion, by the trapezoidal rule.

    Example:
        >>> import torch
        >>> steps = torch.tensor([0.0, 0.5, 1.0])
        >>> curves = Curves(steps, torch.tensor([[1.0, 0.2, 0.0]]), torch.tensor([[1.0, 0.8, 0.0]]))
        >>> Deletion().values(curves)
        tensor([0.3500], dtype=torch.float64)
    """

    name = "deletion"
    higher_is_better = False
    summary = "Area under the score while the most relevant patches are removed first."
    formula = "area under score(removed share), most relevant first"
    source = _PETSIUK
    caveats = f"{_CAVEAT}; a score that any damage breaks is low for every order"

    def values(self, curves: Curves) -> Tensor:
        """From 0 to 1 for probabilities, (B,)."""
        return curves.areas()[0]


class Insertion(CurveMetric):
    """Insertion, by the trapezoidal rule.

    An image with the most relevant share f put back is one with the least relevant share 1 - f
    removed, so this is the area under the curve of removing the least relevant first.
    """

    name = "insertion"
    higher_is_better = True
    summary = "Area under the score while the most relevant patches are put back first."
    formula = "area under score(inserted share), most relevant first"
    source = _PETSIUK
    caveats = f"{_CAVEAT}; a score that one patch alone gives is high for many orders"

    def values(self, curves: Curves) -> Tensor:
        """From 0 to 1 for probabilities, (B,)."""
        return curves.areas()[1]


class InsertionDeletion(CurveMetric):
    """Insertion minus deletion."""

    name = "insertion-deletion"
    higher_is_better = True
    summary = (
        "Insertion minus deletion: what the order is worth, whatever damage does to the score."
    )
    formula = "insertion - deletion; 0 for a random order"
    source = _PETSIUK
    caveats = _CAVEAT

    def values(self, curves: Curves) -> Tensor:
        """From -1 to 1 for probabilities, (B,); 0 on average for a random order."""
        deletion, insertion = curves.areas()
        return insertion - deletion


class AOPC(CurveMetric):
    """Area over the perturbation curve; all steps count alike, the first (nothing removed) too."""

    name = "aopc"
    higher_is_better = True
    summary = "Mean fall of the score over the steps, the most relevant patches removed first."
    formula = "mean over steps k of score(0) - score(k), most relevant first"
    source = "Samek et al., TNNLS 2017, arXiv 1509.06321"
    caveats = f"{_CAVEAT}; with equal steps it orders explanations almost as deletion does"

    def values(self, curves: Curves) -> Tensor:
        """From -1 to 1 for probabilities, (B,)."""
        return (curves.morf[:, :1] - curves.morf).mean(1)


class SRG(CurveMetric):
    """Symmetric relevance gain; all steps count alike."""

    name = "srg"
    higher_is_better = True
    summary = "Symmetric relevance gain: mean distance of the two curves over the steps."
    formula = "mean over steps of score(least removed first) - score(most removed first)"
    source = "Blücher, Vielhaben and Strodthoff, TMLR 2024, arXiv 2401.06654"
    caveats = "with S equal steps it is insertion - deletion times (S - 1) / S, so it adds no rank"

    def values(self, curves: Curves) -> Tensor:
        """From -1 to 1 for probabilities, (B,); 0 on average for a random order."""
        return (curves.lerf - curves.morf).mean(1)
