"""LeGrad: sensitivity of feature formation, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, Unpack

from hf_gmar._core.layers import layer_modules
from hf_gmar._utils.validation import check_option
from hf_gmar.methods.attention_base import AttentionMethod, AttentionOptions
from hf_gmar.methods.layer_rules import PositiveGradientRule

LayerScores: TypeAlias = Literal["own", "final"]
LAYER_SCORES: tuple[LayerScores, ...] = ("own", "final")


class LeGrad(AttentionMethod):
    """Average the positive gradient of each layer's own score with respect to its attention.

    The score of a layer is the model's score if that layer's tokens were its last ones: they go
    through all that is above the layers, its norm, pooling and class head. A layer's map is the
    mean over heads and queries of relu(dscore/dA), and the map the mean of the layers'. The paper
    scales it to 0 .. 1 afterwards; here it keeps its scale.

    The authors' code differs: it pools the mean of all tokens whatever the class head reads, takes
    the two top layers unless told otherwise, and under SigLIP the attention of the pooling head.
    Here the class head reads what it was trained to read; if that is CLS, only the query of CLS has
    a gradient.

    A map is >= 0 and has no upper bound: it grows with the score.

    Args:
        model: its layers must be those of Transformers, or the one list of modules that can only be
            them, each called once. Where they can't be told, only ``layer_scores="final"`` works.
        layer_scores: ``"own"`` as above; ``"final"`` takes the gradient of the model's score in
            every layer, which is not LeGrad but needs no layer by itself.
        **options: see :class:`~hf_gmar.methods.attention_base.AttentionMethod`.

    Raises:
        UnsupportedModelError: layers that can't be told from other modules.

    Example:
        >>> import torch
        >>> from hf_gmar import load_model
        >>> LeGrad(load_model("bundled").model).attribute(torch.rand(2, 3, 96, 96), 3).shape
        torch.Size([2, 3, 96, 96])
    """

    source = "Bousselham et al., ICCV 2025, arXiv 2404.03214"
    cost = "forward + backward + heads"

    def __init__(
        self,
        model: Callable[..., Any],
        layer_scores: LayerScores = "own",
        **options: Unpack[AttentionOptions],
    ) -> None:
        super().__init__(model, **options)
        check_option("layer_scores", layer_scores, LAYER_SCORES)
        self.layer_scores = layer_scores
        if layer_scores == "own":
            layer_modules(self.adapter)  # now, and not only at the first image
        self.gradient = "layers" if layer_scores == "own" else "score"
        self.rule = PositiveGradientRule(self.adapter.layers - self.start_layer, weighted=False)
