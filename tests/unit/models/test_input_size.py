"""Sizes other than the processor's and the model's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import (
    BaseImageProcessor,
    BeitImageProcessorPil,
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    ConvNextImageProcessorPil,
    DeiTImageProcessorPil,
    Dinov2Config,
    Dinov2ForImageClassification,
    SiglipImageProcessorPil,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from hf_gmar import GMAR, LogitsModel, evaluate
from hf_gmar.data import draw_scene
from hf_gmar.errors import InputError, OptionError
from hf_gmar.models import load_model, measure_view
from hf_gmar.models.input_size import parse_size, with_size
from tests.reference.models import build
from tests.support.command import run

pytestmark = pytest.mark.usefixtures("few_dots")

pipeline = cast("Any", transformers.pipeline)

SIDES = {"height": 96, "width": 96}


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    """A model for 64 x 64 pixels whose processor gives 96 x 96."""
    build(ViTForImageClassification, ViTConfig, image_size=64, patch_size=16).save_pretrained(
        tmp_path / "vit"
    )
    ViTImageProcessorPil(size=SIDES).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


@pytest.fixture
def photo(tmp_path: Path, scene: Image.Image) -> Path:
    """A wide photo."""
    scene.resize((120, 80)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def expected_map(loaded: Any, photo: Path, size: tuple[int, int], **keywords: Any) -> Any:
    """The map of class 1 of the photo, resized by Pillow."""
    with Image.open(photo) as image:
        resized = image.resize(size[::-1], Image.Resampling.BILINEAR)
    pixels = torch.tensor(np.asarray(resized)).permute(2, 0, 1)[None] / 127.5 - 1
    return GMAR(loaded.model).attribute_patches(pixels.float(), 1, **keywords)[0]


@pytest.mark.parametrize(
    ("words", "size", "keywords"),
    [
        (["--size", "64"], (64, 64), {}),
        (["--interpolate"], (96, 96), {"interpolate_pos_encoding": True}),
        (["--size", "32x48", "--interpolate"], (32, 48), {"interpolate_pos_encoding": True}),
    ],
)
def test_the_message_leads_to_a_map(
    tmp_path: Path, vit: Path, photo: Path, words: list[str], size: tuple[int, int], keywords: Any
) -> None:
    out = tmp_path / "out"
    base = ["explain", photo, "--model", vit, "--target", "1", "--output", out, "--method", "gmar"]
    done = run(*base)
    assert done.code == 1
    assert "--size 64)" in done.error
    assert "(on the command line --interpolate)" in done.error
    done = run(*base, *words)
    assert done.code == 0, done.err
    (archive,) = out.glob("*.npz")
    loaded = load_model(vit)
    with np.load(archive) as stored:
        assert np.allclose(
            stored["patches"], expected_map(loaded, photo, size, **keywords), atol=1e-6
        )
        settings = json.loads(str(stored["settings"]))
        assert settings.get("interpolate_pos_encoding", False) == bool(keywords)
    explain = pipeline("image-attribution", model=str(vit))
    with pytest.raises(InputError, match="size='64' of load_model and the pipeline"):
        explain(str(photo), target=1)
    (result,) = explain(str(photo), target=1, size=size, **keywords)
    patches = expected_map(loaded, photo, size, **keywords)
    assert result["attribution"][0, 0] == pytest.approx(float(patches[0, 0]), abs=1e-6)
    assert torch.unique(result["attribution"]).numel() == torch.unique(patches).numel()


@pytest.mark.parametrize("words", [["--size", "64"], ["--interpolate"]])
@pytest.mark.parametrize("command", [
    ["heads", "--maps", "--ablate"],
    ["compare", "--no-measure", "--methods", "gmar", "attn-lrp", "--captum", "Saliency"],
])  # fmt: skip
def test_the_other_commands(
    tmp_path: Path, vit: Path, photo: Path, command: list[str], words: list[str]
) -> None:
    name, *more = command
    base = [name, photo, "--model", vit, "--output", tmp_path / "out"]
    assert "--size 64)" in run(*base, *more).error
    done = run(*base, *words, *more)
    assert done.code == 0, done.err
    assert "failed" not in done.out


@pytest.mark.parametrize("options", [{"size": 64}, {"interpolate_pos_encoding": True}])
def test_evaluate(tmp_path: Path, vit: Path, options: Any) -> None:
    refused = evaluate(load_model(vit), "scenes:1", ["gmar"], ["deletion"], steps=2)
    assert "--size 64)" in refused.rows[0]["error"]
    loaded = load_model(vit, **options)
    metrics = ["deletion", "infidelity:samples=4", "parameter-randomization:stages=2"]
    found = evaluate(loaded, "scenes:1", ["gmar", "attn-lrp"], metrics,
                     ["blur", "token-dropping"], steps=2, output=tmp_path / "out")  # fmt: skip
    assert all("error" not in row and "undefined" not in row for row in found.rows)
    scene = evaluate(loaded, "scenes:1", ["gmar"], ["deletion"], steps=2)
    before = scene.rows[0]["before"]
    pixels = loaded.pixels(draw_scene(0).image)
    scores = LogitsModel(loaded.model)(pixels, **loaded.forward_kwargs).softmax(1)
    assert before == pytest.approx(float(scores.detach().max()), abs=1e-6)


def test_patches_that_do_not_divide_the_processor(tmp_path: Path, photo: Path) -> None:
    """DINOv2 with a processor that gives 256 x 256 pixels."""
    build(
        Dinov2ForImageClassification, Dinov2Config, image_size=224, patch_size=14
    ).save_pretrained(tmp_path / "dino")
    sides = {"height": 256, "width": 256}
    BitImageProcessorPil(size={"shortest_edge": 256}, crop_size=sides).save_pretrained(
        tmp_path / "dino"
    )
    base = ["explain", photo, "--model", tmp_path / "dino", "--output", tmp_path / "out"]
    assert run(*base).error.endswith("on the command line --size 252)")
    for size in ("252", "224", "28x42"):
        done = run(*base, "--size", size)
        assert done.code == 0, done.err
    done = run(*base, "--interpolate")
    assert done.code == 2
    assert "Dinov2ForImageClassification has no interpolate_pos_encoding: it" in done.error


PROCESSORS: dict[str, BaseImageProcessor] = {
    "ViT": ViTImageProcessorPil(size=SIDES),
    "SigLIP": SiglipImageProcessorPil(size=SIDES),
    "DeiT": DeiTImageProcessorPil(),
    "CLIP": CLIPImageProcessorPil(),
    "CLIP without crop": CLIPImageProcessorPil(do_center_crop=False),
    "CLIP without resize": CLIPImageProcessorPil(do_resize=False),
    "Bit": BitImageProcessorPil(size={"shortest_edge": 256}),
    "BEiT": BeitImageProcessorPil(),
    "not resizing": ViTImageProcessorPil(do_resize=False),
}


@pytest.mark.parametrize("size", [(64, 64), (32, 96), (96, 32), (512, 512)])
@pytest.mark.parametrize("name", PROCESSORS)
def test_processors_give_the_size(name: str, size: tuple[int, int]) -> None:
    own = PROCESSORS[name]
    before = own.to_dict()
    changed = with_size(own, size)
    for shape in ((30, 90), (90, 30), (300, 200)):
        pixels = changed(images=Image.new("RGB", shape[::-1]), return_tensors="pt").pixel_values
        assert tuple(pixels.shape[-2:]) == size
    assert own.to_dict() == before
    assert with_size(own, size) is changed  # whose view is measured once


def test_the_same_share_is_cropped() -> None:
    own = DeiTImageProcessorPil()  # to 256 x 256, of which the middle 224 x 224
    for size in (112, 448):
        first, second = (
            np.array(measure_view(item, (480, 640)).box) for item in (own, with_size(own, size))
        )
        assert np.abs(first - second).max() < 3


@pytest.mark.parametrize("size", ["", "0", "64x", "x64", "big", -1, 100_000, 0, (1, 2, 3), 2.5])
def test_what_is_no_size(vit: Path, photo: Path, size: Any) -> None:
    with pytest.raises(OptionError, match="a size is one number of pixels, or HEIGHTxWIDTH"):
        parse_size(size)
    with pytest.raises(OptionError, match="a size is"):
        load_model("no/such/model/at/all", size=size)  # before any download
    with pytest.raises(OptionError, match="a size is"):
        pipeline("image-attribution", model=str(vit), size=size)
    if isinstance(size, str):
        assert run("explain", photo, "--model", vit, f"--size={size}").code == 2


def test_the_map_lies_where_the_model_looked(vit: Path, photo: Path) -> None:
    """A strip of another shape than the processor's own crop."""
    DeiTImageProcessorPil().save_pretrained(vit)
    loaded = load_model(vit, size=(32, 64), interpolate_pos_encoding=True)
    explain = pipeline("image-attribution", model=str(vit))
    (result,) = explain(str(photo), target=1, size="32x64", interpolate_pos_encoding=True)
    with Image.open(photo) as image:
        pixels = loaded.pixels(image)
    patches = GMAR(loaded.model).attribute_patches(pixels, 1, **loaded.forward_kwargs)[0]
    expected = measure_view(loaded.processor, (80, 120)).project(patches)
    assert torch.allclose(result["attribution"], expected, atol=1e-6, equal_nan=True)
    own = measure_view(DeiTImageProcessorPil(), (80, 120)).project(patches)
    assert not torch.equal(expected.isnan(), own.isnan())


class Fixed(ViTImageProcessorPil):
    """Gives 48 x 48 pixels, whatever is said."""

    def preprocess(self, images: Any, **options: Any) -> Any:
        """Resize to a size of its own."""
        return super().preprocess(images, **{**options, "size": {"height": 48, "width": 48}})


def test_a_processor_of_one_size() -> None:
    with pytest.raises(OptionError, match="size 32 x 64: it then gives 48 x 48; leave the size"):
        with_size(Fixed(), (32, 64))


def test_a_processor_that_goes_its_own_way() -> None:
    own = ConvNextImageProcessorPil(size={"shortest_edge": 96})
    with pytest.raises(OptionError, match="ConvNextImageProcessorPil can't be set to the size"):
        with_size(own, (32, 64))
