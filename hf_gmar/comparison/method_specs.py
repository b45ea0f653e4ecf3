"""The methods of a comparison, from the registry and from Captum, with labels and options."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

import captum.attr
import torch
from captum.attr import Attribution
from torch import Tensor, nn

from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar._core.targets import Target
from hf_gmar._core.token_layout import ReadoutSpec, lack_of_tokens
from hf_gmar._utils.names import make_unique
from hf_gmar._utils.option_strings import parse_spec
from hf_gmar.errors import ModelOutputError, OptionError
from hf_gmar.methods.base import AttributionMethod
from hf_gmar.methods.registry import METHODS, title_of_label
from hf_gmar.models.wrappers import LogitsModel

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
"""Names of Captum's methods that need only a model.

GuidedBackprop and Deconvolution are left out. They change the gradient of ReLUs, which Vision
Transformers lack, so they would give the plain gradient.
"""


@dataclass(frozen=True)
class MethodSpec:
    """One method of a comparison.

    Attributes:
        method: a name in ``hf_gmar.methods.METHODS``, a class of Captum that needs only a model, or
            a method object of hf_gmar or Captum.
        label: the method's label in figure and table; ``None`` uses the method's name.
        options: for a name, the options of that method; for Captum's methods and for method
            objects, further keywords of ``attribute``, which override the defaults of ``compare``.
        optional: whether a named method is left out, without an error, if it needs tokens that the
            model does not have.

    Example:
        >>> MethodSpec("gmar", "GMAR, l2", {"norm": "l2"}).name
        'GMAR, l2'
    """

    method: str | type[Attribution] | Attribution
    label: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    optional: bool = False

    @property
    def name(self) -> str:
        """The label, or else the method's name."""
        if self.label is not None:
            return self.label
        if isinstance(self.method, str):
            return METHODS.label(self.method, self.options)
        if isinstance(self.method, type):
            return METHODS.label(self.method.__name__, self.options)
        return _name_of(self.method)

    @property
    def resolution(self) -> int | str:
        """The ``resolution`` of a method of hf_gmar; ``"patch"`` for Captum's."""
        result: int | str = getattr(self.method, "resolution", "patch")
        if isinstance(self.method, str):
            result = {**METHODS.options(self.method), **self.options}.get("resolution", result)
        return result

    @property
    def title(self) -> str:
        """The name for a reader: the title of the registry's methods, unless the user gave a label.

        Example:
            >>> MethodSpec("gmar", options={"norm": "l2"}).title, MethodSpec("gmar", "mine").title
            ('GMAR (norm l2)', 'mine')
        """
        kind = METHODS[self.method] if isinstance(self.method, str) else self.method
        kind = kind if isinstance(kind, type) else type(kind)
        return title_of_label(self.name, f"{kind.__module__}.{kind.__qualname__}")

    @property
    def is_captum(self) -> bool:
        """Whether the method is Captum's, which attributes to pixels instead of patches."""
        return not isinstance(self.method, str | AttributionMethod)

    def on(self, model: Callable[..., Any], **forward_kwargs: Any) -> MethodSpec:
        """Build a class of Captum on the logits of a model; other specs are returned unchanged."""
        if not isinstance(self.method, type):
            return self
        inner: Any = model
        while isinstance(inner, functools.partial):  # DeepLift sees the modules in a module alone
            inner, forward_kwargs = inner.func, {**inner.keywords, **forward_kwargs}
        return replace(self, method=self.method(LogitsModel(inner, **forward_kwargs)))


MethodLike: TypeAlias = (
    str | tuple[str, Mapping[str, Any]] | type[Attribution] | Attribution | MethodSpec
)
MethodLikes: TypeAlias = Sequence[MethodLike] | Mapping[str, MethodLike]


class MethodMaps(NamedTuple):
    """The maps of a method.

    Attributes:
        patches: relevance of each patch, (B, rows, columns).
        fine_maps: the same at the method's resolution, (B, rows, columns) of any number, if it is
            finer than the patch.
    """

    patches: Tensor
    fine_maps: Tensor | None = None


