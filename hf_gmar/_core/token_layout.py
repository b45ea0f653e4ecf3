"""Token layouts: the tokens of a model, and the tokens that its class head reads."""

from __future__ import annotations

import math
import numbers
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast, get_args

import torch
from torch import Tensor

from hf_gmar._core.families import (
    FAMILIES,
    READOUTS,
    UNSUPPORTED,
    UNTESTED,
    ZERO_SHOT_CLASSES,
    Family,
    Readout,
    Rest,
    has_cells,
    model_type,
)
from hf_gmar._core.patch_maps import Axes, in_input_order, patch_count, to_map
from hf_gmar._utils.validation import shown
from hf_gmar.errors import InputError, OptionError, UnsupportedModelError

ReadoutSpec: TypeAlias = str | tuple[float, ...] | tuple[int, int] | None
"""The readout of a user's own head: a name, a share (float) for each prefix token, or the row and
column (two whole numbers) of one patch, for methods without gradients."""


_IMAGE: Axes = (-2, -1)


@dataclass(frozen=True)
class TokenLayout:
    """Token order and readout of a model family.

    The tokens of an image are ``len(readout)`` prefix tokens (CLS, distillation, registers),
    then the patches, row by row. Patches of videos and spectrograms have other ``axes``.

    Attributes:
        readout: share of each prefix token in the class head's input; ``rest`` distributes the
            remaining share. ``(1.0,)`` is a CLS head, ``(0.5, 0.5)`` the mean of CLS and
            distillation heads, ``(0.0,)`` a mean over patches.
        patch_size: height and width of a patch in pixels, or its size along each of the axes;
            ``None`` for the config's.
        rest: tokens that get the remaining share: ``"patches"`` or all ``"tokens"`` evenly, all
            tokens by the ``"attention"`` of a pooling head, averaged over its heads, or the patches
            under the explained ``"place"`` of scores (B, classes, rows, columns).
        axes: the dimensions of the input that are cut into patches, counted from the end, in the
            order of the tokens: the last one changes fastest. ``(-4, -2, -1)`` is for videos (B,
            frames, channels, height, width) whose tokens come frame by frame.
        stride: the distance of neighbouring patches along each of the axes, if they overlap or
            leave out the last positions; ``None`` for the patch size.

    Raises:
        OptionError: shares below 0 or with a sum over 1, a patch size below 1, or an unknown rest.

    Example:
        >>> TokenLayout(readout=(1.0,)).readout_row(4, torch.float32)
        tensor([1., 0., 0., 0., 0.])
        >>> TokenLayout(readout=(0.5,)).readout_row(2, torch.float32)
        tensor([0.5000, 0.2500, 0.2500])
    """

    readout: tuple[float, ...]
    patch_size: tuple[int, ...] | None = None
    rest: Rest = "patches"
    axes: Axes = _IMAGE
    stride: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Check the shares and the patch size."""
        axes_fit = _is_tuple_of(numbers.Integral, self.axes) and len(set(self.axes)) > 0
        if not axes_fit or max(self.axes) >= 0 or len(set(self.axes)) < len(self.axes):
            raise OptionError(
                "axes must be different dimensions of the input, counted from the end, such as "
                f"(-2, -1) for rows and columns; got {shown(self.axes)}"
            )
        ones = (1,) * len(self.axes)
        size = ones if self.patch_size is None else self.patch_size
        stride = ones if self.stride is None else self.stride
        shares_fit = _is_tuple_of(numbers.Real, self.readout)
        # A number may be too large for a float.
        if shares_fit and max(map(abs, self.readout), default=0) > 1 + 1e-9:
            raise OptionError(f"readout shares must be from 0 to 1, got {shown(self.readout)}")
        sizes_fit = all(_is_tuple_of(numbers.Integral, part, len(ones)) for part in (size, stride))
        if not shares_fit or not sizes_fit:
            raise OptionError(
                "readout must be a tuple of shares such as (1.0,), and patch_size and stride None "
                f"or a whole number for each of the axes {self.axes}, such as (height, width) in "
                f"pixels; got {shown(self.readout)}, {shown(self.patch_size)} and "
                f"{shown(self.stride)}"
            )
        shares = (*self.readout, 1.0 - math.fsum(self.readout))
        if not all(share >= -1e-9 for share in shares):  # NaN is not a share either
            raise OptionError(
                f"readout shares must be >= 0 with a sum of at most 1, got {self.readout}"
            )
        if min(*size, *stride) < 1:
            raise OptionError(
                f"patch_size and stride must be at least 1, got {self.patch_size} and {self.stride}"
            )
        if self.rest not in get_args(Rest):
            raise OptionError(f"rest must be one of {', '.join(get_args(Rest))}; got {self.rest!r}")

    @property
    def num_prefix_tokens(self) -> int:
        """Number of tokens before the patches."""
        return len(self.readout)

    def readout_row(self, patches: int, dtype: torch.dtype, given: Tensor | None = None) -> Tensor:
        """Return the readout over all tokens, (prefix + patches,); it sums to 1.

        Args:
            patches: number of patches of an image.
            dtype: dtype of the result.
            given: distribution of the remaining share over all tokens, (B, prefix + patches), for
                ``rest="attention"`` and ``"place"``; the result then has this shape.
        """
        shares = torch.tensor([*self.readout, *[0.0] * patches], dtype=dtype)
        rest = max(0.0, 1.0 - math.fsum(self.readout))  # rounding must not make it negative
        if given is not None:
            return shares.to(given.device) + rest * given.to(dtype)
        shared = slice(self.num_prefix_tokens if self.rest == "patches" else 0, None)
        shares[shared] += rest / len(shares[shared])
        return shares

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of patches in an image of this size.

        Raises:
            InputError: the image is smaller than one patch, or not a whole number of patches.
            OptionError: the layout has no patch size.
            UnsupportedModelError: the patches are not those of images.
        """
        if not self.is_of_images or self.overlap:
            raise UnsupportedModelError(
                "this needs a model of images, whose patches have rows and columns and do not "
                f"overlap; the axes of these patches are {self.axes}. Methods such as AttnLRP "
                "explain the model's inputs"
            )
        if self.patch_size is None:
            raise OptionError("the layout has no patch_size; layout_for(model) fills it in")
        (rows, rest_down), (columns, rest_across) = (
            divmod(pixels, patch)
            for pixels, patch in zip((height, width), self.patch_size, strict=True)
        )
        if rest_down or rest_across or not rows or not columns:
            whole = [max(rows, 1) * self.patch_size[0], max(columns, 1) * self.patch_size[1]]
            size = "x".join(map(str, whole[:1] if whole[0] == whole[1] else whole))
            raise InputError(
                f"the image is {height} x {width} pixels (height x width), but the model cuts it "
                f"into patches of {self.patch_size[0]} x {self.patch_size[1]}; resize it to whole "
                f"patches, such as {whole[0]} x {whole[1]} (size= of load_model and the pipeline, "
                f"on the command line --size {size})"
            )
        return rows, columns

    def map_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the number of patches along each axis, in the order of the input.

        Args:
            shape: the shape of the inputs.

        Raises:
            InputError: an axis is shorter than one patch, or not a whole number of patches.

        Example:
            >>> video = TokenLayout((1.0,), patch_size=(2, 16, 16), axes=(-4, -2, -1))
            >>> video.map_shape((1, 8, 3, 224, 160))
            (4, 14, 10)
        """
        if self.is_of_images and not self.overlap:
            return self.grid(*shape[-2:])
        return in_input_order(self._counts(shape), self.axes)

    def to_map(self, values: Tensor, shape: Sequence[int]) -> Tensor:
        """Reshape values (..., patches) to a map (..., ``map_shape``) of inputs of this shape."""
        return to_map(values, self._counts(shape), self.axes)

    @property
    def is_of_images(self) -> bool:
        """Whether the patches are those of images, row by row."""
        return self.axes == _IMAGE

    @property
    def overlap(self) -> list[tuple[int, int]] | None:
        """Patch size and stride along each axis, in the order of the input.

        ``None`` if the input is cut into whole patches.
        """
        if self.patch_size is None or self.stride is None:
            return None
        patch, stride = (in_input_order(part, self.axes) for part in self._sizes)
        return list(zip(patch, stride, strict=True))

    @property
    def _sizes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Patch size and stride along each axis, in the order of the tokens."""
        if self.patch_size is None:
            raise OptionError("the layout has no patch_size; layout_for(model) fills it in")
        return self.patch_size, self.stride or self.patch_size

    def _counts(self, shape: Sequence[int]) -> list[int]:
        """Return the number of patches along each axis, in the order of the tokens."""
        patch, stride = self._sizes
        sizes = [shape[axis] for axis in self.axes]
        whole = [self.stride is None] * len(sizes)
        counts = list(map(patch_count, sizes, patch, stride, whole))
        if None in counts:
            given, needed = (in_input_order(part, self.axes) for part in (sizes, patch))
            raise InputError(
                f"the input has {' x '.join(map(str, given))} positions along the dimensions "
                f"{tuple(sorted(self.axes))}, but the model cuts it into patches of "
                f"{' x '.join(map(str, needed))}; give it whole patches"
            )
        return cast("list[int]", counts)


