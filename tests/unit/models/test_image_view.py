"""Where a model's input lies on the original image, with the processors of Transformers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from transformers import (
    AutoImageProcessor,
    BaseImageProcessor,
    BatchFeature,
    BeitImageProcessorPil,
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    ConvNextImageProcessorPil,
    DeiTImageProcessorPil,
    GotOcr2ImageProcessorPil,
    LlavaNextImageProcessorPil,
    MobileViTImageProcessorPil,
    Siglip2ImageProcessorPil,
    SiglipImageProcessorPil,
    ViTImageProcessorPil,
)
from transformers.image_utils import make_flat_list_of_images

from hf_gmar.errors import InputError
from hf_gmar.models import ImageView, bundled_folder, measure_view

Size = tuple[int, int]
Box = tuple[float, float, float, float]

# What a processor makes of an image's size: to what it resizes, and what it then cuts out of the
# middle or pads to.
Recipe = Callable[[int, int], tuple[Size, Size]]


def stretch(height: int, width: int, crop: Size | None = None) -> Recipe:
    return lambda _height, _width: ((height, width), crop or (height, width))


def shortest(edge: int, crop: Size) -> Recipe:
    def recipe(height: int, width: int) -> tuple[Size, Size]:
        if height < width:
            return (edge, int(edge * width / height)), crop
        return (int(edge * height / width), edge), crop

    return recipe


def untouched(crop: Size) -> Recipe:
    return lambda height, width: ((height, width), crop)


def sides(height: int, width: int) -> dict[str, int]:
    return {"height": height, "width": width}


PROCESSORS: dict[str, tuple[Any, Recipe]] = {
    "vit": (ViTImageProcessorPil(), stretch(224, 224)),
    "vit-wide": (ViTImageProcessorPil(size=sides(96, 160)), stretch(96, 160)),
    "deit": (DeiTImageProcessorPil(), stretch(256, 256, (224, 224))),
    "clip": (CLIPImageProcessorPil(), shortest(224, (224, 224))),
    "siglip": (SiglipImageProcessorPil(size=sides(384, 384)), stretch(384, 384)),
    "beit": (BeitImageProcessorPil(do_center_crop=True), stretch(224, 224, (224, 224))),
    "bit": (
        BitImageProcessorPil(size={"shortest_edge": 448}, crop_size=sides(400, 448)),
        shortest(448, (400, 448)),
    ),
    "convnext": (
        ConvNextImageProcessorPil(size={"shortest_edge": 224}, crop_pct=0.875),
        shortest(256, (224, 224)),
    ),
    "padded": (
        DeiTImageProcessorPil(size=sides(200, 181), crop_size=sides(224, 240)),
        stretch(200, 181, (224, 240)),
    ),
    "cropped": (
        DeiTImageProcessorPil(do_resize=False, crop_size=sides(224, 224)),
        untouched((224, 224)),
    ),
    "channels-swapped": (MobileViTImageProcessorPil(), shortest(224, (256, 256))),
}

PHOTOS = [(480, 640), (1080, 1920), (900, 600), (300, 301)]
TINY = [(5, 3), (2, 2), (2, 7), (4, 3), (9, 13), (63, 40)]
ODD = [(257, 255), (50, 333), (100, 2000), (2000, 100), (224, 224), (256, 256), (223, 225)]


def expected(recipe: Recipe, size: Size) -> tuple[Box, Size]:
    """The box by arithmetic, and the size of the model's input."""
    edges = []
    resized, crop = recipe(*size)
    for pixels, length, kept in zip(size, resized, crop, strict=True):
        start = (length - kept) // 2
        edges.append((start * pixels / length, (start + kept) * pixels / length))
    (top, bottom), (left, right) = edges
    return (top, left, bottom, right), resized


def misses(view: ImageView, recipe: Recipe) -> list[tuple[float, float]]:
    """How far each edge is off, in pixels of the original and of the model's input."""
    box, resized = expected(recipe, view.size)
    found = []
    for edge in range(4):
        axis = edge % 2
        off = abs(view.box[edge] - box[edge])
        found.append((off, off * resized[axis] / view.size[axis]))
    return found


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", PHOTOS)
def test_the_box_of_a_photo_is_precise(name: str, size: Size) -> None:
    processor, recipe = PROCESSORS[name]
    for _, model_pixels in misses(measure_view(processor, size), recipe):
        assert model_pixels < 0.04


