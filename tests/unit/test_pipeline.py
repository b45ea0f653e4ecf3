"""The task "image-attribution", beside Transformers' own task of image classification."""

from __future__ import annotations

import base64
import copy
import io
import itertools
import logging
import pickle
import runpy
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTImageProcessorPil,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.pt_utils import KeyDataset
from transformers.utils import logging as transformers_logging

from hf_gmar import GMAR, Explainer, GradSAM, ImageAttributionPipeline
from hf_gmar import pipeline as module
from hf_gmar.data import draw_scene, open_image
from hf_gmar.errors import (
    HfGmarError,
    ImageFileError,
    InputError,
    ModelLoadError,
    OptionError,
    TargetError,
    UnsupportedModelError,
)
from hf_gmar.methods import METHODS
from hf_gmar.models import ImageView, LoadedModel, bundled_folder, find_class
from tests.reference.models import PROMPTS, build, of_two, prompted, scene_model
from tests.reference.tolerances import PATIENCE
from tests.support.state import unchanged
from tests.support.web_server import serve

Found = list[dict[str, Any]]

pipeline: Any = transformers.pipeline  # its types know no other tasks than its own

_tiny = partial(build, ViTForImageClassification, ViTConfig)
_SMALL = ViTImageProcessorPil(size={"height": 32, "width": 32})


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A colourful image of that size."""
    scene = draw_scene(seed).image.resize((width, height))
    assert scene.mode == "RGB"
    return scene


PICTURES = [picture(*size, seed=seed) for seed, size in enumerate([(96, 96), (70, 50), (33, 91)])]
PICTURES.append(picture(140, 60, 7))


@pytest.fixture(scope="module")
def explain(tiny: LoadedModel) -> ImageAttributionPipeline:
    made = pipeline("image-attribution", model=tiny.model, image_processor=tiny.processor)
    assert isinstance(made, ImageAttributionPipeline)
    return made


@pytest.fixture(scope="module")
def classify(tiny: LoadedModel) -> Any:
    return pipeline("image-classification", model=tiny.model, image_processor=tiny.processor)


@pytest.fixture(scope="module")
def each(explain: Any) -> list[Found]:
    """Two classes of each picture by itself, drawn."""
    return [explain(image, top_k=2, overlay=True) for image in PICTURES]


@pytest.fixture(scope="module")
def chances(classify: Any) -> list[dict[str, float]]:
    """The score of every class of each picture."""
    return [scores_of(classify(image, top_k=8)) for image in PICTURES]


def scores_of(found: Found) -> dict[str, float]:
    return {one["label"]: one["score"] for one in found}


def assert_same(found: Found, wanted: Found, tolerance: float = 0.0) -> None:
    """The same classes, scores and maps; pixels without a value in the same places."""
    assert [sorted(one) for one in found] == [sorted(one) for one in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one["label"] == other["label"]
        assert one["score"] == pytest.approx(other["score"], abs=tolerance)
        assert torch.equal(one["attribution"].isnan(), other["attribution"].isnan())
        difference = (one["attribution"] - other["attribution"]).nan_to_num().abs().max()
        assert difference <= tolerance
        drawn, wanted_drawn = (np.asarray(part.get("overlay"), object) for part in (one, other))
        assert drawn.shape == wanted_drawn.shape
        # A map that differs in its last digit may be of the next colour.
        assert tolerance or (drawn == wanted_drawn).all()


HEADS: dict[str, dict[str, Any]] = {
    "multi-label": {"problem_type": "multi_label_classification"},
    "single-label": {"problem_type": "single_label_classification"},
    "unsaid": {},
    "one label": {"num_labels": 1, "problem_type": "multi_label_classification"},
    "regression": {"num_labels": 3, "problem_type": "regression"},
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("top_k", [1, 3, 99])
def test_labels_and_scores_are_those_of_image_classification(head: str, top_k: int) -> None:
    parts = {"model": _tiny(**HEADS[head]), "image_processor": _SMALL, "top_k": top_k}
    tasks = ("image-classification", "image-attribution")
    for wanted, found in zip(
        *(pipeline(task, **parts)(PICTURES[1:3]) for task in tasks), strict=True
    ):
        assert [one["label"] for one in found] == [one["label"] for one in wanted]
        assert [one["score"] for one in found] == pytest.approx([one["score"] for one in wanted])
        assert len(found) == min(top_k, parts["model"].config.num_labels)
        assert all(type(one["score"]) is float for one in found)


def test_equal_scores_keep_the_order_of_image_classification() -> None:
    model = _tiny(num_labels=40)
    with torch.no_grad():
        model.classifier.weight[5:35] = 0
        model.classifier.bias[5:35] = 0
    parts = {"model": model, "image_processor": _SMALL, "top_k": 40}
    wanted = pipeline("image-classification", **parts)(PICTURES[0])
    found = pipeline("image-attribution", **parts)(PICTURES[0])
    assert list(scores_of(found)) == list(scores_of(wanted))


@pytest.mark.parametrize(
    "options",
    [{}, {"norm": "l2"}, {"alpha": 0.3, "start_layer": 1}, {"engine": "dense"}],
    ids=str,
)
def test_maps_are_those_of_the_method(
    explain: Any, tiny: LoadedModel, options: dict[str, Any]
) -> None:
    for image in PICTURES[2:] if options else PICTURES:
        pixels = tiny.processor(images=image, return_tensors="pt").pixel_values
        view = ImageView((image.height, image.width), (0.0, 0.0, image.height, image.width))
        for one in explain(image, top_k=3, **options):
            target = find_class(tiny.model.config, one["label"])
            patches = GMAR(tiny.model, **options).attribute_patches(pixels, target)[0]
            assert one["attribution"].dtype == torch.float32
            assert one["attribution"].shape == (image.height, image.width)
            assert (one["attribution"] - view.project(patches)).abs().max() < 1e-6


def test_a_contrast(explain: Any, tiny: Any) -> None:
    (found,) = explain(PICTURES[0], target="heart", contrast="cross", method="grad-sam")
    pixels = tiny.processor(images=PICTURES[0], return_tensors="pt").pixel_values
    wanted = GradSAM(tiny.model).attribute_patches(pixels, 6, contrast=4)[0]
    assert torch.equal(found["attribution"][::12, ::12], wanted)
    with pytest.raises(OptionError, match="same map for every class"):
        explain(PICTURES[0], contrast="cross", method="random")
    with pytest.raises(TargetError, match="no class is called 'zebra'"):
        explain(PICTURES[0], contrast="zebra")
    with pytest.raises(TargetError, match="are the same class"):
        explain(PICTURES[0], target="heart", contrast=6)


@pytest.mark.parametrize("options", [{"norm": "l2"}, {"alpha": 0.0}, {"start_layer": 2}], ids=str)
def test_options_of_the_method_matter(explain: Any, options: dict[str, Any]) -> None:
    plain, other = (explain(PICTURES[0], **said)[0]["attribution"] for said in ({}, options))
    assert (plain - other).abs().max() > 1e-3 * plain.max()


@pytest.fixture(scope="module")
def cropping() -> Any:
    """Like DeiT: each image is resized to 36 x 36, of which the model gets the inner 32 x 32."""
    model = build(DeiTForImageClassification, DeiTConfig)
    sides = {"height": 36, "width": 36}, {"height": 32, "width": 32}
    processor = DeiTImageProcessorPil(size=sides[0], crop_size=sides[1])
    return pipeline("image-attribution", model=model, image_processor=processor)


def test_outside_of_the_crop_there_is_no_value(cropping: Any) -> None:
    image = picture(144, 72)
    (found,) = cropping(image, target=3)
    pixels = cropping.image_processor(images=image, return_tensors="pt").pixel_values
    patches = GMAR(cropping.model).attribute_patches(pixels, 3)[0]
    wanted = torch.full((72, 144), torch.nan)
    wanted[4:68, 8:136] = patches.repeat_interleave(16, 0).repeat_interleave(32, 1)
    assert torch.equal(found["attribution"].isnan(), wanted.isnan())
    assert (found["attribution"] - wanted).nan_to_num().abs().max() < 1e-6


class Unset(DeiTImageProcessorPil):
    """Takes no settings in a call, as the processors of timm's models."""

    def preprocess(self, images: Any, return_tensors: Any = None) -> Any:
        """With the settings that it was made with."""
        return super().preprocess(images, return_tensors=return_tensors)


