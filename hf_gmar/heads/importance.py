"""Head importance: the attention heads that a class depends on, over one image or many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedConfig

from hf_gmar._core.media import INPUT_NAMES
from hf_gmar._core.model_adapter import ModelLike, model_in
from hf_gmar._core.targets import Target, resolve_targets
from hf_gmar._core.token_layout import ReadoutSpec
from hf_gmar._utils.files import save_arrays, save_json, whole_file
from hf_gmar._utils.html import html_table
from hf_gmar._utils.text import brief, visible
from hf_gmar._utils.validation import check_option
from hf_gmar._utils.version import __version__
from hf_gmar.errors import InputError, TargetError
from hf_gmar.heads.head_methods import HeadTaylorImportance
from hf_gmar.methods.attention_base import AttentionOptions
from hf_gmar.methods.gmar import GMAR
from hf_gmar.methods.layer_rules import Norm
from hf_gmar.models.labels import label_of

if TYPE_CHECKING:  # matplotlib is loaded when something is drawn
    from matplotlib.figure import Figure

_SHOWN = 5  # heads at each end of the ranking in a table

HeadCriterion: TypeAlias = Literal["gmar", "taylor"]
HEAD_CRITERIA: tuple[HeadCriterion, ...] = ("gmar", "taylor")

Batches: TypeAlias = Tensor | Mapping[str, Tensor] | Iterable[Tensor | Sequence[Any]]
"""A batch (B, channels, height, width) or the output of an image processor, or an iterable of
batches or of (batch, targets) pairs; a dict of ``pixel_values`` and ``labels`` (or ``label``) is
such a pair."""


@dataclass(frozen=True, eq=False, repr=False)
class HeadImportance:
    """The importance of each head for a class, for each image.

    Attributes:
        values: (images, layers, H), lowest layer first. For ``"gmar"``: w, the head's share of its
            layer's gradient, >= 0; each layer sums to 1. For ``"taylor"``: the first-order loss of
            the class's score without the head, in units of the score; a negative value means that
            the head speaks against the class.
        targets: the explained class of each image, (images,).
        names: the names of these classes.
        norm: the norm of a head's gradient, ``"l1"`` or ``"l2"``; only for ``"gmar"``.
        criterion: the kind of the values, ``"gmar"`` or ``"taylor"``.
        settings: other settings to save with the numbers, for example the model and the images.

    Example:
        >>> importance = HeadImportance(
        ...     torch.tensor([[[0.75, 0.25], [0.5, 0.5]], [[0.25, 0.75], [1.0, 0.0]]]),
        ...     torch.tensor([3, 7]),
        ... )
        >>> importance.mean()
        tensor([[0.5000, 0.5000],
                [0.7500, 0.2500]])
        >>> importance.rank()
        [(1, 0), (0, 0), (0, 1), (1, 1)]
    """

    values: Tensor
    targets: Tensor
    names: Mapping[int, str] = field(default_factory=dict)
    norm: str = "l1"
    criterion: str = "gmar"
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Name the classes, the number of images, the criterion, and the number of heads."""
        layers, heads = self.values.shape[1:]
        return (
            f"HeadImportance({brief(self.title, 200)}, {brief(self.caption)}, "
            f"{layers} layers x {heads} heads)"
        )

    def _repr_html_(self) -> str:
        """Show the figure and the ranking in a notebook."""
        from hf_gmar.visualization.notebook import html_image

        return html_image(self.figure(), repr(self)) + html_table(self.table())

    @classmethod
    def joined(cls, parts: Sequence[HeadImportance]) -> HeadImportance:
        """Concatenate the images of all parts.

        Raises:
            InputError: there are no parts.
        """
        if not parts:
            raise InputError("there are no images; give one batch or more")
        names = {index: name for part in parts for index, name in part.names.items()}
        values, targets = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("values", "targets")
        )
        return cls(values, targets, names, parts[0].norm, parts[0].criterion)

    def mean(self) -> Tensor:
        """Return the mean over the images, (layers, H)."""
        return self.values.mean(0)

    def std(self) -> Tensor:
        """Return the standard deviation over the images, (layers, H); zero for one image."""
        return self.values.std(0, correction=0)

    def per_class(self) -> dict[int, Tensor]:
        """Return the mean over the images of each class, (layers, H), by class index."""
        return {
            index: self.values[self.targets == index].mean(0)
            for index in sorted(set(self.targets.tolist()))
        }

    def rank(self) -> list[tuple[int, int]]:
        """Sort all (layer, head) by mean, highest first; ties go to the lower layer, then head.

        GMAR's w is a share within its layer, so the order compares shares of different layers. The
        main head of an unimportant layer ranks above each of four equal heads of an important one.
        """
        mean = self.mean()
        order = torch.argsort(mean.flatten(), descending=True, stable=True)
        return [divmod(place, mean.shape[1]) for place in order.tolist()]

    def table(self) -> Table:
        """Tabulate the most and the least important heads, for the terminal."""
        mean, std, order = self.mean(), self.std(), self.rank()
        columns = 5 if len(self.values) > 1 else 4
        column, form = (
            ("share of its layer", ".1%")
            if self.criterion == "gmar"
            else ("loss of score without it", "+.3f")
        )
        table = Table(title=visible(f"Head importance, {self.title}: {self.caption}"))
        for heading in ("rank", "layer", "head", column, "std over images")[:columns]:
            table.add_column(heading, justify="right")
        for place, (layer, head) in enumerate(order, 1):
            if place <= _SHOWN or place > len(order) - _SHOWN:
                numbers = format(mean[layer, head], form), format(std[layer, head], form.strip("+"))
                cells = (str(place), str(layer), str(head), *numbers)[:columns]
                last = place == _SHOWN and len(order) > 2 * _SHOWN
                table.add_row(*cells, end_section=last)
        return table

    def figure(self) -> Figure:
        """Draw the means as a heatmap of layers by heads, beside their standard deviations."""
        from hf_gmar.visualization.head_figures import importance_figure

        std = self.std().numpy() if len(self.values) > 1 else None
        mean, shares = self.mean().numpy(), self.criterion == "gmar"
        return importance_figure(mean, std, self.title, self.caption, shares)

    def save(self, folder: Path | str, stem: str = "heads") -> tuple[Path, Path, Path]:
        """Write ``STEM.npz``, then ``STEM.json`` and ``STEM.png``: both or, after an error, none.

        The archive has ``values``, ``targets``, ``norm`` and ``criterion``. The JSON has the means
        over all images and for each class, the standard deviation, and the ranking of the heads.
        """
        from hf_gmar.visualization.overlay import save_figure

        archive = self.save_numbers(folder, stem)
        summary, picture = archive.with_name(f"{stem}.json"), archive.with_name(f"{stem}.png")
        with whole_file(summary) as text, whole_file(picture) as drawing:
            save_json(text, self._summary())
            save_figure(self.figure(), drawing)
        return archive, summary, picture

    def save_numbers(self, folder: Path | str, stem: str = "heads") -> Path:
        """Write only ``STEM.npz``: ``values``, ``targets``, ``norm`` and ``criterion``."""
        archive = Path(folder) / f"{stem}.npz"
        archive.parent.mkdir(parents=True, exist_ok=True)
        values, targets = self.values.numpy(), self.targets.numpy()
        settings = {"norm": self.norm, "criterion": self.criterion}
        save_arrays(archive, values=values, targets=targets, **settings)
        return archive

    def _summary(self) -> dict[str, Any]:
        classes = [
            {"target": index, "label": self._name(index), "mean": mean.tolist()}
            for index, mean in self.per_class().items()
        ]
        return {
            "images": len(self.values),
            "norm": self.norm,
            "criterion": self.criterion,
            "mean": self.mean().tolist(),
            "std": self.std().tolist(),
            "most important first": self.rank(),
            "targets": self.targets.tolist(),
            "classes": classes,
            "settings": dict(self.settings),
            "version": __version__,
        }

    def _name(self, index: int) -> str:
        return self.names.get(index, f"class {index}")

    @property
    def title(self) -> str:
        """The explained class; for two or three classes, each with its number of images."""
        counts = Counter(self.targets.tolist()).most_common()
        if len(counts) > 3:
            return f"{len(counts)} classes"
        several = len(counts) > 1
        return ", ".join(f"{self._name(n)}{f' ({count})' * several}" for n, count in counts)

    @property
    def caption(self) -> str:
        """The number of images and the criterion."""
        count = len(self.values)
        kind = f"GMAR, norm {self.norm}" if self.criterion == "gmar" else "first-order effect"
        return f"{count} image{'s' if count > 1 else ''}, {kind}"