def _is_tuple_of(kind: type, values: Any, count: int | None = None) -> bool:
    matches = isinstance(values, tuple) and all(isinstance(value, kind) for value in values)
    return matches and count in (None, len(values))


_ANY = Family("", ())
"""The family of a registered layout."""

_LAYOUTS: dict[str, TokenLayout] = {}
"""Users' layouts by class name or ``model_type``; they take precedence over the families."""


def register_layout(name: str, layout: TokenLayout) -> None:
    """Add a family, or replace its entry.

    Args:
        name: a class name such as ``"MyViTForImageClassification"``, or a config's
            ``model_type``, for every head of the family.
        layout: tokens and readout of the family.

    Example:
        >>> register_layout("my_vit", TokenLayout(readout=(1.0, 0.0, 0.0)))  # CLS, two registers

    Raises:
        OptionError: the layout is no TokenLayout, or the name is no string.
    """
    if not isinstance(layout, TokenLayout) or not isinstance(name, str):
        raise OptionError(
            f"the name of a class or a model_type and a TokenLayout are needed, got {name!r} and "
            f"{layout!r}"
        )
    _LAYOUTS[name] = layout


def layout_for(model: Any, vision_model: Any, readout: ReadoutSpec = None) -> TokenLayout:
    """Return the layout of a Transformers model, with its patch size.

    Args:
        model: the outermost Transformers model; its class determines the readout.
        vision_model: the vision tower in it (often the same object); its config determines the
            tokens.
        readout: readout of a user's own head: a name in ``READOUTS`` or a share for each prefix
            token; ``None`` for the model's own head.

    Raises:
        UnsupportedModelError: an unknown or unsupported family, or no class head and no readout.
        OptionError: there is no such readout, or it does not fit the tokens.
    """
    registered, family = registered_layout(model, vision_model), family_of(vision_model)
    if readout is not None:
        layout = _custom_layout(readout, registered, family, model, vision_model)
    elif registered is not None:
        layout = registered
    elif family is None or model_type(model) in (*UNSUPPORTED, *UNTESTED):
        raise UnsupportedModelError(refusal(model, vision_model))
    else:
        name = own_readout(family, model, vision_model)
        if name is None:
            raise UnsupportedModelError(_no_head(model, family))
        layout = _layout(prefix_tokens(family, vision_model), name)
    size = layout.patch_size or (registered and registered.patch_size) or _patch_size(vision_model)
    axes, stride = layout.axes, layout.stride
    if registered is not None and (registered.axes, registered.stride) != (_IMAGE, None):
        axes, stride = registered.axes, registered.stride
    elif family is not None:
        axes, stride = family.axes, family.stride(vision_model)
    return replace(layout, patch_size=size, axes=axes, stride=stride)