@dataclass(frozen=True)
class AttributionTask:
    """The images and classes that every method of a comparison explains.

    Attributes:
        model: the explained model, as the user passed it.
        readout: the readout for methods that are built by name.
        pixels: pixel values (B, channels, height, width).
        target: the explained class of each image.
        contrast: a class whose score is subtracted.
        grid: rows and columns of patches.
        kwargs: further keywords of the model's forward, for methods of hf_gmar.
    """

    model: Callable[..., Any]
    readout: ReadoutSpec
    pixels: Tensor
    target: Target
    contrast: Target
    grid: tuple[int, int]
    kwargs: Mapping[str, Any]

    def runner(self, spec: MethodSpec) -> Callable[[], MethodMaps]:
        """Return a function that computes the method's maps.

        Raises:
            OptionError: the method can't explain such targets.
            UnsupportedModelError: the method can't explain the model.
        """
        method, options = self._build(spec)
        # A clone, because a method may write into it; some of Captum's need this format.
        pixels = self.pixels.detach().clone(memory_format=torch.contiguous_format)
        if isinstance(method, AttributionMethod):
            keywords = {"contrast": self.contrast, **self.kwargs, **options}
            if method.is_fine:
                return lambda: self._with_fine_maps(method, pixels, keywords)
            return lambda: MethodMaps(
                self._checked(method.attribute_patches(pixels, self.target, **keywords))
            )
        if self.contrast is not None:
            raise OptionError(
                "Captum's methods explain one score, not the difference of two; leave out the "
                "contrast, or build the method on a model that returns the difference"
            )
        keywords = {**captum_defaults(method, pixels, self.grid), **options}
        pixels.requires_grad_()  # otherwise Captum sets it with a warning

        def run() -> MethodMaps:
            with _notices_hidden():
                attributions = method.attribute(pixels, target=self.target, **keywords)
            return MethodMaps(self._checked(sum_over_patches(attributions, pixels, self.grid)))

        return run

    def _with_fine_maps(
        self, method: AttributionMethod, pixels: Tensor, keywords: Mapping[str, Any]
    ) -> MethodMaps:
        result = method.attribute_with_scores(pixels, [self.target], **keywords)
        patches = self._checked(result.maps[0])
        fine: Any = result.fine_maps
        return MethodMaps(patches, fine[0].detach().float().cpu())

    def _build(self, spec: MethodSpec) -> tuple[Any, Mapping[str, Any]]:
        if not isinstance(spec.method, str):
            return spec.on(self.model, **self.kwargs).method, spec.options
        options = dict(spec.options)
        if self.readout is not None and "readout" in METHODS.options(spec.method):
            options.setdefault("readout", self.readout)
        return METHODS.build(spec.method, self.model, **options), {}

    def _checked(self, patches: Any) -> Tensor:
        needed = (len(self.pixels), *self.grid)
        if not isinstance(patches, Tensor) or tuple(patches.shape) != needed:
            shape = tuple(getattr(patches, "shape", ()))
            raise ModelOutputError(f"its map has the shape {shape}, and {needed} is needed")
        if not torch.isfinite(patches).all():
            raise ModelOutputError("its map holds NaN or infinity")
        result: Tensor = patches.detach().cpu()
        return result if result.dtype == torch.float64 else result.float()


@contextmanager
def _notices_hidden() -> Iterator[None]:
    """Hide Captum's warnings about correct calls."""
    with warnings.catch_warnings():
        # Hooks are always removed here, and several inputs are intended.
        warnings.filterwarnings("ignore", message=r"\s*Setting (forward, )?backward hooks")
        warnings.filterwarnings("ignore", message="You are providing multiple inputs")
        yield


def as_method_specs(methods: MethodLikes | None) -> list[MethodSpec]:
    """Make a spec with a unique label for each method.

    ``None`` is every method of the registry that runs by default, which is all but the costly ones;
    these methods are optional.

    Raises:
        OptionError: there is no method, a name does not exist, or an item is no method.

    Example:
        >>> [spec.label for spec in as_method_specs(["gmar", ("gmar", {"alpha": 0.5}), "gmar"])]
        ['gmar', 'gmar (alpha=0.5)', 'gmar (2)']
    """
    if methods is None:
        # Without methods that can't be loaded.
        defaults = (name for name, method in METHODS.items() if method.by_default)
        methods = [MethodSpec(name, optional=True) for name in defaults]
    if isinstance(methods, str | type | Attribution | MethodSpec) or not methods:
        raise OptionError(
            f"methods must be a list of one or more, or a mapping from labels to them, got "
            f"{methods!r}"
        )
    if isinstance(methods, Mapping):
        specs = [replace(_as_spec(method), label=label) for label, method in methods.items()]
    else:
        specs = [_as_spec(method) for method in methods]
    labels = make_unique((spec.name for spec in specs), "{} ({})")
    return [replace(spec, label=label) for spec, label in zip(specs, labels, strict=True)]


