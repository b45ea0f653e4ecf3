"""Several methods side by side: the same model, images and classes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from torch import Tensor
from transformers import PreTrainedConfig

from hf_gmar._core.execution import predict
from hf_gmar._core.inputs import checked_request, size_errors
from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar._core.request import ForwardRequest
from hf_gmar._core.targets import Target, TargetSpec
from hf_gmar._core.token_layout import ReadoutSpec
from hf_gmar.comparison.cost import Cost, measured
from hf_gmar.comparison.isolation import isolated_model, seeded
from hf_gmar.comparison.method_specs import MethodLikes, MethodSpec, Task, as_columns, modules_of
from hf_gmar.comparison.result import Comparison, picture_of
from hf_gmar.errors import InputError, reason_of
from hf_gmar.models.labels import label_of, probabilities

__all__ = ["MethodSpec", "Comparison", "compare"]


def compare(  # noqa: PLR0913  # a keyword each
    model: Callable[..., Any],
    inputs: Tensor | tuple[Tensor, ...],
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
    **forward_kwargs: Any,
) -> Comparison:
    """Explain the same images and classes by several methods, and measure what each costs.

    A method that fails says why in its place, and the others go on. The model and the inputs come
    back as they were, whatever a method does, and so do the generators of random numbers.

    Args:
        model: see :class:`~hf_gmar.methods.AttributionMethod`; its family must be known, for its grid.
        inputs: pixel values (B, channels, height, width), or a tuple with that one tensor.
        methods: a list of names of ``hf_gmar.methods.METHODS``, of pairs ``(name, options)``, of
            methods of ours or Captum's that you built on this model (Captum's on
            ``LogitsModel(model)``), and of :class:`MethodSpec`, which adds a label and keywords. A
            mapping gives labels. ``None`` is every method of the registry. Captum's attributions
            are summed over channels and over the pixels of each patch; where Occlusion, the SHAP
            and Lime methods need arguments, a patch is their window or feature, and zeros are
            their baseline.
        target: the explained class, as each method of ours takes it. ``None`` is the top class of
            each image, found once, the same for all methods.
        contrast: a class whose score is taken off. Methods that can't do that say so in their
            place: Captum's, and those whose map is the same for every class.
        readout: which tokens a class head of your own reads, for methods given by name.
        images: the B images to draw; ``None`` draws the pixel values, from darkest to brightest.
        names: of the B images.
        measure: time each method after a run that warms up, and measure its memory. Each method
            runs two to six times then, else once.
        seed: of the random numbers that Captum's methods draw, so that runs repeat; a
            ``RandomAttribution`` has a seed of its own.
        progress: called with the label of each method before it runs.
        **forward_kwargs: further keyword arguments that the model's forward names; Captum's methods
            get them from ``LogitsModel(model, **forward_kwargs)``.

    Returns:
        The maps, costs and rank correlations; see :class:`Comparison`.

    Raises:
        OptionError: no method, a name or an option that does not exist, an unknown keyword.
        InputError: inputs that do not fit the model, or images and names that do not fit them.
        TargetError: a class that does not exist, or a target that is its own contrast.
        UnsupportedModelError: no model of a known family.
        ModelOutputError: the model returns no scores.

    Example:
        >>> import torch
        >>> from captum.attr import Saliency
        >>> from hf_gmar import LogitsModel, load_model
        >>> model = load_model("bundled").model
        >>> found = compare(model, torch.rand(2, 3, 96, 96), ["gmar", Saliency(LogitsModel(model))])
        >>> {label: tuple(map.shape) for label, map in found.maps.items()}
        {'gmar': (2, 8, 8), 'Saliency': (2, 8, 8)}
        >>> found.ratios["gmar"] > 1, found.peaks["gmar"] > 0
        (True, True)
    """
    columns = as_columns(methods)
    adapter = ModelAdapter.of(model, readout)
    pixels = checked_request(adapter, inputs, None, forward_kwargs).inputs
    count = len(pixels)
    names = _one_each("names", names, count) or [f"image {index + 1}" for index in range(count)]
    images = _one_each("images", images, count) or [picture_of(one) for one in pixels]
    modules = [*adapter.modules(), *modules_of(columns)]
    plain = functools.partial(predict, adapter, ForwardRequest(pixels, (), forward_kwargs))
    with isolated_model(modules), size_errors(adapter, pixels):
        scores, forward = measured(plain, pixels.device) if measure else (plain(), None)
        answer = _Answers.of(adapter, scores, TargetSpec(target, contrast))
    grid = adapter.layout.grid(*pixels.shape[-2:])
    asked = answer.target(target), answer.contrast(contrast)
    task = Task(model, readout, pixels, *asked, grid, forward_kwargs)
    cells = _Cells()
    for column in columns:
        if progress is not None:
            progress(column.name)
        with isolated_model(modules):  # one for each: no method meets what another left
            cells.fill(column, task, plain, measure, seed)
    return Comparison(
        cells.maps,
        cells.failures,
        cells.spent,
        forward,
        order=tuple(column.name for column in columns),
        names=tuple(names),
        targets=tuple(answer.targets.tolist()),
        labels=answer.labels(answer.targets),
        probabilities=answer.shares,
        contrasts=None if answer.against is None else answer.labels(answer.against),
        pictures=tuple(images),
        settings=_settings(task, columns, type(adapter.backbone).__name__, measure, seed),
    )


def _settings(
    task: Task, columns: Sequence[MethodSpec], model: str, measure: bool, seed: int
) -> dict[str, Any]:
    return {
        "model": model,
        "captum": [column.name for column in columns if column.is_captum],
        "device": str(task.pixels.device),
        "dtype": str(task.pixels.dtype).removeprefix("torch."),
        "measured": measure,
        "seed": seed,
        "keywords": dict(task.kwargs),
    }


@dataclass
class _Cells:
    """What the methods gave, by label."""

    maps: dict[str, Tensor] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    spent: dict[str, Cost] = field(default_factory=dict)

    def fill(
        self,
        column: MethodSpec,
        task: Task,
        forward: Callable[[], Tensor],
        measure: bool,
        seed: int,
    ) -> None:
        """Run one method; whatever it raises is what its cell says."""
        label, device = column.name, task.pixels.device

        def run() -> Tensor:
            with seeded(seed, device):
                return call()

        try:
            call = task.runner(column)
            if measure:
                self.maps[label], self.spent[label] = measured(run, device, forward)
            else:
                self.maps[label] = run()
        except Exception as error:  # noqa: BLE001  # of any library; the other methods go on
            self.failures[label] = reason_of(error)


@dataclass(frozen=True)
class _Answers:
    """The classes that are explained.

    Attributes:
        config: where their names are.
        targets: (B,), places in the scores of each image.
        against: the same of the contrasts, or ``None``.
        shares: probabilities of the targets.
        classes: whether scores have one dimension for each image, so that places are classes.
    """

    config: PreTrainedConfig
    targets: Tensor
    against: Tensor | None
    shares: tuple[float, ...]
    classes: bool

    @classmethod
    def of(cls, adapter: ModelAdapter, scores: Tensor, target_spec: TargetSpec) -> _Answers:
        found = target_spec.resolve(scores)
        own = getattr(adapter.model, "config", None)  # of prompts, where these are the classes
        config = own if isinstance(own, PreTrainedConfig) else adapter.backbone.config
        shares = probabilities(config, scores).flatten(1).gather(1, found.target[:, None])
        return cls(
            config, found.target, found.against, tuple(shares[:, 0].tolist()), scores.dim() == 2
        )

    def target(self, asked: Target) -> Target:
        """One class for each image, in a form that ours and Captum's methods take."""
        return self.targets if self.classes else asked

    def contrast(self, asked: Target) -> Target:
        return self.against if self.classes else asked

    def labels(self, places: Tensor) -> tuple[str, ...]:
        return tuple(label_of(self.config, index) for index in places.tolist())


def _one_each(what: str, given: Sequence[Any] | None, count: int) -> list[Any]:
    if given is not None and (isinstance(given, str) or len(given) != count):
        got = repr(given) if isinstance(given, str) else len(given)
        raise InputError(f"{what} must be a list of {count}, one for each of the inputs; got {got}")
    return list(given or ())
