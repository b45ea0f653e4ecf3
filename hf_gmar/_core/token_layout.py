"""Which tokens a model has, and which of them its class head reads."""

from __future__ import annotations

import math
import numbers
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, get_args

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
)
from hf_gmar.errors import InputError, OptionError, UnsupportedModelError

ReadoutSpec: TypeAlias = str | tuple[float, ...] | None
"""How a user says what a head of their own reads: a name, or a share for each prefix token."""


@dataclass(frozen=True)
class TokenLayout:
    """Token order and readout of a model family.

    The tokens of an image are ``len(readout)`` prefix tokens (CLS, distillation, registers),
    then the patches, row by row.

    Attributes:
        readout: for each prefix token, the share of the class head's input that comes from it.
            What is missing to 1 is spread over the rest. ``(1.0,)`` is a CLS head, ``(0.5, 0.5)``
            the mean of CLS and distillation heads, ``(0.0,)`` a mean over patches.
        patch_size: height and width of a patch in pixels; ``None`` takes the config's.
        rest: who shares what is missing to 1: ``"patches"`` or all ``"tokens"`` evenly, or all
            tokens by the ``"attention"`` of a pooling head, averaged over its heads.

    Raises:
        OptionError: shares below 0 or with a sum over 1, a patch size below 1, or an unknown rest.

    Example:
        >>> TokenLayout(readout=(1.0,)).readout_row(4, torch.float32)
        tensor([1., 0., 0., 0., 0.])
        >>> TokenLayout(readout=(0.5,)).readout_row(2, torch.float32)
        tensor([0.5000, 0.2500, 0.2500])
    """

    readout: tuple[float, ...]
    patch_size: tuple[int, int] | None = None
    rest: Rest = "patches"

    def __post_init__(self) -> None:
        """Check the shares and the patch size."""
        size = (1, 1) if self.patch_size is None else self.patch_size
        if not _are(self.readout, numbers.Real) or not _are(size, numbers.Integral, 2):
            raise OptionError(
                "readout must be a tuple of shares such as (1.0,), and patch_size None or whole "
                f"(height, width) in pixels; got {self.readout!r} and {self.patch_size!r}"
            )
        shares = (*self.readout, 1.0 - math.fsum(self.readout))
        if not all(share >= -1e-9 for share in shares):  # NaN is not a share either
            raise OptionError(
                f"readout shares must be >= 0 with a sum of at most 1, got {self.readout}"
            )
        if min(size) < 1:
            raise OptionError(f"patch_size must be at least 1 pixel, got {self.patch_size}")
        if self.rest not in get_args(Rest):
            raise OptionError(f"rest must be one of {', '.join(get_args(Rest))}; got {self.rest!r}")

    @property
    def num_prefix_tokens(self) -> int:
        """How many tokens stand before the patches."""
        return len(self.readout)

    def readout_row(
        self, patches: int, dtype: torch.dtype, pooling: Tensor | None = None
    ) -> Tensor:
        """The readout over all tokens, (prefix + patches,); sums to 1.

        Args:
            patches: how many patches an image has.
            dtype: of the result.
            pooling: attention of the pooling head over all tokens, (B, prefix + patches), if
                ``rest`` asks for it; the result is (B, prefix + patches) then.
        """
        shares = torch.tensor([*self.readout, *[0.0] * patches], dtype=dtype)
        rest = max(0.0, 1.0 - math.fsum(self.readout))  # rounding must not make it negative
        if pooling is not None:
            return shares.to(pooling.device) + rest * pooling.to(dtype)
        shared = slice(self.num_prefix_tokens if self.rest == "patches" else 0, None)
        shares[shared] += rest / len(shares[shared])
        return shares

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches in an image of that many pixels.

        Raises:
            InputError: the image is smaller than one patch, or not a whole number of patches.
            OptionError: the layout has no patch size.
        """
        if self.patch_size is None:
            raise OptionError("the layout has no patch_size; layout_for(model) fills it in")
        (rows, rest_down), (columns, rest_across) = (
            divmod(pixels, patch)
            for pixels, patch in zip((height, width), self.patch_size, strict=True)
        )
        if rest_down or rest_across or not rows or not columns:
            raise InputError(
                f"the image is {height} x {width} pixels (height x width), but the model cuts it "
                f"into patches of {self.patch_size[0]} x {self.patch_size[1]}; resize it to whole "
                "patches, for example with the model's image processor"
            )
        return rows, columns


def _are(values: Any, kind: type, count: int | None = None) -> bool:
    right = isinstance(values, tuple) and all(isinstance(value, kind) for value in values)
    return right and count in (None, len(values))


_ANY = Family("", ())
"""What a family that a user registered is taken for."""

_LAYOUTS: dict[str, TokenLayout] = {}
"""What users registered, by class name or ``model_type``; goes before the families."""


def register_layout(name: str, layout: TokenLayout) -> None:
    """Add a family, or replace the entry of one.

    Args:
        name: a class name such as ``"MyViTForImageClassification"``, or a config's
            ``model_type``, which then holds for every head of the family.
        layout: its tokens and readout.

    Example:
        >>> register_layout("my_vit", TokenLayout(readout=(1.0, 0.0, 0.0)))  # CLS, two registers

    Raises:
        OptionError: the layout is no TokenLayout, or the name no text.
    """
    if not isinstance(layout, TokenLayout) or not isinstance(name, str):
        raise OptionError(
            f"the name of a class or a model_type and a TokenLayout are needed, got {name!r} and "
            f"{layout!r}"
        )
    _LAYOUTS[name] = layout


def layout_for(model: Any, vision_model: Any, readout: ReadoutSpec = None) -> TokenLayout:
    """The layout of a Transformers model, with its patch size filled in.

    Args:
        model: the outermost Transformers model; its class says what the class head reads.
        vision_model: the vision tower in it (often the same object); its config says which tokens
            it has.
        readout: what a head of the user's own reads: a name in ``READOUTS`` or a share for each
            prefix token; ``None`` is for the model's own head.

    Raises:
        UnsupportedModelError: the family is not known or can't be explained, or it has no class
            head and no readout is said; the message tells what to do.
        OptionError: there is no such readout, or it does not fit the tokens.
    """
    registered, family = _registered(model, vision_model), family_of(vision_model)
    if readout is not None:
        layout = _custom_layout(readout, registered, family, model, vision_model)
    elif registered is not None:
        layout = registered
    elif family is None or _kind(model) in (*UNSUPPORTED, *UNTESTED):
        raise UnsupportedModelError(refusal(model, vision_model))
    else:
        name = own_readout(family, model, vision_model)
        if name is None:
            raise UnsupportedModelError(_no_head(model, family))
        layout = _layout(prefix_tokens(family, vision_model), name)
    size = layout.patch_size or (registered and registered.patch_size) or _patch_size(vision_model)
    return replace(layout, patch_size=size)


def _custom_layout(
    readout: Any,
    registered: TokenLayout | None,
    family: Family | None,
    model: Any,
    vision_model: Any,
) -> TokenLayout:
    """The tokens of the family, or else of the registered layout, with a readout of the user's."""
    if family is not None:
        return _layout(prefix_tokens(family, vision_model), readout)
    if registered is None:
        raise UnsupportedModelError(refusal(model, vision_model))
    return TokenLayout(_checked_shares(readout, registered.num_prefix_tokens))


