"""Evaluates methods on a data set."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import BaseImageProcessor

from hf_gmar._core.model_adapter import ModelLike
from hf_gmar._core.token_layout import ReadoutSpec
from hf_gmar._utils.registry import Registry
from hf_gmar.comparison.method_specs import MethodLikes, as_method_specs
from hf_gmar.data.base import ImageDataset
from hf_gmar.data.source import open_data
from hf_gmar.errors import EvaluationError, HfGmarError, OptionError
from hf_gmar.evaluation.choices import Autocast, ExplainedClass
from hf_gmar.evaluation.report.summary import Summary, summarize
from hf_gmar.evaluation.run.distributed import Processes
from hf_gmar.evaluation.run.examples import load_examples
from hf_gmar.evaluation.run.fingerprint import described, description_of_model, digest, kind_of
from hf_gmar.evaluation.run.method_set import MethodSet
from hf_gmar.evaluation.run.plan import EvaluatedModel, EvaluationConfig, Plan, evenly_spaced
from hf_gmar.evaluation.run.runner import Progress, Runner
from hf_gmar.evaluation.run.store import Row, writing
from hf_gmar.metrics.base import Metric
from hf_gmar.metrics.registry import METRICS
from hf_gmar.metrics.score_choice import ScoreChoice
from hf_gmar.models.any_model import as_loaded
from hf_gmar.models.hub import LoadedModel
from hf_gmar.models.labels import class_count, config_of, labels_of
from hf_gmar.models.pixel_values import MODES, channels_of
from hf_gmar.models.score_kind import ScoreKind
from hf_gmar.models.wrappers import ZeroShotModel
from hf_gmar.perturbations.base import Perturbation
from hf_gmar.perturbations.pixels import DatasetMean, dataset_mean
from hf_gmar.perturbations.registry import PERTURBATIONS

CHEAP = tuple(
    name
    for name in METRICS.built_in
    if METRICS[name].input_kind in ("curves", "confidence", "localization")
)
"""The default metrics: faithfulness and localization."""

_VERSIONS = ("hf-gmar", "torch", "transformers", "captum", "numpy")

Spec: TypeAlias = str | tuple[str, Mapping[str, Any]]
"""A name in a registry, ``"NAME:OPTION=VALUE,..."``, or a pair of name and options."""


@dataclass(frozen=True, repr=False)
class Evaluation:
    """The results of an evaluation.

    Attributes:
        rows: one row for each image and method, in order, and one for each image that could not
            be read.
        summary: means with intervals, and differences to the baseline.
        settings: the settings of the evaluation, as plain data.
        files: the written files.
    """

    rows: list[Row]
    summary: Summary
    settings: Mapping[str, Any]
    files: list[Path]

    def __repr__(self) -> str:
        """Count images and measures, and name the methods."""
        return f"Evaluation({self.summary.brief()})"

    def _repr_html_(self) -> str:
        """Show the tables of the means in a notebook."""
        return self.summary.table()._repr_html_()  # as a notebook asks

    def records(self) -> list[dict[str, Any]]:
        """Return the summary as a list of flat dicts, for pandas or polars."""
        records = []
        for record in self.summary.records():
            difference = record.pop("difference") or {}
            flat = {f"difference_{name}": value for name, value in difference.items()}
            records.append(record | flat)
        return records

    def markdown(self) -> str:
        """Return the summary's report as Markdown."""
        return self.summary.markdown()


