"""One image for one model: its parts agree with what makes them, and are made when used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessorPil

from hf_gmar.data.prepared_image import PreparedImage, prepare_image
from hf_gmar.errors import ImageFileError, InputError
from hf_gmar.models import LoadedModel, load_model

WIDE = Image.fromarray(np.arange(40 * 90 * 3, dtype=np.uint8).reshape(40, 90, 3))


@pytest.fixture(scope="module")
def cropping() -> LoadedModel:
    """The bundled model with a processor that crops the middle."""
    sizes: dict[str, Any] = {
        "size": {"shortest_edge": 96},
        "crop_size": {"height": 96, "width": 96},
    }
    processor = ViTImageProcessorPil(do_center_crop=True, **sizes)
    return LoadedModel("cropping", load_model("bundled").model, processor)


@pytest.mark.parametrize("kind", ["file", "array file", "image", "array"])
def test_the_parts_of_an_image(kind: str, cropping: LoadedModel, tmp_path: Path) -> None:
    values, path = np.asarray(WIDE), tmp_path / f"wide.{'png' if kind == 'file' else 'npy'}"
    WIDE.save(path) if kind == "file" else np.save(path, values)
    source: Any = {"image": WIDE, "array": values}.get(kind, path)
    found = prepare_image(cropping, source)
    assert found.name == (path.name if "file" in kind else "image")
    assert found.size == (40, 90)
    assert np.array_equal(np.asarray(found.picture), values)
    wanted = cropping.processor(images=WIDE, return_tensors="pt").pixel_values
    assert torch.equal(found.pixels, wanted)
    # The square in the middle of 90 columns.
    assert np.allclose(found.view.box, (0, 25, 40, 65), atol=0.5)
    assert np.array_equal(np.asarray(found.seen), values[:, 25:65])


def test_an_image_lies_as_its_file_says(cropping: LoadedModel, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    WIDE.save(tmp_path / "turned.png", exif=exif)
    found = prepare_image(cropping, tmp_path / "turned.png")
    assert found.size == (90, 40) == found.view.size
    assert found.picture.size == (40, 90)


def test_parts_are_made_when_they_are_used(cropping: LoadedModel) -> None:
    """An image whose place is not known has pixels and a picture nevertheless."""
    flipping = LoadedModel("flipping", cropping.model, _Flipping())
    found = prepare_image(flipping, WIDE)
    assert found.pixels.shape == (1, 3, 96, 96)
    assert found.picture.size == (90, 40)
    for part in (lambda: found.view, lambda: found.seen, found.ready):
        with pytest.raises(InputError, match="_Flipping"):
            part()


class _Flipping(ViTImageProcessorPil):
    """A processor that mirrors images."""

    def __init__(self) -> None:
        """Resize to the size of the bundled model."""
        super().__init__(size={"height": 96, "width": 96})

    def preprocess(self, images: Any, *args: Any, **options: Any) -> Any:
        """Mirror the image and process it."""
        mirrored = images.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return super().preprocess(mirrored, *args, **options)


def test_ready_makes_each_part_once(cropping: LoadedModel) -> None:
    found = prepare_image(cropping, WIDE)
    assert isinstance(found.ready(), PreparedImage)
    assert found.pixels is found.pixels
    assert found.picture is found.picture


def test_what_can_not_be_read_is_an_error(cropping: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(ImageFileError, match="there is no"):
        prepare_image(cropping, tmp_path / "missing.png")
    with pytest.raises(InputError, match=r"is several images; .* list\(array\)"):
        prepare_image(cropping, np.zeros((2, 32, 32, 3), np.uint8)).ready()
