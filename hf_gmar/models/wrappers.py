"""Modules that wrap a model and return its scores as a tensor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_gmar._core.attention import configs_of
from hf_gmar._core.execution import evaluation_mode
from hf_gmar._core.families import ZERO_SHOT_CLASSES
from hf_gmar._core.model_adapter import ModelLike, model_in, scores_of, unwrapped
from hf_gmar._core.threads import lock_models
from hf_gmar._core.token_layout import prompted_readout
from hf_gmar.errors import OptionError, UnsupportedModelError


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
        with (
            # Another thread may explain the model, and tensors made in inference mode can't be part
            # of a graph later.
            lock_models([*configs_of(model), *model.modules()]),
            evaluation_mode(model.modules()),
            torch.inference_mode(False),
            torch.no_grad(),
        ):
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
