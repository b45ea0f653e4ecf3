"""Modules around a model that return its scores as a plain tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_gmar._core.attention import configs_of
from hf_gmar._core.execution import evaluation_mode
from hf_gmar._core.families import ZERO_SHOT_CLASSES
from hf_gmar._core.model_adapter import scores_of, unwrapped
from hf_gmar._core.threads import lock_models
from hf_gmar._core.token_layout import prompted_readout
from hf_gmar.errors import OptionError, UnsupportedModelError


class LogitsModel(nn.Module):
    """A model whose output is the logits alone, as a tensor: what Captum's methods need.

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

    def __init__(self, model: Callable[..., Any], **forward_kwargs: Any) -> None:
        super().__init__()
        self.model = model
        self.forward_kwargs = forward_kwargs
        self.training = bool(getattr(model, "training", False))

    def forward(self, pixel_values: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Logits (B, C) of pixel values (B, channels, height, width).

        Raises:
            ModelOutputError: the model returns no scores.
        """
        return scores_of(self.model(pixel_values, *args, **{**self.forward_kwargs, **kwargs}))


class ZeroShotModel(nn.Module):
    """A model of image and text as a classifier: one score for each prompt.

    The text is encoded once, here; an image then costs the image tower alone, and a gradient
    reaches nothing else. Scores are those of the model's own ``logits_per_image``.

    Source: Radford et al., "Learning Transferable Visual Models From Natural Language
    Supervision", ICML 2021 (arXiv 2103.00020), section 3.1; Zhai et al., "Sigmoid Loss for
    Language Image Pre-Training", ICCV 2023 (arXiv 2303.15343).

    Args:
        model: ``CLIPModel``, ``SiglipModel`` (SigLIP 2 of fixed resolution too) or another of those
            that ``hf-gmar models`` lists with prompts; it is shared, not copied.
        processor: its processor or tokenizer.
        prompts: one text for each class, as the model reads it: ``"a photo of a dog"``.

    Attributes:
        config: names of the classes (the prompts), and whether their scores are independent
            (``multi_label_classification``: SigLIP) or shares of one (CLIP).

    Raises:
        UnsupportedModelError: the model is not of image and text, or its family is not known.
        OptionError: no prompt, a prompt that is no text, or one that the model can't read whole.
    """

    text: Tensor
    """Features of the prompts, (prompts, dimensions), of length 1."""

    def __init__(self, model: nn.Module, processor: Any, prompts: Iterable[str]) -> None:
        super().__init__()
        self.model: Any = _of_image_and_text(model)
        self.readout = prompted_readout(self.model)
        self.prompts = _checked_prompts(prompts)
        self.register_buffer("text", self._encoded(processor), persistent=False)
        # Scores with a bias are for a sigmoid each; a share of a single prompt means nothing.
        problem: Any = "single_label_classification" if len(self.prompts) > 1 else None
        problem = problem if self._bias is None else "multi_label_classification"
        self.config = PreTrainedConfig(id2label=dict(enumerate(self.prompts)), problem_type=problem)
        self.training = self.model.training

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> Tensor:
        """Scores (B, prompts) of pixel values (B, channels, height, width), before any softmax."""
        image = self.model.get_image_features(pixel_values, **kwargs, return_dict=True)
        features = _of_length_one(image.pooler_output)
        similarity = features @ self.text.to(features).T  # the model may have been moved alone
        scores: Tensor = similarity * self.model.logit_scale.exp()
        return scores if self._bias is None else scores + self._bias

    @property
    def device(self) -> torch.device:
        """Where the model is."""
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
            # Another thread may be explaining the model; and what inference mode makes can't be
            # part of a graph later.
            lock_models([*configs_of(model), *model.modules()]),
            evaluation_mode(model.modules()),
            torch.inference_mode(False),
            torch.no_grad(),
        ):
            features = model.get_text_features(**tokens.to(self.device), return_dict=True)
            return _of_length_one(features.pooler_output)

    def _tokens(self, tokenizer: Any) -> Any:
        config = self.model.config.text_config
        longest, words = config.max_position_embeddings, config.vocab_size
        # SigLIP was trained on texts that are padded to the end.
        padding = {"padding": "max_length", "max_length": longest} if self._bias is not None else {}
        if not isinstance(tokenizer, PreTrainedTokenizerBase) or tokenizer.pad_token is None:
            raise OptionError(
                "the processor or tokenizer of the model is needed, with a padding token; got "
                f"{type(tokenizer).__name__}"
            )
        tokens = tokenizer(self.prompts, **{"padding": True, **padding})
        length = max(map(len, tokens["input_ids"]))
        if length > longest:
            raise OptionError(
                f"a prompt has {length} tokens, and the model reads {longest}; shorten it"
            )
        tokens = tokens.convert_to_tensors("pt")
        if int(tokens.input_ids.max()) >= words:
            raise OptionError(
                f"the tokenizer knows more than the {words} words of the model; give the one that "
                "it was trained with"
            )
        return tokens


def _of_image_and_text(model: Any) -> PreTrainedModel:
    inside = unwrapped(model)
    base = getattr(inside, "get_base_model", None)  # of adapters, which stay in it
    inside = base() if callable(base) else inside
    if not isinstance(inside, PreTrainedModel) or not prompted_readout(inside):
        raise UnsupportedModelError(
            "prompts need a model of image and text itself, one of "
            f"{', '.join(ZERO_SHOT_CLASSES)}; got {type(inside).__name__}"
        )
    return inside


def _of_length_one(features: Tensor) -> Tensor:
    length: Tensor = features.norm(p=2, dim=-1, keepdim=True)
    return features / length


def _checked_prompts(prompts: Any) -> list[str]:
    several = isinstance(prompts, Iterable) and not isinstance(prompts, str)
    texts = list(prompts) if several else [prompts]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise OptionError(
            f"prompts must be one or more texts such as 'a photo of a dog', got {prompts!r}"
        )
    return texts
