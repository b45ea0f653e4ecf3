"""From an image and a model to explanations."""

from __future__ import annotations

import base64
import html.parser
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTForImageClassification

import hf_gmar.pipeline  # noqa: F401  # registers the task
from hf_gmar import Explainer, Explanation, LogitsModel, ZeroShotModel, explain, load_model
from hf_gmar._core.targets import TargetSpec
from hf_gmar.data import draw_scene, open_image
from hf_gmar.errors import HfGmarError, ImageFileError, InputError, OptionError, TargetError
from hf_gmar.methods import METHODS, AttributionMethod
from hf_gmar.models import LoadedModel, bundled_folder
from hf_gmar.models.image_view import ImageView
from hf_gmar.models.score_kind import ScoreKind
from hf_gmar.visualization.picture import DOTS, draw
from tests.reference.models import PROMPTS, build, prompted

pipeline: Any = transformers.pipeline
SCENES = [draw_scene(seed).image for seed in (18, 3, 7, 11)]
WIDE = Image.effect_noise((150, 90), 80).convert("RGB")


@pytest.fixture(scope="module")
def explainer(bundled: LoadedModel) -> Explainer:
    return Explainer(bundled)


def same(left: Explanation, right: Explanation, atol: float = 1e-6) -> bool:
    """Whether two explanations have the same class, score and map."""
    return (
        (left.target, left.label) == (right.target, right.label)
        and abs(left.score - right.score) < atol * 10
        and torch.allclose(left.patches, right.patches, atol=atol)
    )


def test_every_source_of_an_image(explainer: Explainer, tmp_path: Path) -> None:
    path = tmp_path / "a scene.png"
    SCENES[0].save(path)
    expected = explainer(SCENES[0])
    values = np.asarray(SCENES[0])
    np.save(tmp_path / "scene.npy", values)
    sources: list[Any] = [
        path,
        str(path),
        base64.b64encode(path.read_bytes()).decode(),
        open_image(path),
        values,
        torch.from_numpy(values.copy()).permute(2, 0, 1),
        tmp_path / "scene.npy",
    ]
    results = [explainer(source) for source in sources]
    assert all(same(result, expected) for result in results)
    names = ["a scene.png", "a scene.png", *["image"] * 4, "scene.npy"]
    assert [result.source for result in results] == names
    with Image.open(path) as image:
        assert explainer(image).source == "a scene.png"


@pytest.mark.parametrize(
    ("target", "labels"),
    [
        ("heart", ["heart"]),
        (["cross", "heart"], ["cross", "heart"]),
        (("6", 0, "CROSS"), ["heart", "disc", "cross"]),
        ([3], ["triangle"]),
        (np.int64(6), ["heart"]),
    ],
)
def test_targets_in_the_order_asked(explainer: Explainer, target: Any, labels: list[str]) -> None:
    result = explainer(SCENES[0], target)
    results = result if isinstance(target, list | tuple) else [result]
    assert [each.label for each in results] == labels
    for each in results:
        pixels = explainer.loaded.pixels(SCENES[0])
        maps = explainer.methods["gmar"].attribute_patches(pixels, each.target)
        assert torch.allclose(each.patches, maps[0], atol=1e-6)


def test_the_most_probable_classes(explainer: Explainer) -> None:
    scores = explainer.methods["gmar"].scores(explainer.loaded.pixels(SCENES[0])).sigmoid()[0]
    results = explainer(SCENES[0], top_k=3)
    assert [result.target for result in results] == scores.topk(3).indices.tolist()
    assert [result.probability for result in results] == pytest.approx(scores.topk(3).values)
    assert len(explainer(SCENES[0], top_k=99)) == 8
    assert same(explainer(SCENES[0]), results[0])


