"""A data set of the images in a list: paths, Pillow images or arrays, with or without classes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from hf_gmar._utils.names import make_unique
from hf_gmar._utils.text import encodable
from hf_gmar.data.base import Example, LabelledDataset
from hf_gmar.data.class_names import Classes, Labels
from hf_gmar.data.image_files import load_image, name_of_image
from hf_gmar.errors import DataError, ImageFileError, InputError
from hf_gmar.models.pixel_values import MODES, channels_last

_CHANNELS = {mode: channels for channels, mode in MODES.items()}


class ImageList(LabelledDataset):
    """Images in a list, each read on access.

    Args:
        items: images, each a path, URL, Pillow image or array of whole numbers from 0 to 255; or
            pairs of an image and its class, by index, name or ``None``.
        classes: the model's classes.

    Raises:
        DataError: an item is neither an image nor such a pair.
    """

    def __init__(self, items: Sequence[Any], classes: Classes) -> None:
        pairs = [_pair(item, number) for number, item in enumerate(items)]
        self.images = tuple(image for image, _ in pairs)
        keys = make_unique(map(_key, range(len(pairs)), self.images))
        given = [label for _, label in pairs]
        numbers = {
            str(label): label
            for label in given
            if isinstance(label, int) and label in classes.labels
        }
        known = Classes(classes.labels, numbers | {**classes.named})  # a number is an index
        names = [None if label is None else encodable(str(label)) for label in given]
        labels = Labels.find(names, known)
        contents = (
            [key, label, _content(image)]
            for key, label, image in zip(keys, labels.of_images, self.images, strict=True)
        )
        super().__init__("a list of images", {"kind": "list"}, keys, labels, contents)

    def __getitem__(self, index: int) -> Example:
        """Read an image."""
        key, source = self.keys[index], self.images[index]
        try:
            if isinstance(source, np.ndarray | Tensor):
                image = _picture(source, self.mode)
            else:
                image = load_image(source, self.mode)
        except InputError as error:
            raise ImageFileError(f"{key}: {error}") from error
        return self._example(index, key, image, None)


def _pair(item: Any, number: int) -> tuple[Any, int | str | None]:
    """Split an item into its image and the index or name of its class."""
    image: Any = item
    label: Any = None
    if isinstance(item, tuple | list) and len(item) == 2:
        image, label = item
    if isinstance(label, Tensor | np.ndarray | np.generic) and not label.shape:
        label = label.item()
    is_label = label is None or (isinstance(label, int | str) and not isinstance(label, bool))
    is_image = isinstance(image, str | os.PathLike | Image.Image | np.ndarray | Tensor)
    if not (is_image and is_label):
        raise DataError(
            f"the list has {_described(item)} at {number}; each item must be an image (path, "
            "URL, Pillow image or array) or a pair (image, class), as [(image, 281), ...]"
        )
    return image, label


def _described(item: Any) -> str:
    if isinstance(item, tuple | list):
        return f"a {type(item).__name__} of {', '.join(type(part).__name__ for part in item)}"
    return f"an item of the type {type(item).__name__}"


def _key(number: int, image: Any) -> str:
    name = name_of_image(image)
    if name == "image":
        return f"image {number}"
    is_url = isinstance(image, str) and "://" in image
    path = image if isinstance(image, str | os.PathLike) and not is_url else name
    return encodable(Path(path).as_posix())


def _content(image: Any) -> object:
    """Return what tells an image from others of its name, without reading a file."""
    if isinstance(image, str | os.PathLike):
        try:
            return Path(image).stat().st_size
        except (OSError, ValueError):  # a missing file raises an error when it is read
            return None
    if isinstance(image, Image.Image):
        try:
            image = np.asarray(image)
        except OSError:  # a broken file, which raises an error when it is read
            return None
    array = np.asarray(image.detach().cpu() if isinstance(image, Tensor) else image)
    hashed = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]
    return [str(array.dtype), *array.shape, hashed]


def _picture(array: Any, mode: str) -> Image.Image:
    """Return the image of an array of bytes."""
    values = channels_last(array, _CHANNELS[mode])
    if not np.isfinite(values).all() or (values != values.clip(0, 255).round()).any():
        raise InputError(
            f"an array of whole numbers from 0 to 255 is needed, got {values.dtype} from "
            f"{values.min():.3g} to {values.max():.3g}; (image * 255).round() makes such numbers "
            "of values from 0 to 1"
        )
    pixels = values.astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if mode == "L" else pixels)
