"""What can be compared: methods of the registry and Captum's, each with a label and its call."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import captum.attr
import torch
from captum.attr import Attribution
from torch import Tensor, nn

from hf_gmar._core.targets import Target
from hf_gmar._core.token_layout import ReadoutSpec
from hf_gmar.errors import ModelOutputError, OptionError
from hf_gmar.methods.base import AttributionMethod
from hf_gmar.methods.registry import METHODS

CAPTUM = (
    "DeepLift",
    "DeepLiftShap",
    "FeatureAblation",
    "GradientShap",
    "InputXGradient",
    "IntegratedGradients",
    "KernelShap",
    "Lime",
    "Occlusion",
    "Saliency",
    "ShapleyValueSampling",
)
"""Captum's methods that need no more than a model, by name.

Those that change the gradient of ReLUs (GuidedBackprop, Deconvolution) are left out: Vision
Transformers have none, and what comes out is the plain gradient.
"""


@dataclass(frozen=True)
class MethodSpec:
    """One method of a comparison.

    Attributes:
        method: a name of ``hf_gmar.methods.METHODS``, a method of ours, or one of Captum's.
        label: how it is called in the figure and the table; ``None`` for its own name.
        options: for a name, the options of that method; for a method that is built, further
            keywords of its ``attribute``, which go before those that ``compare`` chooses.

    Example:
        >>> MethodSpec("gmar", "GMAR, l2", {"norm": "l2"}).name
        'GMAR, l2'
    """

    method: str | Attribution
    label: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The label, or else what the method is called."""
        if self.label is not None:
            return self.label
        if isinstance(self.method, str):
            return METHODS.label(self.method, self.options)
        return _own_name(self.method)

    @property
    def is_captum(self) -> bool:
        """Whether the method attributes to pixels rather than to patches."""
        return not isinstance(self.method, str | AttributionMethod)


MethodLike: TypeAlias = str | tuple[str, Mapping[str, Any]] | Attribution | MethodSpec
MethodLikes: TypeAlias = Sequence[MethodLike] | Mapping[str, MethodLike]


@dataclass(frozen=True)
class Task:
    """What every method of a comparison is asked.

    Attributes:
        model: the explained model, as the user gave it.
        readout: for methods that are built by name.
        pixels: pixel values (B, channels, height, width).
        target: the explained class of each image.
        contrast: a class that is taken off.
        grid: rows and columns of patches.
        kwargs: further keywords of the model's forward, for methods of ours.
    """

    model: Callable[..., Any]
    readout: ReadoutSpec
    pixels: Tensor
    target: Target
    contrast: Target
    grid: tuple[int, int]
    kwargs: Mapping[str, Any]

    def runner(self, column: MethodSpec) -> Callable[[], Tensor]:
        """A call that gives the column's map, (B, rows, columns).

        Raises:
            OptionError: the method can't be asked this.
            UnsupportedModelError: the model can't be explained by it.
        """
        method, options = self._built(column)
        # Whatever it does, the caller's stay as they are; and some of Captum's need this format.
        pixels = self.pixels.detach().clone(memory_format=torch.contiguous_format)
        if isinstance(method, AttributionMethod):
            asked = {**self.kwargs, **options}
            return lambda: self._checked(
                method.attribute_patches(pixels, self.target, contrast=self.contrast, **asked)
            )
        if self.contrast is not None:
            raise OptionError(
                "Captum's methods explain one score, not the difference of two; leave out the "
                "contrast, or build the method on a model that returns the difference"
            )
        asked = {**defaults_of(method, pixels, self.grid), **options}
        pixels.requires_grad_()  # or Captum warns that it does it

        def run() -> Tensor:
            with _notices_hidden():
                heat = method.attribute(pixels, target=self.target, **asked)
            return self._checked(pooled(heat, pixels, self.grid))

        return run

    def _built(self, column: MethodSpec) -> tuple[Any, Mapping[str, Any]]:
        if not isinstance(column.method, str):
            return column.method, column.options
        options = dict(column.options)
        if self.readout is not None and "readout" in METHODS.options(column.method):
            options.setdefault("readout", self.readout)
        return METHODS.build(column.method, self.model, **options), {}

    def _checked(self, patches: Any) -> Tensor:
        needed = (len(self.pixels), *self.grid)
        if not isinstance(patches, Tensor) or tuple(patches.shape) != needed:
            shape = tuple(getattr(patches, "shape", ()))
            raise ModelOutputError(f"its map has the shape {shape}, and {needed} is needed")
        if not torch.isfinite(patches).all():
            raise ModelOutputError("its map holds NaN or infinity")
        found: Tensor = patches.detach().cpu()
        return found if found.dtype == torch.float64 else found.float()


