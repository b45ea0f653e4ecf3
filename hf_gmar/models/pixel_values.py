"""Pixel values of images with any number of channels, and the pictures of such images."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor, nn
from transformers import BaseImageProcessor
from transformers.image_utils import ChannelDimension, infer_channel_dimension_format

from hf_gmar.errors import InputError, reason_of

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Modes of Pillow's images by the number of channels."""

ImageLike: TypeAlias = Image.Image | NDArray[Any] | Tensor
"""An image, or an array (height, width), (height, width, channels) or (channels, height, width)."""


def channels_of(model: Any) -> int:
    """Return the number of channels that a model takes.

    Example:
        >>> from hf_gmar.models import load_model
        >>> channels_of(load_model("bundled").model)
        3
    """
    parts = model.modules() if isinstance(model, nn.Module) else ()
    configs: list[Any] = [getattr(part, "config", None) for part in parts]
    visual = [getattr(config, "vision_config", config) for config in configs]
    return next((int(each.num_channels) for each in visual if hasattr(each, "num_channels")), 3)


def pixel_values(processor: BaseImageProcessor, image: ImageLike, channels: int) -> Tensor:
    """Process one image for a model of this number of channels, (1, channels, height, width).

    An image is converted to grey, RGB or RGBA. Of an array with other numbers of channels, each is
    processed by itself, as Pillow resizes no such image.

    Raises:
        InputError: the image, the processor and the model have different numbers of channels, or
            the processor can't process such values or makes too many pixels.
    """
    own: dict[str, Any] = {"return_tensors": "pt"}
    if channels != 3 and getattr(processor, "do_convert_rgb", False):
        own["do_convert_rgb"] = False
    means = _per_channel(processor, "image_mean", channels)
    stds = _per_channel(processor, "image_std", channels)
    if isinstance(image, Image.Image):
        if channels not in MODES:
            raise InputError(
                f"the model takes {_counted(channels)}, and an image of the mode {image.mode} has "
                f"{len(image.getbands())}; give an array (height, width, {channels}), on the "
                "command line as a .npy file"
            )
        check_resized(processor, image.height, image.width)
        return process(processor, to_rgb(image, MODES[channels]), "an image", **own)
    own["input_data_format"] = ChannelDimension.LAST
    planes = channels_last(image, channels)
    _check_values(processor, planes)
    check_resized(processor, *planes.shape[:2])
    parts = []
    step = channels if channels in MODES else 1
    for index in range(0, channels, step):
        part = slice(index, index + step)
        if means is not None and stds is not None:
            own |= {"image_mean": means[part], "image_std": stds[part]}
        what = f"channel {index} of an array of {planes.dtype}"
        parts.append(process(processor, planes[..., part], what, **own))
    return torch.cat(parts, dim=1)


def process(processor: Any, image: ImageLike, what: str, **settings: Any) -> Tensor:
    """Return the pixel values that a processor makes of an image.

    Args:
        processor: the image processor.
        image: the image.
        what: the image in words.
        settings: keywords of the processor.

    Raises:
        InputError: the processor can't process the image, or its settings are damaged.
    """
    try:
        pixels: Tensor = processor(images=image, **settings).pixel_values
    except Exception as error:  # of NumPy, Pillow or Transformers, whatever a setting provokes
        way = (
            "use the processor that the model was trained with (processor=..., on the command line "
            "--processor)"
            if isinstance(image, Image.Image)
            else "give whole numbers from 0 to 255"
        )
        raise InputError(
            f"the image processor {type(processor).__name__} can't process {what}: "
            f"{reason_of(error)}; {way}"
        ) from error
    return pixels


def to_rgb(image: Image.Image, mode: str = "RGB") -> Image.Image:
    """Convert an image to 8-bit RGB, or another 8-bit mode, upright as its EXIF data says.

    16-bit values are scaled to 8 bits.

    Raises:
        InputError: the range of the pixels is not known.
    """
    image = ImageOps.exif_transpose(with_16_bits(image))
    # Pillow's own conversion clips all values above 255 to white.
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert(mode)
    if image.mode in ("I", "F"):
        raise InputError(
            f"the image has pixels of mode {image.mode!r} (32 bits), whose range is not known; "
            "save it with 8 or 16 bits"
        )
    return image.convert(mode)


def with_16_bits(image: Image.Image) -> Image.Image:
    """Give a PGM file with 16 bits their mode: Pillow opens it with 32, in the range of 16."""
    return image.convert("I;16") if (image.format, image.mode) == ("PPM", "I") else image


_SIZES = {"do_resize": "size", "do_center_crop": "crop_size", "do_pad": "pad_size"}
"""A processor's steps that make an image of a size, with the names of the sizes."""


