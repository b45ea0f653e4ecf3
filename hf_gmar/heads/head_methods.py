"""Where each attention head looks, and what the score loses without it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor

from hf_gmar._core.targets import Target, TargetSpec
from hf_gmar._core.token_layout import ReadoutSpec
from hf_gmar._engines.propagation import Block, LayerResult, Sums
from hf_gmar.methods.attention_base import AttentionMethod, AttentionOptions


@dataclass(frozen=True)
class HeadMapsRule:
    """What the readout tokens attend to in one layer, head by head.

    Relevance stays the readout r0 in every layer: nothing is rolled out. The map is the mean over
    heads and over the ``layers`` that take part.
    """

    layers: int

    def accumulate(self, block: Block) -> Sums:
        """The readout's row of each head, (B, H, N)."""
        return ((block.relevance[:, None, None] @ block.attention).squeeze(2),)

    def finish(self, sums: Sums, relevance: Tensor) -> LayerResult:
        """Hand the readout on as it came."""
        (rows,) = sums
        return LayerResult(relevance, rows, rows.mean(1) / self.layers)


class HeadMaps(AttentionMethod):
    """Where each head looks from the tokens that the class head reads: r0 A[l,h].

    The same for all classes, and cheap: one forward. As a map of patches (``attribute``) it gives
    the mean of all heads and layers; :meth:`maps` gives them one by one.

    Args:
        model: see :class:`~hf_gmar.methods.base.AttributionMethod`.
        start_layer: the lowest layer that takes part, 0 for all of them.
        engine: ``"streaming"``, or ``"dense"``, the plain reference.
        chunk_size: query rows that the streaming engine holds at a time; ``None`` chooses.
        readout: which tokens a class head of your own reads.

    Raises:
        UnsupportedModelError: unknown or hierarchical family, no model or several.
        OptionError: an option outside its range.
    """

    source = "Vaswani et al., NeurIPS 2017, arXiv 1706.03762: the attention itself"
    cost = "forward"
    class_specific = False
    gradient = "none"

    def __init__(
        self,
        model: Callable[..., Any],
        start_layer: int = 0,
        engine: str = "streaming",
        chunk_size: int | None = None,
        readout: ReadoutSpec = None,
    ) -> None:
        super().__init__(model, start_layer, engine, chunk_size, readout=readout)
        self.rule = HeadMapsRule(self.adapter.layers - start_layer)

    def maps(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        additional_forward_args: Any = None,
        **forward_kwargs: Any,
    ) -> Tensor:
        """The map of each head.

        Takes and raises what :meth:`attribute` does, but for the target.

        Returns:
            Tensor (B, layers, H, rows, columns), lowest layer first, >= 0. Each map sums to at
            most 1 over the patches; what is missing went to tokens such as CLS.
        """
        spec = TargetSpec()
        heads, patches = self._of_heads(inputs, spec, additional_forward_args, forward_kwargs)
        rows = heads[..., self.adapter.layout.num_prefix_tokens :]
        return rows.reshape(*rows.shape[:3], *patches.shape[1:])


class HeadTaylorImportance(AttentionMethod):
    """What the score loses without each head, to first order: the sum of A * dscore/dA.

    It estimates what the score loses when the head's attention is set to zero. Signed: a head below
    zero speaks against the class. It makes no map of patches, but :meth:`head_importance`.

    Source: Michel, Levy and Neubig, "Are Sixteen Heads Really Better than One?", NeurIPS 2019
    (arXiv 1905.10650), who take the absolute value, of a loss over a data set.

    Args:
        model: see :class:`~hf_gmar.methods.base.AttributionMethod`.
        **options: see :class:`~hf_gmar.methods.attention_base.AttentionMethod`.

    Raises:
        UnsupportedModelError: unknown or hierarchical family, no model or several.
        OptionError: an option outside its range.
    """

    source = "Michel, Levy and Neubig, NeurIPS 2019, arXiv 1905.10650"
    cost = "forward + backward"
    signed = True

    def __init__(self, model: Callable[..., Any], **options: Unpack[AttentionOptions]) -> None:
        super().__init__(model, **options)
        self.rule = HeadTaylorRule()

    def head_importance(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Target = None,
        additional_forward_args: Any = None,
        contrast: Target = None,
        **forward_kwargs: Any,
    ) -> Tensor:
        """The effect of each head, (B, layers, H), lowest layer first, in units of the score.

        Takes and raises what :meth:`attribute` does.
        """
        target_spec = self._target_spec(target, contrast)
        return self._of_heads(inputs, target_spec, additional_forward_args, forward_kwargs)[0]


def head_maps(
    model: Callable[..., Any],
    inputs: Tensor | tuple[Tensor, ...],
    additional_forward_args: Any = None,
    *,
    readout: ReadoutSpec = None,
    **forward_kwargs: Any,
) -> Tensor:
    """Where each head looks from the tokens that the class head reads, without gradients.

    For head h of layer l this is r0 A[l,h] without the prefix tokens: the attention of CLS if the
    class head reads CLS, the mean over the patches if it reads their mean. Whether the class
    depends on a head is :func:`~hf_gmar.heads.importance.head_importance`. It costs one forward.

    Args:
        model: see :class:`~hf_gmar.methods.base.AttributionMethod`.
        inputs: pixel values (B, channels, height, width).
        additional_forward_args: further positional arguments of the model, as in Captum.
        readout: which tokens a class head of your own reads.
        **forward_kwargs: further keyword arguments that the model's forward names.

    Returns:
        Tensor (B, layers, H, rows, columns), lowest layer first, >= 0. Each map sums to at most 1;
        what is missing went to tokens such as CLS.

    Raises:
        UnsupportedModelError: a model that can't be explained.
        InputError: inputs of a wrong type, shape, size, device or with NaN or infinity.
        OptionError: a keyword that the model's forward does not name.
        ModelOutputError: no scores or no attention maps.

    Example:
        >>> import torch
        >>> from hf_gmar import load_model
        >>> head_maps(load_model("bundled").model, torch.zeros(1, 3, 96, 96)).shape
        torch.Size([1, 6, 4, 8, 8])
    """
    return HeadMaps(model, readout=readout).maps(inputs, additional_forward_args, **forward_kwargs)


class HeadTaylorRule:
    """The sum of A * G over each head's matrix; nothing is rolled out."""

    def accumulate(self, block: Block) -> Sums:
        """The sum of each head over these queries, (B, H)."""
        return (torch.einsum("bhqk,bhqk->bh", block.attention, block.gradient),)

    def finish(self, sums: Sums, relevance: Tensor) -> LayerResult:
        """The heads alone; the map stays that of the readout."""
        return LayerResult(relevance, heads=sums[0])
