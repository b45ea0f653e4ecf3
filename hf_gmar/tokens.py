"""Which tokens a model family has, and which of them its class head reads.

One table, keyed by the ``model_type`` of a config or by the class name of a model. A class name
goes before its ``model_type``, so that heads of one family may differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_gmar.errors import InputError, OptionError, UnsupportedModelError


@dataclass(frozen=True)
class TokenLayout:
    """Token order and readout of a model family.

    The tokens of an image are ``len(readout)`` prefix tokens (CLS, distillation, registers),
    then the patches, row by row.

    Attributes:
        readout: for each prefix token, the share of the class head's input that comes from it.
            What is missing to 1 is spread evenly over the patches. ``(1.0,)`` is a CLS head,
            ``(0.5, 0.5)`` the mean of CLS and distillation heads, ``(0.0,)`` a mean over patches.
        patch_size: height and width of a patch in pixels; ``None`` takes the config's.

    Raises:
        OptionError: shares below 0 or with a sum over 1, or a patch size below 1.

    Example:
        >>> TokenLayout(readout=(1.0,)).readout_row(4, torch.float32)
        tensor([1., 0., 0., 0., 0.])
        >>> TokenLayout(readout=(0.5,)).readout_row(2, torch.float32)
        tensor([0.5000, 0.2500, 0.2500])
    """

    readout: tuple[float, ...]
    patch_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Check the shares and the patch size."""
        if not isinstance(self.readout, tuple) or not isinstance(self.patch_size, tuple | None):
            raise OptionError(
                "readout must be a tuple of shares such as (1.0,), and patch_size None or (height, "
                f"width); got {self.readout!r} and {self.patch_size!r}"
            )
        shares = (*self.readout, 1.0 - math.fsum(self.readout))
        if not all(share >= -1e-9 for share in shares):  # NaN is not a share either
            raise OptionError(
                f"readout shares must be >= 0 with a sum of at most 1, got {self.readout}"
            )
        if self.patch_size is not None and min(self.patch_size) < 1:
            raise OptionError(f"patch_size must be at least 1 pixel, got {self.patch_size}")

    @property
    def prefix(self) -> int:
        """How many tokens stand before the patches."""
        return len(self.readout)

    def readout_row(self, patches: int, dtype: torch.dtype) -> Tensor:
        """The readout over all tokens, (prefix + patches,); sums to 1."""
        rest = max(0.0, 1.0 - math.fsum(self.readout))  # rounding must not make it negative
        return torch.tensor([*self.readout, *[rest / patches] * patches], dtype=dtype)

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


_LAYOUTS: dict[str, TokenLayout] = {
    "ViTForImageClassification": TokenLayout(readout=(1.0,)),
    "DeiTForImageClassification": TokenLayout(readout=(1.0, 0.0)),
    "DeiTForImageClassificationWithTeacher": TokenLayout(readout=(0.5, 0.5)),
}

# Families with attention that cannot be rolled out, with the reason.
_WINDOWED = "it attends within windows and merges patches between stages"
_REDUCED = "its keys are pooled, so queries and keys are different tokens"
_REFUSED: dict[str, str] = {
    "swin": _WINDOWED,
    "swinv2": _WINDOWED,
    "donut-swin": _WINDOWED,
    "hiera": _WINDOWED,
    "focalnet": "it has no attention at all",
    "pvt": _REDUCED,
    "pvt_v2": _REDUCED,
    "segformer": _REDUCED,
    "cvt": _REDUCED,
    "levit": "it shrinks the token grid between stages",
    "mobilevit": "it attends within cells of feature maps",
    "mobilevitv2": "it attends within cells of feature maps",
    "swiftformer": "its attention is additive, without a matrix of tokens by tokens",
    "poolformer": "it has no attention at all",
    "resnet": "it has no attention at all",
    "convnext": "it has no attention at all",
    "convnextv2": "it has no attention at all",
}


def register_layout(name: str, layout: TokenLayout) -> None:
    """Add a family, or replace the entry of one.

    Args:
        name: a class name such as ``"MyViTForImageClassification"``, or a config's
            ``model_type``, which then holds for every head of the family.
        layout: its tokens and readout.

    Example:
        >>> register_layout("my_vit", TokenLayout(readout=(1.0, 0.0, 0.0)))  # CLS, two registers
        >>> "my_vit" in supported_families()
        True

    Raises:
        OptionError: the layout is no TokenLayout.
    """
    if not isinstance(layout, TokenLayout):
        raise OptionError(f"a TokenLayout is needed for {name!r}, got {layout!r}")
    _LAYOUTS[name] = layout


def supported_families() -> tuple[str, ...]:
    """Names in the table: class names and model types."""
    return tuple(_LAYOUTS)


def layout_for(model: Any) -> TokenLayout:
    """The layout of a Transformers model, with its patch size filled in.

    Raises:
        UnsupportedModelError: the family is not in the table; the message says why where the
            reason is known.
    """
    layout = _lookup(model)
    if layout is None:
        raise UnsupportedModelError(refusal(model))
    size = layout.patch_size or getattr(model.config, "patch_size", None)
    if size is None:
        raise UnsupportedModelError(
            f"the config of {type(model).__name__} has no patch_size; register its layout with "
            "register_layout(name, TokenLayout(readout=..., patch_size=(height, width)))"
        )
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return TokenLayout(layout.readout, (height, width))


def refusal(model: Any) -> str:
    """Why a Transformers model is not explained, and what to do."""
    kind, name = getattr(model.config, "model_type", ""), type(model).__name__
    known = ", ".join(supported_families())
    if kind in _REFUSED:
        return (
            f"{name} can't be explained by attention rollout: {_REFUSED[kind]}. Rollout needs the "
            f"same tokens in every layer. Supported: {known}"
        )
    siblings = any(entry.lower().startswith(f"{kind}for") for entry in _LAYOUTS)
    if siblings and type(model).__module__.startswith("transformers."):
        return (
            f"{name} gives no class scores; load the model with a classification head, for example "
            f"with AutoModelForImageClassification. Supported: {known}"
        )
    return (
        f"{name} (model_type {kind!r}) is not a known family, and its token order is not "
        f"guessed. Supported: {known}. If it has global attention over patches, add it with "
        f"hf_gmar.register_layout({name!r}, TokenLayout(readout=...))"
    )


def _lookup(model: Any) -> TokenLayout | None:
    # A subclass of a known class keeps its layout as long as it keeps its forward, and with it the
    # readout; model_type holds for all heads of a family.
    kind = type(model)
    names = [b.__name__ for b in kind.__mro__ if getattr(b, "forward", None) is kind.forward]
    names.append(str(getattr(getattr(model, "config", None), "model_type", None)))
    return next((_LAYOUTS[name] for name in names if name in _LAYOUTS), None)
