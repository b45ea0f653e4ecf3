"""Check the inputs of a call before the model runs, and explain errors about image sizes."""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hf_gmar._core.media import INPUT_NAMES, INPUT_SHAPES
from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar._core.places import check_place
from hf_gmar._core.request import ForwardRequest
from hf_gmar._core.targets import Target
from hf_gmar.errors import HfGmarError, InputError, OptionError, TargetError

PixelInputs: TypeAlias = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor] | None
"""Pixel values (B, channels, height, width): a tensor, a tuple with that one tensor, or the output
of an image processor; ``None`` if they come as the keyword ``pixel_values``. Models of videos take
(B, frames, channels, height, width), and models of sound spectrograms (B, time, mel bins)."""
_SIZE_OPTION = "size='{0}' of load_model and the pipeline, on the command line --size {0}"


def checked_request(
    adapter: ModelAdapter, inputs: Any, args: Any, kwargs: dict[str, Any]
) -> ForwardRequest:
    """Build a request from Captum's arguments, after a check of inputs and keywords.

    Raises:
        InputError: inputs of a wrong type, shape, size, device or with NaN or infinity, or a
            readout at a place outside of their grid.
        OptionError: a keyword that the model's forward does not name.
    """
    pixels, kwargs = pixels_of(inputs, kwargs)
    check_inputs(pixels, adapter)
    check_keywords(adapter, kwargs)
    if adapter.place is not None:
        adapter.check_images("a readout at one patch")
    check_place(adapter.place, adapter.grid(pixels))
    extra = args if isinstance(args, tuple) else () if args is None else (args,)
    return ForwardRequest(pixels, extra, kwargs)


