"""Perturbations of pixels: other pixels replace a missing patch.

Sources: Fong and Vedaldi, "Interpretable Explanations of Black Boxes by Meaningful Perturbation",
ICCV 2017 (arXiv 1704.03296); Petsiuk, Das and Saenko, "RISE", BMVC 2018 (arXiv 1806.07421), who
insert patches into a blurred image; Zeiler and Fergus, "Visualizing and Understanding Convolutional
Networks", ECCV 2014 (arXiv 1311.2901), who cover parts of images by a grey square.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_gmar._utils.validation import check_number, check_option
from hf_gmar.errors import InputError, OptionError
from hf_gmar.perturbations.base import CopyPlan, Perturbation, PerturbationInput


class _PixelPerturbation(Perturbation):
    """A copy is ``keep_mask * image + (1 - keep_mask) * baseline``."""

    soft = True

    @abstractmethod
    def baseline(self, image: PerturbationInput) -> Tensor:
        """Return the replacement of missing patches, of the image's size or of one pixel."""

    def copies(self, image: PerturbationInput) -> CopyPlan:
        """Replace missing patches by the baseline."""
        pixels = image.pixels
        precise = pixels.to(torch.promote_types(pixels.dtype, torch.float32))
        baseline = self.baseline(PerturbationInput(image.adapter, precise, image.key)).to(pixels)
        patch = [size // count for size, count in zip(pixels.shape[2:], image.grid, strict=True)]

        def mix(keep_mask: Tensor) -> Tensor:
            rows = keep_mask.to(pixels)[:, None].repeat_interleave(patch[0], 2)
            share = rows.repeat_interleave(patch[1], 3)
            return share * pixels + (1 - share) * baseline

        return CopyPlan(mix)


@dataclass(frozen=True)
class Blur(_PixelPerturbation):
    """Replace a missing patch by the image blurred by a Gaussian.

    The Gaussian is cut off at the borders; its weights sum to 1 for each pixel.

    Args:
        radius: standard deviation of the Gaussian in pixels of the model's input, > 0; ``None`` for
            the longer side of a patch, which leaves only the colour of the neighbourhood.
    """

    name = "blur"
    summary = "the image, blurred by a Gaussian"
    source = "Fong and Vedaldi 2017, Petsiuk et al. 2018"
    radius: float | None = None

    def __post_init__(self) -> None:
        """Check the radius."""
        if self.radius is not None and check_number("radius", self.radius, 0) == 0:
            raise OptionError("radius must be above 0 pixels, got 0, which blurs nothing")

    def baseline(self, image: PerturbationInput) -> Tensor:
        """Blur the image."""
        height, width = image.pixels.shape[2:]
        rows, columns = image.grid
        radius = self.radius or max(height / rows, width / columns)
        down, across = (_gaussian(size, radius).to(image.pixels) for size in (height, width))
        return down @ image.pixels @ across.T


def _gaussian(size: int, radius: float) -> Tensor:
    """Return the weights (size, size) of a line's pixels in each blurred pixel; rows sum to 1."""
    places = torch.arange(size, dtype=torch.float64)
    return torch.softmax(-(((places[:, None] - places) / radius) ** 2) / 2, 1)


@dataclass(frozen=True)
class MeanColour(_PixelPerturbation):
    """Replace a missing patch by the mean colour of the image."""

    name = "mean"
    summary = "the mean colour of the image"
    source = "Fong and Vedaldi 2017"

    def baseline(self, image: PerturbationInput) -> Tensor:
        """Return the mean colour, (1, channels, 1, 1)."""
        return image.pixels.mean((2, 3), keepdim=True)


@dataclass(frozen=True)
class DatasetMean(_PixelPerturbation):
    """Replace a missing patch by the mean colour of a data set.

    Args:
        colour: finite pixel value of each channel in the model's input, see :func:`dataset_mean`.
    """

    name = "dataset-mean"
    summary = "the mean colour of the data set"
    source = "Zeiler and Fergus 2014"
    colour: Sequence[float]

    def __post_init__(self) -> None:
        """Check the colour and store it as a tuple."""
        colour: Any = self.colour
        if not isinstance(colour, Sequence) or isinstance(colour, str) or not colour:
            raise OptionError(
                "colour must be a sequence with a number for each channel, such as dataset_mean "
                f"gives, got {colour!r}"
            )
        values = tuple(check_number("colour", value, -np.inf) for value in colour)
        object.__setattr__(self, "colour", values)

    def baseline(self, image: PerturbationInput) -> Tensor:
        """Return the colour, (1, channels, 1, 1)."""
        channels = image.pixels.shape[1]
        if len(self.colour) != channels:
            raise InputError(
                f"the colour has {len(self.colour)} numbers and the image {channels} channels; "
                "give one number for each channel"
            )
        return image.pixels.new_tensor(self.colour)[None, :, None, None]


def dataset_mean(batches: Iterable[Tensor]) -> tuple[float, ...]:
    """Compute the mean of each channel over all pixels of a data set, for :class:`DatasetMean`.

    Args:
        batches: pixel values, (B, channels, height, width) each, of any sizes.

    Raises:
        InputError: no image, or a batch of another form.

    Example:
        >>> dataset_mean([torch.zeros(1, 3, 2, 2), torch.ones(3, 3, 2, 2)])
        (0.75, 0.75, 0.75)
    """
    total, count = torch.zeros(0, dtype=torch.float64), 0
    for batch in batches:
        fits = isinstance(batch, Tensor) and batch.dim() == 4 and batch.is_floating_point()
        if not fits or len(total) not in (0, batch.shape[1]):
            raise InputError(
                "pixel values of shape (images, channels, height, width) are needed, with as many "
                f"channels in each batch; got {tuple(getattr(batch, 'shape', ()))}"
            )
        sums = batch.detach().cpu().double().sum((0, 2, 3))
        total = total + sums if len(total) else sums
        count += batch[:, 0].numel()
    if not count:
        raise InputError("the mean colour of no image is not defined; give at least one")
    return tuple((total / count).tolist())


@dataclass(frozen=True)
class Noise(_PixelPerturbation):
    """Replace a missing patch by noise with the mean colour and the contrast of the image.

    Each pixel is drawn from a Gaussian with the mean of its channel in the image, and ``std`` times
    that channel's standard deviation. The numbers depend on seed and image alone, so they are the
    same in any order of images and on every machine.

    Args:
        seed: seed of the random numbers, a whole number >= 0.
        std: strength of the noise, >= 0; 1 for the contrast of the image.
    """

    name = "noise"
    summary = "Gaussian noise with the mean and the contrast of the image"
    source = "Fong and Vedaldi 2017"
    seed: int = 0
    std: float = 1.0

    def __post_init__(self) -> None:
        """Check the options."""
        check_option("seed", self.seed, range(2**63))
        check_number("std", self.std, 0)

    def baseline(self, image: PerturbationInput) -> Tensor:
        """Draw the noise."""
        pixels = image.pixels
        key = image.key
        content = pixels.cpu().double().numpy().tobytes() if key is None else key.encode()
        number = int.from_bytes(hashlib.sha256(content).digest()[:16], "big")
        # NumPy draws the same numbers on every processor; PyTorch does not.
        generator = np.random.default_rng([self.seed, number])
        noise = torch.from_numpy(generator.standard_normal(tuple(pixels.shape))).to(pixels)
        contrast = pixels.std((2, 3), correction=0, keepdim=True)
        return pixels.mean((2, 3), keepdim=True) + self.std * contrast * noise