@pytest.mark.parametrize(
    ("name", "size"), [("deit", (3000, 4000)), ("clip", (4000, 3000)), ("padded", (2500, 6000))]
)
def test_the_box_of_a_large_photo_is_precise(name: str, size: Size) -> None:
    processor, recipe = PROCESSORS[name]
    for _, model_pixels in misses(measure_view(processor, size), recipe):
        assert model_pixels < 0.01


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", TINY + ODD)
def test_the_box_of_any_image_is_precise(name: str, size: Size) -> None:
    processor, recipe = PROCESSORS[name]
    for pixels, model_pixels in misses(measure_view(processor, size), recipe):
        assert model_pixels < 0.2 or pixels < 0.05


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", [(2, 300), (310, 3), (40, 3000), (2000, 33), (100, 9999)])
def test_the_box_of_a_strip_is_precise(name: str, size: Size) -> None:
    processor, recipe = PROCESSORS[name]
    for pixels, model_pixels in misses(measure_view(processor, size), recipe):
        assert min(pixels, model_pixels) < 0.1


@pytest.mark.parametrize("size", [(1, 65_000), (5000, 1), (1, 3600)])
def test_a_strip_that_becomes_too_long_is_refused(size: Size) -> None:
    with pytest.raises(InputError, match=f"{size[0]} x {size[1]} pixels, .* crop the image first"):
        measure_view(PROCESSORS["clip"][0], size)
    measure_view(PROCESSORS["vit"][0], size)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(PROCESSORS)), st.integers(2, 700), st.integers(2, 700))
@example("clip", 416, 223)  # resized by nearly nothing
@example("convnext", 338, 24)
def test_the_box_of_every_size(name: str, height: int, width: int) -> None:
    processor, recipe = PROCESSORS[name]
    if max(height, width) > 20 * min(height, width):
        height = width
    view = measure_view(processor, (height, width))
    assert view.size == (height, width)
    for pixels, model_pixels in misses(view, recipe):
        assert model_pixels < 0.5 or pixels < 0.1


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["vit", "vit-wide", "siglip", "beit"]), st.integers(1, 900), st.integers(1, 900)
)
@example("vit", 1, 1)
@example("vit", 1, 900)
@example("siglip", 385, 383)
def test_a_plain_resize_covers_the_image_exactly(name: str, height: int, width: int) -> None:
    view = measure_view(PROCESSORS[name][0], (height, width))
    assert view.box == (0.0, 0.0, height, width)
    assert not view.unexplained


@pytest.mark.parametrize("size", PHOTOS[:-1])
def test_an_edge_that_is_not_cropped_is_exact(size: Size) -> None:
    top, left, bottom, right = measure_view(PROCESSORS["clip"][0], size).box
    if size[0] < size[1]:
        assert (top, bottom) == (0.0, size[0])
        assert 0 < left < right < size[1]
    else:
        assert (left, right) == (0.0, size[1])
        assert 0 < top < bottom < size[0]


@pytest.mark.parametrize("size", [*TINY, (31, 6), (53, 1)])
def test_a_tiny_image_that_is_only_padded_is_exact(size: Size) -> None:
    processor, recipe = PROCESSORS["cropped"]
    assert measure_view(processor, size).box == pytest.approx(expected(recipe, size)[0], abs=0.01)


@pytest.mark.parametrize("name", ["vit", "deit", "clip", "convnext"])
def test_a_single_pixel_is_all_there_is(name: str) -> None:
    assert measure_view(PROCESSORS[name][0], (1, 1)).box == (0.0, 0.0, 1.0, 1.0)


def test_a_single_pixel_in_padding() -> None:
    # Half of 223 pixels of padding, rounded up, comes first.
    assert measure_view(PROCESSORS["cropped"][0], (1, 1)).box == (-112.0, -112.0, 112.0, 112.0)
    assert measure_view(PROCESSORS["padded"][0], (1, 1)).box == pytest.approx(
        (-12 / 200, -30 / 181, 212 / 200, 210 / 181)
    )


