"""Tiny models of videos and sound, and what the methods say of them: one row for each family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    ASTConfig,
    ASTForAudioClassification,
    TimesformerConfig,
    TimesformerForVideoClassification,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    VivitConfig,
    VivitForVideoClassification,
)

from tests.reference.models import LAYERS, build
from tests.reference.oracles import Array, Trace, unrounded_softmax

CLASSES = 7


@dataclass(frozen=True, eq=False)
class MediaCase:
    """A model of videos or sound.

    Attributes:
        name: the family.
        make: builds the model with an attention implementation.
        shape: the shape of one input.
        tokens: number of patches along each axis, in the order of the tokens.
        order: the places of the map's axes in ``tokens``.
        readout: share of each prefix token; patches share the rest evenly.
        patch: start and end of each patch along the axes of the input, in the order of the map.
        axes: the dimensions of an input that the map has.
        has_attention: whether methods on attention explain it.
    """

    name: str
    make: Callable[[str], Any]
    shape: tuple[int, ...]
    tokens: tuple[int, ...]
    order: tuple[int, ...]
    readout: tuple[float, ...]
    patch: tuple[list[tuple[int, int]], ...]
    axes: tuple[int, ...]
    has_attention: bool = True

    @property
    def map_shape(self) -> tuple[int, ...]:
        """Shape of the map of one input."""
        return tuple(self.tokens[place] for place in self.order)

    def inputs(self, count: int = 2) -> Tensor:
        """Inputs, always the same ones."""
        return torch.randn(count, *self.shape, generator=torch.Generator().manual_seed(3))

    def trace_of_cut_models(self, targets: list[int]) -> Trace:
        """As ``trace``; a layer's gradient is that of the model cut off above the layer."""
        cut = [self.trace(targets, kept).gradient[:, -1] for kept in range(1, LAYERS + 1)]
        return self.trace(targets)._replace(gradient=np.stack(cut, axis=1))

    def to_map(self, values: Array) -> Array:
        """Bring values of the patches, in the order of the tokens, to the shape of the map."""
        wanted = np.empty(self.map_shape)
        for number, place in enumerate(np.ndindex(*self.tokens)):
            wanted[tuple(place[index] for index in self.order)] = values[number]
        return wanted

    def trace(self, targets: list[int], layers: int = LAYERS) -> Trace:
        """Attention and gradient of each input by an eager model of some layers, in float64."""
        model = self.make("eager").double()
        for part in model.modules():
            if isinstance(part, nn.ModuleList) and len(part) == LAYERS:
                del part[layers:]
        attention, gradient, readouts = [], [], []
        for item, target in zip(self.inputs().double(), targets, strict=True):
            with unrounded_softmax():
                output = model(item[None], output_attentions=True)
            for layer in output.attentions:
                layer.retain_grad()
            output.logits[0, target].backward()
            attention.append(np.stack([layer[0].detach().numpy() for layer in output.attentions]))
            gradient.append(np.stack([layer.grad[0].numpy() for layer in output.attentions]))
            patches = int(np.prod(self.tokens))
            rest = (1 - sum(self.readout)) / patches
            readouts.append(np.array([*self.readout, *[rest] * patches]))
        return Trace(
            np.stack(attention),
            np.stack(gradient),
            np.stack(readouts),
            len(self.readout),
            self.tokens,  # type: ignore[arg-type]  # oracles reshape to any grid
        )


def _every(size: int, length: int) -> list[tuple[int, int]]:
    return [(start, start + length) for start in range(0, size, length)]


_FRAMES: dict[str, Any] = {"num_frames": 6, "num_labels": CLASSES}
_VIDEO = (6, 3, 24, 32)
_CUT = (_every(6, 2), _every(24, 8), _every(32, 8))

VIDEO_MAE = MediaCase(
    "VideoMAE",
    lambda attention: build(
        VideoMAEForVideoClassification,
        VideoMAEConfig,
        attention,
        image_size=(24, 32),
        tubelet_size=2,
        patch_size=8,
        **_FRAMES,
    ),
    _VIDEO,
    (3, 3, 4),
    (0, 1, 2),
    (),
    _CUT,
    (0, 2, 3),
)
VIVIT = MediaCase(
    "ViViT",
    lambda attention: build(
        VivitForVideoClassification,
        VivitConfig,
        attention,
        image_size=(24, 32),
        tubelet_size=[2, 8, 8],
        **_FRAMES,
    ),
    _VIDEO,
    (3, 3, 4),
    (0, 1, 2),
    (1.0,),
    _CUT,
    (0, 2, 3),
)
TIMESFORMER = MediaCase(
    "TimeSformer",
    lambda _: build(
        TimesformerForVideoClassification,
        TimesformerConfig,
        "eager",
        image_size=32,
        patch_size=8,
        **_FRAMES,
    ),
    (6, 3, 32, 32),
    (4, 4, 6),
    (2, 0, 1),
    (1.0,),
    (_every(6, 1), _every(32, 8), _every(32, 8)),
    (0, 2, 3),
    has_attention=False,
)
AST = MediaCase(
    "AST",
    lambda attention: build(
        ASTForAudioClassification,
        ASTConfig,
        attention,
        num_labels=CLASSES,
        patch_size=8,
        frequency_stride=5,
        time_stride=6,
        max_length=35,
        num_mel_bins=24,
    ),
    (35, 24),
    (4, 5),
    (1, 0),
    (0.5, 0.5),
    (
        [(start, start + 8) for start in (0, 6, 12, 18, 24)],
        [(start, start + 8) for start in (0, 5, 10, 15)],
    ),
    (0, 1),
)

MEDIA = [VIDEO_MAE, VIVIT, TIMESFORMER, AST]
