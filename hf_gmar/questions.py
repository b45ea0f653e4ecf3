"""Questions without a class: the similarity to another image, and attention from a place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar._core.token_layout import embedding_readout, family_of, prefix_tokens
from hf_gmar.data.image_files import ImageSource, name_of_image, read_input
from hf_gmar.errors import OptionError, TargetError, UnsupportedModelError
from hf_gmar.methods.attention_base import AttentionMethod
from hf_gmar.methods.base import AttributionMethod
from hf_gmar.methods.registry import METHODS
from hf_gmar.models.hub import LoadedModel
from hf_gmar.models.wrappers import SimilarityModel


@dataclass(frozen=True)
class SimilarTo:
    """A target of ``explain`` and ``Explainer``: the similarity to another image.

    The score is the cosine of the embeddings of both images, see
    :class:`~hf_gmar.SimilarityModel`. As ``contrast``, the similarity to a second image is
    subtracted.

    Attributes:
        image: the other image, in any form that ``explain`` takes.
        name: its name in labels; ``None`` for the file's, or "image".

    Example:
        >>> from hf_gmar import explain
        >>> from hf_gmar.data import draw_scene
        >>> one, other = (draw_scene(seed).image for seed in (18, 3))
        >>> explain(one, "bundled", target=SimilarTo(other, "a scene")).label
        'similar to a scene'
    """

    image: ImageSource
    name: str | None = None

    def __str__(self) -> str:
        """Name the image."""
        return self.name or name_of_image(self.image)


def similar_targets(target: Any, contrast: Any) -> list[SimilarTo]:
    """Return the reference images of a question, the contrast last; empty for other questions.

    Raises:
        OptionError: similarities and classes are mixed.
    """
    targets = list(target) if isinstance(target, list | tuple) else [target]
    items = targets if contrast is None else [*targets, contrast]
    similar = [item for item in items if isinstance(item, SimilarTo)]
    if similar and len(similar) < len(items):
        raise OptionError(
            "SimilarTo and classes can't be mixed, as a similarity is no score of a class: give "
            "SimilarTo as target and, for a difference, another SimilarTo as contrast"
        )
    return similar


def similar_indices(target: Any, contrast: Any) -> tuple[int | list[int], int | None]:
    """Return target and contrast as columns of the similarity scores.

    Example:
        >>> similar_indices([SimilarTo("a.jpg"), SimilarTo("b.jpg")], SimilarTo("c.jpg"))
        ([0, 1], 2)
    """
    is_list = isinstance(target, list | tuple)
    count = len(target) if is_list else 1
    return list(range(count)) if is_list else 0, None if contrast is None else count


def similarity_model(loaded: LoadedModel, items: Sequence[SimilarTo]) -> LoadedModel:
    """Return the model with the similarities to some images as its scores.

    Raises:
        ImageFileError: an image is missing, broken or too large.
        UnsupportedModelError: it is not known how the model embeds an image.
    """
    pixels = [loaded.pixels(read_input(item.image, loaded.channels)) for item in items]
    names = [str(item) for item in items]
    model = SimilarityModel(loaded.model, pixels, names, **loaded.forward_kwargs)
    return replace(loaded, model=model)


class NoQuestion(nn.Module):
    """A backbone without a class head, with a method that waits for ``SimilarTo``.

    Args:
        model: the backbone.
        error: why it gives no scores; a forward raises it.
    """

    def __init__(self, model: Any, error: UnsupportedModelError) -> None:
        super().__init__()
        self.model = model
        self.error = error
        tower = ModelAdapter.of(model, needs_scores=False).vision_model
        self.readout = embedding_readout(tower)

    def forward(self, pixel_values: Tensor, **_: Any) -> Tensor:  # noqa: ARG002
        """Raise the error."""
        raise self.error


def method_on(name: str, model: Any, options: Mapping[str, Any]) -> AttributionMethod:
    """Build a method; on a backbone without a class head, one that waits for a question.

    Raises:
        HfGmarError: see :class:`~hf_gmar.Explainer`.
    """
    try:
        return METHODS.build(name, model, **options)
    except UnsupportedModelError as error:
        if not METHODS[name].needs_scores or "readout" in options:
            raise
        try:
            waiting = NoQuestion(model, error)
        except UnsupportedModelError:
            raise error from None
        return METHODS.build(name, waiting, **options)


def label_without_class(method: AttributionMethod, scores: Tensor | None = None) -> str | None:
    """Return what a map shows if it is of no class; ``None`` if it is of a class.

    Args:
        method: the method.
        scores: the scores of its model, if they are known; (B, 0) without a class head.

    Example:
        >>> from hf_gmar import RawAttention, load_model
        >>> label_without_class(RawAttention(load_model("bundled").model, readout=(3, 5)))
        'attention from patch (3, 5)'
    """
    adapter = method.adapter
    if adapter.place is not None:
        start = f"patch {adapter.place}"
    elif scores is not None and not scores.shape[1]:
        start = _start_of(adapter)
    else:
        return None
    return f"attention from {start}" if isinstance(method, AttentionMethod) else "no class"


def _start_of(adapter: ModelAdapter) -> str:
    """Return the tokens of a readout in words."""
    layout, family = adapter.tokens, family_of(adapter.vision_model)
    if layout.rest == "attention":
        return "the pooling head"
    kinds = prefix_tokens(family, adapter.vision_model) if family else ()
    kinds = kinds or ("prefix tokens",) * len(layout.readout)
    shares = zip(kinds, layout.readout, strict=True)
    parts = list(dict.fromkeys(kind for kind, share in shares if share))
    if math.fsum(layout.readout) < 1:
        parts.append("all tokens" if layout.rest == "tokens" else "the patches")
    return " and ".join(parts)


def check_without_class(method: AttributionMethod, target: Any, contrast: Any, top_k: int) -> None:
    """Check a question before the model runs.

    Raises:
        TargetError: a class for a map of no class.
    """
    label = label_without_class(method)
    if label is not None and (target is not None or contrast is not None or top_k > 1):
        raise TargetError(
            f"the map shows the {label}, and is of no class; leave out target, contrast and top_k"
        )


def head_for(methods: Sequence[str], head: bool | None) -> bool | None:
    """Return whether a named model needs a class head: ``None`` if one that it has will do."""
    needed = head is False or any(METHODS[name].needs_scores for name in methods)
    return head if needed else None
