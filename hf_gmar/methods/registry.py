"""Attribution methods by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_gmar._utils.registry import Registry

if TYPE_CHECKING:  # the names are known before PyTorch is loaded
    from hf_gmar.methods.base import AttributionMethod

METHODS: Registry[AttributionMethod] = Registry(
    "method",
    "hf_gmar.methods.base:AttributionMethod",
    {
        "gmar": "hf_gmar.methods.gmar:GMAR",
        "attention-rollout": "hf_gmar.methods.attention_rollout:AttentionRollout",
        "raw-attention": "hf_gmar.methods.raw_attention:RawAttention",
        "gradient-rollout": "hf_gmar.methods.gradient_rollout:GradientRollout",
        "legrad": "hf_gmar.methods.legrad:LeGrad",
        "grad-sam": "hf_gmar.methods.grad_sam:GradSAM",
        "token-grad-cam": "hf_gmar.methods.token_grad_cam:TokenGradCAM",
        "input-x-gradient": "hf_gmar.methods.input_x_gradient:InputXGradient",
        "attn-lrp": "hf_gmar.methods.attn_lrp:AttnLRP",
        "random": "hf_gmar.methods.random_attribution:RandomAttribution",
    },
    positional=1,  # the model
)
"""Methods by the name that the command line, the pipeline, ``compare`` and ``evaluate`` take."""


def register_method(name: str, method: type[AttributionMethod]) -> None:
    """Make a method of your own known by name in this process.

    A package makes its own known to every process by an entry point of the group
    ``hf_gmar.methods``.

    Args:
        name: lower-case letters, digits, dots, dashes and underscores.
        method: a subclass of :class:`~hf_gmar.methods.AttributionMethod`.

    Raises:
        OptionError: the name is taken or can't be typed, or it is no such class.

    Example:
        >>> from hf_gmar import GMAR, register_method
        >>> class Residual(GMAR):
        ...     class_specific = True
        >>> register_method("residual-gmar", Residual)
        >>> "residual-gmar" in METHODS
        True
    """
    METHODS.register(name, method)
