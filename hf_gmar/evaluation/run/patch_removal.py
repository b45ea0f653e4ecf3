"""Scores of one image with removed patches; a copy that several methods need runs once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hf_gmar.evaluation.run.plan import Plan, number
from hf_gmar.metrics.inputs import ConfidenceChange, Curves
from hf_gmar.metrics.patch_ranking import patch_order
from hf_gmar.perturbations.base import Perturbation


@dataclass
class PatchRemoval:
    """An image under one perturbation.

    Attributes:
        plan: the measurements of the run.
        fewest: the smallest number of patches that a copy keeps.
        masks: the kept patches of each copy; the keys are the bytes of the mask.
        scores: the target's score of each copy.
        curves: the copies of each method's curves, ``morf`` and ``lerf``.
        changes: the copies of the whole image and of the kept patches, by method and metric.
    """

    plan: Plan
    fewest: int
    masks: dict[bytes, Tensor] = field(default_factory=dict)
    scores: dict[bytes, float] = field(default_factory=dict)
    curves: dict[str, dict[str, list[bytes]]] = field(default_factory=dict)
    changes: dict[str, dict[str, list[bytes]]] = field(default_factory=dict)

    @classmethod
    def run(
        cls,
        plan: Plan,
        pixels: Tensor,
        target: int,
        perturbation: Perturbation,
        maps: Mapping[str, Tensor],
    ) -> PatchRemoval:
        """Run the model on all copies that the methods' maps (rows, columns) need."""
        perturbed = plan.model.bind(perturbation, pixels)
        removal = cls(plan, perturbation.fewest(plan.model.adapter))
        for label, patches in maps.items():
            removal._plan_copies(label, patches)
        for dtype in {mask.dtype for mask in removal.masks.values()}:
            masks = {key: mask for key, mask in removal.masks.items() if mask.dtype == dtype}
            logits = perturbed.scores(torch.stack(list(masks.values())))
            scores = plan.model.scores(logits)[:, target].tolist()
            removal.scores |= dict(zip(masks, scores, strict=True))
        return removal

    def values(self, label: str) -> dict[str, float | None]:
        """Compute the metrics of a method."""
        values = {}
        if keys := self.curves[label]:
            morf, lerf = (self._at(keys[order])[None] for order in ("morf", "lerf"))
            curves = Curves(self.plan.model.config.fractions, morf, lerf)
            for name, metric in self.plan.metrics_of("curves").items():
                values[name] = number(metric.values(curves))
        for name, metric in self.plan.confidence_metrics.items():
            before, after = self._at(self.changes[label][name])[:, None]
            values[name] = number(metric.values(ConfidenceChange(before, after)))
        return values

    def curve(self, label: str) -> dict[str, list[float]]:
        """Return the scores of both removal orders; empty if no metric needs them."""
        return {order: self._at(keys).tolist() for order, keys in self.curves[label].items()}

    def _plan_copies(self, label: str, patches: Tensor) -> None:
        self.curves[label] = {}
        if self.plan.metrics_of("curves"):
            order = patch_order(patches)
            for name, removal_order in (("morf", order), ("lerf", order.flip(0))):
                masks = self._masks(removal_order, patches.shape)
                self.curves[label][name] = [self._key(mask) for mask in masks]
        whole = torch.ones_like(patches, dtype=torch.bool)
        self.changes[label] = {
            name: [self._key(whole), self._key(metric.keep_mask(patches))]
            for name, metric in self.plan.confidence_metrics.items()
        }

    def _masks(self, order: Tensor, shape: torch.Size) -> Tensor:
        """Return the kept patches at each step of an order, (steps + 1, rows, columns)."""
        steps, count = self.plan.model.config.steps, len(order)
        masks = torch.ones(steps + 1, count, dtype=torch.bool)
        for step in range(steps + 1):
            # Integer arithmetic rounds in the same way on every machine.
            removed = min((2 * step * count + steps) // (2 * steps), count - self.fewest)
            masks[step, order[:removed]] = False
        return masks.reshape(-1, *shape)

    def _key(self, mask: Tensor) -> bytes:
        key = mask.numpy().tobytes()
        self.masks.setdefault(key, mask)
        return key

    def _at(self, keys: list[bytes]) -> Tensor:
        return torch.tensor([self.scores[key] for key in keys], dtype=torch.float64)
