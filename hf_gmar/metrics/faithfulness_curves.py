"""Metrics of the score while patches are removed step by step."""

from __future__ import annotations

from torch import Tensor

from hf_gmar.metrics.base import Metric
from hf_gmar.metrics.inputs import Curves

_PETSIUK = "Petsiuk, Das and Saenko, BMVC 2018, arXiv 1806.07421"
_CAVEAT = "depends on the perturbation, as a removed patch may itself look like an object"


class CurveMetric(Metric[Curves]):
    """Base of the metrics of removal curves, (B, S) each."""

    input_kind = "curves"
    perturbed = True

    def __init__(self) -> None:
        super().__init__()


class Deletion(CurveMetric):
    """Deletion: area under the curve by the trapezoidal rule.

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
    caveats = f"{_CAVEAT}; if any damage destroys the score, every order gets a low value"

    def values(self, curves: Curves) -> Tensor:
        """Return values (B,), from 0 to 1 for probabilities."""
        return curves.areas()[0]


class Insertion(CurveMetric):
    """Insertion: area under the curve by the trapezoidal rule.

    Putting back the most relevant share f gives the same image as removing the least relevant
    share 1 - f. So this is the area under the curve that removes the least relevant patches first.
    """

    name = "insertion"
    higher_is_better = True
    summary = "Area under the score while the most relevant patches are put back first."
    formula = "area under score(inserted share), most relevant first"
    source = _PETSIUK
    caveats = f"{_CAVEAT}; if one patch alone gives the score, many orders get a high value"

    def values(self, curves: Curves) -> Tensor:
        """Return values (B,), from 0 to 1 for probabilities."""
        return curves.areas()[1]


class InsertionDeletion(CurveMetric):
    """Insertion minus deletion."""

    name = "insertion-deletion"
    higher_is_better = True
    summary = "Insertion minus deletion, so that the damage common to all orders cancels."
    formula = "insertion - deletion; 0 for a random order"
    source = _PETSIUK
    caveats = _CAVEAT

    def values(self, curves: Curves) -> Tensor:
        """Return values (B,), from -1 to 1 for probabilities; 0 on average for a random order."""
        deletion, insertion = curves.areas()
        return insertion - deletion


class AOPC(CurveMetric):
    """Area over the perturbation curve; all steps have equal weight, also the unperturbed one."""

    name = "aopc"
    higher_is_better = True
    summary = (
        "Area over the perturbation curve: mean drop of the score, most relevant patches first."
    )
    formula = "mean over steps k of score(0) - score(k), most relevant first"
    source = "Samek et al., TNNLS 2017, arXiv 1509.06321"
    caveats = f"{_CAVEAT}; with equal steps it ranks explanations almost as deletion does"

    def values(self, curves: Curves) -> Tensor:
        """Return values (B,), from -1 to 1 for probabilities."""
        return (curves.morf[:, :1] - curves.morf).mean(1)


class SRG(CurveMetric):
    """Symmetric relevance gain; all steps have equal weight."""

    name = "srg"
    higher_is_better = True
    summary = "Symmetric relevance gain: mean distance of the two curves over the steps."
    formula = "mean over steps of score(least removed first) - score(most removed first)"
    source = "Blücher, Vielhaben and Strodthoff, TMLR 2024, arXiv 2401.06654"
    caveats = "with S equal steps it is (insertion - deletion) (S - 1) / S, so it ranks the same"

    def values(self, curves: Curves) -> Tensor:
        """Return values (B,), from -1 to 1 for probabilities; 0 on average for a random order."""
        return (curves.lerf - curves.morf).mean(1)