def test_a_contrast(explainer: Explainer) -> None:
    result = explainer(SCENES[0], "heart", contrast="cross")
    expected = explainer.methods["gmar"].attribute_patches(
        explainer.loaded.pixels(SCENES[0]), 6, None, 4
    )
    assert torch.allclose(result.patches, expected[0], atol=1e-6)
    assert repr(result) == "Explanation(heart 99.9% rather than cross, image, GMAR)"


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"target": "zebra"}, TargetError, "no class is called 'zebra'"),
        ({"target": ["heart", 6]}, TargetError, "same class, 6"),
        ({"target": []}, OptionError, "target is an empty list"),
        ({"target": 6, "contrast": "heart"}, TargetError, "target and contrast are the same"),
        ({"target": 6, "top_k": 2}, OptionError, "either target"),
        ({"top_k": 0}, OptionError, "top_k must be"),
        ({"contrast": "zebra"}, TargetError, "no class is called 'zebra'"),
    ],
)
def test_questions_that_can_not_be(
    explainer: Explainer, options: Any, error: type[HfGmarError], said: str
) -> None:
    with pytest.raises(error, match=said):
        explainer(SCENES[0], **options)


@pytest.mark.parametrize("method", METHODS.built_in)
def test_one_forward_gives_scores_and_maps(bundled: LoadedModel, method: str) -> None:
    options: Any = {"samples": 2, "groups": (4, 4)} if method == "shapley-values" else {}
    built: AttributionMethod = METHODS.build(method, bundled.model, **options)
    pixels = torch.cat([bundled.pixels(image) for image in SCENES[:2]])
    calls: list[int] = []
    first = next(part for part in bundled.model.modules() if type(part).__name__ == "ViTLayer")
    count = first.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        built.attribute_targets(pixels, [0, 1])
        without = len(calls)  # LeGrad runs the class head again
        found = built.attribute_with_scores(pixels, top_k=2)
    finally:
        count.remove()
    assert len(calls) == 2 * without
    assert torch.allclose(found.scores, built.scores(pixels), atol=1e-5)
    assert torch.equal(found.classes, built.scores(pixels).topk(2).indices.T)
    for classes, maps in zip(found.classes, found.maps, strict=True):
        assert torch.allclose(maps, built.attribute_patches(pixels, classes), atol=1e-5)


@pytest.mark.parametrize("top_k", [0, -1, True, "2"])
def test_numbers_of_classes_that_are_none(explainer: Explainer, top_k: Any) -> None:
    with pytest.raises(OptionError, match="top_k must be"):
        explainer.methods["gmar"].attribute_with_scores(
            explainer.loaded.pixels(SCENES[0]), top_k=top_k
        )


def test_a_method_of_ones_own_need_not_resolve_its_targets(bundled: LoadedModel) -> None:
    class Ones(AttributionMethod):
        source, cost, class_specific = "this test", "forward", False

        def _explain(self, request: Any, target_specs: Any) -> list[Tensor]:
            return [torch.ones(len(request.inputs), 8, 8) for _ in target_specs]

    pixels = bundled.pixels(SCENES[0])
    found = Ones(bundled.model).attribute_with_scores(pixels, [6, 4])
    assert torch.equal(found.scores, Ones(bundled.model).scores(pixels))
    assert found.classes.tolist() == [[6], [4]]
    assert TargetSpec(6).resolve(found.scores).target.tolist() == [6]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_stream_gives_what_single_calls_give(
    explainer: Explainer, batch_size: int, num_workers: int
) -> None:
    images: list[Any] = [*SCENES, WIDE, "nowhere.png", SCENES[0]]
    results = list(
        explainer.stream(
            iter(images), batch_size=batch_size, num_workers=num_workers, return_errors=True
        )
    )
    assert len(results) == len(images)
    for image, result in zip(images, results, strict=True):
        if image == "nowhere.png":
            assert isinstance(result, ImageFileError)
        else:
            assert same(result, explainer(image), atol=1e-5)


