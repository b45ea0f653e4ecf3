"""Scores of a model with masked attention heads.

A masked head's output is zero, as in Michel, Levy and Neubig, "Are Sixteen Heads Really Better
than One?", NeurIPS 2019 (arXiv 1905.10650).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_gmar._core.execution import predict
from hf_gmar._core.inputs import checked_request, size_errors
from hf_gmar._core.model_adapter import ModelAdapter, ModelLike
from hf_gmar._core.request import ForwardRequest
from hf_gmar._core.targets import Target, resolve_targets, scores_at
from hf_gmar._core.token_layout import ReadoutSpec
from hf_gmar.errors import InputError, UnsupportedModelError


def scores_with_masked_heads(
    model: ModelLike,
    inputs: Tensor,
    masked: Tensor,
    additional_forward_args: Any = None,
    *,
    readout: ReadoutSpec = None,
    **forward_kwargs: Any,
) -> Tensor:
    """Compute class scores while the output of some heads is set to zero.

    The model is not changed and keeps its attention implementation. Forwards of other threads are
    not affected. Dropout is off.

    Args:
        model: see :class:`~hf_gmar.methods.base.AttributionMethod`.
        inputs: pixel values (B, channels, height, width).
        masked: bool, (layers, H) for all images or (B, layers, H) for one mask for each image,
            lowest layer first; True masks a head.
        additional_forward_args: further positional arguments of the model, as in Captum.
        readout: which tokens a class head of your own reads.
        **forward_kwargs: further keyword arguments that the model's forward names.

    Returns:
        Scores (B, C), without gradients.

    Raises:
        UnsupportedModelError: a model that can't be explained, or that fixes its attention
            implementation when it is built (Data2VecVision).
        InputError: inputs or a mask of a wrong type or shape.
        ModelOutputError: Transformers' attention is not called once in each layer.

    Example:
        >>> from hf_gmar import load_model
        >>> model, images = load_model("bundled").model, torch.zeros(2, 3, 96, 96)
        >>> scores_with_masked_heads(model, images, torch.zeros(6, 4, dtype=torch.bool)).shape
        torch.Size([2, 8])
    """
    adapter = ModelAdapter.of(model, readout)
    request = checked_request(adapter, inputs, additional_forward_args, forward_kwargs)
    return _scores(adapter, request, _checked_mask(masked, adapter.layers, len(request.inputs)))


def single_head_ablation(
    model: ModelLike,
    inputs: Tensor,
    target: Target = None,
    *,
    readout: ReadoutSpec = None,
    **forward_kwargs: Any,
) -> Tensor:
    """Compute the drop of the target's score when one head is masked, for every head.

    The cost is one forward for each head, and one more.

    Args:
        model: see :class:`~hf_gmar.methods.base.AttributionMethod`.
        inputs: pixel values (B, channels, height, width).
        target: the class of each image in any form of Captum's; ``None`` for the top class.
        readout: which tokens a class head of your own reads.
        **forward_kwargs: further keyword arguments that the model's forward names.

    Returns:
        Tensor (B, layers, H), lowest layer first: the unmasked score minus the score without the
        head; negative where the head speaks against the class.

    Raises:
        UnsupportedModelError, InputError, ModelOutputError: see :func:`scores_with_masked_heads`.
        TargetError: a target that does not fit the scores.

    Example:
        >>> from hf_gmar import load_model
        >>> model, images = load_model("bundled").model, torch.zeros(1, 3, 96, 96)
        >>> single_head_ablation(model, images, target=3).shape
        torch.Size([1, 6, 4])
    """
    masker = HeadMasker(ModelAdapter.of(model, readout), forward_kwargs)
    request, classes, plain = masker.begin(inputs, target)
    layers, heads = masker.shape
    drops = [
        plain - masker.target_scores(request, classes, masked.reshape(1, layers, heads))
        for masked in torch.eye(layers * heads, dtype=torch.bool)
    ]
    return torch.stack(drops, 1).reshape(-1, layers, heads)


@dataclass(frozen=True)
class HeadMasker:
    """Call a model with masked heads; ``kwargs`` go to each call."""

    adapter: ModelAdapter
    kwargs: dict[str, Any]

    @property
    def shape(self) -> tuple[int, int]:
        """Number of layers, and of heads in a layer."""
        heads = getattr(self.adapter.vision_model.config, "num_attention_heads", None)
        if not isinstance(heads, int):
            raise UnsupportedModelError(
                f"the config of {type(self.adapter.vision_model).__name__} does not say how many "
                "heads a layer has, so they can't be masked; use a model of another family"
            )
        return self.adapter.layers, heads

    def begin(self, pixels: Tensor, target: Target) -> tuple[ForwardRequest, Tensor, Tensor]:
        """Return the request, the classes (B,) and the classes' unmasked scores (B,)."""
        request = checked_request(self.adapter, pixels, None, self.kwargs)
        scores = _scores(self.adapter, request, None)
        classes = resolve_targets(target, scores)
        return request, classes, scores_at(scores, classes)

    def target_scores(self, request: ForwardRequest, classes: Tensor, masked: Tensor) -> Tensor:
        """Return the classes' scores (B,) with masked heads."""
        return scores_at(_scores(self.adapter, request, masked), classes)


def _checked_mask(masked: Any, layers: int, images: int) -> Tensor:
    fits = isinstance(masked, Tensor) and masked.dtype == torch.bool and masked.dim() in (2, 3)
    if not fits or masked.shape[-2] != layers or (masked.dim() == 3 and len(masked) != images):
        got = f"{masked.dtype} {tuple(masked.shape)}" if isinstance(masked, Tensor) else masked
        raise InputError(
            f"a bool tensor (layers, heads) or (images, layers, heads) is needed, with {layers} "
            f"layers and {images} images; got {got!r}"
        )
    mask: Tensor = masked
    return mask if mask.dim() == 3 else mask[None]


def _scores(adapter: ModelAdapter, request: ForwardRequest, masked: Tensor | None) -> Tensor:
    with size_errors(adapter, request.inputs):
        return predict(adapter, request, masked)