def test_the_processor_of_a_folder() -> None:
    processor = AutoImageProcessor.from_pretrained(bundled_folder(), backend="pil")
    assert measure_view(processor, (70, 50)).box == (0.0, 0.0, 70.0, 50.0)


class Square(ViTImageProcessorPil):
    """Pads at the right and at the bottom, then resizes: their pixels mix at the image's edge."""

    fill = 0

    def resize(self, image: NDArray[np.uint8], *args: Any, **kwargs: Any) -> NDArray[np.uint8]:
        """After padding."""
        _, height, width = image.shape
        side = max(height, width)
        room = ((0, 0), (0, side - height), (0, side - width))
        padded = np.pad(image, room, constant_values=self.fill)
        resized: NDArray[np.uint8] = super().resize(padded, *args, **kwargs)
        return resized


@pytest.mark.parametrize("fill", [0, 104, 116, 123, 127, 128, 255])
@pytest.mark.parametrize("size", [(300, 500), (50, 41), (2000, 900)])
def test_padding_of_any_grey_is_no_image(fill: int, size: Size) -> None:
    processor = Square()
    processor.fill = fill
    side = max(size)
    assert measure_view(processor, size).box == pytest.approx(
        (0, 0, side, side), abs=side / 224 / 4
    )


@pytest.mark.parametrize("fill", [0, 255])
@pytest.mark.parametrize("size", [(7, 12), (3, 2)])
def test_padding_of_a_tiny_image(fill: int, size: Size) -> None:
    processor = Square()
    processor.fill = fill
    side = max(size)
    assert measure_view(processor, size).box == pytest.approx(
        (0, 0, side, side), abs=side / 224 / 4
    )


def test_padding_that_looks_like_the_probe_is_refused() -> None:
    processor = Square()
    processor.fill = 125
    with pytest.raises(InputError, match="something else than one upright"):
        measure_view(processor, (300, 500))


class Changed(ViTImageProcessorPil):
    """Does something else with the picture at the end."""

    change: Callable[[NDArray[np.uint8]], NDArray[Any]]

    def resize(self, *args: Any, **kwargs: Any) -> NDArray[Any]:
        """Before the change."""
        return self.change(super().resize(*args, **kwargs))