def _custom_layout(
    readout: Any,
    registered: TokenLayout | None,
    family: Family | None,
    model: Any,
    vision_model: Any,
) -> TokenLayout:
    """Combine the tokens of the family, or of the registered layout, with the user's readout."""
    if family is not None:
        return _layout(prefix_tokens(family, vision_model), readout)
    if registered is None:
        raise UnsupportedModelError(refusal(model, vision_model))
    if readout == "place":
        return TokenLayout((0.0,) * registered.num_prefix_tokens, rest="place")
    return TokenLayout(_checked_shares(readout, registered.num_prefix_tokens))


def family_of(vision_model: Any) -> Family | None:
    """Return the family of a vision tower, or ``None``."""
    return FAMILIES.get(model_type(vision_model))


def layers_of(vision_model: Any) -> int:
    """Return the number of attention layers; an error if the config does not have it."""
    layers = (family_of(vision_model) or _ANY).layers(vision_model)
    if layers is None:
        raise UnsupportedModelError(
            f"the config of {type(vision_model).__name__} has no num_hidden_layers, the number of "
            "its attention layers; set it: model.config.num_hidden_layers = ..."
        )
    return int(layers)


def engines_of(vision_model: Any) -> tuple[str, ...]:
    """Return the engines that can explain a vision tower."""
    return (family_of(vision_model) or _ANY).engines


