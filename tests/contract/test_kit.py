"""A trained model of another family than ViT, on photos, where they are at hand (see ROOT)."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from hf_gmar import GMAR, load_model
from hf_gmar._engines import blocks
from hf_gmar.data import open_image
from hf_gmar.models import LoadedModel, measure_view
from tests.reference import oracles
from tests.reference.parity import relative_error, same

ROOT = Path(__file__).parents[3] / "shared" / "kit"

pytestmark = pytest.mark.skipif(not ROOT.is_dir(), reason="no trained model beside the project")


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(ROOT / "photo-vit")


def pixels_of(loaded: LoadedModel, side: int) -> Tensor:
    """A dog and a goldfinch, as the processor makes them for that size."""
    found = [next((ROOT / "images" / "dev").glob(f"*/{name}")) for name in
             ("n02085620_Chihuahua.jpg", "n01531178_goldfinch.jpg")]  # fmt: skip
    sizes: dict[str, Any] = {
        "size": {"shortest_edge": side * 8 // 7},
        "crop_size": {"height": side, "width": side},
    }
    pixels: Tensor = loaded.processor(
        images=[open_image(path) for path in found], return_tensors="pt", **sizes
    ).pixel_values
    return pixels


def test_112_equals_the_oracle(loaded: LoadedModel) -> None:
    pixels = pixels_of(loaded, 112)
    wanted = oracles.gmar(oracles.trace(loaded.model, pixels))
    got = GMAR(loaded.model).attribute_patches(pixels)
    assert got.shape == (2, 8, 8)
    assert relative_error(got, wanted.patches) < 1e-4


def test_168_streams_what_dense_gives(loaded: LoadedModel) -> None:
    """In three blocks of rows, as many as little memory leaves of 145 tokens."""
    pixels = pixels_of(loaded, 168)
    with patch.object(blocks, "_CPU_BYTES", 1):
        streamed = GMAR(loaded.model).attribute_patches(pixels)
    assert streamed.shape == (2, 12, 12)
    assert same(streamed, GMAR(loaded.model, engine="dense").attribute_patches(pixels))


def test_the_crop_is_on_the_photo(loaded: LoadedModel) -> None:
    """256 pixels along the short side, of which the middle 224 are cut out."""
    box = measure_view(loaded.processor, (256, 340)).box
    assert box == pytest.approx((16, 58, 240, 282), abs=0.01)
    heat = measure_view(loaded.processor, (256, 340)).project(torch.ones(16, 16))
    assert int(heat.isfinite().sum()) == 224 * 224