def tiled(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.tile(pixels[:, ::2, ::2], (1, 2, 2))


def slanted(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    turned = Image.fromarray(pixels.transpose(1, 2, 0)).rotate(4)
    return np.asarray(turned)[30:-30, 30:-30].transpose(2, 0, 1)  # without the black corners


def noise(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 255, pixels.shape, np.uint8)


CHANGES: dict[str, Callable[[NDArray[np.uint8]], NDArray[Any]]] = {
    "flipped": lambda pixels: pixels[:, :, ::-1],
    "upside down": lambda pixels: pixels[:, ::-1],
    "turned": lambda pixels: np.rot90(pixels, axes=(1, 2)),
    "mirrored at the diagonal": lambda pixels: pixels.transpose(0, 2, 1),
    "mirrored at the other diagonal": lambda pixels: pixels[:, ::-1, ::-1].transpose(0, 2, 1),
    "slanted": slanted,
    "tiled": tiled,
    "noise": noise,
    "one colour": lambda pixels: np.full_like(pixels, 125),
    "black": np.zeros_like,
    "half hidden": lambda pixels: pixels * (np.indices((224, 224)).sum(0) < 224),
    "twice as bright": lambda pixels: pixels.astype(np.float32) * 2,
    "grey": lambda pixels: pixels[:1],
}


@pytest.mark.parametrize("swapped", [False, True], ids=["", "red and blue swapped"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("size", [(300, 400), (20, 30), (1000, 1100)])
def test_another_picture_than_the_image_is_refused(change: str, swapped: bool, size: Size) -> None:
    processor = Changed()
    order = -1 if swapped else 1
    processor.change = lambda pixels: CHANGES[change](pixels[::order])
    with pytest.raises(InputError, match="may only resize, crop and pad; explain with Python"):
        measure_view(processor, size)


@pytest.mark.parametrize(
    "processor",
    [
        LlavaNextImageProcessorPil(),  # an image and its tiles
        GotOcr2ImageProcessorPil(crop_to_patches=True),  # the same, without an axis for them
        Siglip2ImageProcessorPil(),  # patches
    ],
)
def test_pixels_that_are_no_picture_are_refused(processor: Any) -> None:
    with pytest.raises(InputError, match=rf"{type(processor).__name__} gives pixels of the shape"):
        measure_view(processor, (300, 500))


class Log(list[Size]):
    """Not a setting: looks the same whatever is in it."""

    def __repr__(self) -> str:
        """Nothing of what is in it."""
        return "Log"


class NoSettings(BaseImageProcessor):
    """Has the signature of TimmWrapperImageProcessor, and what timm does for most models."""

    std = torch.tensor([0.229, 0.224, 0.225])

    def __init__(self, recipe: Recipe, resample: int = Image.Resampling.BICUBIC) -> None:
        """Keep the recipe."""
        super().__init__()
        self.recipe = recipe
        self.resample = resample
        self.seen = Log()

    def preprocess(self, images: Any, return_tensors: str | None = "pt") -> BatchFeature:
        """PIL images only, and PyTorch's tensors only."""
        if return_tensors != "pt":
            raise ValueError("return_tensors for this processor must be 'pt'")
        flat: Any = make_flat_list_of_images(images)
        made = torch.stack([self._made(image) for image in flat])
        return BatchFeature({"pixel_values": made}, tensor_type=return_tensors)

    def _made(self, image: Image.Image) -> torch.Tensor:
        assert isinstance(image, Image.Image)
        self.seen.append((image.height, image.width))
        (height, width), (rows, columns) = self.recipe(image.height, image.width)
        top, left = (height - rows) // 2, (width - columns) // 2
        resized = image.resize((width, height), self.resample)
        cropped = resized.crop((left, top, left + columns, top + rows))
        pixels = torch.tensor(np.array(cropped)) / 255
        return ((pixels - torch.tensor([0.485, 0.456, 0.406])) / self.std).permute(2, 0, 1)


BY_TIMM: dict[str, Recipe] = {
    "squashed": stretch(224, 224),
    "cropped": stretch(248, 248, (224, 224)),
    "shortest edge": shortest(256, (224, 224)),
    "padded": stretch(200, 180, (224, 240)),
    "untouched": untouched((224, 224)),
}


@pytest.mark.parametrize("resample", [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR])
@pytest.mark.parametrize("name", BY_TIMM)
@pytest.mark.parametrize("size", [*PHOTOS, (1300, 1000)])
def test_a_processor_that_takes_no_settings(
    name: str, size: Size, resample: Image.Resampling
) -> None:
    view = measure_view(NoSettings(BY_TIMM[name], resample), size)
    for _, model_pixels in misses(view, BY_TIMM[name]):
        assert model_pixels < 0.05


@pytest.mark.parametrize("name", BY_TIMM)
@pytest.mark.parametrize("size", [(9, 13), (63, 40), (50, 333), (224, 224)])
def test_small_images_and_a_processor_that_takes_no_settings(name: str, size: Size) -> None:
    for pixels, model_pixels in misses(
        measure_view(NoSettings(BY_TIMM[name]), size), BY_TIMM[name]
    ):
        assert model_pixels < 0.3 or pixels < 0.1


def test_a_processor_without_settings_that_sees_nothing_is_refused() -> None:
    processor = NoSettings(stretch(224, 224))
    processor.std = torch.tensor([0.2, math.inf, 0.2])
    with pytest.raises(
        InputError, match="NoSettings gives the same pixels for a black and a white"
    ):
        measure_view(processor, (300, 500))


@pytest.mark.parametrize(("size", "calls"), [((1000, 1049), 1), ((1000, 1048), 3), ((9, 7), 3)])
def test_a_large_image_is_drawn_once(size: Size, calls: int) -> None:
    processor = NoSettings(stretch(224, 224))
    measure_view(processor, size)
    assert processor.seen.count(size) == calls


def test_a_size_is_measured_once() -> None:
    processor = NoSettings(stretch(248, 248, (224, 224)))
    first, other = measure_view(processor, (60, 80)), measure_view(processor, (80, 60))
    assert first != other
    measured = list(processor.seen)
    assert measure_view(processor, (60, 80)) == first
    assert measure_view(processor, (80, 60)) == other
    assert processor.seen == measured


def test_other_settings_are_measured_anew() -> None:
    processor = DeiTImageProcessorPil()
    cropped = measure_view(processor, (480, 640))
    processor.do_center_crop = False
    assert measure_view(processor, (480, 640)).box == (0.0, 0.0, 480.0, 640.0)
    processor.do_center_crop = True
    assert measure_view(processor, (480, 640)) == cropped
    assert measure_view(ViTImageProcessorPil(), (480, 640)) != cropped


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 4)])
def test_no_size_is_refused(size: Size) -> None:
    with pytest.raises(InputError, match="at least 1 pixel"):
        measure_view(PROCESSORS["vit"][0], size)


@pytest.mark.parametrize(
    "box",
    [(0.0, 0.0, 6.0, 9.0), (0.4, 2.2, 5.5, 6.9), (-3.0, 1.0, 9.0, 8.0), (2.2, -4.0, 3.9, 20.0)],
)
def test_each_pixel_has_the_value_of_its_patch(box: Box) -> None:
    patches = torch.arange(15.0).view(3, 5)
    top, left, bottom, right = box
    drawn = ImageView((6, 9), box).project(patches)
    assert drawn.shape == (6, 9)
    for y in range(6):
        for x in range(9):
            row = math.floor((y + 0.5 - top) / ((bottom - top) / 3))
            column = math.floor((x + 0.5 - left) / ((right - left) / 5))
            if 0 <= row < 3 and 0 <= column < 5:
                assert drawn[y, x] == patches[row, column]
            else:
                assert drawn[y, x].isnan()


def test_several_maps_at_once_keep_their_type() -> None:
    view = ImageView((4, 8), (0.0, 2.0, 4.0, 6.0))
    maps = torch.rand(2, 3, 2, 2, dtype=torch.float64)
    drawn = view.project(maps)
    assert (drawn.shape, drawn.dtype) == ((2, 3, 4, 8), torch.float64)
    for index in np.ndindex(2, 3):
        assert torch.equal(drawn[index].nan_to_num(-1), view.project(maps[index]).nan_to_num(-1))


def test_whole_numbers_become_floats() -> None:
    drawn = ImageView((2, 3), (0.0, 0.0, 2.0, 2.0)).project(torch.tensor([[1, 2], [3, 4]]))
    assert drawn.tolist()[0][:2] == [1.0, 2.0]
    assert drawn[:, 2].isnan().all()


@pytest.mark.parametrize("shape", [(4,), (0, 3), (2, 3, 0)])
def test_what_is_no_grid_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="rows, columns"):
        ImageView((4, 4), (0.0, 0.0, 4.0, 4.0)).project(torch.zeros(shape))