def test_a_processor_that_takes_no_settings(cropping: Any) -> None:
    settings = {key: getattr(cropping.image_processor, key) for key in ("size", "crop_size")}
    other = pipeline(
        "image-attribution", model=cropping.model, image_processor=Unset(**settings, resample=2)
    )
    cropped = torch.full((72, 144), True)
    cropped[4:68, 8:136] = False
    assert torch.equal(other(picture(144, 72))[0]["attribution"].isnan(), cropped)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PICTURES as 0.png, 1.png and so on."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, image in enumerate(PICTURES):
        image.save(folder / f"{number}.png")
    return folder


def _array(image: Image.Image) -> Any:
    return np.array(image)


def _tensor(image: Image.Image) -> Tensor:
    return torch.tensor(np.array(image)).permute(2, 0, 1)


def _encoded(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


FORMS: dict[str, Callable[[Image.Image], Any]] = {
    "RGBA": lambda image: image.convert("RGBA"),
    "array": _array,
    "array, channels first": lambda image: _array(image).transpose(2, 0, 1),
    "array of one": lambda image: _array(image)[None],
    "tensor": _tensor,
    "tensor of one": lambda image: _tensor(image)[None],
    "floats to 255": lambda image: _tensor(image).float(),
    "base64": _encoded,
    "data URI": lambda image: f"data:image/png;base64,{_encoded(image)}",
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_one_image(explain: Any, each: list[Found], classify: Any, form: str) -> None:
    given = FORMS[form](PICTURES[1])
    found = explain(given, top_k=2, overlay=True)
    assert_same(found, each[1])
    assert scores_of(found) == pytest.approx(scores_of(classify(given, top_k=2)))


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_floats_to_one_are_read_as_image_classification_reads_them(
    explain: Any, classify: Any, kind: type
) -> None:
    """Its processor makes them almost black; the scores are of that, and so is the map."""
    given = (_array(PICTURES[1]) / 255).astype(kind)
    found = explain(given, top_k=8, overlay=True)
    assert scores_of(found) == pytest.approx(scores_of(classify(given, top_k=8)))
    assert found[0]["attribution"].shape == (50, 70)
    # It is drawn on the image, not on the black: no pixel is darker than the image's share.
    shown, image = (np.asarray(item, float) for item in (found[0]["overlay"], PICTURES[1]))
    assert (shown >= 0.4 * image - 2).all()
    assert (0.4 * image > 60).any()


def test_grey_images_and_palettes(explain: Any, classify: Any) -> None:
    for mode in ("L", "P", "CMYK"):
        given = PICTURES[1].convert(mode)
        assert scores_of(explain(given, top_k=8)) == pytest.approx(
            scores_of(classify(given, top_k=8))
        )


def test_a_path_and_a_url(explain: Any, files: Path) -> None:
    wanted = explain(PICTURES[2])
    assert_same(explain(str(files / "2.png")), wanted)
    assert_same(explain(files / "2.png"), wanted)
    with serve(files) as address:
        assert_same(explain(f"{address}/2.png", timeout=PATIENCE), wanted)


def test_a_photo_is_turned_upright(explain: Any, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    PICTURES[3].transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    assert_same(
        explain(str(tmp_path / "turned.png"), overlay=True), explain(PICTURES[3], overlay=True)
    )


def test_several_images_in_one_array_are_refused(explain: Any) -> None:
    with pytest.raises(InputError, match=r"shape \(2, 3, 50, 70\) is several images; give a list"):
        explain(torch.stack([_tensor(PICTURES[1])] * 2))


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ("nowhere.png", ImageFileError, "there is no image file nowhere.png, and it is no URL"),
        (3, InputError, "a path, a URL, base64 text or a Pillow image; got int"),
        (None, InputError, "got NoneType"),
    ],
)
def test_what_is_no_image_is_refused(
    explain: Any, given: Any, error: type[HfGmarError], said: str
) -> None:
    with pytest.raises(error, match=said):
        explain([given])


@pytest.mark.parametrize("mode", ["I;16", "L", "P", "CMYK", "LA"])
def test_files_are_read_as_the_command_reads_them(explain: Any, tmp_path: Path, mode: str) -> None:
    values = np.asarray(PICTURES[2].convert("L"))
    if mode == "I;16":
        image = Image.fromarray(values.astype(np.uint16) * 257)
    else:
        image = PICTURES[2].convert(mode)
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    image.save(path)
    expected = explain(open_image(path), overlay=True)
    assert_same(explain(str(path), overlay=True), expected)
    assert_same(explain(image, overlay=True), expected)


def test_pixels_of_an_unknown_range(explain: Any) -> None:
    with pytest.raises(InputError, match="mode 'F'"):
        explain(Image.fromarray(np.zeros((4, 4), np.float32)))


class Pictures(Dataset[Any]):
    """A dataset of PyTorch, of images or of dicts with one."""

    def __init__(self, key: str | None = None) -> None:
        """Keep the key of the dicts."""
        self.key = key

    def __len__(self) -> int:
        """How many."""
        return len(PICTURES)

    def __getitem__(self, index: int) -> Any:
        """An image, or a dict."""
        return {self.key: PICTURES[index], "label": 1} if self.key else PICTURES[index]


SERIES: dict[str, Callable[[Path], Any]] = {
    "list": lambda _: list(PICTURES),
    "mixed list": lambda files: [str(files / "0.png"), *PICTURES[1:3], str(files / "3.png")],
    "generator": lambda _: (image for image in PICTURES),
    "dataset": lambda _: Pictures(),
    "key dataset": lambda _: KeyDataset(Pictures("image"), "image"),
}


def _series() -> Iterator[Any]:
    """Each series whole and in batches, a list in each size of batch; the rest is extended."""
    for series, batch_size in itertools.product(SERIES, [None, 1, 2, 3]):
        usual = series == "list" or batch_size in {None, 3}
        marks = [] if usual else [pytest.mark.extended]
        yield pytest.param(series, batch_size, marks=marks, id=f"{series}-{batch_size}")


@pytest.mark.parametrize(("series", "batch_size"), list(_series()))
def test_many_images(
    explain: Any, each: list[Found], files: Path, series: str, batch_size: int | None
) -> None:
    """Images of different sizes, the last batch smaller than the others."""
    found = explain(SERIES[series](files), batch_size=batch_size, top_k=2, overlay=True)
    assert isinstance(found, list) == series.endswith("list")
    for one, wanted in zip(found, each, strict=True):
        # Matrix products round differently for other batches.
        assert_same(one, wanted, 0.0 if batch_size in (None, 1) else 1e-6)


def test_a_generator_is_read_as_it_goes(explain: Any) -> None:
    read = []

    def images() -> Iterator[Image.Image]:
        for number, image in enumerate(PICTURES):
            read.append(number)
            yield image

    found = iter(explain(images()))
    next(found)
    assert len(read) < len(PICTURES)


def test_batches_of_a_cropping_processor(cropping: Any) -> None:
    batched = cropping(PICTURES, batch_size=4, top_k=7)
    for image, found in zip(PICTURES, batched, strict=True):
        assert_same(found, cropping(image, top_k=7), 1e-6)


def test_one_class_unless_it_is_said(explain: Any, classify: Any) -> None:
    (found,) = explain(PICTURES[0])
    assert found["label"] == classify(PICTURES[0])[0]["label"]
    assert sorted(found) == ["attribution", "label", "score"]


@pytest.mark.parametrize(
    ("target", "labels"),
    [
        ("heart", ["heart"]),
        ("HEART", ["heart"]),
        (6, ["heart"]),
        (np.int64(6), ["heart"]),
        (["heart"], ["heart"]),
        ([0, "heart", "3"], ["disc", "triangle", "heart"]),
        (("heart",), ["heart"]),
    ],
    ids=str,
)
def test_targets(
    explain: Any, chances: list[dict[str, float]], target: Any, labels: list[str]
) -> None:
    for image, every in zip(PICTURES[:2], chances, strict=False):
        found = explain(image, target=target)
        assert list(scores_of(found)) == [label for label in every if label in labels]
        assert scores_of(found) == pytest.approx({label: every[label] for label in labels})


def test_targets_of_a_batch_are_sorted_for_each_image(explain: Any) -> None:
    for found in explain(PICTURES, target=list(range(8)), batch_size=2):
        scores = [one["score"] for one in found]
        assert scores == sorted(scores, reverse=True)


def test_a_call_goes_before_the_construction(tiny: LoadedModel, explain: Any) -> None:
    made = pipeline(
        "image-attribution",
        model=tiny.model,
        image_processor=tiny.processor,
        target="heart",
        norm="l2",
        overlay=True,
        batch_size=2,
    )
    image = PICTURES[0]
    assert_same(made(image), explain(image, target="heart", norm="l2", overlay=True))
    assert_same(made(image, target=2), explain(image, target=2, norm="l2", overlay=True))
    assert_same(made(image, top_k=2), explain(image, top_k=2, norm="l2", overlay=True))
    assert_same(made(image, target=None), explain(image, norm="l2", overlay=True))
    assert_same(made(image, norm="l1"), explain(image, target="heart", overlay=True))
    assert_same(
        made(image, overlay=False, alpha=0.5), explain(image, target=6, norm="l2", alpha=0.5)
    )
    assert_same(made(image), explain(image, target="heart", norm="l2", overlay=True))


def test_a_call_with_a_target_goes_before_top_k(tiny: LoadedModel) -> None:
    parts = {"model": tiny.model, "image_processor": tiny.processor}
    made = pipeline("image-attribution", **parts, top_k=3)
    assert [len(made(PICTURES[0], **said)) for said in ({}, {"target": 1}, {"top_k": None})] == [
        3, 1, 1,
    ]  # fmt: skip


def test_the_overlay_is_the_image_under_its_heatmap(cropping: Any) -> None:
    image = picture(144, 72)
    for found in cropping(image, top_k=2, overlay=True):
        assert found["overlay"].size == image.size
        assert found["overlay"].mode == "RGB"
        assert found["overlay"].getpixel((0, 0)) != image.getpixel((0, 0))
        explainer = Explainer(cropping)
        assert found["overlay"] == explainer(image, found["label"]).overlay()


Said = dict[str, Any]

UNSUPPORTED: list[tuple[Said, type[HfGmarError], Sequence[str]]] = [
    ({"method": "gradcam"}, OptionError, ["no method 'gradcam'", "gmar"]),
    ({"nrom": "l2"}, OptionError, ["no option nrom", "norm", "top_k", "'gmar'"]),
    ({"taget": 3}, OptionError, ["no option taget", "target"]),
    ({"norm": "l3"}, OptionError, ["norm must be one of 'l1', 'l2'", "'l3'"]),
    ({"alpha": -1}, OptionError, ["alpha", "-1"]),
    ({"engine": "fast"}, OptionError, ["engine", "'fast'"]),
    ({"target": 1, "top_k": 2}, OptionError, ["either target", "or top_k", "not both"]),
    ({"top_k": 0}, OptionError, ["top_k must be a whole number >= 1, got 0"]),
    ({"top_k": -2}, OptionError, ["got -2"]),
    ({"top_k": 2.0}, OptionError, ["got 2.0"]),
    ({"top_k": True}, OptionError, ["got True"]),
    ({"target": []}, OptionError, ["empty list"]),
    ({"target": "haert"}, TargetError, ["'haert'", "similar: heart"]),
    ({"target": 8}, TargetError, ["8 is out of range", "0 to 7"]),
    ({"target": -1}, TargetError, ["-1 is out of range"]),
    ({"target": 2.5}, TargetError, ["2.5"]),
    ({"target": True}, TargetError, ["True"]),
    ({"target": ["heart", None]}, TargetError, ["None"]),
]


@pytest.mark.parametrize(("said", "error", "words"), UNSUPPORTED, ids=str)
def test_refused(
    explain: Any,
    tiny: LoadedModel,
    said: Said,
    error: type[HfGmarError],
    words: Sequence[str],
) -> None:
    parts = {"model": tiny.model, "image_processor": tiny.processor}
    actions: list[Callable[[], object]] = [
        lambda: pipeline("image-attribution", **parts, **said),  # before there is an image
        lambda: explain(PICTURES[0], **said),
        lambda: explain(PICTURES, batch_size=2, **said),
    ]
    for action in actions:
        with pytest.raises(error) as raised:
            action()
        assert type(raised.value) is error
        message = str(raised.value)
        assert [word for word in words if word not in message] == [], message
        assert len(message) < 400


@pytest.fixture
def wider(bundled: LoadedModel) -> Any:
    """The bundled model with a class head for eleven classes, of which the config names eight."""
    model: Any = copy.deepcopy(bundled.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model.classifier = torch.nn.Linear(model.config.hidden_size, 11)
    return model


def test_the_scores_say_how_many_classes_there_are(wider: Any, bundled: LoadedModel) -> None:
    parts = {"model": wider, "image_processor": bundled.processor}
    explain: Any = pipeline("image-attribution", **parts)
    found = explain(PICTURES[0], top_k=20)
    labels: Any = bundled.model.config.id2label
    names = {"class 8", "class 9", "class 10", *labels.values()}
    assert {one["label"] for one in found} == names
    by_label = {one["label"]: one for one in found}
    pixels = bundled.processor(images=PICTURES[0], return_tensors="pt").pixel_values
    shares = wider(pixels).logits[0].sigmoid()
    for target in (10, "10", "class 10", "Class 10"):
        (one,) = explain(PICTURES[0], target=target)
        assert one["label"] == "class 10"
        assert one["score"] == pytest.approx(shares[10].item())
        assert_same([one], [by_label["class 10"]])
        (made,) = pipeline("image-attribution", **parts, target=target)(PICTURES[0])
        assert_same([made], [one])
    two = explain(PICTURES[0], target=["heart", 9])
    assert {one["label"] for one in two} == {"heart", "class 9"}
    (one,) = explain(PICTURES[0], target="heart", contrast=8)
    wanted = GMAR(wider).attribute_patches(pixels, 6, contrast=8)
    assert torch.allclose(one["attribution"][6::12, 6::12], wanted[0], atol=1e-7)
    for target in (11, "class 11"):
        with pytest.raises(TargetError, match=r"0 to 10|11 classes"):
            explain(PICTURES[0], target=target)
        with pytest.raises(TargetError, match=r"0 to 10|11 classes"):
            pipeline("image-attribution", **parts, target=target)


def test_fewer_scores_than_names(bundled: LoadedModel) -> None:
    model: Any = copy.deepcopy(bundled.model)
    model.classifier = torch.nn.Linear(model.config.hidden_size, 3)
    explain: Any = pipeline(
        "image-attribution", model=model, image_processor=bundled.processor, top_k=20
    )
    assert len(explain(PICTURES[0])) == 3
    for target in (6, "heart"):
        with pytest.raises(TargetError, match=r"0 to 2|3 classes"):
            explain(PICTURES[0], target=target)


def test_a_method_says_its_options(tiny: LoadedModel) -> None:
    with pytest.raises(OptionError, match="'gmar' has no option nrom, top_k; it has norm, alpha"):
        METHODS.build("gmar", tiny.model, nrom="l2", top_k=3)


def test_a_family_without_rollout_is_refused() -> None:
    config = SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4
    )
    with pytest.raises(UnsupportedModelError, match="Swin"):
        pipeline(
            "image-attribution",
            model=SwinForImageClassification(config),
            image_processor=_SMALL,
        )


def test_a_processor_that_can_not_be_followed_is_refused(tiny: LoadedModel) -> None:
    class Flipped(ViTImageProcessorPil):
        def resize(self, *args: Any, **kwargs: Any) -> Any:
            """Then mirror."""
            return super().resize(*args, **kwargs)[..., ::-1]

    processor = Flipped(size={"height": 96, "width": 96})
    made = pipeline("image-attribution", model=tiny.model, image_processor=processor)
    with pytest.raises(InputError, match="Flipped gives something else than one upright"):
        made(PICTURES[0])


def _beside(model: Any, folder: Path) -> str:
    """The model's folder, with an image processor."""
    model.save_pretrained(folder)
    shutil.copy(bundled_folder() / "preprocessor_config.json", folder)
    return str(folder)


def test_a_folder_gives_what_the_instance_gives(bundled: LoadedModel) -> None:
    parts = {"model": bundled.model, "image_processor": bundled.processor}
    wanted = pipeline("image-attribution", **parts)(PICTURES[1], top_k=3)
    for folder in (str(bundled_folder()), bundled_folder()):
        made = pipeline("image-attribution", model=folder, device="cpu", top_k=3)
        assert made.device == torch.device("cpu")
        assert_same(made(PICTURES[1]), wanted)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_half_precision(bundled: LoadedModel, dtype: Any) -> None:
    parts = {"model": str(bundled_folder()), "dtype": dtype}
    whole = {"model": bundled.model, "image_processor": bundled.processor}
    said = {"target": "heart", "norm": "l2"}
    made, exact = (pipeline("image-attribution", **each, **said) for each in (parts, whole))
    assert made.dtype.itemsize == 2
    for image in PICTURES[3:]:
        (found,), (wanted,) = made(image), exact(image)
        assert found["attribution"].dtype == torch.float32
        assert found["score"] == pytest.approx(wanted["score"], abs=0.05)
        difference = (found["attribution"] - wanted["attribution"]).abs().mean()
        assert difference < 0.05 * wanted["attribution"].mean()
    classes = scores_of(pipeline("image-classification", **parts)(PICTURES[0], top_k=2))
    assert scores_of(made(PICTURES[0], top_k=2)) == pytest.approx(classes)


def test_images_become_as_precise_as_the_model() -> None:
    model = build(BeitForImageClassification, BeitConfig, use_mean_pooling=True)  # casts nothing
    parts = {"model": model.bfloat16(), "image_processor": _SMALL}
    (found,) = pipeline("image-attribution", **parts)(PICTURES[1])
    assert found["attribution"].dtype == torch.float32
    (wanted,) = pipeline("image-classification", **parts)(PICTURES[1], top_k=1)
    assert scores_of([found]) == pytest.approx(scores_of([wanted]))


def test_a_double_model_gives_float32() -> None:
    parts = {"model": _tiny().double(), "image_processor": _SMALL}
    (found,) = pipeline("image-attribution", **parts)(PICTURES[1])
    assert found["attribution"].dtype == torch.float32
    (wanted,) = pipeline("image-classification", **parts)(PICTURES[1], top_k=1)
    assert found["score"] == pytest.approx(wanted["score"], rel=1e-12)


def test_a_model_without_its_class_head_is_refused(tmp_path: Path) -> None:
    """Transformers' own pipelines take random numbers for what is missing."""
    headless = _beside(scene_model().model.base_model, tmp_path)
    assert len(pipeline("image-classification", model=headless)(PICTURES[0])) == 5
    with pytest.raises(ModelLoadError, match=r"lack classifier.bias, classifier.weight; it is no"):
        pipeline("image-attribution", model=headless)


@pytest.mark.parametrize("options", [{}, {"ignore_mismatched_sizes": True}])
def test_weights_of_other_shapes_are_refused(options: dict[str, Any]) -> None:
    other = {"num_labels": 3, **options}
    said = r"do not fit its config: classifier.bias has the shape \(8,\), .* makes it \(3,\)"
    with pytest.raises(ModelLoadError, match=said):
        pipeline("image-attribution", model=bundled_folder(), model_kwargs=other)


def test_a_model_for_text_prompts_wants_them(tmp_path: Path) -> None:
    model = build(CLIPModel, partial(of_two, CLIPConfig))
    with pytest.raises(ModelLoadError, match=r"text prompts; give them with .*ZeroShotModel"):
        pipeline("image-attribution", model=_beside(model, tmp_path))
    with pytest.raises(UnsupportedModelError, match="prompts"):
        pipeline("image-attribution", model=model, image_processor=_SMALL)


def test_a_model_with_its_prompts() -> None:
    sides = {"shortest_edge": 32}, {"height": 32, "width": 32}
    processor = CLIPImageProcessorPil(size=sides[0], crop_size=sides[1])
    model = prompted(CLIPModel, CLIPConfig, sharper=12)
    made = pipeline("image-attribution", model=model, image_processor=processor)
    assert "ZeroShotModel" in repr(made)
    found = made(PICTURES[1], top_k=7)
    assert {one["label"] for one in found} == set(PROMPTS)
    pixels = processor(images=PICTURES[1], return_tensors="pt").pixel_values
    shares = model(pixels).softmax(1)[0].sort(descending=True).values
    assert [one["score"] for one in found] == pytest.approx(shares.tolist())
    assert found[0]["attribution"].isnan().any(0).sum() == 20


def test_the_model_comes_back_as_it_was(tiny: LoadedModel) -> None:
    model = tiny.model
    # DataLoader draws a number, in all pipelines.
    with unchanged(model), torch.random.fork_rng(devices=[]):
        made = pipeline("image-attribution", model=model, image_processor=tiny.processor)
        list(made(PICTURES, batch_size=2, top_k=2, overlay=True))
        with pytest.raises(TargetError):
            made(PICTURES[0], target="nothing")


def test_a_model_in_training_mode_is_explained_without_dropout() -> None:
    model = _tiny(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    made = pipeline("image-attribution", model=model, image_processor=_SMALL, top_k=7)
    wanted = made(PICTURES[1])
    with unchanged(model.train()):
        assert_same(made(PICTURES[1]), wanted)


def test_a_saved_pipeline_is_a_plain_model(explain: Any, tmp_path: Path) -> None:
    own = scene_model()  # saving changes its config
    made = pipeline("image-attribution", model=own.model, image_processor=own.processor)
    made.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    assert not hasattr(made.model.config, "custom_pipelines")
    assert_same(pipeline("image-attribution", model=tmp_path)(PICTURES[0]), explain(PICTURES[0]))


def test_a_pipeline_can_be_copied_and_pickled(explain: Any) -> None:
    for other in (copy.deepcopy(explain), pickle.loads(pickle.dumps(explain))):  # noqa: S301
        assert_same(other(PICTURES[1]), explain(PICTURES[1]))


def test_registering_again_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    logger = transformers_logging.get_logger("transformers")
    before = PIPELINE_REGISTRY.supported_tasks["image-attribution"]
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO, "transformers"):
            module.register()
            runpy.run_path(str(module.__file__))
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.records
    assert PIPELINE_REGISTRY.supported_tasks["image-attribution"] is before


def test_the_default_model_is_that_of_image_classification() -> None:
    tasks = PIPELINE_REGISTRY.supported_tasks
    assert tasks["image-attribution"]["default"] == tasks["image-classification"]["default"]
    assert tasks["image-attribution"]["type"] == tasks["image-classification"]["type"]
