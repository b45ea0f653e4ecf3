"""Models of any number of channels: on the command line, in the pipeline and in evaluate."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)
from transformers.image_utils import SizeDict

import hf_gmar.pipeline  # noqa: F401  # registers the task
from hf_gmar import GMAR, evaluate
from hf_gmar.data import Example, ImageDataset
from hf_gmar.errors import InputError
from hf_gmar.models import LoadedModel, load_model
from hf_gmar.models.image_view import measure_view
from hf_gmar.models.pixel_values import picture_of_input, pixel_values
from tests.reference.models import build
from tests.support.command import run
from tests.support.web_server import serve

pytestmark = pytest.mark.usefixtures("few_dots")

pipeline = cast("Any", transformers.pipeline)

SIZE = (80, 100)  # height and width of the images; the models take 32 x 32


def model_of(folder: Path, channels: int, **processor: Any) -> Path:
    """A tiny ViT of so many channels, with a processor whose values differ by channel."""
    build(ViTForImageClassification, ViTConfig, num_channels=channels).save_pretrained(folder)
    values = {
        "image_mean": [0.3 + 0.02 * number for number in range(channels)],
        "image_std": [0.5 - 0.02 * number for number in range(channels)],
        "size": {"height": 32, "width": 32},
    }
    ViTImageProcessorPil(**{**values, **processor}).save_pretrained(folder)
    return folder


def array(channels: int) -> NDArray[np.uint8]:
    """Random bytes, (height, width, channels)."""
    random = np.random.default_rng(channels)
    return random.integers(0, 256, (*SIZE, channels), dtype=np.uint8)


def by_hand(loaded: Any, values: NDArray[np.uint8]) -> torch.Tensor:
    """The image, or each of many channels, resized by Pillow and normalised."""
    processor = loaded.processor
    parts = [values] if values.shape[-1] == 4 else np.split(values, values.shape[-1], axis=-1)
    planes = [
        np.asarray(Image.fromarray(part.squeeze()).resize((32, 32), Image.Resampling.BILINEAR))
        for part in parts
    ]
    pixels = torch.from_numpy(np.dstack(planes)).permute(2, 0, 1).double() / 255
    mean, std = (
        torch.tensor(side).double()[:, None, None]
        for side in (processor.image_mean, processor.image_std)
    )
    return ((pixels - mean) / std)[None].float()


def save(values: NDArray[np.uint8], path: Path) -> Path:
    """An image file of its channels, or an array."""
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        Image.fromarray(values.squeeze(-1) if values.shape[-1] == 1 else values).save(path)
    return path


@pytest.mark.parametrize(
    ("channels", "name"),
    [(1, "a.png"), (1, "a.npy"), (2, "a.npy"), (3, "a.npy"), (4, "a.png"), (4, "a.webp"),
     (4, "a.npy"), (12, "a.npy")],
)  # fmt: skip
def test_an_image_is_opened_with_the_channels_of_the_model(
    tmp_path: Path, channels: int, name: str
) -> None:
    folder = model_of(tmp_path / "model", channels)
    values = array(channels)
    if name == "a.webp":
        Image.fromarray(values).save(tmp_path / name, lossless=True, exact=True)
    else:
        save(values, tmp_path / name)
    words = "--method", "gmar", "--model", folder
    done = run("explain", tmp_path / name, *words, "--output", tmp_path / "out")
    assert done.code == 0, done.err
    loaded = load_model(folder)
    pixels = by_hand(loaded, values)
    assert torch.allclose(loaded.pixels(values), pixels, atol=1e-6)
    (archive,) = (tmp_path / "out").glob("*.npz")
    with np.load(archive) as stored:
        expected = GMAR(loaded.model).attribute_patches(pixels, int(stored["target"]))[0]
        assert np.allclose(stored["patches"], expected, atol=1e-6)
        assert tuple(stored["size"]) == SIZE


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1", "CMYK", "I;16"])
def test_any_image_becomes_grey_or_rgba(tmp_path: Path, mode: str) -> None:
    grey = Image.fromarray(array(1)[..., 0])
    image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if mode == "I;16" else grey
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    (image if mode == "I;16" else image.convert(mode)).save(path)
    for channels in (1, 4):
        model = model_of(tmp_path / f"{channels}", channels)
        out = tmp_path / f"out-{channels}"
        done = run("explain", path, "--model", model, "--output", out)
        assert done.code == 0, done.err
    if mode not in ("1", "CMYK", "P"):
        done = run("explain", path, "--model", tmp_path / "1", "--output", out, "--target", "0")
        loaded: Any = load_model(tmp_path / "1")
        expected = GMAR(loaded.model).attribute_patches(loaded.pixels(grey), 0)[0]
        with np.load(out / "a.0-LABEL_0.npz") as stored:
            assert np.allclose(stored["patches"], expected, atol=1e-6)


@pytest.mark.parametrize("command", [
    ["explain"], ["heads", "--maps", "--ablate"],
    ["compare", "--no-measure", "--methods", "gmar", "--captum", "Saliency"],
])  # fmt: skip
@pytest.mark.parametrize("channels", [1, 4, 12])
def test_all_commands(tmp_path: Path, command: list[str], channels: int) -> None:
    folder = model_of(tmp_path / "model", channels)
    path = save(array(channels), tmp_path / ("a.npy" if channels == 12 else "a.png"))
    name, *words = command
    done = run(name, path, "--model", folder, "--output", tmp_path / "out", *words)
    assert done.code == 0, done.err
    assert "failed" not in done.out


@pytest.mark.parametrize("layout", ["last", "first", "tensor", "one", "transposed"])
@pytest.mark.parametrize("channels", [1, 2, 4, 12])
def test_the_pipeline_takes_arrays(tmp_path: Path, channels: int, layout: str) -> None:
    explain = pipeline("image-attribution", model=str(model_of(tmp_path, channels)))
    values = array(channels)
    forms: dict[str, Callable[[], Any]] = {
        "last": lambda: values,
        "first": lambda: np.moveaxis(values, -1, 0),
        "tensor": lambda: torch.from_numpy(values).permute(2, 0, 1),
        "one": lambda: values[None],
        "transposed": lambda: np.moveaxis(values, -1, 0).transpose(0, 2, 1),
    }
    loaded = load_model(tmp_path)
    (result,) = explain(forms[layout](), target=1, overlay=True)
    turned = values.transpose(1, 0, 2) if layout == "transposed" else values
    pixels = by_hand(loaded, turned)
    patches = GMAR(loaded.model).attribute_patches(pixels, 1)[0]
    assert result["attribution"].shape == turned.shape[:2]
    assert result["attribution"][0, 0] == pytest.approx(float(patches[0, 0]), abs=1e-6)
    assert result["overlay"].size == turned.shape[1::-1]


def test_the_pipeline_takes_grey_and_transparent_images(tmp_path: Path) -> None:
    for channels in (1, 4):
        folder = model_of(tmp_path / str(channels), channels)
        explain = pipeline("image-attribution", model=str(folder))
        path = save(array(channels), tmp_path / f"{channels}.png")
        with Image.open(path) as image:
            results = [explain(item, target=1)[0] for item in (str(path), path, image)]
        (expected,) = explain(array(channels), target=1)
        for result in results:
            assert torch.allclose(result["attribution"], expected["attribution"], atol=1e-6)
            assert result["score"] == pytest.approx(expected["score"], abs=1e-6)
    with serve(tmp_path) as address:
        (served,) = explain(f"{address}/4.png", target=1, timeout=60)
    assert torch.equal(served["attribution"], results[0]["attribution"])


@pytest.mark.parametrize(
    ("channels", "values", "text"),
    [
        (3, array(12), r"shape \(80, 100, 12\)"),
        (3, array(4), r"shape \(80, 100, 4\)"),
        (12, array(3), r"no axis of the model's 12 channels; give \(height, width, 12\)"),
        (1, array(3), "no axis of the model's 1 channel;"),
        (12, array(1)[..., 0], "no axis of the model's 12 channels"),
        (12, array(12).astype(np.uint16) * 257, "can't process channel 0 .* from 0 to 255"),
        (12, array(12) / 255, "at most 1, and the image processor .* divides by 255"),
        (12, np.full((*SIZE, 12), np.nan), "NaN or infinity"),
        (12, Image.fromarray(array(3)), r"mode RGB has 3; give an array \(height, width, 12\)"),
    ],
)  # fmt: skip
def test_what_does_not_fit(tmp_path: Path, channels: int, values: Any, text: str) -> None:
    explain = pipeline("image-attribution", model=str(model_of(tmp_path, channels)))
    with pytest.raises(InputError, match=text):
        explain(values)


def test_a_processor_of_other_channels(tmp_path: Path) -> None:
    folder = model_of(tmp_path / "model", 1, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    path = save(array(1), tmp_path / "a.png")
    done = run("explain", path, "--model", folder, "--output", tmp_path / "out")
    assert done.code == 1
    assert "takes 1 channel, and the image_mean of its image processor" in done.error
    for processor in ({"image_mean": 0.5, "image_std": 0.5}, {"do_normalize": False},
                      {"do_convert_rgb": True}):  # fmt: skip
        folder = model_of(tmp_path / "other", 1, **processor)
        done = run("explain", path, "--model", folder, "--output", tmp_path / "out")
        assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (np.array([{}], dtype=object), "holds no plain array"),
        (np.zeros((1, 2, 3, 4)), "needed are numbers"),
        (np.zeros((4, 4), bool), "needed are numbers"),
        (b"no array", "holds no plain array"),
        (None, "there is no "),
    ],
)
def test_a_file_that_is_no_array(tmp_path: Path, content: Any, text: str) -> None:
    path = tmp_path / "a.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content, allow_pickle=True)
    done = run("explain", path, "--model", "bundled", "--output", tmp_path / "out")
    assert done.code == 1
    assert text in done.error


class Grey(ImageDataset):
    """Two images in RGB."""

    def __init__(self) -> None:
        super().__init__("grey", {})

    def __len__(self) -> int:
        """Return two."""
        return 2

    def key(self, index: int) -> str:
        """Return the number."""
        return str(range(2)[index])

    def __getitem__(self, index: int) -> Example:
        """Draw an image."""
        return Example(self.key(index), Image.fromarray(array(3)), 0)


def test_evaluate_in_grey_and_not_without_transparency(tmp_path: Path) -> None:
    words: Any = Grey(), ["gmar"], ["deletion"]
    grey = evaluate(load_model(model_of(tmp_path / "1", 1)), *words, steps=2)
    assert all(row["method"] == "gmar" for row in grey.rows)
    found = evaluate(load_model(model_of(tmp_path / "4", 4)), *words, steps=2)
    assert (
        "the image is in RGB, without transparency; give images in RGBA" in found.rows[0]["error"]
    )


def test_evaluate_files_with_transparency(tmp_path: Path) -> None:
    loaded = load_model(model_of(tmp_path / "4", 4))
    (tmp_path / "images").mkdir()
    paths = [save(array(4), tmp_path / "images" / f"{number}.png") for number in range(2)]
    words: Any = ["gmar"], ["deletion"]
    found = evaluate(loaded, tmp_path / "images", *words, steps=2, output=tmp_path / "out")
    (curve,) = found.rows[0]["curves"].values()
    expected = loaded.model(open_pixels(loaded, paths[0])).logits.softmax(-1).max().item()
    assert curve["morf"][0] == pytest.approx(expected, abs=1e-6)
    assert (tmp_path / "out" / "examples.png").is_file()


def open_pixels(loaded: Any, path: Path) -> torch.Tensor:
    """The pixel values of a file with transparency."""
    with Image.open(path) as image:
        return loaded.pixels(np.asarray(image.convert("RGBA")))  # type: ignore[no-any-return]


def test_pictures_of_arrays() -> None:
    values = array(12)
    assert np.array_equal(np.asarray(picture_of_input(values, 12)), values[..., :3])
    assert np.array_equal(np.asarray(picture_of_input(values / 255, 12)), values[..., :3])
    far = values.astype(np.float64) * 10 - 100
    ends = np.asarray(picture_of_input(far, 12))
    assert (ends.min(), ends.max()) == (0, 255)
    assert picture_of_input(Image.new("RGBA", (2, 1)), 4).mode == "RGB"


def test_models_of_three_channels_are_processed_as_before(tmp_path: Path) -> None:
    loaded = load_model(model_of(tmp_path, 3))
    image = Image.fromarray(array(3))
    expected = loaded.processor(images=image, return_tensors="pt").pixel_values
    assert torch.equal(pixel_values(loaded.processor, image, 3), expected)


DAMAGED: dict[str, dict[str, Any]] = {
    "no factor": {"rescale_factor": None}, "a factor of no number": {"rescale_factor": {}},
    "no resampling": {"resample": None}, "another sampling": {"resample": 99},
    "no size": {"size": {}}, "no number of pixels": {"size": {"height": "a", "width": 3}},
    "nothing is left": {"size": {"height": 0, "width": 0}},
    "means of no number": {"image_mean": "a"},
    "too few means": {"image_mean": [0.5]}, "deviations of no number": {"image_std": ["a"] * 3},
}  # fmt: skip


@pytest.mark.parametrize("settings", DAMAGED.values(), ids=DAMAGED)
def test_a_processor_whose_settings_are_damaged(
    settings: dict[str, Any], bundled: LoadedModel
) -> None:
    processor = copy.deepcopy(bundled.processor)
    vars(processor).update(settings)
    image = Image.new("RGB", (20, 30))
    explain = pipeline("image-attribution", model=bundled.model, image_processor=processor)
    for call in (
        lambda: pixel_values(processor, image, 3),
        lambda: pixel_values(processor, np.asarray(image), 3),
        lambda: explain(image),
    ):
        with pytest.raises(InputError, match=r"image processor ViTImageProcessorPil|image_mean"):
            call()
    with suppress(InputError):  # it needs no colours
        measure_view(processor, (30, 20))


@pytest.mark.parametrize(
    ("step", "name"),
    [("do_resize", "size"), ("do_center_crop", "crop_size"), ("do_pad", "pad_size")],
)
def test_a_processor_that_makes_too_many_pixels_of_any_image(step: str, name: str) -> None:
    """Its config may name any size: this one takes 120 GB."""
    processor = CLIPImageProcessorPil(do_resize=False, do_center_crop=False)
    setattr(processor, name, SizeDict(height=200_000, width=200_000))
    small = Image.new("RGB", (9, 9))
    setattr(processor, step, True)
    for image in (small, np.asarray(small)):
        with pytest.raises(InputError, match=rf"has a {name} of 200,000 x 200,000: more .* --size"):
            pixel_values(processor, image, 3)
    setattr(processor, step, False)
    assert pixel_values(processor, small, 3).shape == (1, 3, 9, 9)


def test_a_strip_of_which_the_processor_makes_too_many_pixels(tmp_path: Path) -> None:
    processor = CLIPImageProcessorPil()
    strip = Image.new("RGB", (65_000, 1))
    for image in (strip, np.asarray(strip)):
        with pytest.raises(InputError, match=r"resizes its shorter side to 224, .* to 14,560,000"):
            pixel_values(processor, image, 3)
    folder = str(model_of(tmp_path, 3))
    explain = pipeline("image-attribution", model=folder, image_processor=processor)
    with pytest.raises(InputError, match="crop the image first"):
        explain(strip)
    processor.do_resize = False
    assert pixel_values(processor, strip, 3).shape == (1, 3, 224, 224)