@pytest.mark.parametrize("box", [(0, 0, 4, 6), (-1, -2, 5, 6.5)])
def test_all_of_the_image_was_seen(box: Box) -> None:
    assert not ImageView((4, 6), box).unexplained


@pytest.mark.parametrize("box", [(0.5, 0, 4, 6), (0, 1, 4, 6), (0, 0, 3.9, 6), (0, 0, 4, 5)])
def test_part_of_the_image_was_not_seen(box: Box) -> None:
    view = ImageView((4, 6), box)
    assert view.unexplained


@pytest.mark.parametrize("name", ["deit", "clip", "padded", "convnext", "channels-swapped"])
@pytest.mark.parametrize("size", [(300, 420), (420, 300), (140, 90)])
def test_what_the_model_gets_lies_where_it_came_from(name: str, size: Size) -> None:
    """A smooth picture through the processor with its own settings, and back onto itself."""
    y, x = np.indices(size) / max(size)
    picture = (127 + 60 * np.sin(5 * x) + 60 * np.cos(4 * y)).astype(np.uint8)
    processor, _ = PROCESSORS[name]
    pixels = processor(
        Image.fromarray(picture).convert("RGB"), do_normalize=False, do_rescale=False
    )
    back = measure_view(processor, size).project(torch.tensor(np.array(pixels.pixel_values[0][0])))
    seen = ~back.isnan()
    assert seen.float().mean() > 0.4
    assert (back - torch.tensor(picture))[seen].abs().max() < 6


def test_the_processor_comes_back_as_it_was() -> None:
    processor = DeiTImageProcessorPil(resample=3, do_normalize=True)
    before = processor.to_json_string()
    measure_view(processor, (30, 40))
    assert processor.to_json_string() == before