def prefix_tokens(family: Family, vision_model: Any) -> tuple[str, ...]:
    """Return the kinds of the prefix tokens."""
    return tuple(family.prefix(vision_model)) if callable(family.prefix) else family.prefix


def counted(prefix: tuple[str, ...]) -> str:
    """Describe prefix tokens in words.

    Example:
        >>> counted(("CLS", "register", "register")), counted(())
        ('CLS, 2 x register', 'none')
    """
    counts = Counter(prefix).items()
    return ", ".join(f"{n} x {kind}" if n > 1 else kind for kind, n in counts) or "none"


def _layout(prefix: tuple[str, ...], readout: str | tuple[float, ...]) -> TokenLayout:
    if not isinstance(readout, str):
        return TokenLayout(_checked_shares(readout, len(prefix)))
    if readout not in READOUTS:
        raise OptionError(
            f"readout must be one of {', '.join(map(repr, READOUTS))}, the (row, column) of a "
            f"patch, or a share for each of {len(prefix)} prefix tokens, got {readout!r}"
        )
    return TokenLayout(_shares(prefix, readout, READOUTS[readout]), rest=READOUTS[readout].rest)


def _shares(prefix: tuple[str, ...], name: str, readout: Readout) -> tuple[float, ...]:
    absent = [kind for kind in readout.tokens if kind not in prefix]
    if absent:
        raise OptionError(
            f"readout={name!r} reads {absent[0]}, but the tokens before the patches are "
            f"{counted(prefix)}"
        )
    read = [kind in readout.tokens for kind in prefix]
    return tuple(readout.share / sum(read) if is_read else 0.0 for is_read in read)


def _checked_shares(readout: Any, prefix: int) -> tuple[float, ...]:
    if not isinstance(readout, tuple) or not _is_tuple_of(numbers.Real, readout, prefix):
        raise OptionError(
            "readout must be the row and column of a patch as two whole numbers, or a tuple with a "
            f"share for each of {prefix} prefix tokens, got {readout!r}"
        )
    return readout


def own_readout(family: Family, model: Any, vision_model: Any) -> str | None:
    """Return the readout of one of Transformers' own class heads, a key of ``READOUTS``."""
    readout = next(_entries_for(model, family.heads, package="transformers."), None)
    return readout(vision_model) if callable(readout) else readout


def prompted_readout(model: Any) -> str | None:
    """Return the readout of an image-text model's image features; ``None`` for other models."""
    return next(_entries_for(model, ZERO_SHOT_CLASSES, package="transformers."), None)


def embedding_readout(vision_model: Any) -> str | None:
    """Return the readout of a tower's own embedding; ``None`` for an unknown family."""
    family = family_of(vision_model)
    if family is None:
        return None
    readout = family.embedding
    return str(readout(vision_model)) if callable(readout) else readout