def evaluate(  # noqa: PLR0913  # a keyword each
    model: ModelLike | str | Path,
    data: ImageDataset | Sequence[Any] | str | Path,
    methods: MethodLikes | None = None,
    metrics: Sequence[Spec | Metric[Any]] | None = None,
    perturbations: Sequence[Spec | Perturbation] = ("blur",),
    *,
    processor: BaseImageProcessor | None = None,
    readout: ReadoutSpec = None,
    score: ScoreChoice | None = None,
    explained_class: ExplainedClass = "predicted",
    steps: int = 10,
    baseline: str | None = None,
    output: str | Path | None = None,
    resume: bool = True,
    memory: int = 2**28,
    autocast: Autocast | None = None,
    examples: int = 4,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate methods on the images of a data set.

    Under ``accelerate launch``, the processes share the images. Each has its own model, and all
    return the same result.

    Args:
        model: the result of ``load_model``, or a model that methods accept, with a processor.
        data: a data set or any source that ``hf_gmar.data.open_data`` takes: ``"scenes:300"``, a
            folder, a CSV file, a data set of the ``datasets`` library, a list of images or of
            pairs (image, class).
        methods: methods as in :func:`~hf_gmar.comparison.run.compare`; ``None`` is every method
            of the registry but the costly ``"shapley-values"``, without those that need tokens if
            the model has no fixed grid of them; ``settings["left_out"]`` then says which and why.
        metrics: names in ``hf_gmar.metrics.METRICS``, ``"NAME:OPTION=VALUE,..."``, pairs of name
            and options, or your own metrics; ``None`` is :data:`CHEAP`.
        perturbations: how patches are removed: names in ``hf_gmar.perturbations.PERTURBATIONS``,
            or the other forms of ``metrics``. Faithfulness metrics are measured for each.
        processor: the model's image processor.
        readout: which tokens a class head of your own reads.
        score: the measured score, ``"probability"`` or ``"logit"``. ``None`` is the probability, or
            the value of a model without any (a regression, or a single output).
        explained_class: the ``"predicted"`` class or the image's ``"label"``.
        steps: number of equal steps in which patches are removed.
        baseline: the label of the method that all methods are compared with; ``None`` takes
            ``"random"`` if it is evaluated, else the first method.
        output: the folder for rows, summary and report; ``None`` writes nothing.
        resume: continue with the rows in the folder, whose settings must be the same; ``False``
            removes them.
        memory: bytes for perturbed copies of an image at a time.
        autocast: half precision for the perturbed copies only, ``"bfloat16"`` or ``"float16"``.
        examples: number of images whose maps are drawn in the report.
        seed: seed of everything random.
        progress: called with the number of finished images of this process, their total number,
            and the rows of the last image.

    Returns:
        Rows and summary.

    Raises:
        OptionError: an option does not exist, or options do not fit together.
        UnsupportedModelError: the model can't be explained, or can't be evaluated in this way.
        EvaluationError: the folder is of a run with other settings or in use, the data set is
            empty, or a process of the run has ended.
        DataError, ImageFileError: the data do not exist or can't be read.

    Example:
        >>> from hf_gmar import load_model
        >>> result = evaluate(
        ...     load_model("bundled"), "scenes:3", ["gmar", "random"], ["deletion", "insertion"]
        ... )
        >>> len(result.rows), result.rows[0]["method"], sorted(result.rows[0]["values"])
        (6, 'gmar', ['deletion:blur', 'insertion:blur'])
    """
    loaded = as_loaded(model, processor)
    config = EvaluationConfig(score, explained_class, steps, memory, autocast, seed, examples)
    keywords = loaded.forward_kwargs
    network = functools.partial(loaded.model, **keywords) if keywords else loaded.model
    method_set = MethodSet.build(network, methods, readout, seed)
    names = method_set.labels
    if baseline is None:
        baseline = "random" if "random" in names else names[0]
    elif baseline not in names:
        raise OptionError(
            f"the baseline {baseline!r} is none of the methods; there are {', '.join(names)}"
        )
    folder = None if output is None else Path(output)
    # Results may be written into the folder of the images; they are not part of the data.
    skip = folder if isinstance(data, str | Path) else None
    model_config, count = config_of(method_set.adapter), class_count(method_set.adapter)
    kind = ScoreKind.of(model_config, torch.empty(1, count))
    evaluated = EvaluatedModel(method_set, loaded, config, kind)
    metrics_by_label = _metrics(metrics, evaluated)
    mode = MODES.get(channels_of(method_set.adapter.vision_model), "RGB")
    images = open_data(data, labels_of(model_config, count), skip=skip, mode=mode)
    if not len(images):
        raise EvaluationError(f"the data set {images.name} has no images; name another one")
    plan = Plan(evaluated, metrics_by_label, _perturbations(perturbations, evaluated, images))
    settings = _settings(loaded, plan, images)
    processes = Processes.launched(cpu=evaluated.adapter.vision_model.device.type == "cpu")
    rows = Runner(plan, images, settings, processes, folder, resume, progress).rows()
    directions = {metric.name: metric.higher_is_better for metric in plan.metrics.values()}
    summary = summarize(rows, settings, directions, baseline, seed)
    files: list[Path] = []
    if folder is not None and processes.is_main:
        from hf_gmar.evaluation.report.writer import write_report  # imports matplotlib

        maps = load_examples(folder, evenly_spaced(len(images), examples))
        with writing(folder):
            files = write_report(folder, summary, maps)
    return Evaluation(rows, summary, settings, files)


def check_names(
    methods: MethodLikes | None,
    metrics: Sequence[Spec] | None,
    perturbations: Sequence[Spec] | None,
) -> None:
    """Check the names and options of methods, metrics and perturbations, without model or data.

    Raises:
        OptionError: a name or an option does not exist.

    Example:
        >>> check_names(["gmar"], ["deletion"], ["blur", "dataset-mean"])
    """
    as_method_specs(methods)
    _by_label(CHEAP if metrics is None else metrics, METRICS, METRICS.build)
    for name, options in map(PERTURBATIONS.parse, perturbations or ()):
        if name != DatasetMean.name or options:  # its default colour needs the data
            PERTURBATIONS.build(name, **options)


def _by_label(
    items: Sequence[Any], registry: Registry[Any], build: Callable[..., Any]
) -> dict[str, Any]:
    """Build metrics or perturbations, by label."""
    if isinstance(items, str) or not items:
        raise OptionError(f"{registry.kind}s must be a list of one or more, got {items!r}")
    by_label: dict[str, Any] = {}
    for item in items:
        if hasattr(item, "name"):
            name, options, instance = item.name, _changed_options(item), item
        else:
            name, options = registry.parse(item)
            instance = build(name, **options)
        label = getattr(instance, "label", "") or registry.label(name, options)
        if label in by_label:
            raise OptionError(f"{label!r} is given twice in {registry.kind}s; give it once")
        by_label[label] = instance
    return by_label


def _changed_options(perturbation: Any) -> dict[str, Any]:
    """Return the options of a perturbation that differ from their defaults."""
    options = fields(perturbation) if is_dataclass(perturbation) else ()
    values = ((option, getattr(perturbation, option.name)) for option in options)
    return {option.name: value for option, value in values if value != option.default}


def _build_seeded(registry: Registry[Any], seed: int, name: str, /, **options: Any) -> Any:
    """Build an item with the run's seed, unless its options have a seed."""
    if seed and "seed" in registry.options(name):
        options.setdefault("seed", seed)
    return registry.build(name, **options)


def _metrics(items: Sequence[Any] | None, model: EvaluatedModel) -> dict[str, Any]:
    """Build metrics by label; without probabilities, the default has no metric that needs them."""
    if items is None:
        items = [name for name in CHEAP if model.has_probabilities or not METRICS[name].probability]
    build = functools.partial(_build_seeded, METRICS, model.config.seed)
    return _by_label(items, METRICS, build)


def _perturbations(
    items: Sequence[Any], model: EvaluatedModel, images: ImageDataset
) -> dict[str, Any]:
    """Build perturbations by label; compute the data set's mean colour unless it is given."""

    def build(name: str, **options: Any) -> Any:
        if name == DatasetMean.name and not options:
            return DatasetMean(dataset_mean(_all_pixels(model, images)))
        return _build_seeded(PERTURBATIONS, model.config.seed, name, **options)

    return _by_label(items, PERTURBATIONS, build)


def _all_pixels(model: EvaluatedModel, images: ImageDataset) -> Iterator[Tensor]:
    for index in range(len(images)):
        try:
            yield model.prepared(images[index].image).pixels
        except HfGmarError:
            continue  # the evaluation of this image reports the error


def _settings(loaded: LoadedModel, plan: Plan, images: ImageDataset) -> dict[str, Any]:
    adapter = plan.model.adapter
    model: dict[str, Any] = {
        "name": loaded.name,
        **description_of_model(adapter.model, adapter.modules()[0]),
        "dtype": str(adapter.vision_model.dtype).removeprefix("torch."),
        "readout": adapter.described_layout(),
        "processor": digest(loaded.processor.to_dict()),
    }
    if isinstance(loaded.model, ZeroShotModel):
        model["prompts"] = loaded.model.prompts
    metrics, perturbations = plan.metrics.items(), plan.perturbations.items()
    return {
        "model": model,
        "data": {"name": images.name, "images": len(images), **images.settings},
        "methods": plan.model.method_set.described(),
        **({"left_out": left_out} if (left_out := plan.model.method_set.left_out) else {}),
        "metrics": {label: {"class": kind_of(item), **item.options} for label, item in metrics},
        "perturbations": {label: described(item) for label, item in perturbations},
        **plan.model.config.described(),
        "score": plan.model.score,
        "versions": {name: version(name) for name in _VERSIONS},
    }
