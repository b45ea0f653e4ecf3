"""Synthetic scenes with known objects: images, classes and one exact mask for each object.

A scene shows two or three objects of different classes on a cluttered background. The seed
determines the scene. So models can be trained, tested and explained on data whose ground truth is
exact for each pixel, without any download.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageStat

GREY = (128, 128, 128)
"""The neutral colour; no object is ever drawn in it."""

_SUPERSAMPLING = 4  # shapes are drawn at this scale and averaged down, for smooth edges
_CONTRAST = 100.0  # smallest RGB distance between an object and its background
_GAP = 2.0  # smallest distance in pixels between the circles around two objects

Point = tuple[float, float]
Polygon = tuple[Point, ...]


def _circle(radius: float = 1.0, centre: Point = (0.0, 0.0), corners: int = 48) -> Polygon:
    angles = [2 * math.pi * i / corners for i in range(corners)]
    return tuple(
        (centre[0] + radius * math.cos(a), centre[1] + radius * math.sin(a)) for a in angles
    )


def _star(points: int = 5, inner: float = 0.42) -> Polygon:
    angles = [math.pi * i / points - math.pi / 2 for i in range(2 * points)]
    radii = [1.0 if i % 2 == 0 else inner for i in range(2 * points)]
    return tuple((r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True))


def _heart(corners: int = 48) -> Polygon:
    # The well-known heart curve, scaled into the unit circle.
    turns = [2 * math.pi * i / corners for i in range(corners)]
    return tuple(
        (
            16 * math.sin(t) ** 3 / 17,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 17,
        )
        for t in turns
    )


def _cross(arm: float = 0.32, reach: float = 0.94) -> Polygon:
    a, r = arm, reach
    return (
        (-a, -r), (a, -r), (a, -a), (r, -a), (r, a), (a, a),
        (a, r), (-a, r), (-a, a), (-r, a), (-r, -a), (-a, -a),
    )  # fmt: skip


# For each class: an outline in the unit circle, then the holes in it.
_SHAPES: dict[str, tuple[Polygon, ...]] = {
    "disc": (_circle(0.9),),
    "ring": (_circle(0.95), _circle(0.55)),
    "square": (_circle(1.0, corners=4),),
    "triangle": (_circle(1.0, corners=3),),
    "cross": (_cross(),),
    "star": (_star(),),
    "heart": (_heart(),),
    "crescent": (_circle(1.0), _circle(0.85, (0.55, 0.0))),
}

CLASSES: tuple[str, ...] = tuple(_SHAPES)
"""Names of the object classes; a class index is an index into this tuple."""


@dataclass(frozen=True)
class Scene:
    """One drawn image with its ground truth.

    Attributes:
        image: the RGB image, ``size`` x ``size`` pixels.
        classes: class index of each object (indices into :data:`CLASSES`), all different.
        masks: bool array ``(objects, size, size)``: the pixels that show each object. Masks do
            not overlap and exclude pixels that are covered by clutter.
        seed: the seed of the scene.
    """

    image: Image.Image
    classes: tuple[int, ...]
    masks: NDArray[np.bool_] = field(repr=False)
    seed: int

    @property
    def names(self) -> tuple[str, ...]:
        """The class names of the objects, in the order of :attr:`classes`."""
        return tuple(CLASSES[index] for index in self.classes)


def draw_scene(
    seed: int, size: int = 96, difficulty: float = 1.0, objects: int | None = None
) -> Scene:
    """Draw the scene of a seed.

    Args:
        seed: any non-negative integer; the same seed gives the same scene.
        size: side of the square image in pixels, at least 32.
        difficulty: 1 gives cluttered scenes with objects of any colour and rotation. Towards 0,
            the background becomes plain and dark, and the objects bright and nearly upright.
        objects: number of objects; ``None`` draws two or three.

    Returns:
        The scene, with image, classes and masks.

    Raises:
        ValueError: a negative seed, a size under 32, a difficulty outside 0..1 or an object count
            outside 1..3.

    Example:
        >>> scene = draw_scene(3)
        >>> scene.image.size, scene.masks.shape[1:]
        ((96, 96), (96, 96))
        >>> len(scene.names) == len(scene.masks)
        True
    """
    _check(seed, size, difficulty, objects)
    rng = np.random.default_rng(seed)
    canvas = _background(rng, size, difficulty)
    count = objects or int(rng.integers(2, 4))
    classes = tuple(int(c) for c in rng.choice(len(CLASSES), size=count, replace=False))
    circles = _place(rng, size, count)
    stencils = [
        _stencil(_SHAPES[CLASSES[index]], *circle, _rotation(rng, difficulty), canvas.size)
        for index, circle in zip(classes, circles, strict=True)
    ]
    for stencil in stencils:
        _paint(rng, canvas, stencil, difficulty)
    covers = _strokes_over(rng, canvas, size, difficulty)
    visible = [_shrink(ImageChops.subtract(stencil, covers), size) for stencil in stencils]
    masks = np.stack([np.asarray(mask) >= 128 for mask in visible])
    return Scene(_finish(rng, canvas, size, difficulty), classes, masks, seed)


def grey_out(image: Image.Image, mask: NDArray[np.bool_], margin: int = 2) -> Image.Image:
    """Cover the pixels of a mask, and a margin around them, with neutral grey.

    Args:
        image: an RGB image.
        mask: bool array (height, width) of the same size.
        margin: width in pixels of the covered margin, which hides the blurred edge of an object.

    Returns:
        A new image; the input image is unchanged.

    Example:
        >>> scene = draw_scene(3)
        >>> grey_out(scene.image, scene.masks[0]).size
        (96, 96)
    """
    grown = Image.fromarray(mask.astype(np.uint8) * 255)
    if margin:
        grown = grown.filter(ImageFilter.MaxFilter(2 * margin + 1))
    return Image.composite(Image.new("RGB", image.size, GREY), image, grown)


def _check(seed: int, size: int, difficulty: float, objects: int | None) -> None:
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if size < 32:
        raise ValueError(f"size must be at least 32 pixels, got {size}")
    if not 0 <= difficulty <= 1:
        raise ValueError(f"difficulty must lie between 0 and 1, got {difficulty}")
    if objects is not None and not 1 <= objects <= 3:
        raise ValueError(f"objects must be 1, 2 or 3, got {objects}")


def _background(rng: np.random.Generator, size: int, difficulty: float) -> Image.Image:
    """Draw coarse colour noise with strokes and shards, all too small to be an object."""
    low, high = 50 * difficulty, 60 + 150 * difficulty
    base, spread = rng.uniform(low, high, size=3), rng.uniform(low, high, size=(5, 5, 3))
    cells = base + 0.65 * difficulty * (spread - base)
    coarse = Image.fromarray(cells.astype(np.uint8))
    canvas = coarse.resize((size * _SUPERSAMPLING,) * 2, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    for _ in range(int(difficulty * rng.integers(8, 28))):
        _shard(rng, draw, size)
    for _ in range(int(difficulty * rng.integers(4, 14))):
        _stroke(rng, draw, size, width=rng.uniform(0.6, 2.2))
    return canvas


def _colour(rng: np.random.Generator, saturation: float, value: float) -> tuple[int, int, int]:
    rgb = colorsys.hsv_to_rgb(rng.uniform(), saturation, value)
    return round(rgb[0] * 255), round(rgb[1] * 255), round(rgb[2] * 255)


def _shard(rng: np.random.Generator, draw: ImageDraw.ImageDraw, size: int) -> None:
    """Draw an irregular polygon, less than half as wide as the smallest object."""
    corners = int(rng.integers(3, 7))
    angles = np.sort(rng.uniform(0, 2 * math.pi, corners))
    radii = rng.uniform(0.4, 1.0, corners) * rng.uniform(0.015, 0.05) * size
    x, y = rng.uniform(0, size, 2)
    points = [
        ((x + r * math.cos(a)) * _SUPERSAMPLING, (y + r * math.sin(a)) * _SUPERSAMPLING)
        for r, a in zip(radii, angles, strict=True)
    ]
    draw.polygon(points, fill=_colour(rng, rng.uniform(0, 0.9), rng.uniform(0.2, 1.0)))


def _stroke(
    rng: np.random.Generator, draw: ImageDraw.ImageDraw, size: int, width: float
) -> list[Point]:
    x, y = rng.uniform(0, size, 2)
    angle, length = rng.uniform(0, 2 * math.pi), rng.uniform(0.1, 0.5) * size
    ends = [(x, y), (x + length * math.cos(angle), y + length * math.sin(angle))]
    points = [(px * _SUPERSAMPLING, py * _SUPERSAMPLING) for px, py in ends]
    fill = _colour(rng, rng.uniform(0, 0.9), rng.uniform(0.2, 1.0))
    draw.line(points, fill=fill, width=max(1, round(width * _SUPERSAMPLING)))
    return points


def _place(rng: np.random.Generator, size: int, count: int) -> list[tuple[float, float, float]]:
    """Draw centres and radii of circles that lie inside the image and do not overlap."""
    circles: list[tuple[float, float, float]] = []
    while len(circles) < count:
        radius = rng.uniform(0.12, 0.19) * size
        x, y = rng.uniform(radius + 1, size - radius - 1, 2)
        clear = all(math.hypot(x - u, y - v) > radius + r + _GAP for u, v, r in circles)
        if clear:
            circles.append((float(x), float(y), float(radius)))
        elif rng.uniform() < 0.01:  # the first circles may leave no room, so start again
            circles.clear()
    return circles


def _stencil(
    parts: Sequence[Polygon], x: float, y: float, radius: float, angle: float, size: tuple[int, int]
) -> Image.Image:
    """Draw the shape as a large black and white picture: outline filled, holes cut out."""
    stencil = Image.new("L", size, 0)
    draw = ImageDraw.Draw(stencil)
    cos, sin = math.cos(angle) * radius, math.sin(angle) * radius
    for number, polygon in enumerate(parts):
        points = [
            ((x + cos * u - sin * v) * _SUPERSAMPLING, (y + sin * u + cos * v) * _SUPERSAMPLING)
            for u, v in polygon
        ]
        draw.polygon(points, fill=0 if number else 255)
    return stencil


def _rotation(rng: np.random.Generator, difficulty: float) -> float:
    return float(rng.uniform(-math.pi, math.pi) * max(difficulty, 0.1))


def _paint(
    rng: np.random.Generator, canvas: Image.Image, stencil: Image.Image, difficulty: float
) -> None:
    """Fill the shape with a contrasting colour that is a little lighter on one side."""
    behind = np.asarray(ImageStat.Stat(canvas, stencil).mean)
    colour = behind
    while np.linalg.norm(behind - colour) < _CONTRAST:
        saturation = rng.uniform(0.3 + 0.35 * difficulty, 1.0)
        colour = np.asarray(_colour(rng, saturation, rng.uniform(0.9 - 0.35 * difficulty, 1.0)))
    light = rng.uniform(0.75, 1.25, size=(2, 2, 1)) * colour
    corners = Image.fromarray(np.clip(light, 0, 255).astype(np.uint8))
    canvas.paste(corners.resize(canvas.size, Image.Resampling.BILINEAR), mask=stencil)


def _strokes_over(
    rng: np.random.Generator, canvas: Image.Image, size: int, difficulty: float
) -> Image.Image:
    """Draw thin strokes across the scene, and return their pixels."""
    covers = Image.new("L", canvas.size, 0)
    for _ in range(int(difficulty * rng.integers(0, 6))):
        width = rng.uniform(0.5, 1.4)
        points = _stroke(rng, ImageDraw.Draw(canvas), size, width)
        ImageDraw.Draw(covers).line(points, fill=255, width=max(1, round(width * _SUPERSAMPLING)))
    return covers


def _finish(
    rng: np.random.Generator, canvas: Image.Image, size: int, difficulty: float
) -> Image.Image:
    small = np.asarray(_shrink(canvas, size)).astype(np.float64)
    noise = rng.normal(0, 2 + 8 * difficulty * rng.uniform(), size=small.shape)
    return Image.fromarray(np.clip(small + noise, 0, 255).round().astype(np.uint8))


def _shrink(image: Image.Image, size: int) -> Image.Image:
    return image.resize((size, size), Image.Resampling.BOX)
