"""An image on its way to a model: read, with its picture, the part that is seen, and pixels."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from hf_gmar.data.image_files import ImageSource, name_of_image, read_input
from hf_gmar.models.hub import LoadedModel
from hf_gmar.models.image_view import ImageView, measure_view, seen_part
from hf_gmar.models.pixel_values import ImageLike, channels_last, picture_of_input


@dataclass(frozen=True)
class PreparedImage:
    """One image for one model; each part is made when it is first used.

    Attributes:
        loaded: the model and its processor.
        name: the name of the image's file, or "image".
        value: the image as the processor takes it, upright, with the model's channels.
    """

    loaded: LoadedModel
    name: str
    value: ImageLike

    @property
    def size(self) -> tuple[int, int]:
        """The height and width of the image."""
        if isinstance(self.value, Image.Image):
            return self.value.height, self.value.width
        height, width = channels_last(self.value, self.loaded.channels).shape[:2]
        return height, width

    @functools.cached_property
    def picture(self) -> Image.Image:
        """The image in RGB; an InputError for an array without the model's channels."""
        return picture_of_input(self.value, self.loaded.channels)

    @functools.cached_property
    def view(self) -> ImageView:
        """The part of the image that the model sees; errors as in ``measure_view``."""
        return measure_view(self.loaded.processor, self.size)

    @functools.cached_property
    def pixels(self) -> Tensor:
        """Pixel values (1, channels, height, width); an InputError as of ``LoadedModel.pixels``."""
        return self.loaded.pixels(self.value)

    def ready(self) -> PreparedImage:
        """Make all parts now, for example in a thread that reads ahead, and return the image."""
        _ = self.picture, self.view, self.pixels
        return self

    @property
    def seen(self) -> Image.Image:
        """The picture, cropped to the part that the model sees; errors as of ``view``."""
        return seen_part(self.loaded.processor, self.picture)


def prepare_image(
    loaded: LoadedModel, source: ImageSource, timeout: float | None = None
) -> PreparedImage:
    """Read an image for a model.

    Args:
        loaded: the model and its processor.
        source: a path, URL, base64 text, Pillow image or array; a ``.npy`` file gives an array.
        timeout: seconds to wait for a URL.

    Raises:
        ImageFileError: the image is missing, broken or too large.
        InputError: the source is of another type.

    Example:
        >>> from hf_gmar import load_model
        >>> image = prepare_image(load_model("bundled"), Image.new("RGB", (128, 96)))
        >>> image.name, image.picture.size, tuple(image.pixels.shape)
        ('image', (128, 96), (1, 3, 96, 96))
    """
    return PreparedImage(
        loaded, name_of_image(source), read_input(source, loaded.channels, timeout)
    )