def head_importance(
    model: ModelLike,
    inputs: Batches,
    target: Target = None,
    *,
    criterion: HeadCriterion = "gmar",
    norm: Norm = "l1",
    contrast: Target = None,
    engine: str = "streaming",
    checkpoint: bool = False,
    readout: ReadoutSpec = None,
    **forward_kwargs: Any,
) -> HeadImportance:
    """Measure which heads a class depends on, over one image or a data set.

    GMAR's w[l,h] is the norm of the gradient of the class's logit with respect to the attention of
    head h in layer l, as a share of its layer: Jo, Jang and Park, ICIP 2025 (arXiv 2504.19414). The
    Taylor criterion sums attention times this gradient. It is the first-order estimate of the
    logit's loss without the head: Michel et al., NeurIPS 2019 (arXiv 1905.10650).
    ``docs/heads.md`` compares how well both find the heads that the model does not need.

    Args:
        model: see :class:`~hf_gmar.methods.base.AttributionMethod`.
        inputs: a tensor (B, channels, height, width), or an iterable of such batches or of (batch,
            targets) pairs, such as a ``DataLoader``; one batch is in memory at a time.
        target: the class of each image: an int, or a list or 1-D tensor for one batch; ``None``
            takes the targets of the pairs, else the top class of each image, for one more forward.
        criterion: ``"gmar"`` or ``"taylor"``, as above.
        norm: ``"l1"`` sums the absolute gradient of each head, ``"l2"`` takes its Euclidean norm;
            only for ``"gmar"``.
        contrast: a second class, whose score is subtracted from the target's score.
        engine: ``"streaming"``, or ``"dense"``, the plain reference.
        checkpoint: let the streaming engine run the layers twice to use a fraction of the memory.
        readout: which tokens a class head of your own reads.
        **forward_kwargs: further keyword arguments that the model's forward names.

    Returns:
        The importance of each image, on the CPU.

    Raises:
        UnsupportedModelError: the model can't be explained.
        InputError: there are no images, or they have a wrong type, shape, size, device or value.
        TargetError: a class index is out of range, is a tuple or is given twice, or their number
            differs from the number of images.
        OptionError: an option is outside its range.
        ModelOutputError: the model gives no scores, no attention maps or no finite gradient.

    Example:
        >>> from hf_gmar import load_model
        >>> importance = head_importance(load_model("bundled").model, torch.zeros(2, 3, 96, 96), 6)
        >>> importance.values.shape, importance.names
        (torch.Size([2, 6, 4]), {6: 'heart'})
    """
    check_option("criterion", criterion, HEAD_CRITERIA)
    options: AttentionOptions = {"engine": engine, "checkpoint": checkpoint, "readout": readout}
    method: GMAR | HeadTaylorImportance = (
        GMAR(model, norm=norm, **options)
        if criterion == "gmar"
        else HeadTaylorImportance(model, **options)
    )
    parts = []
    dimensions = len(method.adapter.input_shape.dimensions)
    for pixels, classes in batches(inputs, target, dimensions):
        if classes is None:
            classes = resolve_targets(None, method.scores(pixels, **forward_kwargs))  # noqa: PLW2901
        values = method.head_importance(pixels, classes, None, contrast, **forward_kwargs).cpu()
        targets = torch.as_tensor(classes).cpu().reshape(-1).expand(len(values)).clone()
        parts.append(HeadImportance(values, targets, _names(model, targets), norm, criterion))
    return HeadImportance.joined(parts)


