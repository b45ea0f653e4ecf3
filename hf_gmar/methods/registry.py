"""The methods, one file each. A new one is a file here and a line in ``METHODS``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from hf_gmar.errors import OptionError
from hf_gmar.methods.attention_rollout import AttentionRollout
from hf_gmar.methods.attn_lrp import AttnLRP
from hf_gmar.methods.base import AttributionMethod
from hf_gmar.methods.gmar import GMAR
from hf_gmar.methods.grad_sam import GradSAM
from hf_gmar.methods.gradient_rollout import GradientRollout
from hf_gmar.methods.input_x_gradient import InputXGradient
from hf_gmar.methods.legrad import LeGrad
from hf_gmar.methods.random_attribution import RandomAttribution
from hf_gmar.methods.raw_attention import RawAttention
from hf_gmar.methods.token_grad_cam import TokenGradCAM

METHODS: dict[str, type[AttributionMethod]] = {
    "gmar": GMAR,
    "attention-rollout": AttentionRollout,
    "raw-attention": RawAttention,
    "gradient-rollout": GradientRollout,
    "legrad": LeGrad,
    "grad-sam": GradSAM,
    "token-grad-cam": TokenGradCAM,
    "input-x-gradient": InputXGradient,
    "attn-lrp": AttnLRP,
    "random": RandomAttribution,
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
    return list(default_options(name))


def default_options(name: str) -> dict[str, Any]:
    """The options of the method of that name, with their values when nothing is said.

    Raises:
        OptionError: there is no such method.

    Example:
        >>> default_options("random")
        {'seed': 0, 'readout': None}
    """
    if name not in METHODS:
        raise OptionError(f"there is no method {name!r}; there are {', '.join(METHODS)}")
    return {one.name: one.default for one in _options_of(METHODS[name])}


def _options_of(method: type) -> Iterator[inspect.Parameter]:
    """Those that its constructor names after the model, then those that it passes on."""
    parameters = list(inspect.signature(method).parameters.values())[1:]
    yield from (one for one in parameters if one.kind is not one.VAR_KEYWORD)
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        yield from _options_of(method.__mro__[1])


def check_options(name: str, options: Iterable[str]) -> None:
    """Check the names before a model is there.

    Raises:
        OptionError: there is no such method, or it has no such option.
    """
    known = option_names(name)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise OptionError(
            f"the method {name!r} has no option {', '.join(unknown)}; it has {', '.join(known)}"
        )


def build_method(name: str, model: Callable[..., Any], **options: Any) -> AttributionMethod:
    """The method of that name on a model.

    Raises:
        OptionError: there is no such method, or it has no such option, or a value is out of range.
        UnsupportedModelError: the model can't be explained.

    Example:
        >>> from hf_gmar import load_model
        >>> build_method("gmar", load_model("bundled").model, norm="l2").engine
        'streaming'
    """
    check_options(name, options)
    return METHODS[name](model, **options)
