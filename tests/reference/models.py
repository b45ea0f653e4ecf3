"""Tiny models of every family, the same each time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from hf_gmar import ZeroShotModel
from hf_gmar.data import CLASSES
from hf_gmar.models import LoadedModel

LABELS = 7
LAYERS = 3
HEADS = 4
HIDDEN = 32

SIZES = {
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "patch_size": 8,
    "image_size": 32,
    "num_labels": LABELS,
    "initializer_range": 0.3,  # at the usual 0.02 attention is uniform and every order is right
}

PROMPTS = [f"a photo of a {name}" for name in "dog cat heart cross moon star boat".split()]  # noqa: SIM905
"""One for each label."""

_WORDS = ["<pad>", "<bos>", "<eos>", *dict.fromkeys(" ".join(PROMPTS).split())]
_LONGEST = 9


def build(
    model_class: type[PreTrainedModel],
    config_class: Callable[..., Any],
    attention: str = "sdpa",
    sharper: float = 1.0,
    **settings: Any,
) -> Any:
    """A tiny model in evaluation mode. The caller's random state stays.

    ``sharper`` is for families that start with weights of their own size: their queries and keys
    are multiplied by it, or attention is uniform.
    """
    config = config_class(**{**SIZES, **settings}, attn_implementation=attention)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model: Any = model_class(config)
        for name, parameter in model.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                parameter.data *= sharper
            # Biases, and DeiT's tokens and positions, start at zero and would hide a mistake.
            if not parameter.any():
                nn.init.normal_(parameter, std=0.3)
    return model.eval()


def of_two(
    config_class: Callable[..., Any], attn_implementation: str, num_labels: int, **vision: Any
) -> Any:
    """A config of image and text; the settings are for the vision tower."""
    text = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": len(_WORDS),
        "max_position_embeddings": _LONGEST,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.3,
        "projection_size": 32,
        "attention_dropout": 0.5,  # in training; prompts are read without
    }
    return config_class(
        vision_config=vision,
        text_config=text,
        num_labels=num_labels,
        attn_implementation=attn_implementation,
    )


def tokenizer() -> PreTrainedTokenizerFast:
    """Words of the prompts as numbers."""
    pad, bos, eos, *_ = _WORDS
    plain = Tokenizer(WordLevel({word: n for n, word in enumerate(_WORDS)}, unk_token=pad))
    plain.pre_tokenizer = WhitespaceSplit()
    ends = [(bos, _WORDS.index(bos)), (eos, _WORDS.index(eos))]
    plain.post_processor = TemplateProcessing(single=f"{bos} $A {eos}", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token=pad, bos_token=bos, eos_token=eos
    )


def prompted(
    model_class: type[PreTrainedModel],
    config_class: Callable[..., Any],
    attention: str = "sdpa",
    **settings: Any,
) -> ZeroShotModel:
    """A tiny model of image and text with the prompts, which are read in one way for all."""
    model = build(model_class, functools.partial(of_two, config_class), **settings)
    prompted = ZeroShotModel(model, tokenizer(), PROMPTS)
    if attention != "sdpa":
        model.vision_model.set_attn_implementation(attention)
    return prompted


def scene_model() -> LoadedModel:
    """An untrained model with the classes, the image size and the patches of the bundled one."""
    model = build(
        ViTForImageClassification,
        ViTConfig,
        image_size=96,
        patch_size=12,
        num_labels=len(CLASSES),
        id2label=dict(enumerate(CLASSES)),
        problem_type="multi_label_classification",
    )
    return LoadedModel("tiny", model, ViTImageProcessorPil(size={"height": 96, "width": 96}))


class Around(nn.Module):
    """A user's own module around a model."""

    def __init__(self, model: Any, how: Callable[[Any, Tensor], Any]) -> None:
        """Keep the model as a submodule; ``how`` makes the output from it and the pixels."""
        super().__init__()
        self.model = model
        self.how = how

    def forward(self, pixels: Tensor) -> Any:
        """What ``how`` makes of the model and the pixels."""
        return self.how(self.model, pixels)


class OwnHead(nn.Module):
    """A user's own linear head on what ``read`` takes from a model's tokens (B, N, hidden)."""

    def __init__(self, model: Any, read: Callable[[Tensor], Tensor], width: int) -> None:
        """Keep the model as a submodule; ``width`` is how many numbers ``read`` gives."""
        super().__init__()
        self.model = model
        self.read = read
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            self.classifier = nn.Linear(width, LABELS)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """Scores (B, LABELS)."""
        scores: Tensor = self.classifier(self.read(self.model(pixels).last_hidden_state))
        return scores


def own_head(
    model_class: type[PreTrainedModel],
    config_class: Callable[..., Any],
    read: Callable[[Tensor], Tensor],
    **settings: Any,
) -> OwnHead:
    """A headless tiny model with a head of the tests' own."""
    model = build(model_class, config_class, **settings)
    return OwnHead(model, read, read(torch.zeros(1, 17, HIDDEN)).shape[1])


def state_of(model: nn.Module) -> dict[str, Any]:
    """All of a model that a caller could find changed, in forms that compare with ``==``."""
    state: dict[str, Any] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        state[f"{name} values"] = (id(tensor), tensor._version, _bits(tensor))
        state[f"{name} gradient"] = None if tensor.grad is None else _bits(tensor.grad)
        state[f"{name} requires_grad"] = tensor.requires_grad
    for name, module in model.named_modules():
        state[f"{name} training"] = module.training
        state[f"{name} attributes"] = sorted(module.__dict__)
        for attribute, value in module.__dict__.items():
            if "hook" in attribute:
                state[f"{name} {attribute}"] = (
                    list(value.items()) if isinstance(value, dict) else value
                )
        config = getattr(module, "config", None)
        if config is not None:
            state[f"{name} config"] = (
                id(config),
                repr(config.to_dict()),
                config._attn_implementation,
                sorted(vars(config)),
            )
    return state


def _bits(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes()
