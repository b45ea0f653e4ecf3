"""Measures one image with all methods and metrics."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hf_gmar._core.execution import predict
from hf_gmar._core.inputs import size_errors
from hf_gmar._core.request import ForwardRequest
from hf_gmar.data.base import Example, ImageDataset, Mask, stable_hash
from hf_gmar.data.masks import patch_coverage
from hf_gmar.data.mosaics import MosaicDataset
from hf_gmar.data.prepared_image import PreparedImage
from hf_gmar.errors import (
    DataError,
    HfGmarError,
    InputError,
    OptionError,
    UnsupportedModelError,
    reason_of,
)
from hf_gmar.evaluation.run.method_set import Maps
from hf_gmar.evaluation.run.patch_removal import PatchRemoval
from hf_gmar.evaluation.run.plan import Plan, number
from hf_gmar.evaluation.run.store import Row
from hf_gmar.methods.base import AttributionMethod
from hf_gmar.methods.shapley_values import ShapleyValues
from hf_gmar.metrics.base import InputKind, Metric
from hf_gmar.metrics.context import MetricContext
from hf_gmar.metrics.context_builder import ContextBuilder
from hf_gmar.metrics.inputs import LocalizationInput
from hf_gmar.perturbations.pixels import MeanColour
from hf_gmar.perturbations.tokens import TokenDropping

_FATAL = UnsupportedModelError, DataError, OptionError, torch.OutOfMemoryError
"""Errors that end the run, instead of failing one image."""


@dataclass(frozen=True)
class Sample:
    """An image with its maps.

    Attributes:
        index: index of the image in the data set.
        example: the image with its label and masks.
        image: the image as the model takes it.
        predicted: the model's top class.
        target: the explained class.
        before: the target's score.
        results: the map of each method, or the reason of its failure.
    """

    index: int
    example: Example
    image: PreparedImage
    predicted: int
    target: int
    before: float
    results: Maps

    @property
    def pixels(self) -> Tensor:
        """The pixel values, (1, channels, height, width)."""
        return self.image.pixels

    @property
    def maps(self) -> dict[str, Tensor]:
        """The maps (rows, columns) of the methods that succeeded, in float64."""
        return _exact(self.results)


class ImageEvaluator:
    """Measures the images of a data set.

    Args:
        plan: the model, methods and metrics.
        data: the images.
    """

    def __init__(self, plan: Plan, data: ImageDataset) -> None:
        self.plan = plan
        self.model = plan.model
        self.data = data
        self._mosaics: dict[tuple[int, int], MosaicDataset] = {}
        method_set = self.model.method_set
        self._contexts = ContextBuilder(
            self.model.adapter.model, self.model.config.score, readout=method_set.readout
        )

    def image(self, index: int) -> tuple[list[Row], Sample | None]:
        """Measure one image; return its rows, and its maps if it could be read.

        An image that can't be read or run through the model has one row, with the error. A method
        that fails on the image has a row with the error, and the other methods are measured.

        Raises:
            UnsupportedModelError: a measurement does not support the model.
            DataError, OptionError: the data and the options do not fit together.
        """
        key = self.data.key(index)
        try:
            sample = self._sample(index)
            rows = {label: _row(sample, key, label) for label in sample.results}
        except _FATAL:
            raise
        except Exception as error:  # noqa: BLE001  # of the data set, the processor or the model
            return [{"index": index, "key": key, "method": None, "error": reason_of(error)}], None
        for name, measure in {
            "removal": self._measure_removal,
            "localization": self._measure_localization,
            "mosaic": self._measure_mosaic,
            "context": self._measure_contexts,
        }.items():
            try:
                measure(sample, rows)
            except _FATAL:
                raise
            except HfGmarError as error:  # the other metrics are still measured
                for label in sample.maps:
                    _add_undefined(rows[label], {name: reason_of(error)})
        return list(rows.values()), sample

    def _sample(self, index: int) -> Sample:
        model, example = self.model, self.data[index]
        image = model.prepared(example.image)
        pixels = image.pixels
        with size_errors(model.adapter, pixels):
            logits = predict(model.adapter, ForwardRequest(pixels))
        target = predicted = int(logits[0].argmax())
        if model.config.explained_class == "label":
            target = _checked_label(example, logits.shape[1])
        before = float(model.scores(logits)[0, target])
        results = model.method_set.maps(pixels, target)
        return Sample(index, example, image, predicted, target, before, results)

    def _measure_removal(self, sample: Sample, rows: dict[str, Row]) -> None:
        """Measure the metrics of removed and kept patches for each perturbation."""
        if not self.plan.metrics_of("curves", "confidence"):
            return
        for name, perturbation in self.plan.perturbations.items():
            pixels, target, maps = sample.pixels, sample.target, sample.maps
            removal = PatchRemoval.run(self.plan, pixels, target, perturbation, maps)
            for label in maps:
                values = removal.values(label).items()
                rows[label]["values"] |= {f"{metric}:{name}": value for metric, value in values}
                if curve := removal.curve(label):
                    rows[label]["curves"][name] = curve
                    rows[label]["fractions"] = self.model.config.fractions.tolist()

    def _measure_localization(self, sample: Sample, rows: dict[str, Row]) -> None:
        """Measure the metrics of the object's mask, if the image has a mask."""
        metrics = self.plan.metrics_of("localization")
        mask = sample.example.mask_of(sample.target)
        if metrics and mask is not None:
            cover = self._cover(sample.image, mask)
            _localize(metrics, sample.maps, cover, rows)

    def _measure_mosaic(self, sample: Sample, rows: dict[str, Row]) -> None:
        """Measure localization on a mosaic in which the image is the target's tile."""
        metrics = self._metrics_for(sample, "mosaic")
        if not metrics:
            return
        size = sample.pixels.shape[-2], sample.pixels.shape[-1]
        if size not in self._mosaics:
            self._mosaics[size] = MosaicDataset(self.data, size, self.model.config.seed)
        mosaics = self._mosaics[size]
        if sample.index not in mosaics.indices:  # the image has no label
            return
        mosaic = mosaics.mosaic(mosaics.indices.index(sample.index))
        image = self.model.prepared(mosaic.image)
        results = self.model.method_set.maps(image.pixels, mosaic.label)
        for label, result in results.items():
            if isinstance(result, str):
                _add_undefined(rows[label], {"mosaic": result})
        cover = self._cover(image, mosaic.mask)
        _localize(metrics, _exact(results), cover, rows)

    def _measure_contexts(self, sample: Sample, rows: dict[str, Row]) -> None:
        """Measure the metrics that call a method repeatedly."""
        metrics = self._metrics_for(sample, "context")
        for label in sample.maps if metrics else ():
            context, values = self._context(sample, label), rows[label]["values"]
            for name, metric in metrics.items():
                try:
                    values[name] = number(metric.values(context))
                except Exception as error:  # noqa: BLE001  # of any library; others are measured
                    values[name] = None
                    _add_undefined(rows[label], {name: reason_of(error)})

    def _context(self, sample: Sample, label: str) -> MetricContext:
        """Build the context of a method; Captum's methods can't be moved to another model."""
        method_set = self.model.method_set
        method = method_set.methods[label].method
        movable = isinstance(method, AttributionMethod)
        ranks_heads = hasattr(method, "head_importance")
        context = self._contexts.context(
            method_set.on,
            sample.pixels,
            sample.target,
            seed=stable_hash(self.model.config.seed, sample.example.key) % 2**32,
            known_map=sample.maps[label],
            method=label,
        )
        return replace(
            context,
            # Most methods need the same scores.
            scores=lambda images: method_set.cached(
                "scores", images, lambda: self._contexts.scores(images)
            ),
            explain_randomized=context.explain_randomized if movable else None,
            head_importance=context.head_importance if ranks_heads else None,
            shapley=functools.partial(self._shapley, sample),
        )

    def _shapley(self, sample: Sample, samples: int, groups: tuple[int, int]) -> Tensor:
        """Return the Shapley values of the patches, (rows, columns), once for all methods."""
        method_set, pixels, target = self.model.method_set, sample.pixels, sample.target
        removal = MeanColour() if self.model.adapter.has_cells else TokenDropping()

        def make() -> Tensor:
            shapley = ShapleyValues(
                self.model.adapter.model,
                samples,
                groups,
                self.model.config.seed,
                batch_size=self.model.bind(removal, pixels).batch,
                readout=method_set.readout,
            )
            return shapley.attribute_patches(pixels, target)[0].cpu()

        return method_set.cached(("shapley", samples, groups, target), pixels, make)

    def _metrics_for(self, sample: Sample, kind: InputKind) -> dict[str, Metric[Any]]:
        """Return the metrics of a kind that measure this image."""
        count = len(self.data)
        metrics = self.plan.metrics_of(kind).items()
        return {label: item for label, item in metrics if item.measures(sample.index, count)}

    def _cover(self, image: PreparedImage, mask: Mask) -> Tensor:
        grid = self.model.adapter.layout.grid(*image.pixels.shape[-2:])
        return patch_coverage(mask, image.view, grid)