@contextmanager
def _notices_hidden() -> Iterator[None]:
    """Without what Captum says of every call that is as it should be."""
    with warnings.catch_warnings():
        # They are taken out, whatever happens; and a model for each image is what is asked for.
        for notice in (
            r"\s*Setting (forward, )?backward hooks",
            "You are providing multiple inputs",
        ):
            warnings.filterwarnings("ignore", message=notice)
        yield


def as_columns(methods: MethodLikes | None) -> list[MethodSpec]:
    """The columns, each with a label of its own; ``None`` is every method of the registry.

    Raises:
        OptionError: no method, no such name, or something that is no method.

    Example:
        >>> [column.label for column in as_columns(["gmar", ("gmar", {"alpha": 0.5}), "gmar"])]
        ['gmar', 'gmar (alpha=0.5)', 'gmar (2)']
    """
    if methods is None:
        methods = [name for name, _ in METHODS.items()]  # without those that can't be loaded
    if isinstance(methods, str | Attribution | MethodSpec) or not methods:
        raise OptionError(
            f"methods must be a list of one or more, or a mapping from labels to them, got "
            f"{methods!r}"
        )
    if isinstance(methods, Mapping):
        found = [replace(_as_column(one), label=label) for label, one in methods.items()]
    else:
        found = [_as_column(one) for one in methods]
    return [
        replace(column, label=label)
        for column, label in zip(found, _make_unique([one.name for one in found]), strict=True)
    ]


def captum_columns(names: Sequence[str], model: nn.Module) -> list[MethodSpec]:
    """Captum's methods of these names, on a model that returns scores.

    Raises:
        OptionError: there is no such method.

    Example:
        >>> [column.name for column in captum_columns(["Saliency"], nn.Identity())]
        ['Saliency']
    """
    check_captum_names(names)
    return [MethodSpec(getattr(captum.attr, name)(model)) for name in names]


def check_captum_names(names: Sequence[str]) -> None:
    """An OptionError for a name that is not in ``CAPTUM``."""
    for name in names:
        if name not in CAPTUM:
            raise OptionError(
                f"Captum has no method {name!r} for this; there are {_listed(CAPTUM)}"
            )


