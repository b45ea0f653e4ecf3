"""The pictures of a page: small, of equal size, and without texts, which are those of the page."""

from __future__ import annotations

import base64
from io import BytesIO

import numpy as np
from PIL import Image
from torch import Tensor

from hf_gmar.explanation import Explanation
from hf_gmar.models.image_view import ImageView
from hf_gmar.visualization.overlay import OPACITY, colour_scale, kept_image, overlay_image

_LONGER_SIDE = 480  # pixels: sharp where three stand side by side
_QUALITY = 82


class Tiles:
    """The pictures of one image.

    Args:
        image: the original image.
        view: the part that the maps cover.

    Example:
        >>> tiles = Tiles(Image.new("RGB", (96, 48)), ImageView.whole(Image.new("RGB", (96, 48))))
        >>> tiles.plain.size
        (480, 240)
    """

    def __init__(self, image: Image.Image, view: ImageView) -> None:
        scale = _LONGER_SIDE / max(image.size)
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        self.plain = image.convert("RGB").resize(size, reducing_gap=2.0)
        self._view = view.scaled(self.plain.height, self.plain.width)

    def overlay(self, result: Explanation) -> Image.Image:
        """Draw the image under a map."""
        colours = colour_scale(result.drawn_map, "max")
        heatmap = self._view.project(result.drawn_map.float().cpu(), smooth=True)
        scale = colours.low, colours.high
        return overlay_image(self.plain, heatmap, colours.name, scale=scale)

    def kept(self, mask: Tensor) -> Image.Image:
        """Draw the image with some patches (rows, columns) alone."""
        return kept_image(self.plain, mask, self._view)


def colour_bar(patches: Tensor) -> tuple[Image.Image, str, str]:
    """Return the colours of a map as a strip, with the values at its ends."""
    colours = colour_scale(patches, "max")
    strip = colours.picture(np.linspace(colours.low, colours.high, 128, dtype=np.float32)[None])
    blended = Image.blend(Image.new("RGB", strip.size, "white"), strip, OPACITY)
    return blended, f"{colours.low:.2g}", f"{colours.high:.2g}"


def webp(image: Image.Image) -> bytes:
    """Encode a picture."""
    buffer = BytesIO()
    image.save(buffer, "WEBP", quality=_QUALITY)
    return buffer.getvalue()


def data_uri(image: Image.Image) -> str:
    """Encode a picture for a page without other files.

    Example:
        >>> data_uri(Image.new("RGB", (1, 1)))[:23]
        'data:image/webp;base64,'
    """
    return f"data:image/webp;base64,{base64.b64encode(webp(image)).decode()}"