def _add_undefined(row: Row, reasons: Mapping[str, str]) -> None:
    """Add the reasons of undefined metrics to a row."""
    row["undefined"] = {**row.get("undefined", {}), **reasons}


def _localize(
    metrics: dict[str, Metric[Any]], maps: dict[str, Tensor], cover: Tensor, rows: dict[str, Row]
) -> None:
    for label, patches in maps.items():
        measured = LocalizationInput(patches[None], cover[None])
        values = {name: number(metric.values(measured)) for name, metric in metrics.items()}
        if "values" in rows[label]:  # the method may have failed on the image but not the mosaic
            rows[label]["values"] |= values


def _exact(results: Maps) -> dict[str, Tensor]:
    return {label: item[0].double() for label, item in results.items() if isinstance(item, Tensor)}


def _checked_label(example: Example, classes: int) -> int:
    if example.label is None or example.label not in range(classes):
        raise InputError(
            f"the label of {example.key} is to be explained, but it is {example.label}, which is "
            f"none of the model's {classes} classes; give one, or explain the predicted class with "
            "explained_class='predicted'"
        )
    return example.label


def _row(sample: Sample, key: str, label: str) -> Row:
    row: Row = {"index": sample.index, "key": key, "method": label}
    result = sample.results[label]
    if isinstance(result, str):
        return {**row, "error": result}
    classes = {
        "label": sample.example.label,
        "predicted": sample.predicted,
        "target": sample.target,
    }
    return {**row, **classes, "before": sample.before, "values": {}, "curves": {}}
