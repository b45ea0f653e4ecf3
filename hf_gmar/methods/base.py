"""The base of all methods: Captum's interface around a patch map."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from inspect import signature
from typing import Any, ClassVar, Literal, NamedTuple, Self, TypeAlias, TypeVar

import torch
from captum.attr import GradientAttribution
from captum.log import log_usage
from torch import Tensor

from hf_gmar._core.execution import predict
from hf_gmar._core.inputs import PixelInputs, checked_request, pixels_of, size_errors, target_list
from hf_gmar._core.model_adapter import ModelAdapter, ModelLike, model_in
from hf_gmar._core.patch_maps import spread
from hf_gmar._core.request import ForwardRequest
from hf_gmar._core.targets import RecordingTarget, Target, TargetSpec
from hf_gmar._core.token_layout import ReadoutSpec, TokenLayout
from hf_gmar._engines.shifts import patch_means, shifted_maps
from hf_gmar._utils.html import html_facts
from hf_gmar._utils.text import brief
from hf_gmar._utils.validation import check_option, check_resolution, shown
from hf_gmar.errors import OptionError

Inputs = TypeVar("Inputs", Tensor, tuple[Tensor, ...])

PassCount: TypeAlias = Literal[
    "forward",
    "forward + backward",
    "forward + backward + head re-evaluation",
    "forward for each player and sample",
]
"""Passes through the model for one map. Head re-evaluation: the class head runs once more for each
layer. Player and sample: see :class:`~hf_gmar.methods.ShapleyValues`."""


Resolution: TypeAlias = int | Literal["patch", "pixel"]
"""What has a value of its own: each patch, each of k x k cells in a patch, or each pixel."""


class ScoredAttribution(NamedTuple):
    """The maps of some images with the scores that they explain.

    Attributes:
        scores: the class scores (B, C), without gradients; (B, 0) of a model without a class head.
        classes: the explained class of each image for each of T targets, (T, B); a flat index of
            the scores of an image, the first one of a region, or -1 without a class.
        maps: relevance of each patch, (T, B, rows, columns).
        fine_maps: the same at the method's ``resolution``, if it is finer than the patch: relevance
            of each cell, (T, B, rows * k, columns * k), or of each pixel, summed over the channels,
            (T, B, height, width).
    """

    scores: Tensor
    classes: Tensor
    maps: Tensor
    fine_maps: Tensor | None = None


class AttributionMethod(GradientAttribution):  # type: ignore[misc]  # Captum's base is untyped
    """Base of all methods: one patch map for each image and explained class.

    The model may have any mode and attention implementation. During an explanation dropout is off,
    weights get no gradient, and the model's state is restored afterwards. Threads that explain the
    same model wait for each other; threads that only run it are not affected.

    A subclass sets the class variables and returns its maps from ``_explain``. Its docstring
    lists its own options and errors; the following hold for all methods.

    Args:
        model: a Transformers vision model with a class head, or any module or callable that
            returns class scores (B, C) and holds exactly one such model.
        readout: which tokens a class head of your own reads: ``"cls"``, ``"patches"`` (their
            mean), ``"cls+patches"`` (half each), ``"tokens"`` (the mean of all), ``"pooling"`` (an
            attention-pooling head), ``"place"`` (the patches under the explained place of scores
            (B, classes, rows, columns)) or a share (float) for each prefix token. Methods without
            gradients also take the row and column of one patch, two whole numbers. ``None`` is for
            the class heads of Transformers and, without gradients, for their backbones.
        grid: rows and columns of the map of a model without a fixed grid of patches, such as Swin;
            ``None`` for the largest divisors of height and width up to 32. Only for methods that
            need no tokens.
        resolution: ``"patch"`` for one value for each patch; a whole number k for k x k cells in
            each patch, whose sides it must divide. The map is then the mean over k x k shifts of
            the image by parts of a patch, each shifted back, at the cost of k x k explanations. A
            cell has the mean of the patches around it, and a patch the mean of its cells.
            :meth:`attribute` and ``fine_maps`` of :meth:`attribute_with_scores` return the cells.
            Methods of pixels differ: see :class:`AttnLRP` and :class:`InputXGradient`.

    Raises:
        UnsupportedModelError: an unknown family, a hierarchical family for a method that needs
            tokens, no model or several models, or a head of your own without a readout.
        OptionError: an unknown option, a value outside its range, or a layer that does not exist.
    """

    title: ClassVar[str]
    """The name as papers write it, for tables and figures; by default the name of the class."""
    source: ClassVar[str]
    """The paper that defines the method."""
    cost: ClassVar[PassCount]
    """Passes through the model for one map."""
    class_specific: ClassVar[bool] = True
    """Whether the map depends on the target."""
    signed: ClassVar[bool] = False
    """Whether values may be negative: evidence against the class."""
    unit: ClassVar[str] = "relevance"
    """The meaning of a patch's value, for the colour bar of a figure."""
    shows: ClassVar[str] = ""
    """The question that the map answers, in a few words."""
    by_default: ClassVar[bool] = True
    """Whether comparisons and evaluations that name no methods run it."""
    needs_tokens: ClassVar[bool] = True
    """Whether the model must have the same patch tokens in all layers. If not, other models get a
    map of cells of pixels."""
    needs_scores: ClassVar[bool] = True
    """Whether the model must return class scores. If not, the target may be of no class."""
    resolutions: ClassVar[tuple[str, ...]] = ("patch",)
    """The names that ``resolution`` takes beside numbers."""
    _options: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Give the class its own name as title, not the title of its base."""
        super().__init_subclass__(**kwargs)
        if "title" not in vars(cls):
            cls.title = cls.__name__

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Note the options, which a subclass turns into other things, for the representation."""
        method: Self = super().__new__(cls)
        names = list(signature(cls.__init__).parameters)[2:]  # without self and model
        given = {**dict(zip(names, args[1:], strict=False)), **options}
        given.pop("model", None)
        method._options = given  # its own
        return method

    def __init__(
        self,
        model: ModelLike,
        readout: ReadoutSpec = None,
        grid: Sequence[int] | None = None,
        resolution: Resolution = "patch",
    ) -> None:
        self.adapter = ModelAdapter.of(model, readout, needs_scores=self.needs_scores, grid=grid)
        if self.needs_tokens:
            _ = self.adapter.tokens  # raises the error
        self.resolution = self._checked_resolution(resolution)
        super().__init__(self.adapter)  # Captum's forward_func
        self.model = model_in(model)

    def __repr__(self) -> str:
        """Name the method, the class of its model and the options that were given."""
        options = [f"{name}={value!r}" for name, value in self._options.items()]
        parts = ", ".join([type(self.model).__name__, *options])
        return f"{brief(type(self).__name__)}({brief(parts, 300)})"

    def _repr_html_(self) -> str:
        """Show the facts of the method in a notebook."""
        return html_facts({**self.facts(), "model class": type(self.model).__name__})

    def facts(self) -> dict[str, str]:
        """Return names and values: method, options, source, cost, and what its values say."""
        options = ", ".join(f"{name}={value!r}" for name, value in self._options.items())
        return {
            "method": self.title,
            **({"options": options} if options else {}),
            "source": getattr(self, "source", "not named"),
            "cost": getattr(self, "cost", "not named") + self._repetitions,
            "class-specific": "yes" if self.class_specific else "no",
            "values": f"{'signed' if self.signed else '>= 0'}, {self.unit}",
        }

    @classmethod
    def per(cls, resolution: Resolution) -> str:
        """What a value of the map belongs to, for the colour bar of a figure."""
        if not isinstance(resolution, int) or resolution == 1:
            return "patch"
        return f"patch, mean of {resolution**2} shifts"

    @property
    def cells_per_side(self) -> int:
        """Cells on each side of a patch, k of the ``resolution``."""
        return self.resolution if isinstance(self.resolution, int) else 1

    @property
    def is_fine(self) -> bool:
        """Whether the resolution is finer than the patch."""
        return self.resolution not in ("patch", 1)

    @log_usage()  # type: ignore[untyped-decorator]  # Captum's NoiseTunnel needs __wrapped__
    def attribute(
        self,
        inputs: Inputs | Mapping[str, Tensor] | None = None,
        target: Target = None,
        additional_forward_args: Any = None,
        contrast: Target = None,
        **forward_kwargs: Any,
    ) -> Inputs:
        """Return the relevance of each pixel: the value of its patch, or of its cell.

        Args:
            inputs: pixel values (B, channels, height, width), a tuple with that one tensor, or the
                output of an image processor, also unpacked: ``attribute(**processed)``. Videos are
                (B, frames, channels, height, width), and spectrograms (B, time, mel bins).
            target: the explained class. An int (all images), a list or 1-D tensor of B class
                indices, a tuple (or a list of B tuples) if scores have several dimensions for each
                image, or ``None`` for the top class of each image. A slice in a tuple explains the
                mean of a region: ``(3, slice(0, 4), slice(2, 6))``.
            additional_forward_args: further positional arguments of the model: one value or a
                tuple, as in Captum. ``(None, True)`` interpolates a ViT's positions.
            contrast: a second class, in the same forms as the target. The explained score is then
                the target's score minus the contrast's.
            **forward_kwargs: further keyword arguments that the model's forward names, such as
                ``interpolate_pos_encoding=True``.

        Returns:
            Tensor of the inputs' shape, dtype and device, contiguous and detached. Each pixel in
            each channel has the value of its patch in :meth:`attribute_patches`, or of its cell if
            the resolution is finer than the patch. For a tuple of inputs, a tuple.

        Raises:
            InputError: inputs of a wrong type, shape, size, device or with NaN or infinity, or a
                readout at a place outside of the image's grid.
            TargetError: a class index out of range, not one for each image, or a target that is
                its own contrast.
            ModelOutputError: no scores, no attention maps or no finite gradient.
            OptionError: a keyword that the model's forward does not name, or a contrast for a
                method whose map is the same for all classes.
        """
        pixels, forward_kwargs = pixels_of(inputs, forward_kwargs)
        if self.is_fine:
            spec = self._target_spec(target, contrast)
            (values,) = self._maps_with_fine(
                pixels, [spec], additional_forward_args, forward_kwargs
            )[1]
        else:
            values = self.attribute_patches(
                pixels, target, additional_forward_args, contrast, **forward_kwargs
            )
        layout = self.adapter.layout
        axes = layout.axes if isinstance(layout, TokenLayout) else (-2, -1)
        overlap = layout.overlap if isinstance(layout, TokenLayout) else None
        attribution: Any = spread(values, pixels, axes, overlap)
        result: Inputs = (attribution,) if isinstance(inputs, tuple) else attribution
        return result

    def attribute_patches(
        self,
        inputs: PixelInputs = None,
        target: Target = None,
        additional_forward_args: Any = None,
        contrast: Target = None,
        **forward_kwargs: Any,
    ) -> Tensor:
        """Return the relevance of each patch, (B, rows, columns).

        Of videos it is (B, tubelets, rows, columns), and of spectrograms (B, time, frequency).
        Arguments and errors are those of :meth:`attribute`. The dtype is float32, or float64 for a
        float64 model. With a finer resolution, a patch has the mean of its cells; relevance of
        pixels is summed.
        """
        target_spec = self._target_spec(target, contrast)
        (patches,) = self._maps(inputs, [target_spec], additional_forward_args, forward_kwargs)
        return patches

    def attribute_targets(
        self,
        inputs: PixelInputs = None,
        targets: Iterable[Target] = (),
        additional_forward_args: Any = None,
        contrast: Target = None,
        **forward_kwargs: Any,
    ) -> Tensor:
        """Return the relevance of each patch for several targets, with one forward in all.

        Errors are those of :meth:`attribute`.

        Args:
            inputs: see :meth:`attribute`.
            targets: T targets, each in any form of :meth:`attribute`: ``[281, 207]`` explains
                two classes of every image. The first dimension of a tensor is T.
            additional_forward_args: see :meth:`attribute`.
            contrast: see :meth:`attribute`; the same for all targets.
            **forward_kwargs: see :meth:`attribute`.

        Returns:
            Tensor (T, B, rows, columns); row t is ``attribute_patches(inputs, targets[t])``.
        """
        target_specs = [self._target_spec(target, contrast) for target in target_list(targets)]
        return torch.stack(
            self._maps(inputs, target_specs, additional_forward_args, forward_kwargs)
        )

    def attribute_with_scores(
        self,
        inputs: PixelInputs = None,
        targets: Iterable[Target] | None = None,
        additional_forward_args: Any = None,
        contrast: Target = None,
        top_k: int = 1,
        **forward_kwargs: Any,
    ) -> ScoredAttribution:
        """Return the maps of :meth:`attribute_targets` and the scores, with one forward in all.

        Errors are those of :meth:`attribute`.

        Args:
            inputs: see :meth:`attribute`.
            targets: see :meth:`attribute_targets`; ``None`` explains the ``top_k`` classes of each
                image with the highest scores.
            additional_forward_args: see :meth:`attribute`.
            contrast: see :meth:`attribute`.
            top_k: the number of classes without targets; fewer if the model has fewer.
            **forward_kwargs: see :meth:`attribute`.

        Example:
            >>> from hf_gmar import GMAR, load_model
            >>> gmar = GMAR(load_model("bundled").model)
            >>> result = gmar.attribute_with_scores(torch.rand(2, 3, 96, 96), top_k=3)
            >>> result.scores.shape, result.classes.shape, result.maps.shape
            (torch.Size([2, 8]), torch.Size([3, 2]), torch.Size([3, 2, 8, 8]))
        """
        self.check_contrast(contrast)
        check_option("top_k", top_k, range(1, 2**31))
        specs = (
            [RecordingTarget(None, contrast, self.needs_scores, rank) for rank in range(top_k)]
            if targets is None
            else [
                RecordingTarget(target, contrast, self.needs_scores)
                for target in target_list(targets)
            ]
        )
        maps, fine_maps = self._maps_with_fine(
            inputs, specs, additional_forward_args, forward_kwargs
        )
        for spec in specs:
            if not spec.seen:  # a method of one's own need not resolve its targets
                spec.resolve(self.scores(inputs, additional_forward_args, **forward_kwargs))
        scores = specs[0].seen[0][0]
        count = len(maps) if targets is not None else max(1, min(top_k, scores.shape[1]))
        classes = torch.stack([spec.seen[0][1] for spec in specs[:count]])
        fine = torch.stack(fine_maps[:count]) if self.is_fine else None
        return ScoredAttribution(scores, classes, torch.stack(maps[:count]), fine)

    def scores(
        self,
        inputs: PixelInputs = None,
        additional_forward_args: Any = None,
        **forward_kwargs: Any,
    ) -> Tensor:
        """Return the class scores (B, C) that an explanation refers to, without gradients.

        They are (B, 0) if the model has no class head and the method needs none. Arguments and
        errors are those of :meth:`attribute`, without the target.
        """
        request = self._request(inputs, additional_forward_args, forward_kwargs)
        with size_errors(self.adapter, request.inputs):
            return predict(self.adapter, request)

    @abstractmethod
    def _explain(self, request: ForwardRequest, target_specs: Sequence[TargetSpec]) -> list[Tensor]:
        """Return a map (B, rows, columns) for each target, with one forward in all."""

    def _maps(
        self,
        inputs: PixelInputs,
        target_specs: Sequence[TargetSpec],
        args: Any,
        kwargs: dict[str, Any],
    ) -> list[Tensor]:
        return self._maps_with_fine(inputs, target_specs, args, kwargs)[0]

    def _maps_with_fine(
        self,
        inputs: PixelInputs,
        target_specs: Sequence[TargetSpec],
        args: Any,
        kwargs: dict[str, Any],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the maps of patches, and those of the resolution if it is finer."""
        request = self._request(inputs, args, kwargs)
        with size_errors(self.adapter, request.inputs):
            if not self.is_fine:
                return self._explain(request, target_specs), []
            return self._explain_finely(request, target_specs)

    def _explain_finely(
        self, request: ForwardRequest, target_specs: Sequence[TargetSpec]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the maps of patches and of cells."""
        cells, grid = self.cells_per_side, self.adapter.layout.grid(*request.inputs.shape[-2:])
        maps = shifted_maps(self._explain, request, target_specs, grid, cells)
        return [patch_means(values, cells) for values in maps], maps

    @property
    def _repetitions(self) -> str:
        """What the resolution adds to the cost."""
        count = self.cells_per_side**2
        return f", for each of {count} shifts of the image" if count > 1 else ""

    def _checked_resolution(self, resolution: Any) -> Resolution:
        layout = self.adapter.layout
        medium = self.adapter.medium
        if medium != "images" and (isinstance(resolution, bool) or resolution not in ("patch", 1)):
            raise OptionError(
                f"a resolution finer than the patch is for images, and "
                f"{type(self.adapter.backbone).__name__} takes {medium}; leave it out, got "
                f"resolution={shown(resolution)}"
            )
        if isinstance(layout, TokenLayout):
            sides = layout.patch_size or (1, 1)
            return check_resolution(resolution, self.resolutions, (sides[-2], sides[-1]))
        if resolution in (*self.resolutions, 1) and not isinstance(resolution, bool):
            choice: Resolution = resolution
            return choice
        raise OptionError(
            f"the map of {type(self.adapter.backbone).__name__} has cells of pixels instead of "
            f"patches, and no resolution={shown(resolution)} of these; leave it out, and say the "
            "rows and columns of the map, such as grid=(56, 56)"
        )

    @classmethod
    def check_contrast(cls, contrast: Any) -> None:
        """Raise an OptionError for a contrast if the map is the same for every class."""
        if contrast is not None and not cls.class_specific:
            raise OptionError(
                f"{cls.__name__} gives the same map for every class, so there is no contrast; got "
                f"contrast={contrast!r}. Leave it out, or use a method with gradients"
            )

    def _target_spec(self, target: Target, contrast: Target) -> TargetSpec:
        self.check_contrast(contrast)
        return TargetSpec(target, contrast, self.needs_scores)

    def _request(self, inputs: PixelInputs, args: Any, kwargs: dict[str, Any]) -> ForwardRequest:
        return checked_request(self.adapter, inputs, args, kwargs)