def check_resized(processor: BaseImageProcessor, height: int, width: int) -> None:
    """Raise an InputError if a processor makes an image of more pixels than Pillow reads.

    Processors that set the shortest edge make a thin strip very long. A processor's config may also
    name any size.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if not limit:
        return
    name = type(processor).__name__
    for step, setting in _SIZES.items():
        sides = [_setting(processor, setting, side) for side in ("height", "width")]
        is_on = getattr(processor, step, False)
        if is_on and math.prod(sides) > 2 * limit:  # Pillow refuses files above twice its limit
            raise InputError(
                f"the image processor {name} has a {setting} of {sides[0]:,} x {sides[1]:,}: more "
                f"than {2 * limit:,} pixels in all; give it another size (size=..., on the command "
                "line --size), or use the processor that the model was trained with"
            )
    edge = _setting(processor, "size", "shortest_edge")
    if not edge or not getattr(processor, "do_resize", False):
        return
    short, long = sorted((height, width))
    longest = _setting(processor, "size", "longest_edge") or math.inf
    length = min(edge * long / max(short, 1), longest)
    if edge * length > 2 * limit:
        raise InputError(
            f"the image has {height} x {width} pixels, and the image processor {name} resizes its "
            f"shorter side to {edge}, the other to {length:,.0f}: more than {2 * limit:,} pixels "
            "in all; crop the image first"
        )


def _setting(processor: BaseImageProcessor, name: str, side: str) -> int:
    """Return a side in a processor's setting, or 0."""
    setting: Any = getattr(processor, name, None)
    value = setting.get(side) if hasattr(setting, "get") else None
    return int(value) if isinstance(value, int | float) and math.isfinite(value) else 0


def picture_of_input(image: ImageLike, channels: int) -> Image.Image:
    """Return the picture of an image in RGB: of an array, the first three channels, or the first.

    Values to 1 or to 255 are taken as such; others are scaled from the least to the greatest.

    Raises:
        InputError: no axis of the array has this number of channels.

    Example:
        >>> picture_of_input(np.array([[0.0, 1.0]]), 1).getpixel((1, 0))
        (255, 255, 255)
    """
    if isinstance(image, Image.Image):
        return to_rgb(image)
    values = channels_last(image, channels)[..., : 3 if channels >= 3 else 1].astype(np.float64)
    low, high = values.min(), values.max()
    if low < 0 or high > 255:
        values = (values - low) / (high - low)
        high = 1
    colours = (values * (255 if high <= 1 else 1)).round().astype(np.uint8)
    return Image.fromarray(np.broadcast_to(colours, (*colours.shape[:2], 3)).copy())


def _counted(channels: int) -> str:
    return f"{channels} channel{'s' if channels > 1 else ''}"


def _check_values(processor: BaseImageProcessor, values: NDArray[Any]) -> None:
    if not np.isfinite(values).all():
        raise InputError(f"the array of the shape {values.shape} holds NaN or infinity")
    rescales = getattr(processor, "do_rescale", False)
    if rescales and values.dtype.kind == "f" and values.size and values.max() <= 1:
        raise InputError(
            f"the values of the array are at most {values.max():.3g}, and the image processor "
            f"{type(processor).__name__} divides by 255; give values from 0 to 255"
        )


def _per_channel(processor: BaseImageProcessor, name: str, channels: int) -> list[float] | None:
    """Return the mean or the standard deviation of each channel; ``None`` if there is none."""
    values = getattr(processor, name, None)
    if not getattr(processor, "do_normalize", False) or values is None:
        return None
    if isinstance(values, int | float):
        return [float(values)] * channels
    if len(values) != channels:
        raise InputError(
            f"the model takes {_counted(channels)}, and the {name} of its image processor "
            f"{type(processor).__name__} has {len(values)} values; set one for each channel, or "
            "use the processor that the model was trained with (processor=..., on the command "
            "line --processor)"
        )
    return list(values)


def channels_last(image: NDArray[Any] | Tensor, channels: int) -> NDArray[Any]:
    """Return an array as (height, width, channels)."""
    array = np.asarray(image.detach().cpu() if isinstance(image, Tensor) else image)
    single = array[0] if array.ndim == 4 and len(array) == 1 else array
    if single.ndim == 2 and channels == 1:
        return single[..., None]
    if single.ndim > 3:
        raise InputError(
            f"an array of the shape {array.shape} is several images; give a list of them: "
            "list(array)"
        )
    try:
        layout = infer_channel_dimension_format(single, num_channels=channels)
    except ValueError as error:
        raise InputError(
            f"an array of the shape {array.shape} has no axis of the model's {_counted(channels)}; "
            f"give (height, width, {channels}) or ({channels}, height, width)"
        ) from error
    return np.moveaxis(single, 0, -1) if layout == ChannelDimension.FIRST else single
