"""The methods, one file each. A new one is a file here and a line in ``METHODS``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from hf_gmar.errors import OptionError
from hf_gmar.methods.attention import AttentionMethod
from hf_gmar.methods.attn_lrp import AttnLRP
from hf_gmar.methods.base import Method
from hf_gmar.methods.gmar import GMAR
from hf_gmar.methods.input_x_gradient import InputXGradient
from hf_gmar.methods.token_grad_cam import TokenGradCAM

METHODS: dict[str, type[Method]] = {
    "gmar": GMAR,
    "token-grad-cam": TokenGradCAM,
    "input-x-gradient": InputXGradient,
    "attn-lrp": AttnLRP,
}
"""Methods by the name that the command line and the pipeline take."""


def option_names(name: str) -> list[str]:
    """The options of the method of that name.

    Raises:
        OptionError: there is no such method.

    Example:
        >>> option_names("gmar")[:2]
        ['norm', 'alpha']
    """
    if name not in METHODS:
        raise OptionError(f"there is no method {name!r}; there are {', '.join(METHODS)}")
    return list(inspect.signature(METHODS[name]).parameters)[1:]


def build_method(name: str, model: Callable[..., Any], **options: Any) -> Method:
    """The method of that name on a model.

    Raises:
        OptionError: there is no such method, or it has no such option, or a value is out of range.
        UnsupportedModelError: the model can't be explained.

    Example:
        >>> from hf_gmar import load_model
        >>> build_method("gmar", load_model("bundled").model, norm="l2").engine
        'streaming'
    """
    known = option_names(name)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise OptionError(
            f"the method {name!r} has no option {', '.join(unknown)}; it has {', '.join(known)}"
        )
    return METHODS[name](model, **options)


__all__ = [
    "GMAR",
    "METHODS",
    "AttentionMethod",
    "AttnLRP",
    "InputXGradient",
    "Method",
    "TokenGradCAM",
    "build_method",
    "option_names",
]