def pixels_of(inputs: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the pixel values, and the keywords without them.

    Pixel values come as a tensor, as Captum's tuple of one tensor, as the output of an image
    processor, or as the keyword ``pixel_values``; spectrograms as ``input_values``.
    """
    for name in INPUT_NAMES:
        if name in kwargs:
            if inputs is not None:
                raise InputError(f"the inputs are given twice: leave out inputs or {name}=")
            inputs = kwargs[name]
            kwargs = {other: value for other, value in kwargs.items() if other != name}
    return _single_tensor(inputs), kwargs


def _single_tensor(inputs: Any) -> Any:
    """Return the one tensor; an InputError for other counts."""
    if isinstance(inputs, Mapping):
        for name in INPUT_NAMES:
            if [*inputs] == [name]:
                return inputs[name]
        raise InputError(
            f"pixel values alone are needed, got {type(inputs).__name__} with "
            f"{', '.join(map(str, inputs)) or 'nothing'}; pass its 'pixel_values', such as "
            "inputs['pixel_values'], or its 'input_values' for a model of sound"
        )
    if not isinstance(inputs, tuple):
        return inputs
    if len(inputs) != 1:
        raise InputError(
            f"one tensor of pixel values is needed, got a tuple of {len(inputs)}; pass what else "
            "the model takes as additional_forward_args"
        )
    return inputs[0]


def target_list(targets: Any) -> list[Target]:
    """Return the targets as a list; a TargetError if it is empty."""
    try:
        items = list(targets)
    except TypeError:
        items = []
    if not items:
        raise TargetError(
            f"a list of one or more targets is needed, got {targets!r}; one target goes to "
            "attribute_patches"
        )
    return items


def check_keywords(adapter: ModelAdapter, kwargs: dict[str, Any]) -> None:
    """Raise an OptionError for keywords that the model's forward does not name.

    Transformers' models ignore unknown keywords, which would hide a misspelt option. A forward
    with ``**kwargs`` takes the keywords of the Transformers model in it and of the vision tower.
    """
    names = _all_keywords(adapter)
    unknown = sorted(set(kwargs) - set(names))
    if unknown:
        raise OptionError(
            f"unknown keyword {', '.join(unknown)}; the model's forward takes "
            f"{', '.join(names) or 'none'}"
        )


def _all_keywords(adapter: ModelAdapter) -> list[str]:
    names, takes_any = _keywords(adapter.model)
    for inner in (adapter.backbone, adapter.vision_model):
        if takes_any:
            more, takes_any = _keywords(inner)
            names += [name for name in more if name not in names]
    return names


def _keywords(model: Any) -> tuple[list[str], bool]:
    """Return a model's argument names after the inputs, and whether it has ``**kwargs``."""
    while isinstance(model, functools.partial):
        model = model.func
    parameters = inspect.signature(getattr(model, "forward", model)).parameters.values()
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = [p.name for p in list(parameters)[1:] if p.kind in by_name]
    return names, any(p.kind is p.VAR_KEYWORD for p in parameters)


@contextmanager
def size_errors(adapter: ModelAdapter, pixels: Tensor) -> Iterator[None]:
    """Turn a model's error about the image size into an InputError with advice."""
    try:
        yield
    except HfGmarError:
        raise
    except (ValueError, AssertionError, RuntimeError) as error:
        if adapter.medium != "images":
            raise InputError(
                f"the model refused {adapter.medium} of shape {tuple(pixels.shape)}: "
                f"{str(error).rstrip('. ')}; give it inputs as its processor makes them"
            ) from error
        size = getattr(adapter.vision_model.config, "image_size", None)
        model_size = (size, size) if isinstance(size, int) else tuple(size or ())
        # Some models add position embeddings without a check of the size.
        is_runtime = isinstance(error, RuntimeError)
        pattern = (
            "must match the size|is invalid for input of size"
            if is_runtime
            else r"\bsizes?\b|height|width"
        )
        height, width = pixels.shape[-2:]
        if model_size == (height, width) or not re.search(pattern, str(error), re.IGNORECASE):
            raise
        own = "x".join(map(str, model_size if len(set(model_size)) > 1 else model_size[:1]))
        advice = (
            f"resize the images to the model's own size ({_SIZE_OPTION.format(own)})"
            if own
            else "resize the images"
        )
        if "interpolate_pos_encoding" in _all_keywords(adapter):
            advice += (
                ", or pass interpolate_pos_encoding=True (on the command line --interpolate) to "
                "interpolate its positions"
            )
        raise InputError(
            f"the model refused images of {height} x {width} pixels: {str(error).rstrip('. ')}; "
            f"{advice}"
        ) from error


def _kind_of(inputs: Any) -> str:
    kind = type(inputs).__name__
    return f"{kind} of {type(inputs[0]).__name__}" if isinstance(inputs, list) and inputs else kind


def _way_to_pixels(inputs: Any) -> str:
    """Say how what a user has at hand becomes a tensor of pixel values."""
    item = inputs[0] if isinstance(inputs, list) and inputs else inputs
    is_array = isinstance(item, np.ndarray)
    if isinstance(item, str | os.PathLike | Image.Image) or (is_array and item.dtype.kind in "iu"):
        one, pixels = "image", "loaded.pixels(image)"
        if item is not inputs:
            one, pixels = "images", f"torch.cat([{pixels} for image in images])"
        return (
            f"hf_gmar.explain({one}, model) takes images and paths; pixel values of them are "
            f"{pixels}, where loaded = hf_gmar.load_model(...)"
        )
    if is_array and item is inputs:
        return "torch.from_numpy(pixel_values).float() makes a tensor of an array"
    if isinstance(item, Tensor):
        return "torch.stack(images) makes one tensor of images of one size"
    return "an image processor gives them with return_tensors='pt'"


_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_inputs(inputs: Any, adapter: ModelAdapter) -> None:
    """Check pixel values before the model sees them.

    Raises:
        InputError: not a floating-point tensor of shape (B, channels, height, width), or that of
            videos or spectrograms, with B >= 1 and finite values, on the model's device.
    """
    kind = adapter.input_shape
    needed = kind.needed
    if not isinstance(inputs, Tensor):
        way = "its processor gives them with return_tensors='pt'"
        if adapter.medium == "images":
            way = _way_to_pixels(inputs)
        raise InputError(f"{needed}, got {_kind_of(inputs)}; {way}")
    if inputs.is_nested or inputs.layout != torch.strided:
        got = "a nested tensor" if inputs.is_nested else f"a tensor of the layout {inputs.layout}"
        way = "torch.stack images of one size" if inputs.is_nested else "call its to_dense()"
        raise InputError(f"{needed} in a dense tensor, got {got}; {way}")
    if inputs.is_meta:
        raise InputError(
            f"{needed}, got a tensor on the meta device, which has a shape and no values; make it "
            "on the model's device"
        )
    shape = tuple(inputs.shape)
    if inputs.dim() != len(kind.dimensions):
        hint = ""
        if inputs.dim() == len(kind.dimensions) - 1:
            hint = "; add the batch dimension with inputs.unsqueeze(0)"
        elif inputs.dim() == len(INPUT_SHAPES["videos"].dimensions):
            hint = "; the model takes no videos"
        raise InputError(f"{needed}, got {inputs.dim()} dimensions: {shape}{hint}")
    if not inputs.numel():
        raise InputError(f"{needed}, got an empty tensor: {shape}; pass at least one {kind.item}")
    _check_channels(shape, adapter)
    _check_values(inputs, adapter)


def _check_channels(shape: tuple[int, ...], adapter: ModelAdapter) -> None:
    dimension = adapter.input_shape.channel_dimension
    if dimension is None:
        return
    got = shape[dimension]
    channels = getattr(adapter.vision_model.config, "num_channels", got)
    if got != channels:
        raise InputError(f"the model takes {channels} channels, got {got}: {shape}")


def _check_values(inputs: Tensor, adapter: ModelAdapter) -> None:
    if not inputs.is_floating_point():
        raise InputError(
            f"floating-point pixel values are needed, got {inputs.dtype}; the model's image "
            "processor gives them"
        )
    if inputs.dtype not in _DTYPES:
        raise InputError(
            f"pixel values in float32, float64, bfloat16 or float16 are needed, got "
            f"{inputs.dtype}, in which PyTorch computes no model; convert them with .float()"
        )
    # Models that accelerate spreads over devices move their inputs themselves.
    is_spread, device = hasattr(adapter.backbone, "hf_device_map"), adapter.vision_model.device
    if not is_spread and device.type == "meta":
        raise InputError(
            "the model is on the meta device and has no weights; load it with from_pretrained, or "
            "give it weights with to_empty(device=...) and load_state_dict"
        )
    if not is_spread and inputs.device != device:
        raise InputError(
            f"the inputs are on {inputs.device} and the model is on {device}; move one "
            "with .to(device)"
        )
    if not torch.isfinite(inputs).all():
        bad = (~torch.isfinite(inputs)).flatten(1).any(dim=1).nonzero().flatten().tolist()
        raise InputError(f"the pixel values of images {bad} hold NaN or infinity")