def test_images_of_other_sizes_begin_a_batch() -> None:
    """A processor that keeps the sizes of its images."""
    model = build(ViTForImageClassification, ViTConfig)
    processor = transformers.ViTImageProcessorPil(do_resize=False)
    loaded = LoadedModel("tiny", model, processor, {"interpolate_pos_encoding": True})
    explainer = Explainer(loaded)
    sizes = [(64, 64), (64, 64), (32, 64), (32, 64), (64, 64)]
    images = [Image.effect_noise(size, 60).convert("RGB") for size in sizes]
    results = list(explainer.stream(images, batch_size=4))
    assert all(
        same(result, explainer(image), 1e-5) for result, image in zip(results, images, strict=True)
    )
    assert [result.heatmap.shape for result in results] == [size[::-1] for size in sizes]


def test_an_error_ends_a_stream_after_the_results_before_it(explainer: Explainer) -> None:
    stream = explainer.stream([SCENES[0], "nowhere.png", SCENES[1]], batch_size=3)
    assert same(next(stream), explainer(SCENES[0]))
    with pytest.raises(ImageFileError, match=r"no image file nowhere\.png"):
        next(stream)


def test_lists_of_images_and_of_classes(bundled: LoadedModel) -> None:
    results = explain(SCENES[:2], bundled, target=["heart", "cross"], norm="l2")
    assert [[each.label for each in found] for found in results] == [["heart", "cross"]] * 2
    assert results[0][0].settings["norm"] == "l2"
    assert [each.label for each in explain((SCENES[0],), bundled)] == ["heart"]


