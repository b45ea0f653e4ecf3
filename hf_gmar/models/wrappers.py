"""Modules that wrap a model and return its scores as a tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_gmar._core.attention import configs_of
from hf_gmar._core.execution import evaluation_mode
from hf_gmar._core.families import ZERO_SHOT_CLASSES
from hf_gmar._core.inputs import check_inputs
from hf_gmar._core.model_adapter import ModelLike, model_in, scores_of, unwrapped
from hf_gmar._core.threads import lock_models
from hf_gmar._core.token_layout import prompted_readout
from hf_gmar.errors import OptionError, UnsupportedModelError
from hf_gmar.models.embeddings import Embedding


class LogitsModel(nn.Module):
    """A model that returns its logits as a tensor, for Captum's methods.

    Args:
        model: a model whose output has ``logits``, or any callable that returns scores.
        **forward_kwargs: keyword arguments for every call, such as
            ``interpolate_pos_encoding=True``.

    Example:
        >>> import torch
        >>> from captum.attr import IntegratedGradients
        >>> from hf_gmar import load_model
        >>> method = IntegratedGradients(LogitsModel(load_model("bundled").model))
        >>> method.attribute(torch.rand(1, 3, 96, 96), target=0, n_steps=2).shape
        torch.Size([1, 3, 96, 96])
    """

    def __init__(self, model: ModelLike, **forward_kwargs: Any) -> None:
        super().__init__()
        self.model = model_in(model)
        self.forward_kwargs = forward_kwargs
        self.training = bool(getattr(self.model, "training", False))

    def forward(self, pixel_values: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Compute logits (B, C) of pixel values (B, channels, height, width).

        Raises:
            ModelOutputError: the model returns no scores.
        """
        return scores_of(self.model(pixel_values, *args, **{**self.forward_kwargs, **kwargs}))


class ZeroShotModel(nn.Module):
    """An image-text model as a zero-shot classifier: one score for each prompt.

    The constructor encodes the prompts once. A forward runs the image tower alone, and gradients
    reach nothing else. Scores equal the model's own ``logits_per_image``.

    Source: Radford et al., "Learning Transferable Visual Models From Natural Language
    Supervision", ICML 2021 (arXiv 2103.00020), section 3.1; Zhai et al., "Sigmoid Loss for
    Language Image Pre-Training", ICCV 2023 (arXiv 2303.15343).

    Args:
        model: ``CLIPModel``, ``SiglipModel`` (also SigLIP 2 of fixed resolution) or another model
            that ``hf-gmar models`` lists with prompts; it is shared, not copied.
        processor: the model's processor or tokenizer.
        prompts: the full text for each class: ``"a photo of a dog"``.

    Attributes:
        config: class names (the prompts), and the problem type: independent scores
            (``multi_label_classification``: SigLIP) or a softmax (CLIP).

    Raises:
        UnsupportedModelError: the model is no image-text model, or its family is not known.
        OptionError: no prompt, or a prompt that is no text, too long or given twice.
    """

    text: Tensor
    """Features of the prompts, (prompts, dimensions), of length 1."""

    def __init__(self, model: nn.Module, processor: Any, prompts: Iterable[str]) -> None:
        super().__init__()
        self.model: Any = _image_text_model(model)
        self.readout = prompted_readout(self.model)
        self.prompts = _checked_prompts(prompts)
        self.register_buffer("text", self._encoded(processor), persistent=False)
        # Scores with a bias are for a sigmoid; the softmax of a single prompt is always 1.
        problem: Any = "single_label_classification" if len(self.prompts) > 1 else None
        problem = problem if self._bias is None else "multi_label_classification"
        self.config = PreTrainedConfig(id2label=dict(enumerate(self.prompts)), problem_type=problem)
        self.training = self.model.training

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> Tensor:
        """Scores (B, prompts), before any softmax, of pixels (B, channels, height, width)."""
        image = self.model.get_image_features(pixel_values, **kwargs, return_dict=True)
        features = _normalised(image.pooler_output)
        similarity = features @ self.text.to(features).T  # the model may have moved since
        scores: Tensor = similarity * self.model.logit_scale.exp()
        return scores if self._bias is None else scores + self._bias

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the model."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def _bias(self) -> Tensor | None:
        return getattr(self.model, "logit_bias", None)

    def _encoded(self, processor: Any) -> Tensor:
        tokens = self._tokens(getattr(processor, "tokenizer", processor))
        model = self.model
        with _embedding_once(model):
            features = model.get_text_features(**tokens.to(self.device), return_dict=True)
            return _normalised(features.pooler_output)

    def _tokens(self, tokenizer: Any) -> Any:
        config = self.model.config.text_config
        limit, size = config.max_position_embeddings, config.vocab_size
        # SigLIP was trained on texts that are padded to the maximum length.
        padding = {"padding": "max_length", "max_length": limit} if self._bias is not None else {}
        if not isinstance(tokenizer, PreTrainedTokenizerBase) or tokenizer.pad_token is None:
            raise OptionError(
                "the processor or tokenizer of the model is needed, with a padding token; got "
                f"{type(tokenizer).__name__}"
            )
        tokens = tokenizer(self.prompts, **{"padding": True, **padding})
        _check_different(self.prompts, tokens["input_ids"])
        length = max(map(len, tokens["input_ids"]))
        if length > limit:
            raise OptionError(
                f"a prompt has {length} tokens, and the model reads {limit}; shorten it"
            )
        tokens = tokens.convert_to_tensors("pt")
        if int(tokens.input_ids.max()) >= size:
            raise OptionError(
                f"the tokenizer knows more than the {size} words of the model; give the one that "
                "it was trained with"
            )
        return tokens


