"""LeGrad: sensitivity of feature formation, layer by layer."""

from __future__ import annotations

from typing import Literal, TypeAlias, Unpack

from hf_gmar._core.layers import layer_modules
from hf_gmar._core.model_adapter import ModelLike
from hf_gmar._utils.validation import check_option
from hf_gmar.methods.attention_base import AttentionMethod, AttentionOptions
from hf_gmar.methods.layer_rules import PositiveGradientRule

LayerScores: TypeAlias = Literal["own", "final"]
LAYER_SCORES: tuple[LayerScores, ...] = ("own", "final")


class LeGrad(AttentionMethod):
    r"""Average the positive gradient of each layer's own score with respect to its attention.

    $$ r_j = \frac{1}{LHN} \sum_{l,h,i} \operatorname{relu}(G_{l,h,i,j}), \quad
    G_{l,h,i,j} = \frac{\partial s_l}{\partial A_{l,h,i,j}} $$

    $A$: attention (layer $l$, head $h$, query $i$, key $j$); $s_l$: the score of layer $l$.
    The model's final norm, pooling and class head compute $s_l$ from the output of layer $l$.

    The map is $r$ on the patches: >= 0, without an upper bound; it grows with the score. The paper
    then scales it to 0 .. 1; here it keeps its scale.

    The authors' code differs: it pools the mean of all tokens for every class head, takes the two
    top layers by default, and for SigLIP reads the attention of the pooling head. Here the class
    head pools as it was trained to; if it reads CLS, only the query of CLS has a gradient.

    Args:
        model: its layers must be Transformers' own, or a list of modules that is the only
            candidate, each called once. Other models need ``layer_scores="final"``.
        layer_scores: ``"own"`` as above; ``"final"`` takes the gradient of the model's score in
            every layer, which is not LeGrad but does not need the layers as modules.
        **options: see :class:`~hf_gmar.methods.attention_base.AttentionMethod`.

    Raises:
        UnsupportedModelError: layers that can't be told from other modules.

    Example:
        >>> import torch
        >>> from hf_gmar import load_model
        >>> LeGrad(load_model("bundled").model).attribute(torch.rand(2, 3, 96, 96), 3).shape
        torch.Size([2, 3, 96, 96])
    """

    title = "LeGrad"
    shows = "what raises the score of the class"
    source = "Bousselham et al., ICCV 2025, arXiv 2404.03214"
    cost = "forward + backward + head re-evaluation"
    unit = "mean positive gradient"

    def __init__(
        self,
        model: ModelLike,
        layer_scores: LayerScores = "own",
        **options: Unpack[AttentionOptions],
    ) -> None:
        super().__init__(model, **options)
        check_option("layer_scores", layer_scores, LAYER_SCORES)
        self.layer_scores = layer_scores
        if layer_scores == "own":
            layer_modules(self.adapter)  # fail now, not at the first image
        self.gradient = "layers" if layer_scores == "own" else "score"
        self.rule = PositiveGradientRule(self.adapter.layers - self.start_layer, weighted=False)