def applicable(specs: Sequence[MethodSpec], adapter: ModelAdapter) -> tuple[list[MethodSpec], str]:
    """Leave out optional methods that need tokens, if the model has no fixed grid of them.

    Returns:
        The other methods, and a sentence that says which were left out and why; empty if none was.
    """
    left_out = [spec for spec in specs if adapter.has_cells and _is_optional(spec)]
    if not left_out:
        return list(specs), ""
    reason = lack_of_tokens(adapter.backbone, adapter.vision_model)
    names = ", ".join(titles_of(left_out).values())
    return [spec for spec in specs if spec not in left_out], f"{names} are left out: {reason}"


def _is_optional(spec: MethodSpec) -> bool:
    """Whether a method may be left out of a model without a fixed grid of tokens."""
    return spec.optional and isinstance(spec.method, str) and METHODS[spec.method].needs_tokens


def titles_of(specs: Sequence[MethodSpec]) -> dict[str, str]:
    """Return the titles of methods by label; no two are the same."""
    titles = make_unique((spec.title for spec in specs), "{} ({})")
    return dict(zip((spec.name for spec in specs), titles, strict=True))


def check_captum_names(names: Sequence[str]) -> None:
    """Raise an OptionError for a name that is not in ``CAPTUM``."""
    for name in names:
        if name not in CAPTUM:
            raise OptionError(
                f"Captum has no method {name!r} for this; there are {', '.join(CAPTUM)}"
            )


