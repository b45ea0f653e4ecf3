"""Names with options as text: ``gmar:norm=l2,alpha=0.5``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from hf_gmar.errors import OptionError


def parse_value(text: str) -> Any:
    """Parse a JSON value (number, true, false, null, list); other text stays text.

    Example:
        >>> parse_value("0.5"), parse_value("true"), parse_value("[1, 2]"), parse_value("max")
        (0.5, True, [1, 2], 'max')
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def parse_spec(text: str) -> tuple[str, dict[str, Any]]:
    """Parse ``NAME`` or ``NAME:OPTION=VALUE,OPTION=VALUE`` into name and options.

    Raises:
        OptionError: another form, or a repeated option.

    Example:
        >>> parse_spec("gmar:norm=l2,alpha=0.5"), parse_spec("legrad")
        (('gmar', {'norm': 'l2', 'alpha': 0.5}), ('legrad', {}))
    """
    name, colon, rest = text.partition(":")
    # A comma inside a value, as in a list, is not followed by NAME=.
    pairs = [pair.partition("=") for pair in re.split(r",(?=\s*\w+=)", rest)] if colon else []
    if not name or not all(option.strip() and equals for option, equals, _ in pairs):
        raise OptionError(f"NAME or NAME:OPTION=VALUE,OPTION=VALUE is needed, got {text!r}")
    options = {option.strip(): parse_value(value) for option, _, value in pairs}
    if len(options) < len(pairs):
        raise OptionError(f"an option is given twice in {text!r}; give it once")
    return name, options


def plain_value(value: Any) -> Any:
    """Return an option's value as JSON knows it: NumPy's scalars as Python's, lists as tuples.

    Example:
        >>> import numpy as np
        >>> plain_value([np.int64(2), 2]), plain_value(np.float64(0.5)), plain_value("max")
        ((2, 2), 0.5, 'max')
    """
    if isinstance(value, list | tuple):
        return tuple(map(plain_value, value))
    return value.item() if hasattr(value, "dtype") and hasattr(value, "item") else value


def format_spec(name: str, options: Mapping[str, Any]) -> str:
    """Format a name with its options for tables.

    Example:
        >>> format_spec("gmar", {"norm": "l2", "alpha": 0.5}), format_spec("legrad", {})
        ('gmar (norm=l2, alpha=0.5)', 'legrad')
    """
    text = ", ".join(f"{option}={value}" for option, value in options.items())
    return f"{name} ({text})" if text else name
