"""Metrics that ask a method again and again, for every method of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hf_gmar.errors import reason_of
from hf_gmar.evaluation.run.cache import LRUCache, content, places
from hf_gmar.evaluation.run.explainers import Explainers
from hf_gmar.metrics.base import Metric
from hf_gmar.metrics.context_builder import ContextBuilder, ScoreKind

_REMEMBERED = 512


@dataclass(frozen=True, eq=False)
class _Asked:
    """One method of a run, for the examiner: on the model of the run, and on a copy of it.

    Attributes:
        label: the method.
        on: the methods of the run on a model.
    """

    label: str
    on: Callable[[Any], Explainers]

    def __call__(self, model: Any) -> _Asked._Bound:
        """The method on a model."""
        return self._Bound(self.on(model), self.label)

    @dataclass(frozen=True, eq=False)
    class _Bound:
        explainers: Explainers
        label: str

        def attribute_patches(self, inputs: Tensor, target: int, **_: Any) -> Tensor:
            """Relevance of each patch, (B, rows, columns)."""
            return self.explainers.one(self.label, inputs, target)

        def __getattr__(self, name: str) -> Any:
            # ``head_importance``, where the method has it.
            return getattr(self.explainers.method(self.label), name)


class Asking:
    """Asks the methods of a run what the metrics want to know.

    Args:
        explainers: the methods.
        score: what the metrics see.
    """

    def __init__(self, explainers: Explainers, score: ScoreKind) -> None:
        adapter = explainers.adapter
        self._examiner = ContextBuilder(adapter.model, score, readout=explainers.readout)
        self._memo = LRUCache[Tensor](_REMEMBERED)
        self._explainers = {id(adapter.model): explainers}
        self._asked = {label: _Asked(label, self._on) for label in explainers.labels}

    def values(
        self,
        metrics: Mapping[str, Metric[Any]],
        label: str,
        patches: Tensor,
        pixels: Tensor,
        target: int,
        seed: int,
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What the metrics say of a method on one image, and why some say nothing.

        Args:
            metrics: by label.
            label: the method.
            patches: its map, (rows, columns).
            pixels: the image, (1, channels, height, width).
            target: the explained class.
            seed: of what is drawn at random for this image.
        """
        build = self._asked[label]
        asked = self._examiner.asked(build, pixels, target, seed=seed, known=patches)
        asked = replace(asked, scores=self._scores)
        if label not in self._main.movable:
            asked = replace(asked, randomised=None)
        values, reasons = {}, {}
        for name, metric in metrics.items():
            try:
                values[name] = metric.values(asked)
            except Exception as error:  # noqa: BLE001  # of any library; the other metrics go on
                values[name] = torch.tensor([torch.nan])
                reasons[name] = reason_of(error)
        return values, reasons

    def _scores(self, pixels: Tensor) -> Tensor:
        """The scores of images, which the other methods mostly ask for as well."""
        question = content(pixels), places(self._main.adapter.modules()[0])
        return self._memo.get(question, lambda: self._examiner.scores(pixels))

    @property
    def _main(self) -> Explainers:
        return next(iter(self._explainers.values()))

    def _on(self, model: Any) -> Explainers:
        """The methods on the model of the run, or on a copy of it, built once for each."""
        if id(model) not in self._explainers:
            self._explainers[id(model)] = self._main.on(model)
        return self._explainers[id(model)]
