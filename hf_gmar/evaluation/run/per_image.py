"""Everything that is measured of one image, by all methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from PIL import Image
from torch import Tensor

from hf_gmar._core.execution import predict
from hf_gmar._core.inputs import size_errors
from hf_gmar._core.request import ForwardRequest
from hf_gmar.data.base import Example, ImageDataset, Mask, stable_hash
from hf_gmar.data.masks import patch_coverage
from hf_gmar.data.mosaics import MosaicDataset
from hf_gmar.errors import (
    DataError,
    HfGmarError,
    InputError,
    OptionError,
    UnsupportedModelError,
    reason_of,
)
from hf_gmar.evaluation.run.explainers import Maps
from hf_gmar.evaluation.run.patch_removal import Removal
from hf_gmar.evaluation.run.plan import Plan, number
from hf_gmar.evaluation.run.store import Row
from hf_gmar.metrics.base import InputKind, Metric
from hf_gmar.metrics.inputs import LocalizationInput
from hf_gmar.models.image_view import measure_view

# Not of one image.
_OF_THE_RUN = UnsupportedModelError, DataError, OptionError, torch.OutOfMemoryError

Rows: TypeAlias = dict[str, Row]
"""The row of each method."""


@dataclass(frozen=True)
class Sample:
    """An image with what is asked about it.

    Attributes:
        index: its place in the data set.
        example: the image, its label and its masks.
        pixels: its pixel values, (1, channels, height, width).
        predicted: the model's top class.
        target: the explained class.
        before: the target's score.
        maps: what the methods say.
    """

    index: int
    example: Example
    pixels: Tensor
    predicted: int
    target: int
    before: float
    maps: Maps

    @property
    def found(self) -> dict[str, Tensor]:
        """The maps (rows, columns) of the methods that gave one, in float64."""
        return exact(self.maps)


class ImageEvaluator:
    """What is measured, and on which images.

    Args:
        plan: the model with methods and metrics.
        data: the images.
    """

    def __init__(self, plan: Plan, data: ImageDataset) -> None:
        self.plan = plan
        self.data = data
        self._mosaics: dict[tuple[int, int], MosaicDataset] = {}

    def image(self, index: int) -> tuple[list[Row], Sample | None]:
        """The rows of one image, and what was asked about it.

        An image that can't be read or put through the model has one row, which says why; a method
        that fails on it has a row that says why, and the others go on.

        Raises:
            UnsupportedModelError: the model can't be measured in one of the ways asked for.
            DataError, OptionError: what is asked for does not go together.
        """
        key = self.data.key(index)
        try:
            case = self._case(index)
            rows = {label: _row(case, key, label) for label in case.maps}
        except _OF_THE_RUN:
            raise
        except Exception as error:  # noqa: BLE001  # of the data set, the processor or the model
            return [{"index": index, "key": key, "method": None, "error": reason_of(error)}], None
        for part in (self._removed, self._located, self._mosaic, self._asked):
            try:
                part(case, rows)
            except _OF_THE_RUN:
                raise
            except HfGmarError as error:  # the other metrics are measured all the same
                for label in case.found:
                    _undefined(rows[label], {part.__name__.strip("_"): reason_of(error)})
        return list(rows.values()), case

    def _case(self, index: int) -> Sample:
        plan, example = self.plan, self.data[index]
        pixels = plan.pixels(example.image)
        with size_errors(plan.adapter, pixels):
            logits = predict(plan.adapter, ForwardRequest(pixels))
        predicted = int(logits[0].argmax())
        predict_it = plan.how.explained_class == "predicted"
        target = predicted if predict_it else _label(example, logits.shape[1])
        before = float(plan.score(logits)[0, target])
        maps = plan.explainers.maps(pixels, target)
        return Sample(index, example, pixels, predicted, target, before, maps)

    def _removed(self, case: Sample, rows: Rows) -> None:
        """Metrics of removed and of kept patches, for each perturbation."""
        if not self.plan.needing("curves", "confidence"):
            return
        for name, perturbation in self.plan.perturbations.items():
            removal = Removal.bind(self.plan, case.pixels, case.target, perturbation)
            for label, patches in case.found.items():
                removal.ask(label, patches)
            removal.run()
            for label in case.found:
                found = removal.values(label)
                rows[label]["values"] |= {f"{metric}:{name}": v for metric, v in found.items()}
                if curve := removal.curve(label):
                    rows[label]["curves"][name] = curve
                    rows[label]["fractions"] = self.plan.how.fractions.tolist()

    def _located(self, case: Sample, rows: Rows) -> None:
        """Metrics of the object's mask; none is defined for an image without one."""
        metrics, mask = self.plan.needing("localization"), case.example.mask_of(case.target)
        if metrics and mask is not None:
            covered = self._cover(case.example.image, mask, case.pixels)
            _place(metrics, case.found, covered, rows)

    def _mosaic(self, case: Sample, rows: Rows) -> None:
        """The same on a mosaic with the image as one of its tiles."""
        metrics = self._measured(case, "mosaic")
        if not metrics:
            return
        height, width = case.pixels.shape[-2:]
        if (height, width) not in self._mosaics:
            made = MosaicDataset(self.data, (height, width), self.plan.how.seed)
            self._mosaics[height, width] = made
        mosaics = self._mosaics[height, width]
        if case.index not in mosaics.indices:  # it has no label
            return
        found = mosaics.mosaic(mosaics.indices.index(case.index))
        pixels = self.plan.pixels(found.image)
        maps = self.plan.explainers.maps(pixels, found.label)
        for label, reason in maps.items():
            if isinstance(reason, str):
                _undefined(rows[label], {"mosaic": reason})
        _place(metrics, exact(maps), self._cover(found.image, found.mask, pixels), rows)

    def _asked(self, case: Sample, rows: Rows) -> None:
        """Metrics that ask a method again and again."""
        metrics = self._measured(case, "context")
        seed = stable_hash(self.plan.how.seed, case.example.key) % 2**32
        for label, patches in case.found.items() if metrics else ():
            values, reasons = self.plan.asking.values(
                metrics, label, patches, case.pixels, case.target, seed
            )
            rows[label]["values"] |= {name: number(value) for name, value in values.items()}
            _undefined(rows[label], reasons)

    def _measured(self, case: Sample, need: InputKind) -> dict[str, Metric[Any]]:
        """The metrics that this image is one of the images for."""
        count = len(self.data)
        return {
            label: one
            for label, one in self.plan.needing(need).items()
            if one.measures(case.index, count)
        }

    def _cover(self, image: Image.Image, mask: Mask, pixels: Tensor) -> Tensor:
        view = measure_view(self.plan.processor, (image.height, image.width))
        return patch_coverage(mask, view, self.plan.adapter.layout.grid(*pixels.shape[-2:]))


