"""Perturbations: what it means that a patch of an image is missing."""

from __future__ import annotations

import inspect
from typing import Any

from hf_gmar.errors import OptionError
from hf_gmar.perturbations.base import Perturbation
from hf_gmar.perturbations.pixels import Blur, DatasetMean, MeanColour, Noise
from hf_gmar.perturbations.tokens import AttentionMasking, TokenDropping

_ALL = (Blur, MeanColour, DatasetMean, Noise, AttentionMasking, TokenDropping)


PERTURBATIONS: dict[str, type[Perturbation]] = {kind.name: kind for kind in _ALL}
"""Perturbations by the name that settings and results have."""


def build_perturbation(name: str, **options: Any) -> Perturbation:
    """The perturbation of that name.

    Raises:
        OptionError: there is no such perturbation, or it has no such option, or it needs one that
            is not given, or a value is out of range.

    Example:
        >>> build_perturbation("blur", radius=4)
        Blur(radius=4)
    """
    if name not in PERTURBATIONS:
        raise OptionError(
            f"there is no perturbation {name!r}; there are {', '.join(PERTURBATIONS)}"
        )
    known = inspect.signature(PERTURBATIONS[name]).parameters
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise OptionError(
            f"the perturbation {name!r} has no option {', '.join(unknown)}; it has "
            f"{', '.join(known) or 'none'}"
        )
    absent = [one.name for one in known.values() if one.default is one.empty]
    absent = [one for one in absent if one not in options]
    if absent:
        raise OptionError(f"the perturbation {name!r} needs a value for {', '.join(absent)}")
    return PERTURBATIONS[name](**options)
