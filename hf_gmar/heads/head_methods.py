"""Attention maps of each head, and the first-order loss of score without each head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from hf_gmar._core.inputs import PixelInputs, pixels_of
from hf_gmar._core.model_adapter import ModelLike
from hf_gmar._core.targets import Target, TargetSpec
from hf_gmar._core.token_layout import ReadoutSpec
from hf_gmar._engines.propagation import Block, LayerResult, Sums
from hf_gmar.methods.attention_base import AttentionMethod, AttentionOptions


@dataclass(frozen=True)
class HeadMapsRule:
    """The attention of the readout tokens in each layer, for each head.

    The relevance stays the readout r0 in every layer, without rollout. The map is the mean over
    heads and over the ``layers`` layers.
    """

    per_head: ClassVar[bool] = True

    layers: int

    def accumulate(self, block: Block) -> Sums:
        """Return the readout's attention row of each head, (B, H, N)."""
        return ((block.relevance[:, None, None] @ block.attention).squeeze(2),)

    def finish(self, sums: Sums, relevance: Tensor) -> LayerResult:
        """Pass the readout on unchanged."""
        (rows,) = sums
        return LayerResult(relevance, rows, rows.mean(1) / self.layers)


class HeadMaps(AttentionMethod):
    """The attention of each head from the tokens that the class head reads: r0 A[l,h].

    The maps are the same for all classes and cost one forward. ``attribute`` returns the mean over
    heads and layers; :meth:`maps` returns the map of each head.

    Args:
        model: see :class:`~hf_gmar.methods.base.AttributionMethod`.
        start_layer: the lowest layer that takes part; 0 includes all layers.
        engine: ``"streaming"``, or ``"dense"``, the plain reference.
        chunk_size: query rows that the streaming engine holds at a time; ``None`` chooses.
        readout: which tokens a class head of your own reads.

    Raises:
        UnsupportedModelError: the family is unknown or hierarchical, or there is no one model.
        OptionError: an option is outside its range.
    """

    source = "Vaswani et al., NeurIPS 2017, arXiv 1706.03762: the attention itself"
    cost = "forward"
    class_specific = False
    needs_scores = False
    gradient = "none"

    def __init__(
        self,
        model: ModelLike,
        start_layer: int = 0,
        engine: str = "streaming",
        chunk_size: int | None = None,
        readout: ReadoutSpec = None,
    ) -> None:
        super().__init__(model, start_layer, engine, chunk_size, readout=readout)
        self.rule = HeadMapsRule(self.adapter.layers - start_layer)

    def maps(
        self,
        inputs: PixelInputs = None,
        additional_forward_args: Any = None,
        **forward_kwargs: Any,
    ) -> Tensor:
        """Return the attention map of each head.

        Arguments and errors are those of :meth:`attribute`, without the target.

        Returns:
            Tensor (B, layers, H, rows, columns), lowest layer first, >= 0. Each map sums to at
            most 1 over the patches; the rest of the attention is on prefix tokens such as CLS.
        """
        spec = TargetSpec(needs_scores=False)
        pixels, forward_kwargs = pixels_of(inputs, forward_kwargs)
        heads = self._of_heads(pixels, spec, additional_forward_args, forward_kwargs)[0]
        rows = heads[..., self.adapter.tokens.num_prefix_tokens :]
        return self.adapter.tokens.to_map(rows, pixels.shape)


class HeadTaylorImportance(AttentionMethod):
    """The first-order loss of score without each head: the sum of A * dscore/dA.

    It estimates the loss of score when the head's attention is set to zero. A negative value means
    that the head speaks against the class. The method gives :meth:`head_importance`, not maps.

    Source: Michel, Levy and Neubig, "Are Sixteen Heads Really Better than One?", NeurIPS 2019
    (arXiv 1905.10650). They take the absolute value of this sum for a loss over a data set.

    Args:
        model: see :class:`~hf_gmar.methods.base.AttributionMethod`.
        **options: see :class:`~hf_gmar.methods.attention_base.AttentionMethod`.

    Raises:
        UnsupportedModelError: the family is unknown or hierarchical, or there is no one model.
        OptionError: an option is outside its range.
    """

    source = "Michel, Levy and Neubig, NeurIPS 2019, arXiv 1905.10650"
    cost = "forward + backward"
    signed = True

    def __init__(self, model: ModelLike, **options: Unpack[AttentionOptions]) -> None:
        super().__init__(model, **options)
        self.rule = HeadTaylorRule()

    def head_importance(
        self,
        inputs: PixelInputs = None,
        target: Target = None,
        additional_forward_args: Any = None,
        contrast: Target = None,
        **forward_kwargs: Any,
    ) -> Tensor:
        """Return each head's effect, (B, layers, H), lowest layer first, in units of the score.

        Arguments and errors are those of :meth:`attribute`.
        """
        target_spec = self._target_spec(target, contrast)
        return self._of_heads(inputs, target_spec, additional_forward_args, forward_kwargs)[0]


def head_maps(
    model: ModelLike,
    inputs: PixelInputs = None,
    additional_forward_args: Any = None,
    *,
    readout: ReadoutSpec = None,
    **forward_kwargs: Any,
) -> Tensor:
    """Return the attention of each head from the tokens that the class head reads.

    The map of head h in layer l is r0 A[l,h] without the prefix tokens. If the class head reads
    CLS, this is the attention of CLS; if it reads the mean of the patches, their mean attention.
    It costs one forward. For the heads that a class depends on, see
    :func:`~hf_gmar.heads.importance.head_importance`.

    Args:
        model: see :class:`~hf_gmar.methods.base.AttributionMethod`.
        inputs: pixel values (B, channels, height, width).
        additional_forward_args: further positional arguments of the model, as in Captum.
        readout: which tokens a class head of your own reads.
        **forward_kwargs: further keyword arguments that the model's forward names.

    Returns:
        Tensor (B, layers, H, rows, columns), lowest layer first, >= 0. Each map sums to at most 1;
        the rest of the attention is on prefix tokens such as CLS.

    Raises:
        UnsupportedModelError: the model can't be explained.
        InputError: the inputs have a wrong type, shape, size or device, or NaN or infinity.
        OptionError: the model's forward does not name a keyword.
        ModelOutputError: the model gives no scores or no attention maps.

    Example:
        >>> import torch
        >>> from hf_gmar import load_model
        >>> head_maps(load_model("bundled").model, torch.zeros(1, 3, 96, 96)).shape
        torch.Size([1, 6, 4, 8, 8])
    """
    return HeadMaps(model, readout=readout).maps(inputs, additional_forward_args, **forward_kwargs)


class HeadTaylorRule:
    """The sum of A * G over each head's attention matrix, without rollout."""

    starts_at_readout = False
    per_head = True

    def accumulate(self, block: Block) -> Sums:
        """Return the sum of each head over these queries, (B, H)."""
        return (torch.einsum("bhqk,bhqk->bh", block.attention, block.gradient),)

    def finish(self, sums: Sums, relevance: Tensor) -> LayerResult:
        """Return the sums of the heads; the relevance stays the readout."""
        return LayerResult(relevance, heads=sums[0])