def _undefined(row: Row, reasons: Mapping[str, str]) -> None:
    """Say in a row why some metrics have no value."""
    if reasons:
        row["undefined"] = {**row.get("undefined", {}), **reasons}


def _place(
    metrics: Mapping[str, Metric[Any]], maps: Mapping[str, Tensor], covered: Tensor, rows: Rows
) -> None:
    for label, patches in maps.items():
        found = LocalizationInput(patches[None], covered[None])
        values = {name: number(metric.values(found)) for name, metric in metrics.items()}
        if "values" in rows[label]:  # it may have failed on the image alone
            rows[label]["values"] |= values


def exact(maps: Maps) -> dict[str, Tensor]:
    """The maps (rows, columns) of the methods that gave one, in float64."""
    return {label: one[0].double() for label, one in maps.items() if isinstance(one, Tensor)}


def _label(example: Example, classes: int) -> int:
    if example.label is None or example.label not in range(classes):
        raise InputError(
            f"the label of {example.key} is to be explained, but it is {example.label}, which is "
            f"none of the model's {classes} classes; give one, or explain the predicted class with "
            "target='predicted'"
        )
    return example.label


def _row(case: Sample, key: str, label: str) -> Row:
    row: Row = {"index": case.index, "key": key, "method": label}
    found = case.maps[label]
    if isinstance(found, str):
        return {**row, "error": found}
    asked = {"label": case.example.label, "predicted": case.predicted, "target": case.target}
    return {**row, **asked, "before": case.before, "values": {}, "curves": {}}
