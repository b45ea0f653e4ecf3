"""Image files and arrays of any bytes: they are read, or refused as image files."""

from __future__ import annotations

import base64
import io
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hf_gmar.data.image_files import load_image, open_array, read_image
from hf_gmar.data.masks import to_mask
from hf_gmar.errors import HfGmarError, ImageFileError
from hf_gmar.models import LoadedModel
from tests.support.mutations import as_a_user, bounded, changed_bytes

pytestmark = pytest.mark.extended

LIMIT = 100_000  # pixels; half of Pillow's own limit, scaled to a test


def _files() -> list[bytes]:
    """A small image in each format and mode that users have."""
    upright = Image.Exif()
    upright[0x0112] = 6
    forms: list[tuple[str, str, dict[str, Any]]] = [
        ("PNG", "RGB", {}), ("PNG", "P", {}), ("PNG", "I;16", {}), ("PNG", "1", {}),
        ("PNG", "RGBA", {"exif": upright}), ("JPEG", "RGB", {"exif": upright}),
        ("JPEG", "CMYK", {}), ("JPEG", "L", {"progressive": True}), ("GIF", "P", {}),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}), ("TIFF", "RGB", {}), ("TIFF", "I;16", {}),
        ("TIFF", "L", {"compression": "packbits"}), ("TIFF", "RGB", {"compression": "jpeg"}),
        ("WEBP", "RGB", {}), ("WEBP", "RGBA", {"lossless": True}), ("BMP", "RGB", {}),
        ("BMP", "P", {}), ("AVIF", "RGB", {"speed": 10}), ("PPM", "RGB", {}), ("PPM", "L", {}),
        ("ICO", "RGBA", {}), ("TGA", "RGB", {"compression": "tga_rle"}), ("JPEG2000", "RGB", {}),
        ("PCX", "L", {}), ("SGI", "RGB", {}), ("DDS", "RGB", {}), ("EPS", "RGB", {}),
    ]  # fmt: skip
    noise = np.random.default_rng(0).integers(0, 255, (12, 16), np.uint8)
    files = []
    for form, mode, options in forms:
        file = io.BytesIO()
        image = Image.fromarray(noise)
        if mode == "I;16":
            image = Image.fromarray(noise.astype(np.uint16) * 257)
        image.convert(mode).save(file, form, **options)
        files.append(file.getvalue())
    frames, animation = [Image.fromarray(noise // (2 - n)) for n in range(2)], io.BytesIO()
    frames[0].save(animation, "GIF", save_all=True, append_images=frames[1:])
    return [*files, animation.getvalue()]


def _arrays() -> list[bytes]:
    files = []
    for array in (np.zeros((4, 5, 3), np.uint8), np.ones((3, 4, 5), np.float32), np.eye(4)):
        file = io.BytesIO()
        np.save(file, array)
        files.append(file.getvalue())
    file = io.BytesIO()
    np.savez(file, a=np.zeros((2, 2)))
    return [*files, file.getvalue()]


@pytest.fixture
def _small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", LIMIT)


@pytest.mark.usefixtures("_small_limit")
@given(changed_bytes(_files()) | st.binary(max_size=200))
def test_any_bytes_are_an_image_or_an_error(content: bytes) -> None:
    with as_a_user(), bounded(50):
        for mode in ("RGB", "RGBA", "L"):
            try:
                image = load_image(_base64(content), mode)
            except ImageFileError as error:
                assert "\0" not in str(error)  # noqa: PT017
            else:
                assert image.mode == mode
                assert image.width * image.height <= 2 * LIMIT
        with suppress(ImageFileError):
            assert read_image(content, "a mask", to_mask).dtype == np.bool_


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


@given(changed_bytes(_arrays()) | st.binary(max_size=200))
def test_any_bytes_are_an_array_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, bundled: LoadedModel, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "array.npy"
    path.write_bytes(content)
    with as_a_user(), bounded(100):
        try:
            array = open_array(path)
            assert array.ndim in (2, 3)
        except ImageFileError:
            return
        with suppress(HfGmarError):
            bundled.pixels(array)
