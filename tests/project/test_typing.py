"""Calls that a user's type checker accepts or refuses; ``make types`` checks this file, too.

An unneeded ``type: ignore`` is an error there, so each of them says that mypy refuses the line.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, pipeline

from hf_gmar import (
    GMAR,
    AttentionRollout,
    AttnLRP,
    GradientRollout,
    GradSAM,
    InputXGradient,
    LeGrad,
    LogitsModel,
    ModelLike,
    RandomAttribution,
    RawAttention,
    TokenGradCAM,
    ablate_heads,
    compare,
    evaluate,
    head_importance,
    head_maps,
    load_model,
)
from hf_gmar.errors import HfGmarError
from hf_gmar.heads import HeadTaylorImportance, scores_with_masked_heads, single_head_ablation
from hf_gmar.methods import AttributionMethod
from hf_gmar.models import LoadedModel

PIXELS = torch.zeros(1, 3, 96, 96)


def _methods(model: ModelLike) -> list[AttributionMethod]:
    """Build every method on any model."""
    return [
        GMAR(model, norm="l2"),
        AttentionRollout(model),
        AttnLRP(model),
        GradientRollout(model),
        GradSAM(model),
        InputXGradient(model),
        LeGrad(model),
        RandomAttribution(model),
        RawAttention(model),
        TokenGradCAM(model),
        HeadTaylorImportance(model),
    ]


def _calls_with_holders(loaded: LoadedModel, trainer: Trainer, model: PreTrainedModel) -> None:
    """Calls that are typed, and not run here."""
    made = pipeline("image-classification", model=model)
    GMAR(made)
    GMAR(trainer)
    GMAR(model)
    GMAR(loaded)
    GMAR(nn.Sequential(model))
    GMAR(functools.partial(model, interpolate_pos_encoding=True))
    head_importance(trainer, PIXELS)
    compare("bundled", PIXELS)
    compare(loaded, PIXELS)
    compare(made, PIXELS)
    evaluate("bundled", "scenes:1")
    evaluate(made, "scenes:1")
    GMAR("bundled")  # type: ignore[arg-type]
    GMAR(3)  # type: ignore[arg-type]
    compare(3, PIXELS)  # type: ignore[arg-type]
    evaluate(None, "scenes:1")  # type: ignore[arg-type]


def test_every_function_takes_a_loaded_model() -> None:
    """As its type says."""
    loaded = load_model("bundled")
    assert {type(method) for method in _methods(loaded)} >= {GMAR, TokenGradCAM}
    importance = head_importance(loaded, PIXELS, 6)
    assert head_maps(loaded, PIXELS).shape[0] == 1
    assert ablate_heads(loaded, PIXELS, importance).fractions[0] == 0
    scores: Tensor = scores_with_masked_heads(loaded, PIXELS, torch.zeros(6, 4, dtype=torch.bool))
    assert torch.allclose(LogitsModel(loaded)(PIXELS), scores, atol=1e-6)
    assert single_head_ablation(loaded, PIXELS, 6).shape[0] == 1


@pytest.mark.parametrize("model", ["bundled", 3])
def test_what_mypy_refuses_is_an_error(model: Any) -> None:
    with pytest.raises(HfGmarError):
        GMAR(model)