def sum_over_patches(attributions: Any, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
    """Sum attributions to pixels (B, channels, height, width) over each patch.

    Raises:
        ModelOutputError: the attributions and the pixels have different shapes.

    Example:
        >>> ones = torch.ones(1, 3, 4, 8)
        >>> sum_over_patches(ones, ones, (2, 4))
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
    pixel_sums: Tensor = attributions.detach().sum(1)
    patches: Tensor = pixel_sums.unflatten(2, (columns, -1)).unflatten(1, (rows, -1)).sum((2, 4))
    return patches


def captum_defaults(method: Attribution, pixels: Tensor, grid: tuple[int, int]) -> dict[str, Any]:
    """Return default keywords for one of Captum's methods.

    Example:
        >>> from captum.attr import Occlusion
        >>> captum_defaults(Occlusion(print), torch.zeros(1, 3, 32, 32), (4, 4))
        {'sliding_window_shapes': (3, 8, 8), 'strides': (3, 8, 8)}
    """
    inner = getattr(method, "attribution_method", None)  # NoiseTunnel passes keywords on
    if isinstance(inner, Attribution):
        return {} if isinstance(inner, AttributionMethod) else captum_defaults(inner, pixels, grid)
    base = next((base for base in type(method).__mro__ if base in _DEFAULTS), None)
    return {} if base is None else _DEFAULTS[base](pixels, grid)


def _window(pixels: Tensor, grid: tuple[int, int]) -> dict[str, Any]:
    patch = (pixels.shape[1], pixels.shape[2] // grid[0], pixels.shape[3] // grid[1])
    return {"sliding_window_shapes": patch, "strides": patch}


def _few_at_a_time(pixels: Tensor, _grid: tuple[int, int]) -> dict[str, Any]:
    """Limit the batch: all steps at once would take 50 times the memory of a gradient."""
    return {"internal_batch_size": max(len(pixels), 8)}


def _zeros(count: int, pixels: Tensor, _grid: tuple[int, int]) -> dict[str, Any]:
    return {"baselines": pixels.new_zeros(count, *pixels.shape[1:])}


def _patches(pixels: Tensor, grid: tuple[int, int]) -> dict[str, Any]:
    """Make each patch one feature; the default is a feature for each pixel and channel."""
    numbers = torch.arange(grid[0] * grid[1], device=pixels.device).view(1, 1, *grid)
    height, width = pixels.shape[2] // grid[0], pixels.shape[3] // grid[1]
    mask = numbers.repeat_interleave(height, 2).repeat_interleave(width, 3)
    return {"feature_mask": mask.expand(1, *pixels.shape[1:]).contiguous()}


_DEFAULTS: dict[type[Attribution], Callable[[Tensor, tuple[int, int]], dict[str, Any]]] = {
    captum.attr.IntegratedGradients: _few_at_a_time,
    captum.attr.Occlusion: _window,
    captum.attr.GradientShap: functools.partial(_zeros, 1),
    captum.attr.DeepLiftShap: functools.partial(_zeros, 2),  # it needs at least two baselines
    captum.attr.FeatureAblation: _patches,
    captum.attr.FeaturePermutation: _patches,
    captum.attr.ShapleyValueSampling: _patches,
    captum.attr.ShapleyValues: _patches,
    captum.attr.Lime: _patches,
    captum.attr.KernelShap: _patches,
}
"""Default keywords of Captum's methods, by class; subclasses inherit them."""


def _as_spec(method: Any) -> MethodSpec:
    spec = method
    if isinstance(method, type) and (name := METHODS.name_of(method)) is not None:
        spec = MethodSpec(name)
    elif isinstance(method, str | tuple | type):
        spec = _named(method)
    elif isinstance(method, Attribution):
        spec = MethodSpec(method)
    if not isinstance(spec, MethodSpec) or not isinstance(spec.method, str | type | Attribution):
        raise OptionError(
            f"a method is a name ({', '.join(METHODS)}), a name with its options "
            "('gmar:norm=l2,alpha=0.5', or a pair), a method of hf_gmar, one of Captum's "
            f"attribution methods, by class or name ({', '.join(CAPTUM)}), or a MethodSpec; got "
            f"{method!r}"
        )
    if isinstance(spec.method, str) and spec.method in CAPTUM:
        spec = replace(spec, method=getattr(captum.attr, spec.method))
    if isinstance(spec.method, type):
        _check_captum(spec.method)
    elif isinstance(spec.method, str):
        if spec.method not in METHODS:
            raise OptionError(
                f"there is no method {spec.method!r}; there are {', '.join(METHODS)}, and Captum's "
                f"{', '.join(CAPTUM)}"
            )
        METHODS.check(spec.method, spec.options)
    return spec


def _named(method: Any) -> Any:
    """Return the spec of a name or class, with options or without; else the argument."""
    named = parse_spec(method) if isinstance(method, str) else method
    named = (named, {}) if isinstance(named, type) else named
    is_named = len(named) == 2 and isinstance(named[0], str | type)
    if not is_named or not isinstance(named[1], Mapping):
        return method
    return MethodSpec(named[0], options=dict(named[1]))


def _check_captum(kind: type) -> None:
    """Raise an OptionError for a class that is built on more than a model, or is no method."""
    if issubclass(kind, AttributionMethod):
        raise OptionError(
            f"{kind.__name__} has no name yet: hf_gmar.register_method('NAME', {kind.__name__}), "
            "or pass a built method"
        )
    if kind not in (getattr(captum.attr, name) for name in CAPTUM):
        raise OptionError(
            f"{kind.__name__} can't be built on a model alone; the classes of Captum that can are "
            f"{', '.join(CAPTUM)}. Build others yourself, such as "
            f"{kind.__name__}(hf_gmar.LogitsModel(model), ...)"
        )


def _name_of(method: Attribution) -> str:
    kind = type(method)
    inner = getattr(method, "attribution_method", None)
    if isinstance(inner, Attribution):
        return f"{kind.__name__} of {_name_of(inner)}"
    return METHODS.name_of(kind) or kind.__name__


def modules_of(specs: Sequence[MethodSpec]) -> Iterator[nn.Module]:
    """Yield the modules that methods were built on, which may differ from the model."""
    for spec in specs:
        method: Any = spec.method
        while isinstance(method, Attribution):
            for model in (getattr(method, "forward_func", None), getattr(method, "model", None)):
                owner = model if isinstance(model, nn.Module) else getattr(model, "__self__", None)
                if isinstance(owner, nn.Module):
                    yield from owner.modules()
            method = getattr(method, "attribution_method", None)
