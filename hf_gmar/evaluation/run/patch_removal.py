"""Scores of one image while patches are missing: every copy that the methods ask for, once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hf_gmar.evaluation.run.plan import Plan, number
from hf_gmar.metrics.inputs import ConfidenceChange, Curves
from hf_gmar.metrics.patch_ranking import patch_order
from hf_gmar.perturbations.base import BoundPerturbation, Perturbation


@dataclass
class Removal:
    """An image under one perturbation.

    Several methods often ask for the same copy, at the ends of the curves at the least; each is
    made once, and all go through the model together.

    Attributes:
        plan: what is measured.
        target: whose score is measured.
        perturbed: gives the scores of copies.
        fewest: so many patches are always there.
        copies: the scores that are asked for, by what is kept; NaN before they are known.
    """

    plan: Plan
    target: int
    perturbed: BoundPerturbation
    fewest: int
    masks: dict[bytes, Tensor] = field(default_factory=dict)
    scores: dict[bytes, float] = field(default_factory=dict)
    asked: dict[str, _Asked] = field(default_factory=dict)

    @classmethod
    def bind(cls, plan: Plan, pixels: Tensor, target: int, perturbation: Perturbation) -> Removal:
        """Nothing is asked for yet."""
        perturbed = plan.bind(perturbation, pixels)
        return cls(plan, target, perturbed, perturbation.fewest(plan.adapter))

    def ask(self, label: str, patches: Tensor) -> None:
        """Ask for all copies that a method's map (rows, columns) needs."""
        order = patch_order(patches)
        asked = _Asked(whole=self._copy(torch.ones_like(patches, dtype=torch.bool)))
        if self.plan.needing("curves"):
            asked.morf = [self._copy(one) for one in self._without(order, patches.shape)]
            asked.lerf = [self._copy(one) for one in self._without(order.flip(0), patches.shape)]
        for name, metric in self.plan.kept.items():
            asked.kept[name] = self._copy(metric.kept(patches))
        self.asked[label] = asked

    def run(self) -> None:
        """Put the copies through the model."""
        for dtype in {mask.dtype for mask in self.masks.values()}:
            keys = [key for key, mask in self.masks.items() if mask.dtype == dtype]
            logits = self.perturbed.scores(torch.stack([self.masks[key] for key in keys]))
            scores = self.plan.score(logits)[:, self.target].tolist()
            self.scores |= dict(zip(keys, scores, strict=True))

    def values(self, label: str) -> dict[str, float | None]:
        """The metrics of a method."""
        asked = self.asked[label]
        found: dict[str, float | None] = {}
        if asked.morf:
            curves = Curves(self.plan.how.fractions, *(self._at(one)[None] for one in asked.curves))
            for name, metric in self.plan.needing("curves").items():
                found[name] = number(metric.values(curves))
        for name, metric in self.plan.kept.items():
            ends = (self._at([key]) for key in (asked.whole, asked.kept[name]))
            found[name] = number(metric.values(ConfidenceChange(*ends)))
        return found

    def curve(self, label: str) -> dict[str, Any]:
        """The scores with more and more patches removed, most and least relevant first.

        Empty if no metric needs them.
        """
        asked = self.asked[label]
        if not asked.morf:
            return {}
        morf, lerf = (self._at(one).tolist() for one in asked.curves)
        return {"morf": morf, "lerf": lerf}

    def _without(self, order: Tensor, shape: torch.Size) -> Tensor:
        """What is kept (steps + 1, rows, columns) while patches go in that order."""
        steps, count = self.plan.how.steps, len(order)
        kept = torch.ones(steps + 1, count, dtype=torch.bool)
        for step in range(steps + 1):
            # In whole numbers, which every machine rounds alike.
            gone = min((2 * step * count + steps) // (2 * steps), count - self.fewest)
            kept[step, order[:gone]] = False
        return kept.reshape(-1, *shape)

    def _copy(self, kept: Tensor) -> bytes:
        key = kept.numpy().tobytes()
        self.masks.setdefault(key, kept)
        return key

    def _at(self, keys: list[bytes]) -> Tensor:
        return torch.tensor([self.scores[key] for key in keys], dtype=torch.float64)


@dataclass
class _Asked:
    """The copies that one method needs, by their keys."""

    whole: bytes
    morf: list[bytes] = field(default_factory=list)
    lerf: list[bytes] = field(default_factory=list)
    kept: dict[str, bytes] = field(default_factory=dict)

    @property
    def curves(self) -> tuple[list[bytes], list[bytes]]:
        return self.morf, self.lerf
