"""The image of a request: an example, or the bytes of a visitor's file, never a path or URL."""

from __future__ import annotations

import base64
import binascii
import functools
import re
import warnings
from io import BytesIO

from PIL import Image

from hf_gmar.app.limits import Limits
from hf_gmar.data.image_files import read_image
from hf_gmar.data.scenes import draw_scene
from hf_gmar.errors import ImageFileError
from hf_gmar.models.pixel_values import MODES, to_rgb

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Formats of Pillow that are opened; its other decoders never see a visitor's bytes."""

EXAMPLES = (18, 2, 5, 7, 11, 23)
"""Seeds of the synthetic scenes that are offered."""

_EXAMPLE = re.compile(r"example:(\d{1,6})")
_DATA = re.compile(r"data:[\w.+/-]{0,100};base64,")
_NAME = "the image"


def example_of(image: str) -> int | None:
    """Return the seed of an example, or ``None`` for an image of the visitor.

    Example:
        >>> example_of("example:18"), example_of("data:image/png;base64,")
        (18, None)
    """
    found = _EXAMPLE.fullmatch(image)
    return int(found[1]) if found else None


def open_visitors_image(image: str, channels: int, limits: Limits) -> Image.Image:
    """Read the image of a request as :func:`~hf_gmar.explain` reads a file.

    Args:
        image: ``"example:SEED"`` for a synthetic scene, or a file's bytes as
            ``"data:image/png;base64,..."``.
        channels: the number of channels that the model takes.
        limits: the largest file and image.

    Raises:
        ImageFileError: there is no image, or it is broken, too large, or of another format.

    Example:
        >>> open_visitors_image("example:18", 3, Limits()).size
        (96, 96)
    """
    if not image:
        raise ImageFileError("there is no image yet; choose a file, paste one or take an example")
    mode = MODES.get(channels, "RGB")
    if (seed := example_of(image)) is not None:
        return to_rgb(draw_scene(seed).image, mode=mode)
    prefix = _DATA.match(image)
    if prefix is None:
        raise ImageFileError(
            "an image is sent as the bytes of a file (data:image/png;base64,...) or as an example "
            "(example:18); paths and addresses are not opened here"
        )
    if len(image) > limits.body_bytes:
        raise _too_large(limits)
    try:
        content = base64.b64decode(image[prefix.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise ImageFileError(f"{_NAME} is cut off on its way; send it again") from None
    if len(content) > limits.image_bytes:
        raise _too_large(limits)
    _check_header(content, limits)
    return read_image(content, _NAME, functools.partial(to_rgb, mode=mode))


def _too_large(limits: Limits) -> ImageFileError:
    return ImageFileError(
        f"{_NAME} has more than {limits.image_bytes / 2**20:.0f} MB; make it smaller first"
    )


def _check_header(content: bytes, limits: Limits) -> None:
    """Check format and size before anything is decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(BytesIO(content), formats=FORMATS) as image:
                width, height = image.size
    except Image.DecompressionBombError:
        width = height = limits.image_pixels
    except Exception:  # noqa: BLE001  # of any decoder
        raise ImageFileError(
            f"{_NAME} is broken or of another format; send one of {', '.join(FORMATS)}"
        ) from None
    if width * height > limits.image_pixels:
        raise ImageFileError(
            f"{_NAME} has more than {limits.image_pixels / 1e6:.0f} million pixels; make it "
            "smaller first"
        )
