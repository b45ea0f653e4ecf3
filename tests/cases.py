"""One table of models and one of methods. Each generic test runs over all rows.

A new model family is one row in ``MODELS`` (and its readout in ``oracles.read_out``); a new
method is one row in ``METHODS``, with a function in ``oracles`` that says what it should give.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

from hf_gmar.methods import GMAR
from tests import oracles

LABELS = 7
LAYERS = 3
HEADS = 4
BATCH = 3
TARGETS = [5, 0, 3]
"""One target for each image of a batch."""

ENGINE_OPTIONS: dict[str, dict[str, Any]] = {
    "dense": {"engine": "dense"},
    "streaming": {"engine": "streaming"},
    "streaming-5-rows": {"engine": "streaming", "chunk_size": 5},
    "streaming-checkpoint": {"engine": "streaming", "checkpoint": True},
}
"""Every way to feed the layers, as options of a method."""

ENGINE_NAMES = list(ENGINE_OPTIONS)

_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "patch_size": 8,
    "image_size": 32,
    "num_labels": LABELS,
    "initializer_range": 0.3,  # at the usual 0.02 attention is uniform and every order is right
}


def build(
    model_class: type[PreTrainedModel],
    config_class: Callable[..., Any],
    attention: str = "sdpa",
    **settings: Any,
) -> Any:
    """A tiny model, the same each time, in evaluation mode. The caller's random state stays."""
    config = config_class(**{**_SIZES, **settings}, attn_implementation=attention)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model: Any = model_class(config)
        for parameter in model.parameters():
            # Biases, and DeiT's tokens and positions, start at zero and would hide a mistake.
            if not parameter.any():
                nn.init.normal_(parameter, std=0.3)
    return model.eval()


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


@dataclass(frozen=True, eq=False)
class ModelCase:
    """One row of the table of models.

    Attributes:
        name: shown in the names of tests.
        build: makes the model; takes ``attention`` and further settings of its config.
        shape: channels, height and width of its images.
        grid: rows and columns of patches of such an image.
        prefix: tokens before the patches.
        forward_kwargs: keywords that the model needs for such images.
    """

    name: str
    build: Callable[..., Any]
    shape: tuple[int, int, int]
    grid: tuple[int, int]
    prefix: int
    forward_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def images(self, dtype: torch.dtype = torch.float32, batch: int = BATCH) -> Tensor:
        """Images for the model, the same each time."""
        generator = torch.Generator().manual_seed(7)
        return torch.randn(batch, *self.shape, generator=generator, dtype=torch.float64).to(dtype)


@dataclass(frozen=True, eq=False)
class MethodCase:
    """One row of the table of methods.

    Attributes:
        name: shown in the names of tests.
        build: makes the method for a model; takes ``engine`` too.
        reference: what the method should give, from a dense trace.
        has_heads: it has ``head_importance``.
        class_specific: its map depends on the target.
    """

    name: str
    build: Callable[..., Any]
    reference: Callable[[oracles.Trace], oracles.Reference]
    has_heads: bool = True
    class_specific: bool = True


def _gmar(name: str, **options: Any) -> MethodCase:
    return MethodCase(
        name, functools.partial(GMAR, **options), functools.partial(oracles.gmar, **options)
    )


_vit = functools.partial(build, ViTForImageClassification, ViTConfig)

MODELS = (
    ModelCase("vit", _vit, (3, 32, 32), (4, 4), 1),
    ModelCase("vit-oblong", functools.partial(_vit, image_size=(24, 40)), (3, 24, 40), (3, 5), 1),
    ModelCase(
        "vit-oblong-patches",
        functools.partial(_vit, image_size=(24, 32), patch_size=(8, 4)),
        (3, 24, 32),
        (3, 8),
        1,
    ),
    ModelCase("vit-interpolated", _vit, (3, 40, 16), (5, 2), 1, {"interpolate_pos_encoding": True}),
    ModelCase(
        "deit",
        functools.partial(build, DeiTForImageClassification, DeiTConfig),
        (3, 32, 32),
        (4, 4),
        2,
    ),
    ModelCase(
        "deit-teacher",
        functools.partial(build, DeiTForImageClassificationWithTeacher, DeiTConfig),
        (3, 32, 32),
        (4, 4),
        2,
    ),
)

METHODS = (
    _gmar("gmar-l1"),
    _gmar("gmar-l2", norm="l2"),
    _gmar("gmar-l1-alpha0.3", alpha=0.3),
    _gmar("gmar-l1-alpha0", alpha=0.0),
    _gmar("gmar-l1-start1", start_layer=1),
    _gmar("gmar-l2-alpha0.3-start1", norm="l2", alpha=0.3, start_layer=1),
)

VIT = MODELS[0]

every_model = pytest.mark.parametrize("case", MODELS, ids=lambda case: case.name)
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
every_engine = pytest.mark.parametrize("engine", ENGINE_NAMES)