class Around(nn.Module):
    """A module of a user around the model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model

    def forward(self, pixel_values: Tensor) -> Any:
        """Give the logits."""
        return self.inner(pixel_values).logits


@pytest.mark.parametrize(
    "wrap",
    [
        lambda loaded: loaded,
        lambda loaded: loaded.model,
        lambda _: "bundled",
        lambda _: bundled_folder(),
        lambda loaded: Around(loaded.model),
        lambda loaded: LogitsModel(loaded.model),
        lambda loaded: pipeline(
            "image-attribution", model=loaded.model, image_processor=loaded.processor
        ),
        lambda _: pipeline("image-classification", model=str(bundled_folder())),
    ],
    ids=["loaded", "model", "name", "folder", "module", "logits", "attribution", "classification"],
)
def test_every_form_of_a_model(
    bundled: LoadedModel, explainer: Explainer, wrap: Callable[[LoadedModel], Any]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
        assert same(explain(SCENES[0], wrap(bundled)), explainer(SCENES[0]), atol=1e-5)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_trainer_and_a_peft_model(bundled: LoadedModel, explainer: Explainer) -> None:
    from peft import LoraConfig, get_peft_model

    arguments = transformers.TrainingArguments(report_to=[], use_cpu=True)
    trained: Any = load_model("bundled").model  # the Trainer changes its config
    trainer = transformers.Trainer(trained, arguments, processing_class=bundled.processor)
    assert same(explain(SCENES[0], trainer), explainer(SCENES[0]), atol=1e-5)
    model: Any = load_model("bundled").model
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    result = explain(SCENES[0], adapted, processor=bundled.processor)
    assert same(result, explainer(SCENES[0]), atol=1e-5)


def test_a_model_without_a_processor() -> None:
    model = build(ViTForImageClassification, ViTConfig)
    with pytest.raises(OptionError, match="none is known for ViTForImageClassification: give proc"):
        explain(SCENES[0], model)
    processor = transformers.ViTImageProcessorPil(size={"height": 32, "width": 32})
    assert explain(SCENES[0], model, processor=processor).patches.shape == (4, 4)


def test_prompts(bundled: LoadedModel) -> None:
    model = prompted(CLIPModel, CLIPConfig)
    assert isinstance(model, ZeroShotModel)
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    result = explain(SCENES[0], model, target=PROMPTS[1], processor=processor)
    assert (result.label, result.settings["prompts"]) == (PROMPTS[1], model.prompts)
    with pytest.raises(OptionError, match="prompts= is for a model that is named"):
        Explainer(bundled, prompts=["a dog"])


def test_a_forward_in_half_precision(bundled: LoadedModel, explainer: Explainer) -> None:
    half = Explainer(bundled, precision="bfloat16")
    assert half(SCENES[0]).settings["precision"] == "bfloat16"
    for image in SCENES:
        found, exact = half(image, "heart"), explainer(image, "heart")
        assert found.patches.dtype == torch.float32
        assert not torch.equal(found.patches, exact.patches)
        pair = torch.stack([found.patches.flatten(), exact.patches.flatten()])
        assert torch.corrcoef(pair)[0, 1] > 0.99
    with pytest.raises(OptionError, match="precision must be one of"):
        Explainer(bundled, precision="int8")


# the object


@pytest.fixture(scope="module")
def result(explainer: Explainer) -> Explanation:
    found: Explanation = explainer(SCENES[0])
    return found


def test_the_heatmap_lies_on_the_image(result: Explanation) -> None:
    assert result.heatmap.shape == (96, 96)
    blocks = result.heatmap.reshape(8, 12, 8, 12)
    assert np.array_equal(blocks[:, 5, :, 5], result.patches.numpy())
    seen = replace(result, view=ImageView((96, 96), (0.0, 12.0, 96.0, 84.0)))
    assert np.isnan(seen.heatmap[:, :12]).all()
    assert not np.isnan(seen.heatmap[:, 12:84]).any()


def test_a_value_is_no_probability(result: Explanation) -> None:
    assert result.probability == result.score
    assert replace(result, score=58.3, score_kind=ScoreKind.VALUE).probability is None


@pytest.mark.parametrize("contrast", [(None, None), ("cross", 4), ("", 0)])
def test_saved_and_loaded(result: Explanation, tmp_path: Path, contrast: Any) -> None:
    saved = replace(result, contrast=contrast[0], contrast_target=contrast[1])
    picture, archive = saved.save(tmp_path / "dog.2")
    assert (picture.name, archive.name) == ("dog.2.png", "dog.2.npz")
    for path in (archive, tmp_path / "dog.2", str(archive)):
        again = Explanation.load(path)
        assert torch.equal(again.patches, result.patches)
        assert again.image.size == result.image.size
        for name in ("view", "target", "label", "score", "score_kind", "settings", "source",
                     "contrast", "contrast_target", "title", "caption"):  # fmt: skip
            assert getattr(again, name) == getattr(saved, name), name
    difference = np.abs(np.asarray(again.image, float) - np.asarray(result.image, float))
    assert difference.mean() < 12  # a small JPEG


def test_files_that_are_no_explanations(result: Explanation, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no file .*nothing\.npz"):
        Explanation.load(tmp_path / "nothing")
    _, archive = result.save(tmp_path / "a")
    with np.load(archive) as data:
        parts = dict(data)
    for name in ("image", "patches", "settings"):
        np.savez(tmp_path / "b.npz", **{key: value for key, value in parts.items() if key != name})
        with pytest.raises(InputError, match=rf"b\.npz is no explanation .*{name}"):
            Explanation.load(tmp_path / "b.npz")
    for content in (b"", archive.read_bytes()[:500]):
        (tmp_path / "c.npz").write_bytes(content)
        with pytest.raises(InputError, match="is no explanation"):
            Explanation.load(tmp_path / "c")


def test_an_overlay_interpolates_between_patches(result: Explanation) -> None:
    smooth, blocks = result.overlay(), result.overlay(smooth=False)
    assert smooth.size == blocks.size == result.image.size
    assert np.abs(np.asarray(smooth, float) - np.asarray(blocks, float)).max() > 5
    flat = replace(result, patches=torch.ones(8, 8))
    assert flat.overlay() == flat.overlay(smooth=False)
    assert result.overlay(opacity=0) == result.image
    assert result.overlay(scale="percentile") != smooth != result.overlay("viridis")


class _Images(html.parser.HTMLParser):
    """The tags of a page and the attributes of its images."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.images: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        self.tags.append(tag)
        self.images.append(dict(attrs))