def family_of(vision_model: Any) -> Family | None:
    """The family of a vision tower, if it is in the table."""
    return FAMILIES.get(_kind(vision_model))


def layers_of(vision_model: Any) -> int:
    """How many attention layers a vision tower has; an error if its config does not say it."""
    layers = (family_of(vision_model) or _ANY).layers(vision_model)
    if layers is None:
        raise UnsupportedModelError(
            f"the config of {type(vision_model).__name__} has no num_hidden_layers, the number of "
            "its attention layers; set it: model.config.num_hidden_layers = ..."
        )
    return int(layers)


def engines_of(vision_model: Any) -> tuple[str, ...]:
    """The engines that can explain a vision tower."""
    return (family_of(vision_model) or _ANY).engines


def prefix_tokens(family: Family, vision_model: Any) -> tuple[str, ...]:
    """Kinds of the tokens before the patches."""
    return tuple(family.prefix(vision_model)) if callable(family.prefix) else family.prefix


def counted(prefix: tuple[str, ...]) -> str:
    """Prefix tokens in words.

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
            f"readout must be one of {', '.join(map(repr, READOUTS))} or a share for each of "
            f"{len(prefix)} prefix tokens, got {readout!r}"
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
    if not isinstance(readout, tuple) or not _are(readout, numbers.Real, prefix):
        raise OptionError(
            f"readout must be a tuple with a share for each of {prefix} prefix tokens, got "
            f"{readout!r}"
        )
    return readout


def own_readout(family: Family, model: Any, vision_model: Any) -> str | None:
    """What the head of one of Transformers' own classes reads, a key of ``READOUTS``."""
    readout = next(_known_as(model, family.heads, own="transformers."), None)
    return readout(vision_model) if callable(readout) else readout