def batches(
    inputs: Batches, target: Target = None, dimensions: int = 4
) -> Iterator[tuple[Any, Target]]:
    """Yield each batch, of so many dimensions, with its targets, or ``None`` without targets.

    Raises:
        InputError: the input is neither a batch nor an iterable of batches.
        TargetError: targets are tuples, or are given both in the pairs and as ``target``.
    """
    is_batch = isinstance(inputs, Tensor | Mapping)
    if isinstance(inputs, str) or not isinstance(inputs, Tensor | Iterable):
        is_data = hasattr(inputs, "__getitem__") and not isinstance(inputs, str)
        hint = f"; {_BATCHED}" if is_data else ""
        raise InputError(
            f"pixel values or an iterable of batches are needed, got {type(inputs).__name__}{hint}"
        )
    items: Iterable[Any] = [inputs] if is_batch else inputs
    for item in items:
        if isinstance(item, Mapping) and {*item} in _LABELLED:
            (labels,) = {*item} - {*INPUT_NAMES}
            (name,) = {*item} - {labels}
            item = item[name], item[labels]  # noqa: PLW2901
        # A DataLoader yields its pairs as lists.
        is_pair = isinstance(item, tuple | list) and len(item) == 2
        if is_pair and target is not None:
            raise TargetError(
                f"target={target!r} is given, and the batches bring targets of their own; leave "
                "one out"
            )
        pixels, classes = item if is_pair else (item, target)
        if not is_batch and isinstance(pixels, Tensor) and pixels.dim() == dimensions - 1:
            raise InputError(
                f"batches are needed, got a single input of the shape {tuple(pixels.shape)}; "
                f"{_BATCHED}"
            )
        first: Any = classes[0] if isinstance(classes, list) and classes else classes
        if isinstance(first, tuple):
            raise TargetError(
                f"one class index for each image is needed, got {classes!r}; tuples are for scores "
                "of more than one dimension"
            )
        yield pixels, classes


_LABELLED = [{name, labels} for name in INPUT_NAMES for labels in ("labels", "label")]
"""Keys of the batches of a Trainer, and of a DataLoader over a data set with a transform."""

_BATCHED = "torch.utils.data.DataLoader(data, batch_size=8) makes batches of a data set"


def _names(model: Any, targets: Tensor) -> dict[int, str]:
    config = getattr(model_in(model), "config", None)
    if not isinstance(config, PreTrainedConfig):  # a backbone's labels do not fit another head
        return {}
    return {index: label_of(config, index) for index in sorted(set(targets.tolist()))}