@pytest.mark.parametrize("label", ["heart", '"><script>alert(1)</script>', "\x1b]52;c;eA==\x07"])
def test_it_draws_itself_in_a_notebook(result: Explanation, label: str) -> None:
    named = replace(result, label=label, source=f"{label}.png")
    page = _Images()
    page.feed(named._repr_html_())
    assert page.tags == ["img"]
    text = page.images[0]["alt"] or ""
    for part in ("99.9%", "model bundled", "method GMAR", "norm l1"):
        assert part in text
    assert "\x1b" not in text + repr(named)
    encoded = (page.images[0]["src"] or "").removeprefix("data:image/png;base64,")
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
        assert picture.size == named.picture().size
    assert len(repr(named)) < 400


def test_a_map_that_is_nearly_flat_says_so(result: Explanation) -> None:
    flat = replace(result, patches=torch.linspace(0.61, 1, 64).view(8, 8))
    assert "nearly flat: its values are from 61% to 100% of the highest; scale=" in flat.caption
    for patches in (torch.linspace(0, 1, 64), torch.zeros(64), torch.linspace(-1, 1, 64)):
        assert "flat" not in replace(result, patches=patches.view(8, 8)).caption


@pytest.mark.parametrize("size", [(96, 96), (1500, 100), (80, 900), (2000, 1500), (1, 1)])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("label", ["heart", "a very long label, of many words " * 9, "视" * 90])
def test_the_picture_has_the_layout_of_the_figure(
    result: Explanation, size: tuple[int, int], signed: bool, label: str
) -> None:
    view = ImageView(size[::-1], (0.0, size[0] / 4, float(size[1]), size[0] * 0.75))
    patches = result.patches - 0.01 * signed
    given = replace(
        result, image=Image.new("RGB", size, "red"), view=view, patches=patches, label=label
    )
    figure, picture = given.figure(), given.picture()
    wide, high = figure.get_size_inches() * DOTS
    assert picture.size == pytest.approx((wide, high), abs=1)
    canvas = draw(given.image, patches, given.title, given.caption, view, "share", "max")
    texts = " ".join(text for text, _ in canvas.boxes)
    assert "99.9%" in texts
    assert "not seen by the model" in texts
    assert ("against the class" in texts) == signed
    for text, (left, top, right, bottom) in canvas.boxes:
        assert 0 <= left < right <= picture.width, text
        assert 0 <= top < bottom <= picture.height, text
    for number, (_, first) in enumerate(canvas.boxes):
        for text, other in canvas.boxes[:number]:
            apart = (
                first[2] <= other[0] or other[2] <= first[0]
                or first[3] <= other[1] or other[3] <= first[1]
            )  # fmt: skip
            assert apart, text


@pytest.mark.parametrize("signed", [False, True])
def test_the_picture_has_the_colours_of_the_figure(result: Explanation, signed: bool) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    patches = result.patches - 0.01 * signed
    given = replace(result, image=Image.new("RGB", (96, 96), (80, 120, 200)), patches=patches)
    canvas: Any = FigureCanvasAgg(given.figure())
    canvas.figure.set_dpi(DOTS)
    canvas.draw()
    drawn = np.asarray(canvas.buffer_rgba())[..., :3].astype(float)
    picture = np.asarray(given.picture(), float)
    rows = slice(75, 480)  # of the image and its overlay
    height = min(len(drawn), len(picture))
    for columns in (slice(32, 450), slice(510, 920)):
        part = np.s_[rows, columns]
        assert np.abs(drawn[:height][part] - picture[:height][part]).mean() < 3