def prompted_readout(model: Any) -> str | None:
    """What the image features of a model of image and text read; ``None`` for other models."""
    return next(_known_as(model, ZERO_SHOT_CLASSES, own="transformers."), None)


def _known_as(model: Any, table: Mapping[str, Any], own: str = "") -> Iterator[Any]:
    # A subclass of a known class keeps its layout as long as it keeps its forward, and with it the
    # readout. A class of that name in other code may read what it likes.
    kind = type(model)
    bases = [b for b in kind.__mro__ if getattr(b, "forward", None) is kind.forward]
    names = [b.__name__ for b in bases if b.__module__.startswith(own)]
    return (table[name] for name in names if name in table)


def _registered(model: Any, vision_model: Any) -> TokenLayout | None:
    by_class = next(_known_as(model, _LAYOUTS), None)
    return by_class or _LAYOUTS.get(_kind(model)) or _LAYOUTS.get(_kind(vision_model))


def _kind(model: Any) -> str:
    return str(getattr(getattr(model, "config", None), "model_type", None))


def _patch_size(vision_model: Any) -> tuple[int, int]:
    family = family_of(vision_model) or _ANY
    size = family.patch_size(vision_model)
    if size is None:
        raise UnsupportedModelError(
            f"the config of {type(vision_model).__name__} has no patch_size; register its layout "
            "with register_layout(name, TokenLayout(readout=..., patch_size=(height, width)))"
        )
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return height, width


def _no_head(model: Any, family: Family) -> str:
    name, heads = type(model).__name__, ", ".join(family.heads)
    load = f"load one of the family's class heads, {heads}; or " if heads else ""
    return (
        f"it is not known which tokens the class scores of {name} ({family.title}) come from: "
        f"{load}put it into an nn.Module with a head of your own and say which tokens that reads, "
        f"GMAR(model, readout=...) with one of {', '.join(map(repr, READOUTS))}; or register it "
        f"with hf_gmar.register_layout({name!r}, TokenLayout(readout=...))"
    )


def refusal(model: Any, vision_model: Any) -> str:
    """Why a Transformers model is not explained, and what to do."""
    kind, name = _kind(model), type(model).__name__
    reason = UNSUPPORTED.get(kind) or UNSUPPORTED.get(_kind(vision_model))
    if reason:
        return (
            f"attention rollout does not apply to {name}: {reason}; 'hf-gmar models' lists what "
            "is supported"
        )
    if kind in UNTESTED:
        return (
            f"hf_gmar has not been proven on {name}; 'hf-gmar models' lists what is supported. To "
            "try it all the same, put it into an nn.Module that returns scores and say which "
            f"tokens they come from with hf_gmar.register_layout({name!r}, TokenLayout(...))"
        )
    return (
        f"{name} (model_type {kind!r}) is not a known family, and its token order is not "
        "guessed; 'hf-gmar models' lists what is supported. If it has global attention over "
        f"patches, add it with hf_gmar.register_layout({name!r}, TokenLayout(readout=...))"
    )
