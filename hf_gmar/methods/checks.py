"""What is checked before a model runs, and what is said when it refuses."""

from __future__ import annotations

import functools
import inspect
import math
import numbers
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from hf_gmar.engine import Request
from hf_gmar.errors import HfGmarError, InputError, OptionError, TargetError
from hf_gmar.subject import Subject, check_inputs
from hf_gmar.targets import Target


def checked_request(subject: Subject, inputs: Any, args: Any, kwargs: dict[str, Any]) -> Request:
    """One call to the model, in Captum's form, once its inputs and keywords can be right.

    Raises:
        InputError: inputs of a wrong type, shape, size, device or with NaN or infinity.
        OptionError: a keyword that the model's forward does not name.
    """
    pixels = single_tensor(inputs)
    check_inputs(pixels, subject)
    check_keywords(subject, kwargs)
    subject.layout.grid(*pixels.shape[-2:])
    extra = args if isinstance(args, tuple) else () if args is None else (args,)
    return Request(pixels, extra, kwargs)


def single_tensor(inputs: Any) -> Any:
    """The image tensor of Captum's tensor-or-tuple form.

    Raises:
        InputError: a tuple with other than one tensor.
    """
    if not isinstance(inputs, tuple):
        return inputs
    if len(inputs) != 1:
        raise InputError(
            f"one tensor of pixel values is needed, got a tuple of {len(inputs)}; pass what else "
            "the model takes as additional_forward_args"
        )
    return inputs[0]


def check_option(name: str, value: Any, allowed: Any) -> None:
    """Raise an OptionError unless the value is among the allowed ones."""
    kind = numbers.Integral if isinstance(allowed, range) else str
    if isinstance(value, kind) and not isinstance(value, bool) and value in allowed:
        return
    shown = (
        f"a whole number from {allowed.start} to {allowed.stop - 1}"
        if isinstance(allowed, range)
        else "one of " + ", ".join(repr(choice) for choice in allowed)
    )
    raise OptionError(f"{name} must be {shown}, got {value!r}")


def check_number(name: str, value: Any, low: float, below: float = math.inf) -> float:
    """The value as a float; an OptionError unless it is a finite number, low <= value < below."""
    needed = f">= {low:g}" + ("" if math.isinf(below) else f" and < {below:g}")
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise OptionError(f"{name} must be a number {needed}, got {value!r}")
    number = float(value)
    if not math.isfinite(number) or not low <= number < below:
        raise OptionError(f"{name} must be a finite number {needed}, got {value}")
    return number


def check_layer(name: str, value: Any, layers: int) -> int:
    """The index of a layer, counted from 0; one from -1 down counts from the top.

    Raises:
        OptionError: there is no such layer.
    """
    check_option(name, value, range(-layers, layers))
    return int(value) % layers


def several(targets: Any) -> list[Target]:
    """The targets as a list; a TargetError if there is none."""
    try:
        found = list(targets)
    except TypeError:
        found = []
    if not found:
        raise TargetError(
            f"a list of one or more targets is needed, got {targets!r}; one target goes to "
            "attribute_patches"
        )
    return found


def check_keywords(subject: Subject, kwargs: dict[str, Any]) -> None:
    """Raise an OptionError for keywords that the model's forward does not name.

    Transformers' models swallow unknown keywords, which would hide a misspelt option. What takes
    any keyword is held to those of the Transformers model in it, and of its vision tower.
    """
    named = _all_keywords(subject)
    unknown = sorted(set(kwargs) - set(named))
    if unknown:
        raise OptionError(
            f"unknown keyword {', '.join(unknown)}; the model's forward takes "
            f"{', '.join(named) or 'none'}"
        )


def _all_keywords(subject: Subject) -> list[str]:
    named, takes_any = _keywords(subject.model)
    for inner in (subject.backbone, subject.tower):
        if takes_any:
            more, takes_any = _keywords(inner)
            named += [name for name in more if name not in named]
    return named


def _keywords(model: Any) -> tuple[list[str], bool]:
    """What a model takes by name after the inputs, and whether it takes other keywords as well."""
    while isinstance(model, functools.partial):
        model = model.func
    parameters = inspect.signature(getattr(model, "forward", model)).parameters.values()
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = [p.name for p in list(parameters)[1:] if p.kind in by_name]
    return named, any(p.kind is p.VAR_KEYWORD for p in parameters)


@contextmanager
def size_errors(subject: Subject, pixels: Tensor) -> Iterator[None]:
    """Models refuse sizes other than their own with plain errors: say what to do.

    Raises:
        InputError: the model does not take images of this size.
    """
    try:
        yield
    except HfGmarError:
        raise
    except (ValueError, AssertionError, RuntimeError) as error:
        if _is_own_size(subject, pixels) or not _is_of_size(error):
            raise
        raise InputError(_size_advice(error, pixels, _all_keywords(subject))) from error


def _is_of_size(error: Exception) -> bool:
    # Some models add their positions without a look at the size.
    words = "must match the size" if isinstance(error, RuntimeError) else r"\bsizes?\b|height|width"
    return re.search(words, str(error), re.IGNORECASE) is not None


def _is_own_size(subject: Subject, pixels: Tensor) -> bool:
    size = getattr(subject.tower.config, "image_size", None)
    own = (size, size) if isinstance(size, int) else tuple(size or ())
    return own == tuple(pixels.shape[-2:])


def _size_advice(error: Exception, pixels: Tensor, keywords: list[str]) -> str:
    height, width = pixels.shape[2:]
    reason = str(error).rstrip(". ")
    advice = (
        "pass interpolate_pos_encoding=True to interpolate its positions, or resize the images"
        if "interpolate_pos_encoding" in keywords
        else "resize the images to the model's own size"
    )
    return f"the model refused images of {height} x {width} pixels: {reason}; {advice}"
