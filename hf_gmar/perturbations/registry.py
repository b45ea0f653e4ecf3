"""Perturbations by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_gmar._utils.registry import Registry

if TYPE_CHECKING:  # listing the names does not import PyTorch
    from hf_gmar.perturbations.base import Perturbation

PERTURBATIONS: Registry[Perturbation] = Registry(
    "perturbation",
    "hf_gmar.perturbations.base:Perturbation",
    {
        "blur": "hf_gmar.perturbations.pixels:Blur",
        "mean": "hf_gmar.perturbations.pixels:MeanColour",
        "dataset-mean": "hf_gmar.perturbations.pixels:DatasetMean",
        "noise": "hf_gmar.perturbations.pixels:Noise",
        "attention-masking": "hf_gmar.perturbations.tokens:AttentionMasking",
        "token-dropping": "hf_gmar.perturbations.tokens:TokenDropping",
    },
)
"""Perturbations by their name on the command line, in settings and results."""


def register_perturbation(name: str, perturbation: type[Perturbation]) -> None:
    """Register a perturbation under a name in this process.

    A package registers a perturbation in every process by an entry point of the group
    ``hf_gmar.perturbations``.

    Args:
        name: lower-case letters, digits, dots, dashes and underscores.
        perturbation: a subclass of :class:`~hf_gmar.perturbations.Perturbation`.

    Raises:
        OptionError: the name is taken or has other characters, or the class is no such subclass.

    Example:
        >>> from hf_gmar.perturbations import Blur
        >>> class StrongBlur(Blur):
        ...     name = "strong-blur"
        >>> register_perturbation("strong-blur", StrongBlur)
        >>> PERTURBATIONS.build("strong-blur", radius=20).name
        'strong-blur'
    """
    PERTURBATIONS.register(name, perturbation)
