"""What metrics check of their options."""

from __future__ import annotations

import math
import numbers
from typing import Any

from hf_gmar.errors import OptionError


def check_positive(name: str, value: Any, most: float = math.inf) -> float:
    """The value as a float; an OptionError unless it is a finite number, 0 < value <= most."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    number = float(value) if is_number else math.nan
    if not math.isfinite(number) or not 0 < number <= most:
        needed = "above 0" + ("" if math.isinf(most) else f" and at most {most:g}")
        raise OptionError(f"{name} must be a number {needed}, got {value!r}")
    return number
