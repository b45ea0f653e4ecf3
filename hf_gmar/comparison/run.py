"""Runs several methods on the same model, images and classes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedConfig

from hf_gmar._core.execution import predict
from hf_gmar._core.inputs import PixelInputs, checked_request, pixels_of, size_errors
from hf_gmar._core.model_adapter import ModelAdapter, ModelLike, model_in
from hf_gmar._core.request import ForwardRequest
from hf_gmar._core.targets import Target, TargetSpec
from hf_gmar._core.token_layout import ReadoutSpec
from hf_gmar._utils.names import make_unique
from hf_gmar._utils.precision import autocast_dtype, check_precision, forward_precision
from hf_gmar.comparison.cost import Cost, measure_cost
from hf_gmar.comparison.isolation import isolated_model, seeded
from hf_gmar.comparison.method_specs import (
    AttributionTask,
    MethodLikes,
    MethodMaps,
    MethodSpec,
    applicable,
    as_method_specs,
    modules_of,
    titles_of,
)
from hf_gmar.comparison.result import Comparison, picture_of
from hf_gmar.data.image_files import ImageSource
from hf_gmar.data.prepared_image import prepare_image
from hf_gmar.errors import InputError, reason_of
from hf_gmar.faithfulness import ModelInput
from hf_gmar.models.any_model import as_loaded
from hf_gmar.models.hub import LoadedModel
from hf_gmar.models.labels import classes_of_model, config_of, label_of
from hf_gmar.models.score_kind import ScoreKind
from hf_gmar.models.wrappers import ZeroShotModel


def compare(  # noqa: PLR0913  # a keyword each
    model: ModelLike | str | Path,
    inputs: PixelInputs | ImageSource | Sequence[ImageSource] = None,
    methods: MethodLikes | None = None,
    target: Target | str | Sequence[int | str] = None,
    contrast: Target | str | Sequence[int | str] = None,
    *,
    readout: ReadoutSpec = None,
    images: Sequence[Image.Image] | None = None,
    names: Sequence[str] | None = None,
    processor: BaseImageProcessor | str | Path | None = None,
    measure: bool = True,
    check: bool = False,
    precision: str | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
    finished: Callable[[Comparison], None] | None = None,
    **forward_kwargs: Any,
) -> Comparison:
    """Explain the same images and classes by several methods, and measure the cost of each.

    If a method fails, the result has the reason, and the other methods run. The model, the inputs
    and the random generators are restored after each method.

    Args:
        model: a model, see :class:`~hf_gmar.methods.base.AttributionMethod`, of a known family; or
            with its image processor: a name on the Hub, a local folder, ``"bundled"``, what
            ``load_model`` returns, a pipeline or a Trainer.
        inputs: images as in :func:`~hf_gmar.explain`, one or a list; or pixel values (B, channels,
            height, width), as a tensor or the output of an image processor.
        methods: a list of names in ``hf_gmar.methods.METHODS`` or of Captum's classes, these
            classes themselves, pairs of any of these with options, method objects of hf_gmar or
            Captum on this model (Captum's on ``LogitsModel(model)``), or
            :class:`~hf_gmar.MethodSpec`, which adds a label and keywords. A mapping gives labels.
            ``None`` is every method of the registry but the costly ``"shapley-values"``, without
            those that need tokens if the model has no fixed grid of them. Captum's attributions are
            summed over channels and over the pixels of each patch. By default, a patch is the
            window of Occlusion and the feature of the perturbation methods, and the SHAP methods
            start from zeros.
        target: the explained class, in any form of hf_gmar's methods, or by label or prompt.
            ``None`` is the top class of each image, the same for all methods.
        contrast: a class whose score is subtracted. Captum's methods, and methods whose map is the
            same for every class, then fail with this reason.
        readout: which tokens a class head of your own reads, for methods passed by name.
        images: the B images to draw; ``None`` draws the images as the model sees them, or else the
            pixel values, from darkest to brightest.
        names: names of the B images; ``None`` takes the names of their files.
        processor: the image processor of a model that comes without one, or its name or folder.
        measure: measure time and memory of each method, which then runs two to six times instead
            of once.
        precision: ``"float32"``, or ``"bfloat16"`` or ``"float16"`` for faster forwards by
            autocast, of Captum's methods as well; ``None`` leaves the model's own.
        check: ask the model what each map is worth, see :meth:`Comparison.check`.
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
        >>> from hf_gmar.data import draw_scene
        >>> scenes = [draw_scene(18).image, draw_scene(19).image]
        >>> comparison = compare("bundled", scenes, ["gmar", "Saliency"])
        >>> {label: tuple(map.shape) for label, map in comparison.maps.items()}
        {'gmar': (2, 8, 8), 'Saliency': (2, 8, 8)}
        >>> comparison.labels
        ('heart', 'ring')
        >>> comparison.ratios["gmar"] > 1, comparison.peaks["gmar"] > 0
        (True, True)
    """
    specs = as_method_specs(methods)
    check_precision(precision)
    loaded: LoadedModel | None = None
    if _are_images(inputs) or isinstance(model, str | Path | LoadedModel):
        loaded = as_loaded(model, processor)
        model, forward_kwargs = loaded.model, {**loaded.forward_kwargs, **forward_kwargs}
    if loaded is not None and _are_images(inputs):
        batch = _Batch.read(loaded, inputs)
        inputs, images, names = batch.pixels, images or batch.images, names or batch.names
    network: Any = model_in(model)
    inputs, forward_kwargs = pixels_of(inputs, forward_kwargs)
    adapter = _image_adapter(network, readout)
    specs, left_out = applicable(specs, adapter)
    target, contrast = _by_index(adapter, target), _by_index(adapter, contrast)
    pixels = checked_request(adapter, inputs, None, forward_kwargs).inputs
    count = len(pixels)
    names = _checked_list("names", names, count) or [f"image {n + 1}" for n in range(count)]
    images = _checked_list("images", images, count) or [picture_of(image) for image in pixels]
    modules = [*adapter.modules(), *modules_of(specs)]
    forward = functools.partial(predict, adapter, ForwardRequest(pixels, (), forward_kwargs))
    in_precision = functools.partial(forward_precision, precision, pixels.device)
    with isolated_model(modules), size_errors(adapter, pixels), in_precision():
        scores, forward_cost = (
            measure_cost(forward, pixels.device) if measure else (forward(), None)
        )
        resolved = TargetSpec(target, contrast).resolve(scores)
    if scores.dim() == 2:  # a class for each image, in a form that all methods accept
        target, contrast = resolved.target, resolved.against
    grid = adapter.layout.grid(*pixels.shape[-2:])
    task = AttributionTask(network, readout, pixels, target, contrast, grid, forward_kwargs)
    maps: dict[str, Tensor] = {}
    fine_maps: dict[str, Tensor] = {}
    costs: dict[str, Cost] = {}
    failures: dict[str, str] = {}
    config = config_of(adapter)
    kind = ScoreKind.of(config, scores)
    explained = kind.convert(scores).flatten(1).gather(1, resolved.target[:, None])
    against = [None] * count if resolved.against is None else resolved.against.tolist()
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
            "model": type(adapter.backbone).__name__ if loaded is None else loaded.name,
            **({"prompts": network.prompts} if isinstance(network, ZeroShotModel) else {}),
            "captum": [spec.name for spec in specs if spec.is_captum],
            "device": str(pixels.device),
            "dtype": str(pixels.dtype).removeprefix("torch."),
            **({} if precision is None else {"precision": precision}),
            "measured": measure,
            "seed": seed,
            **_resolutions(specs),
            "keywords": dict(forward_kwargs),
            **({"left_out": left_out} if left_out else {}),
        },
        titles=titles_of(specs),
        contrast_targets=tuple(against),
        fine_maps=fine_maps,
        subjects=tuple(
            ModelInput(adapter, each, forward_kwargs, autocast_dtype(precision))
            for each in pixels.split(1)
        ),
    )
    for spec in specs:
        if progress is not None:
            progress(spec.name)
        # For each method, so that it meets no changes of another.
        with isolated_model(modules), in_precision():
            try:
                found, cost = _run(task, spec, seed, forward if measure else None)
                maps[spec.name] = found.patches
                fine_maps |= {} if found.fine_maps is None else {spec.name: found.fine_maps}
                costs |= {} if cost is None else {spec.name: cost}
            except Exception as error:  # noqa: BLE001  # of any library; the other methods run
                failures[spec.name] = reason_of(error)
        if finished is not None:
            finished(
                replace(
                    result,
                    maps=dict(maps),
                    costs=dict(costs),
                    failures=dict(failures),
                    fine_maps=dict(fine_maps),
                )
            )
    return result.checked() if check else result


def _by_index(adapter: ModelAdapter, target: Any) -> Target:
    """Return a target with the indices of classes that are named."""
    if isinstance(target, str):
        return classes_of_model(adapter, [target])[0]
    if isinstance(target, list) and any(isinstance(name, str) for name in target):
        return [classes_of_model(adapter, [name])[0] for name in target]
    result: Target = target
    return result


def _image_adapter(network: Any, readout: ReadoutSpec) -> ModelAdapter:
    adapter = ModelAdapter.of(network, readout)
    adapter.check_images("compare")
    return adapter


def _are_images(inputs: Any) -> bool:
    """Whether inputs are images, rather than pixel values."""
    if isinstance(inputs, str | Path | Image.Image | np.ndarray):
        return True
    return isinstance(inputs, list) and bool(inputs)


@dataclass(frozen=True)
class _Batch:
    """Images with their pixel values and names."""

    pixels: Tensor
    images: list[Image.Image] | None
    names: list[str]

    @classmethod
    def read(cls, loaded: LoadedModel, sources: Any) -> _Batch:
        """Read and process images; an InputError for pixel values of several sizes."""
        sources = sources if isinstance(sources, list) else [sources]
        prepared = [prepare_image(loaded, source) for source in sources]
        pixels = [image.pixels for image in prepared]
        sizes = sorted({tuple(each.shape[-2:]) for each in pixels})
        if len(sizes) > 1:
            raise InputError(
                f"the model's processor gives images of {len(sizes)} sizes ({sizes[0]}, "
                f"{sizes[1]}, ...), and one figure needs one; give images of one size"
            )
        try:
            seen = [image.seen for image in prepared]
        except InputError:  # its transform of the image is not known
            seen = None
        files = [image.name for image in prepared]
        names = [name if name != "image" else f"image {n + 1}" for n, name in enumerate(files)]
        return cls(torch.cat(pixels), seen, list(make_unique(names, "{} ({})")))


def _run(
    task: AttributionTask, spec: MethodSpec, seed: int, forward: Callable[[], Tensor] | None
) -> tuple[MethodMaps, Cost | None]:
    """Return the maps of a method, with its cost beside a forward's if there is one."""
    device = task.pixels.device
    call = functools.partial(_seeded_call, task.runner(spec), seed, device)
    return (call(), None) if forward is None else measure_cost(call, device, forward)


def _seeded_call(call: Callable[[], MethodMaps], seed: int, device: torch.device) -> MethodMaps:
    with seeded(seed, device):
        return call()


def _resolutions(specs: Sequence[MethodSpec]) -> dict[str, Any]:
    """Return the setting of the resolutions that are finer than the patch, if there are any."""
    finer = {spec.name: spec.resolution for spec in specs if spec.resolution not in ("patch", 1)}
    return {"resolution": finer} if finer else {}


def _labels(config: PreTrainedConfig, classes: Tensor) -> tuple[str, ...]:
    return tuple(label_of(config, index) for index in classes.tolist())


def _checked_list(kind: str, items: Sequence[Any] | None, count: int) -> list[Any]:
    if items is not None and (isinstance(items, str) or len(items) != count):
        got = repr(items) if isinstance(items, str) else len(items)
        raise InputError(f"{kind} must be a list of {count}, one for each of the inputs; got {got}")
    return list(items or ())