class SimilarityModel(nn.Module):
    """A model whose scores are the similarity of an image to reference images.

    The score is the cosine of the angle between the embeddings of both images, from -1 to 1. The
    constructor embeds the reference images once. Every method explains the module: the map says
    which patches make the image similar.

    The embedding is what the model pools: image features of CLIP and SigLIP; what the class head of
    a classifier pools; CLS of DINOv2, DINOv3, ViT and CLIP's tower; the pooling head of SigLIP's
    tower; the mean of the patches of I-JEPA.

    Args:
        model: a Transformers vision model, with or without a class head, a model of image and text,
            or a module around one of them; it is shared, not copied.
        reference_pixels: pixel values (R, channels, height, width) of the reference images, or a
            list of such tensors of several sizes.
        names: names of the reference images, for labels.
        **forward_kwargs: keywords of the vision tower for every call, such as
            ``interpolate_pos_encoding=True``.

    Attributes:
        readout: the tokens that the embedding pools.
        config: labels "similar to NAME", and scores that are values.

    Raises:
        UnsupportedModelError: a family whose embedding is not known.
        InputError: reference pixels of a wrong type, shape, size or device.
        OptionError: not as many names as reference images.

    Example:
        >>> import torch
        >>> from hf_gmar import GMAR, load_model
        >>> pixels = torch.rand(2, 3, 96, 96)
        >>> model = SimilarityModel(load_model("bundled").model, pixels[1:])
        >>> round(model(pixels)[1, 0].item(), 4)
        1.0
        >>> GMAR(model).attribute(pixels, target=0).shape
        torch.Size([2, 3, 96, 96])
    """

    references: Tensor
    """Embeddings of the reference images, (R, dimensions), of length 1."""

    def __init__(
        self,
        model: Any,
        reference_pixels: Tensor | Sequence[Tensor],
        names: Sequence[str] | None = None,
        **forward_kwargs: Any,
    ) -> None:
        super().__init__()
        embedding = Embedding.of(model)
        self.model: Any = embedding.adapter.backbone
        self.readout = embedding.readout
        self.forward_kwargs = forward_kwargs
        self._embed = embedding.compute
        self.register_buffer(
            "references", self._references(embedding, reference_pixels), persistent=False
        )
        count = len(self.references)
        names = [f"image {n}" for n in range(count)] if names is None else list(names)
        if len(names) != count:
            raise OptionError(f"{len(names)} names are given for {count} reference images")
        self.config = PreTrainedConfig(
            id2label={n: f"similar to {name}" for n, name in enumerate(names)},
            problem_type="regression",
        )
        self.training = self.model.training

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> Tensor:
        """Cosines (B, R) of images, pixel values (B, channels, height, width), and references."""
        features = _normalised(self._embed(pixel_values, **{**self.forward_kwargs, **kwargs}))
        return features @ self.references.to(features).T

    def _references(self, embedding: Embedding, pixels: Any) -> Tensor:
        adapter = embedding.adapter
        items = list(pixels) if isinstance(pixels, list | tuple) else [pixels]
        for item in items:
            check_inputs(item, adapter)
            adapter.layout.grid(*item.shape[-2:])
        with _embedding_once(self.model):
            return torch.cat(
                [_normalised(self._embed(item.detach(), **self.forward_kwargs)) for item in items]
            )


def _image_text_model(model: Any) -> PreTrainedModel:
    inner = unwrapped(model)
    base = getattr(inner, "get_base_model", None)  # of PEFT, which leaves the adapters in it
    inner = base() if callable(base) else inner
    if not isinstance(inner, PreTrainedModel) or not prompted_readout(inner):
        raise UnsupportedModelError(
            "prompts need a model of image and text itself, one of "
            f"{', '.join(ZERO_SHOT_CLASSES)}; got {type(inner).__name__}"
        )
    return inner


@contextmanager
def _embedding_once(model: PreTrainedModel) -> Iterator[None]:
    """Run a model for features that are kept."""
    with (
        # Another thread may explain the model, and tensors made in inference mode can't be part of
        # a graph later.
        lock_models([*configs_of(model), *model.modules()]),
        evaluation_mode(model.modules()),
        torch.inference_mode(False),
        torch.no_grad(),
    ):
        yield


def _normalised(features: Tensor) -> Tensor:
    length: Tensor = features.norm(p=2, dim=-1, keepdim=True)
    return features / length


def _check_different(prompts: Sequence[str], tokens: Sequence[Sequence[int]]) -> None:
    """Raise an OptionError for prompts that the model reads as the same text."""
    for place, ids in enumerate(tokens):
        if (first := tokens.index(ids)) < place:
            raise OptionError(
                f"the prompts {prompts[first]!r} and {prompts[place]!r} are the same text for the "
                "model, and each prompt is one class; give it once"
            )


def _checked_prompts(prompts: Any) -> list[str]:
    is_list = isinstance(prompts, Iterable) and not isinstance(prompts, str)
    texts = list(prompts) if is_list else [prompts]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise OptionError(
            f"prompts must be one or more texts such as 'a photo of a dog', got {prompts!r}"
        )
    return texts
