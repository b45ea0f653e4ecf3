"""Attribution methods by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_gmar._utils.registry import Registry

if TYPE_CHECKING:  # listing the names does not import PyTorch
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
        "shapley-values": "hf_gmar.methods.shapley_values:ShapleyValues",
        "random": "hf_gmar.methods.random_attribution:RandomAttribution",
    },
    positional=1,  # the model
)
"""Methods by their name on the command line, in the pipeline, ``compare`` and ``evaluate``."""


def register_method(name: str, method: type[AttributionMethod]) -> None:
    """Register a method under a name in this process.

    A package registers a method in every process by an entry point of the group
    ``hf_gmar.methods``.

    Args:
        name: lower-case letters, digits, dots, dashes and underscores.
        method: a subclass of :class:`~hf_gmar.methods.AttributionMethod`.

    Raises:
        OptionError: the name is taken or has other characters, or the class is no such subclass.

    Example:
        >>> from hf_gmar import GMAR, register_method
        >>> class Residual(GMAR):
        ...     class_specific = True
        >>> register_method("residual-gmar", Residual)
        >>> "residual-gmar" in METHODS
        True
    """
    METHODS.register(name, method)
