"""Checks of options, which raise an OptionError."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any, Literal, cast

from hf_gmar.errors import OptionError

_LONGEST = 100


def shown(value: Any) -> str:
    """Return a value as Python writes it, cut to fit into a message.

    Example:
        >>> shown("l3"), len(shown(10**400)), shown(10**5000)
        ("'l3'", 104, 'a value with too many digits to be written')
    """
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a value with too many digits to be written"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def check_positive(name: str, value: Any, most: float = math.inf) -> float:
    """Return the value as a float; it must be a finite number, 0 < value <= most."""
    number = _as_float(value)
    if not math.isfinite(number) or not 0 < number <= most:
        needed = "above 0" + ("" if math.isinf(most) else f" and at most {most:g}")
        raise OptionError(f"{name} must be a number {needed}, got {shown(value)}")
    return number


def _as_float(value: Any) -> float:
    """Return a number as a float, infinity for one that is too large, and NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf  # type: ignore[operator]  # of typeshed


def check_option(name: str, value: Any, allowed: Any) -> None:
    """Raise an OptionError unless the value is allowed."""
    kind = numbers.Integral if isinstance(allowed, range) else str
    if isinstance(value, kind) and not isinstance(value, bool) and value in allowed:
        return
    needed = (
        f"a whole number from {allowed.start} to {allowed.stop - 1}"
        if isinstance(allowed, range)
        else "one of " + ", ".join(repr(choice) for choice in allowed)
    )
    raise OptionError(f"{name} must be {needed}, got {shown(value)}")


def check_number(name: str, value: Any, low: float, below: float = math.inf) -> float:
    """Return the value as a float; it must be a finite number, low <= value < below."""
    needed = f">= {low:g}" + ("" if math.isinf(below) else f" and < {below:g}")
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise OptionError(f"{name} must be a number {needed}, got {shown(value)}")
    number = _as_float(value)
    if not math.isfinite(number) or not low <= number < below:
        raise OptionError(f"{name} must be a finite number {needed}, got {shown(value)}")
    return number


def check_layer(name: str, value: Any, layers: int) -> int:
    """Return a layer's index from 0; negative values count from the top."""
    check_option(name, value, range(-layers, layers))
    return int(value) % layers


def check_resolution(
    value: Any, names: Sequence[str], patch: tuple[int, int]
) -> int | Literal["patch", "pixel"]:
    """Return a resolution: one of the names, or a number that divides the patch's sides."""
    side = math.gcd(*patch)
    if isinstance(value, str) and value in names:
        return cast("Literal['patch', 'pixel']", value)
    is_count = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if is_count and value >= 1 and side % int(value) == 0:
        return int(value)
    divisors = ", ".join(str(count) for count in range(1, side + 1) if side % count == 0)
    choices = ", ".join(map(repr, names))
    hint = "; 'pixel' is for AttnLRP and InputXGradient" if value == "pixel" else ""
    raise OptionError(
        f"resolution must be {choices} or the number of cells on each side of a patch, which "
        f"divides its {patch[0]} x {patch[1]} pixels: {divisors}; got {shown(value)}{hint}"
    )


def check_samples(value: Any) -> int:
    """Return a number of permutations; it must be even, as each comes with its reverse."""
    check_option("samples", value, range(1, 2**31))
    if value % 2:
        raise OptionError(
            f"samples must be even, as each permutation comes with its reverse, got {value}"
        )
    return int(value)


_ROWS_AND_COLUMNS = {
    "groups": "the rows and columns of patches in a group",
    "grid": "the rows and columns of a map",
}


def check_groups(value: Any, name: str = "groups") -> tuple[int, int]:
    """Return the rows and columns of patches in a group, or of cells in a grid."""
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise OptionError(
            f"{name} must be {_ROWS_AND_COLUMNS[name]}, such as (2, 2), or [2,2] as text, got "
            f"{shown(value)}"
        )
    for size in value:
        check_option(name, size, range(1, 2**31))
    return int(value[0]), int(value[1])
