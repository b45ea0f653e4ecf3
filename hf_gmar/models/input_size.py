"""The size of a model's input: other sizes than the image processor's own."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from transformers import BaseImageProcessor

from hf_gmar._core.inputs import check_keywords
from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar.errors import OptionError

Size: TypeAlias = int | str | tuple[int, int]
"""Height and width: one number for both, a pair, or text such as ``"224"`` and ``"224x448"``."""

_LARGEST = 10_000
_SHORT_AND_LONG = (40, 60)  # height and width of the image that is tried


def parse_size(size: Size) -> tuple[int, int]:
    """Return height and width.

    Raises:
        OptionError: another form, or a number out of range.

    Example:
        >>> parse_size(224), parse_size("224x448"), parse_size((32, 64))
        ((224, 224), (224, 448), (32, 64))
    """
    text = "x".join(map(str, size)) if isinstance(size, tuple | list) else str(size)
    match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text.strip())
    sides = (0, 0) if match is None else (int(match[1]), int(match[2] or match[1]))
    if not all(0 < side <= _LARGEST for side in sides):
        raise OptionError(
            f"a size is one number of pixels, or HEIGHTxWIDTH such as 224x448; got {size!r}"
        )
    return sides


def with_size(processor: BaseImageProcessor, size: Size) -> BaseImageProcessor:
    """Return a copy of a processor that gives images of this size.

    A processor that crops still crops the same share of the image; another one resizes the whole
    image.

    Raises:
        OptionError: the size is none, or the processor can't be set to it.
    """
    return _with_size(processor, repr(vars(processor)), parse_size(size))


@functools.lru_cache(maxsize=16)  # the same copy, of which the measured view is known
def _with_size(
    processor: BaseImageProcessor, _settings: str, size: tuple[int, int]
) -> BaseImageProcessor:
    try:
        changed: BaseImageProcessor = type(processor).from_dict(
            {**processor.to_dict(), **_sizes(processor, size)}
        )
        image = np.zeros((*_SHORT_AND_LONG, 3), np.uint8)
        options: dict[str, Any] = {"do_normalize": False, "input_data_format": "channels_last"}
        got = changed(images=image, return_tensors="pt", **options).pixel_values.shape[-2:]
        reason = "" if tuple(got) == size else f"it then gives {got[0]} x {got[1]}"
    except Exception as error:  # noqa: BLE001  # the processor may be anybody's code
        reason = str(error)
    if reason:
        raise OptionError(
            f"the image processor {type(processor).__name__} can't be set to the size "
            f"{size[0]} x {size[1]}: {reason}; leave the size out, and resize the images before"
        )
    return changed


def _sizes(processor: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Return the settings of a processor for a size."""
    whole = {"height": size[0], "width": size[1]}
    if not getattr(processor, "do_center_crop", False):
        return {"size": whole, "do_resize": True, "do_pad": False}
    old, crop = dict(processor.size), dict(processor.crop_size)
    factors = {"height": size[0] / crop["height"], "width": size[1] / crop["width"]}
    if old.get("height") and old.get("width"):
        resized = {side: max(round(old[side] * factors[side]), whole[side]) for side in whole}
    else:
        edge = round(old["shortest_edge"] * max(factors.values()))
        resized = {"shortest_edge": max(edge, *size)}
    return {"size": resized, "crop_size": whole}


def interpolation(model: Any, is_wanted: bool) -> Mapping[str, Any]:
    """Return the keywords with which a model interpolates its position embeddings.

    Raises:
        OptionError: the model has no such keyword.
    """
    if not is_wanted:
        return {}
    keywords = {"interpolate_pos_encoding": True}
    try:
        check_keywords(ModelAdapter.of(model, needs_scores=False), keywords)
    except OptionError as error:
        raise OptionError(
            f"{type(model).__name__} has no interpolate_pos_encoding: it interpolates its "
            "positions by itself, or takes one size; leave the option out"
        ) from error
    return keywords
