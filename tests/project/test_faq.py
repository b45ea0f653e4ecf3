"""The errors on the page of questions are those that are raised."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import SwinConfig, SwinForImageClassification, ViTConfig, ViTModel

from hf_gmar import GMAR, AttentionRollout, AttnLRP, Explanation, explain, load_model
from hf_gmar.data import draw_scene
from hf_gmar.models import LoadedModel

PAGE = Path(__file__).parents[2] / "docs" / "faq.md"
QUOTES = re.findall(r"^> (.+) \.\.\.$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


@cache
def bundled() -> LoadedModel:
    return load_model("bundled")


def image() -> Any:
    return draw_scene(18).image


def attribute(*shape: int, dtype: torch.dtype = torch.float32, target: Any = 0) -> Any:
    return GMAR(bundled()).attribute(torch.zeros(shape, dtype=dtype), target)


class Head(nn.Module):
    """A head of one's own on a small backbone."""

    def __init__(self) -> None:
        super().__init__()
        sizes: dict[str, Any] = {
            "hidden_size": 16,
            "intermediate_size": 16,
            "image_size": 96,
            "patch_size": 12,
        }
        config = ViTConfig(**sizes, num_hidden_layers=1, num_attention_heads=2)
        self.body = ViTModel(config, add_pooling_layer=False).eval()
        self.head = nn.Linear(16, 3)

    def forward(self, pixels: torch.Tensor) -> Any:
        """Compute scores with a function that has no rule."""
        return self.head(torch.erfinv(self.body(pixels).last_hidden_state[:, 0].tanh() / 2))


def swin() -> Any:
    config: Any = SwinConfig(image_size=32, embed_dim=8, depths=[1], num_heads=[1])
    return GMAR(SwinForImageClassification(config))


def wrong_readout() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return GMAR(Head(), readout="patches").attribute(torch.zeros(1, 3, 96, 96), 0)


def checked_file(folder: Path) -> Any:
    explain(image(), bundled(), "heart").save(folder / "heart")
    return Explanation.load(folder / "heart.npz").check()


CALLS: tuple[Callable[[Path], Any], ...] = (
    lambda _: swin(),
    lambda _: GMAR(Head().body),
    lambda _: wrong_readout(),
    lambda _: AttnLRP(Head(), readout="cls").attribute(torch.zeros(1, 3, 96, 96), 0),
    lambda _: attribute(1, 3, 120, 96),
    lambda _: attribute(1, 3, 100, 96),
    lambda _: attribute(1, 3, 96, 96, dtype=torch.uint8),
    lambda _: attribute(3, 96, 96),
    lambda _: explain(image(), Head().body, method="raw-attention"),
    lambda _: explain("missing.jpg", bundled()),
    lambda _: explain(image(), bundled(), "hart"),
    lambda _: attribute(1, 3, 96, 96, target="heart"),
    lambda _: AttentionRollout(bundled()).attribute(torch.zeros(1, 3, 96, 96), 0, contrast=1),
    lambda _: explain(image(), bundled(), "heart", method="gmar", nrom="l1"),
    checked_file,
    lambda _: load_model("nobody/nothing"),
)


@pytest.mark.parametrize("number", range(len(CALLS)))
def test_the_quoted_error_is_raised(number: int, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=re.escape(QUOTES[number])):
        CALLS[number](tmp_path)


def test_each_quote_has_a_call() -> None:
    assert len(QUOTES) == len(CALLS)