def gives_scores(model: Any, vision_model: Any) -> bool:
    """Whether a Transformers model has a class head whose readout is known."""
    family = family_of(vision_model)
    known = family is not None and own_readout(family, model, vision_model) is not None
    return known or registered_layout(model, vision_model) is not None


def _entries_for(model: Any, table: Mapping[str, Any], package: str = "") -> Iterator[Any]:
    # A subclass has the readout of its base class if it inherits the forward. Classes of the same
    # name in other packages may have another readout.
    kind = type(model)
    bases = [b for b in kind.__mro__ if getattr(b, "forward", None) is kind.forward]
    names = [b.__name__ for b in bases if b.__module__.startswith(package)]
    return (table[name] for name in names if name in table)


def registered_layout(model: Any, vision_model: Any) -> TokenLayout | None:
    """Return the layout that a user registered for a model, or ``None``."""
    by_class = next(_entries_for(model, _LAYOUTS), None)
    return by_class or _LAYOUTS.get(model_type(model)) or _LAYOUTS.get(model_type(vision_model))


def _patch_size(vision_model: Any) -> tuple[int, ...]:
    family = family_of(vision_model) or _ANY
    size = family.patch_size(vision_model)
    if size is None:
        raise UnsupportedModelError(
            f"the config of {type(vision_model).__name__} has no patch_size; register its layout "
            "with register_layout(name, TokenLayout(readout=..., patch_size=(height, width)))"
        )
    return (size, size) if isinstance(size, int) else tuple(size)


def _no_head(model: Any, family: Family) -> str:
    name, heads = type(model).__name__, ", ".join(family.heads)
    similar = (
        ", and hf_gmar.SimilarityModel (SimilarTo) explains the similarity to another image"
        if family.medium == "images"
        else ""
    )
    load = f"load one of the family's class heads, {heads}; or " if heads else ""
    return (
        f"it is not known which tokens the class scores of {name} ({family.title}) come from: "
        f"{load}put it into an nn.Module with a head of your own and say which tokens that reads, "
        f"GMAR(model, readout=...) with one of {', '.join(map(repr, READOUTS))}; or register it "
        f"with hf_gmar.register_layout({name!r}, TokenLayout(readout=...)). Without a class head, "
        f"RawAttention and AttentionRollout need no class{similar}"
    )


def lack_of_tokens(model: Any, vision_model: Any) -> str:
    """Say that a model has no fixed grid of patch tokens, and why."""
    reason = _reason(model, vision_model)
    lack = f"{type(model).__name__} has no fixed grid of patch tokens"
    return f"{lack}: {reason}" if reason else lack


def _reason(model: Any, vision_model: Any) -> str | None:
    return UNSUPPORTED.get(model_type(model)) or UNSUPPORTED.get(model_type(vision_model))


def refusal(model: Any, vision_model: Any) -> str:
    """Say why a Transformers model is not explained, and what to do."""
    kind, name = model_type(model), type(model).__name__
    reason = _reason(model, vision_model)
    if reason:
        others = (
            "the methods attn-lrp, input-x-gradient and shapley-values explain it; "
            if has_cells(model, vision_model)
            else ""
        )
        return (
            f"attention rollout does not apply to {name}: {reason}; {others}'hf-gmar models' lists "
            "what is supported"
        )
    if kind in UNTESTED:
        return (
            f"hf_gmar has not been proven on {name}; 'hf-gmar models' lists what is supported. To "
            "try it all the same, put it into an nn.Module that returns scores and say which "
            f"tokens they come from with hf_gmar.register_layout({name!r}, TokenLayout(...))"
        )
    return (
        f"{name} (model_type {kind!r}) is not a known family, and its token order is not "
        "guessed; 'hf-gmar models' lists what is supported. If it gives class scores, and all its "
        "layers have the same tokens, the patches of one image after any prefix tokens, add it "
        f"with hf_gmar.register_layout({name!r}, TokenLayout(readout=...)); otherwise it can't be "
        "explained"
    )
