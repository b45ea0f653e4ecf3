"""Runs several methods on the same model, images and classes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedConfig

from hf_gmar._core.execution import predict
from hf_gmar._core.inputs import PixelInputs, checked_request, pixels_of, size_errors
from hf_gmar._core.model_adapter import ModelAdapter, model_in
from hf_gmar._core.request import ForwardRequest
from hf_gmar._core.targets import Target, TargetSpec
from hf_gmar._core.token_layout import ReadoutSpec
from hf_gmar.comparison.cost import Cost, measure_cost
from hf_gmar.comparison.isolation import isolated_model, seeded
from hf_gmar.comparison.method_specs import (
    AttributionTask,
    MethodLikes,
    as_method_specs,
    modules_of,
)
from hf_gmar.comparison.result import Comparison, picture_of
from hf_gmar.errors import InputError, reason_of
from hf_gmar.models.labels import config_of, label_of
from hf_gmar.models.score_kind import ScoreKind


def compare(  # noqa: PLR0913  # a keyword each
    model: Callable[..., Any],
    inputs: PixelInputs = None,
    methods: MethodLikes | None = None,
    target: Target = None,
    contrast: Target = None,
    *,
    readout: ReadoutSpec = None,
    images: Sequence[Image.Image] | None = None,
    names: Sequence[str] | None = None,
    measure: bool = True,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
    finished: Callable[[Comparison], None] | None = None,
    **forward_kwargs: Any,
) -> Comparison:
    """Explain the same images and classes by several methods, and measure the cost of each.

    If a method fails, the result has the reason, and the other methods run. The model, the inputs
    and the random generators are restored after each method.

    Args:
        model: see :class:`~hf_gmar.methods.base.AttributionMethod`; its family must be known.
        inputs: pixel values (B, channels, height, width), or a tuple with one such tensor.
        methods: a list of names in ``hf_gmar.methods.METHODS``, pairs ``(name, options)``, method
            objects of hf_gmar or Captum on this model (Captum's on ``LogitsModel(model)``), or
            :class:`~hf_gmar.MethodSpec`, which adds a label and keywords. A mapping gives labels.
            ``None`` is every method of the registry. Captum's attributions are summed over channels
            and over the pixels of each patch. By default, a patch is the window of Occlusion and
            the feature of the perturbation methods, and the SHAP methods start from zeros.
        target: the explained class, in any form of hf_gmar's methods. ``None`` is the top class of
            each image, the same for all methods.
        contrast: a class whose score is subtracted. Captum's methods, and methods whose map is the
            same for every class, then fail with this reason.
        readout: which tokens a class head of your own reads, for methods passed by name.
        images: the B images to draw; ``None`` draws the pixel values, from darkest to brightest.
        names: names of the B images.
        measure: measure time and memory of each method, which then runs two to six times instead
            of once.
        seed: seed of Captum's random numbers, so that results are reproducible. A
            ``RandomAttribution`` has its own seed.
        progress: called with the label of each method before it runs.
        finished: called with the result so far after each method, for example to save its maps.
        **forward_kwargs: further keyword arguments that the model's forward names; Captum's methods
            get them from ``LogitsModel(model, **forward_kwargs)``.

    Returns:
        The maps, costs and rank correlations; see :class:`Comparison`.

    Raises:
        OptionError: there is no method, or a name, option or keyword does not exist.
        InputError: the inputs do not fit the model, or the images and names do not fit the inputs.
        TargetError: a class does not exist, or a target is its own contrast.
        UnsupportedModelError: the model is of no known family.
        ModelOutputError: the model returns no scores.

    Example:
        >>> import torch
        >>> from captum.attr import Saliency
        >>> from hf_gmar import LogitsModel, load_model
        >>> model = load_model("bundled").model
        >>> methods = ["gmar", Saliency(LogitsModel(model))]
        >>> comparison = compare(model, torch.rand(2, 3, 96, 96), methods)
        >>> {label: tuple(map.shape) for label, map in comparison.maps.items()}
        {'gmar': (2, 8, 8), 'Saliency': (2, 8, 8)}
        >>> comparison.ratios["gmar"] > 1, comparison.peaks["gmar"] > 0
        (True, True)
    """
    specs = as_method_specs(methods)
    model = model_in(model)
    inputs, forward_kwargs = pixels_of(inputs, forward_kwargs)
    adapter = ModelAdapter.of(model, readout)
    pixels = checked_request(adapter, inputs, None, forward_kwargs).inputs
    count = len(pixels)
    names = _checked_list("names", names, count) or [f"image {n + 1}" for n in range(count)]
    images = _checked_list("images", images, count) or [picture_of(image) for image in pixels]
    modules = [*adapter.modules(), *modules_of(specs)]
    forward = functools.partial(predict, adapter, ForwardRequest(pixels, (), forward_kwargs))
    with isolated_model(modules), size_errors(adapter, pixels):
        scores, forward_cost = (
            measure_cost(forward, pixels.device) if measure else (forward(), None)
        )
        resolved = TargetSpec(target, contrast).resolve(scores)
    if scores.dim() == 2:  # a class for each image, in a form that all methods accept
        target, contrast = resolved.target, resolved.against
    grid = adapter.layout.grid(*pixels.shape[-2:])
    task = AttributionTask(model, readout, pixels, target, contrast, grid, forward_kwargs)
    maps: dict[str, Tensor] = {}
    costs: dict[str, Cost] = {}
    failures: dict[str, str] = {}
    config = config_of(adapter)
    kind = ScoreKind.of(config, scores)
    explained = kind.convert(scores).flatten(1).gather(1, resolved.target[:, None])
    result = Comparison(
        maps,
        failures,
        costs,
        forward_cost,
        order=tuple(spec.name for spec in specs),
        names=tuple(names),
        targets=tuple(resolved.target.tolist()),
        labels=_labels(config, resolved.target),
        scores=tuple(explained[:, 0].tolist()),
        score_kind=kind,
        contrasts=None if resolved.against is None else _labels(config, resolved.against),
        pictures=tuple(images),
        settings={
            "model": type(adapter.backbone).__name__,
            "captum": [spec.name for spec in specs if spec.is_captum],
            "device": str(pixels.device),
            "dtype": str(pixels.dtype).removeprefix("torch."),
            "measured": measure,
            "seed": seed,
            "keywords": dict(forward_kwargs),
        },
    )
    for spec in specs:
        if progress is not None:
            progress(spec.name)
        with isolated_model(modules):  # for each method, so that it meets no changes of another
            try:
                call = functools.partial(_seeded_call, task.runner(spec), seed, pixels.device)
                if measure:
                    maps[spec.name], costs[spec.name] = measure_cost(call, pixels.device, forward)
                else:
                    maps[spec.name] = call()
            except Exception as error:  # noqa: BLE001  # of any library; the other methods run
                failures[spec.name] = reason_of(error)
        if finished is not None:
            finished(replace(result, maps=dict(maps), costs=dict(costs), failures=dict(failures)))
    return result


def _seeded_call(call: Callable[[], Tensor], seed: int, device: torch.device) -> Tensor:
    with seeded(seed, device):
        return call()


def _labels(config: PreTrainedConfig, classes: Tensor) -> tuple[str, ...]:
    return tuple(label_of(config, index) for index in classes.tolist())


def _checked_list(kind: str, items: Sequence[Any] | None, count: int) -> list[Any]:
    if items is not None and (isinstance(items, str) or len(items) != count):
        got = repr(items) if isinstance(items, str) else len(items)
        raise InputError(f"{kind} must be a list of {count}, one for each of the inputs; got {got}")
    return list(items or ())