def pooled(attributions: Any, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
    """Attributions to pixels (B, channels, height, width), summed over each patch's pixels.

    Raises:
        ModelOutputError: they have another shape than the pixels.

    Example:
        >>> ones = torch.ones(1, 3, 4, 8)
        >>> pooled(ones, ones, (2, 4))
        tensor([[[12., 12., 12., 12.],
                 [12., 12., 12., 12.]]])
    """
    if not isinstance(attributions, Tensor) or attributions.shape != pixels.shape:
        shape = tuple(getattr(attributions, "shape", ()))
        raise ModelOutputError(
            f"its attribution has the shape {shape}, and that of the inputs is needed, "
            f"{tuple(pixels.shape)}: one value for each pixel"
        )
    rows, columns = grid
    summed: Tensor = attributions.detach().sum(1)
    cut = summed.unflatten(2, (columns, -1)).unflatten(1, (rows, -1))
    patches: Tensor = cut.sum((2, 4))
    return patches


def defaults_of(method: Attribution, pixels: Tensor, grid: tuple[int, int]) -> dict[str, Any]:
    """Keywords that one of Captum's methods needs and the user did not give.

    Example:
        >>> from captum.attr import Occlusion
        >>> defaults_of(Occlusion(print), torch.zeros(1, 3, 32, 32), (4, 4))
        {'sliding_window_shapes': (3, 8, 8), 'strides': (3, 8, 8)}
    """
    inner = getattr(method, "attribution_method", None)  # NoiseTunnel hands keywords on
    if isinstance(inner, Attribution):
        return {} if isinstance(inner, AttributionMethod) else defaults_of(inner, pixels, grid)
    kind = next((one for one in type(method).__mro__ if one in _DEFAULTS), None)
    return {} if kind is None else _DEFAULTS[kind](pixels, grid)


def _window(pixels: Tensor, grid: tuple[int, int]) -> dict[str, Any]:
    patch = (pixels.shape[1], pixels.shape[2] // grid[0], pixels.shape[3] // grid[1])
    return {"sliding_window_shapes": patch, "strides": patch}


def _few_at_a_time(pixels: Tensor, _grid: tuple[int, int]) -> dict[str, Any]:
    """Not all steps of all images at once, which would be 50 times the memory of a gradient."""
    return {"internal_batch_size": max(len(pixels), 8)}


def _zeros(pixels: Tensor, _grid: tuple[int, int]) -> dict[str, Any]:
    return {"baselines": torch.zeros_like(pixels[:1]).detach()}


def _two_zeros(pixels: Tensor, _grid: tuple[int, int]) -> dict[str, Any]:
    return {"baselines": torch.zeros_like(pixels[:1]).detach().repeat(2, 1, 1, 1)}


def _patches(pixels: Tensor, grid: tuple[int, int]) -> dict[str, Any]:
    """Each patch is one feature, or there would be one for each pixel and channel."""
    numbers = torch.arange(grid[0] * grid[1], device=pixels.device).view(1, 1, *grid)
    height, width = pixels.shape[2] // grid[0], pixels.shape[3] // grid[1]
    mask = numbers.repeat_interleave(height, 2).repeat_interleave(width, 3)
    return {"feature_mask": mask.expand(1, *pixels.shape[1:]).contiguous()}


_DEFAULTS: dict[type[Attribution], Callable[[Tensor, tuple[int, int]], dict[str, Any]]] = {
    captum.attr.IntegratedGradients: _few_at_a_time,
    captum.attr.Occlusion: _window,
    captum.attr.GradientShap: _zeros,
    captum.attr.DeepLiftShap: _two_zeros,  # it takes no single one
    captum.attr.FeatureAblation: _patches,
    captum.attr.FeaturePermutation: _patches,
    captum.attr.ShapleyValueSampling: _patches,
    captum.attr.ShapleyValues: _patches,
    captum.attr.Lime: _patches,
    captum.attr.KernelShap: _patches,
}
"""What Captum's methods are given where the user says nothing, by class; subclasses inherit."""


def _as_column(entry: Any) -> MethodSpec:
    column = entry
    if isinstance(entry, str) or (isinstance(entry, tuple) and len(entry) == 2):
        name, options = METHODS.parse(entry)
        column = MethodSpec(name, options=options)
    elif isinstance(entry, Attribution):
        column = MethodSpec(entry)
    if not isinstance(column, MethodSpec) or not isinstance(column.method, str | Attribution):
        raise OptionError(
            f"a method is a name ({_listed(METHODS)}), a name with its options "
            "('gmar:norm=l2,alpha=0.5', or a pair), a method of "
            f"hf_gmar, one of Captum's attribution methods or a MethodSpec; got {entry!r}"
        )
    if isinstance(column.method, str):
        METHODS.check(column.method, column.options)
    return column


def _own_name(method: Attribution) -> str:
    kind = type(method)
    inner = getattr(method, "attribution_method", None)
    if isinstance(inner, Attribution):
        return f"{kind.__name__} of {_own_name(inner)}"
    return METHODS.name_of(kind) or kind.__name__


def _make_unique(labels: Sequence[str]) -> list[str]:
    found: list[str] = []
    for label in labels:
        name, number = label, 2
        while name in found:
            name, number = f"{label} ({number})", number + 1
        found.append(name)
    return found


def _listed(names: Any) -> str:
    return ", ".join(map(str, names))


def modules_of(columns: Sequence[MethodSpec]) -> Iterator[nn.Module]:
    """The modules that methods were built on, which need not be the model itself."""
    for column in columns:
        method: Any = column.method
        while isinstance(method, Attribution):
            for held in (getattr(method, "forward_func", None), getattr(method, "model", None)):
                owner = held if isinstance(held, nn.Module) else getattr(held, "__self__", None)
                if isinstance(owner, nn.Module):
                    yield from owner.modules()
            method = getattr(method, "attribution_method", None)
