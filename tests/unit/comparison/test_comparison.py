"""Side by side: what each method gives alone, what it costs, and nothing left behind."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import (
    LRP,
    Attribution,
    DeepLift,
    DeepLiftShap,
    FeatureAblation,
    GradientShap,
    InputXGradient,
    IntegratedGradients,
    KernelShap,
    LayerGradCam,
    NoiseTunnel,
    Occlusion,
    Saliency,
    ShapleyValueSampling,
)
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d
from transformers import ViTImageProcessorPil, pipeline

from hf_gmar import GMAR, Comparison, LogitsModel, compare
from hf_gmar._utils.stats import average_ranks, rank_correlations
from hf_gmar.comparison import CAPTUM, MethodSpec
from hf_gmar.comparison.cost import measure_cost
from hf_gmar.comparison.isolation import preserve_state, seeded
from hf_gmar.comparison.method_specs import as_method_specs
from hf_gmar.data import draw_scene
from hf_gmar.errors import (
    HfGmarError,
    ImageFileError,
    InputError,
    OptionError,
    TargetError,
    UnsupportedModelError,
)
from hf_gmar.methods import METHODS, AttributionMethod
from hf_gmar.models import LoadedModel, load_model
from tests.reference.cases import MODELS, VIT, ModelCase, shared
from tests.reference.parity import same
from tests.support.state import unchanged, used

NAN = float("nan")
CPU = torch.device("cpu")


class Fixed(AttributionMethod):
    """A map that is said beforehand."""

    source = "these tests"
    cost = "forward"
    class_specific = False
    signed = True

    def __init__(self, model: Any, values: Tensor) -> None:
        """Of every image, or of each."""
        super().__init__(model)
        self.values = values

    def _explain(self, request: Any, target_specs: Sequence[Any]) -> list[Tensor]:
        return [self.values.expand(len(request.inputs), -1, -1) for _ in target_specs]


class Calling(Attribution):  # type: ignore[misc]  # Captum's base is untyped
    """Whatever a function makes of the inputs and the target."""

    def __init__(self, call: Callable[..., Any], model: Any = None) -> None:
        """The function takes inputs and target."""
        super().__init__(model or call)
        self.call = call

    def attribute(self, inputs: Tensor, target: Any = None, **options: Any) -> Any:
        """What the function says."""
        return self.call(inputs, target, **options)


def vit() -> Any:
    """The model of all tests that only read it."""
    return shared(VIT)


@pytest.fixture
def timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured calls run twice, not up to six times, for tests that do not look at seconds."""
    monkeypatch.setattr("hf_gmar.comparison.cost._REPEATS", 1)


def noting(what: Callable[[Any], Any], into: list[Any]) -> Calling:
    """Notes something about the target at each run."""

    def call(inputs: Tensor, target: Any) -> Tensor:
        into.append(what(target))
        return inputs

    return Calling(call)


def summed(attributions: Tensor, patch: tuple[int, int] = (8, 8)) -> Tensor:
    """Over the channels and each patch, written another way."""
    pooled: Tensor = avg_pool2d(attributions.detach().double(), patch) * patch[0] * patch[1]
    return pooled.sum(1)


def quick(model: Any, *arguments: Any, **more: Any) -> Comparison:
    return compare(model, *arguments, measure=False, **more)


# What a method gives here is what it gives alone.


@pytest.mark.parametrize("target", [2, [5, 0, 3], torch.tensor([5, 0, 3]), None])
def test_captums_maps_are_captums(target: Any) -> None:
    model, images = vit(), VIT.images()
    logits = LogitsModel(model)
    whole = isinstance(target, list)  # by every method, and with Captum's own number of steps
    window = {"sliding_window_shapes": (3, 8, 8), "strides": (3, 8, 8)}
    mask = torch.arange(16).view(1, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    alone: list[tuple[Any, dict[str, Any]]] = [
        (IntegratedGradients(logits), {} if whole else {"n_steps": 4}),
        (Saliency(logits), {}),
        (InputXGradient(logits), {}),
        (GradientShap(logits), {"baselines": torch.zeros(1, 3, 32, 32)}),
        (NoiseTunnel(Saliency(logits)), {}),
    ]
    if whole:
        alone += [
            (Occlusion(logits), window),
            (FeatureAblation(logits), {"feature_mask": mask}),
            (NoiseTunnel(Occlusion(logits)), {**window, "nt_samples": 2}),
        ]
    classes = model(images).logits.argmax(1) if target is None else target
    said = {"n_steps", "nt_samples"}
    columns = [
        MethodSpec(method, options={key: given[key] for key in said & given.keys()})
        for method, given in alone
    ]
    found = quick(model, images, columns, target)
    assert not found.failures
    for (method, options), patches in zip(alone, found.maps.values(), strict=True):
        with seeded(0, CPU):
            expected = method.attribute(images.clone().requires_grad_(), target=classes, **options)
        assert torch.allclose(patches.double(), summed(expected), rtol=1e-4, atol=1e-5), method


@pytest.mark.parametrize("case", MODELS, ids=lambda case: case.name)
def test_every_family_and_grid(case: ModelCase) -> None:
    model, images = shared(case), case.images()
    logits = LogitsModel(model, **case.forward_kwargs)
    found = quick(
        model, images, ["gmar", Saliency(logits), Occlusion(logits)], **case.forward_kwargs
    )
    patch = images.shape[2] // case.grid[0], images.shape[3] // case.grid[1]
    classes = logits(images).argmax(1)
    assert found.targets == tuple(classes.tolist())
    alone = GMAR(model).attribute_patches(images, classes, **case.forward_kwargs)
    assert torch.allclose(found.maps["gmar"], alone, atol=1e-6)
    heat = Saliency(logits).attribute(images.requires_grad_(), target=classes)
    assert torch.allclose(found.maps["Saliency"].double(), summed(heat, patch), rtol=1e-4)
    assert found.maps["Occlusion"].shape == (len(images), *case.grid)


def test_the_registry_is_the_default() -> None:
    found = quick(vit(), VIT.images())
    assert list(found.order) == [name for name in METHODS if name != "shapley-values"]
    assert not found.failures


@pytest.mark.parametrize("name", CAPTUM)
def test_captums_methods_by_name(name: str) -> None:
    model = vit()
    (column,) = as_method_specs([name])
    few = {"n_samples": 2} if name in {"KernelShap", "Lime", "ShapleyValueSampling"} else {}
    column = MethodSpec(column.method, name, few)
    found = quick(model, VIT.images(), [column], 1)
    if name in {"KernelShap", "Lime"} and find_spec("sklearn") is None:
        assert "install sklearn" in found.failures[name]
        return
    assert found.failures == {}
    assert found.maps[name].shape == (3, 4, 4)


def test_names_and_classes_are_built_on_the_model() -> None:
    model, images = vit(), VIT.images()
    logits = LogitsModel(model)
    built = MethodSpec(IntegratedGradients(logits), "built", {"n_steps": 3})
    given: list[Any] = [
        "IntegratedGradients:n_steps=3", ("IntegratedGradients", {"n_steps": 3}),
        (IntegratedGradients, {"n_steps": 3}),
        MethodSpec(IntegratedGradients, "IG", {"n_steps": 3}),
        IntegratedGradients, built, GMAR, "gmar",
    ]  # fmt: skip
    found = quick(model, images, given, 1)
    assert found.failures == {}
    assert found.order == (
        "IntegratedGradients (n_steps=3)", "IntegratedGradients (n_steps=3) (2)",
        "IntegratedGradients (n_steps=3) (3)", "IG", "IntegratedGradients", "built", "gmar",
        "gmar (2)",
    )  # fmt: skip
    maps = list(found.maps.values())
    for same_map in maps[:4]:
        assert torch.allclose(same_map, found.maps["built"])
    assert not torch.allclose(maps[4], found.maps["built"])  # of 50 steps
    assert torch.equal(found.maps["gmar"], found.maps["gmar (2)"])
    assert found.settings["captum"] == list(found.order[:6])


def test_keywords_of_the_model_reach_captums_classes() -> None:
    model, images = vit(), torch.rand(2, 3, 48, 32)
    keywords: dict[str, Any] = {"interpolate_pos_encoding": True}
    found = quick(
        model, images, ["Saliency", Saliency(LogitsModel(model, **keywords))], 1, **keywords
    )
    assert found.failures == {}
    assert torch.equal(found.maps["Saliency"], found.maps["Saliency (2)"])


# images instead of pixel values


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two scenes, and another of the first one's name."""
    folder = tmp_path_factory.mktemp("scenes")
    (folder / "more").mkdir()
    paths = [folder / "a.png", folder / "b.png", folder / "more" / "a.png"]
    for seed, path in enumerate(paths):
        draw_scene(seed).image.save(path)
    return paths


def test_images_become_pixel_values(bundled: LoadedModel, files: list[Path]) -> None:
    scenes = [draw_scene(seed).image for seed in range(3)]
    pixels = torch.cat([bundled.pixels(scene) for scene in scenes])
    wanted = quick(bundled.model, pixels, ["gmar", "attn-lrp"])
    classify: Any = pipeline(
        "image-classification", model=bundled.model, image_processor=bundled.processor
    )
    given: list[tuple[Any, list[Any], list[str]]] = [
        ("bundled", scenes, ["image 1", "image 2", "image 3"]),
        (bundled, files, ["a.png", "b.png", "a.png (2)"]),
        (classify, [str(files[0]), scenes[1], np.asarray(scenes[2])], ["a.png", *wanted.names[1:]]),
    ]
    for model, images, names in given:
        found = quick(model, images, ["gmar", "attn-lrp"])
        assert (list(found.names), found.labels) == (names, wanted.labels)
        for label, patches in found.maps.items():
            assert torch.allclose(patches, wanted.maps[label], atol=1e-5)
        for picture, scene in zip(found.pictures, scenes, strict=True):
            assert np.array_equal(np.asarray(picture), np.asarray(scene))
    alone = quick("bundled", scenes[0], ["gmar"], names=["mine"])
    assert (alone.names, alone.settings["model"]) == (("mine",), "bundled")
    with_processor = quick(bundled.model, scenes[:1], ["gmar"], processor=bundled.processor)
    assert torch.allclose(with_processor.maps["gmar"], alone.maps["gmar"], atol=1e-5)


def test_images_that_make_no_pixel_values(bundled: LoadedModel, files: list[Path]) -> None:
    with pytest.raises(ImageFileError, match=r"there is no image file nothing\.png"):
        quick(bundled, [files[0], "nothing.png"], ["gmar"])
    with pytest.raises(OptionError, match="give processor="):
        quick(vit(), files, ["gmar"])
    free = replace(bundled, processor=ViTImageProcessorPil(do_resize=False))
    with pytest.raises(InputError, match=r"gives images of 2 sizes .* give images of one size"):
        quick(free, [Image.new("RGB", (96, 96)), Image.new("RGB", (96, 108))], ["gmar"])


def test_classes_by_name(bundled: LoadedModel) -> None:
    images = [draw_scene(18).image, draw_scene(3).image]
    wanted = quick(bundled, images, ["attn-lrp"], [6, 4], 1)
    found = quick(bundled, images, ["attn-lrp"], ["heart", 4], "ring")
    assert (found.labels, found.contrasts) == (("heart", "cross"), ("ring", "ring"))
    assert torch.equal(found.maps["attn-lrp"], wanted.maps["attn-lrp"])
    assert quick(bundled, images, ["gmar"], ["heart", "heart"]).targets == (6, 6)
    with pytest.raises(TargetError, match="no class is called 'hart'; similar: heart"):
        quick(bundled, images, ["gmar"], "hart")


def test_keywords_of_a_loaded_model_are_taken() -> None:
    large = load_model("bundled", size=120, interpolate_pos_encoding=True)
    assert large.forward_kwargs
    found = quick(large, [draw_scene(18).image], ["gmar", "Saliency"])
    assert found.failures == {}
    assert found.maps["gmar"].shape == (1, 10, 10)


def test_patches_are_features_and_windows() -> None:
    """Ablating or occluding patch by patch is the same; so is the sum of all Shapley values."""
    model, images = vit(), VIT.images()
    logits = LogitsModel(model)
    methods = [Occlusion(logits), FeatureAblation(logits), ShapleyValueSampling(logits)]
    found = quick(
        model, images, [*methods[:2], MethodSpec(methods[2], options={"n_samples": 1})], 1
    )
    assert torch.allclose(found.maps["Occlusion"], found.maps["FeatureAblation"])
    rise = logits(images)[:, 1] - logits(torch.zeros_like(images))[:, 1]
    shapley = found.maps["ShapleyValueSampling"].sum((1, 2)) / 3 / 64  # each pixel has the value
    assert torch.allclose(shapley, rise.detach(), atol=1e-4)


def test_deep_lift_is_input_times_gradient_as_the_page_says() -> None:
    model = vit()
    logits = LogitsModel(model)
    found = quick(model, VIT.images(), [DeepLift(logits), InputXGradient(logits)], 1)
    assert torch.allclose(found.maps["DeepLift"], found.maps["InputXGradient"], atol=1e-5)


def test_keywords_of_the_user_go_first() -> None:
    model, images = vit(), VIT.images()
    method = Occlusion(LogitsModel(model))
    wide = {"sliding_window_shapes": (3, 16, 16), "strides": (3, 16, 16)}
    found = quick(model, images, [method, MethodSpec(method, "wide", wide)], 1)
    expected = summed(method.attribute(images, target=1, **wide))
    assert torch.allclose(found.maps["wide"].double(), expected, atol=1e-4)
    assert not torch.allclose(found.maps["Occlusion"], found.maps["wide"])


def test_options_contrast_and_keywords_reach_our_methods() -> None:
    case = next(one for one in MODELS if one.name == "vit-interpolated")
    model, images = shared(case), case.images()
    gmar = GMAR(model)
    found = quick(model, images, [("gmar", {"alpha": 0.0}), gmar, NoiseTunnel(gmar)], 1, 2,
                  **case.forward_kwargs)  # fmt: skip
    sharp = GMAR(model, alpha=0.0)
    for method, patches in zip((sharp, gmar), found.maps.values(), strict=True):
        alone = method.attribute_patches(images, 1, contrast=2, **case.forward_kwargs)
        assert same(patches, alone)
    assert "not the difference of two" in found.failures["NoiseTunnel of gmar"]
    assert found.contrasts == ("LABEL_2",) * 3
    assert "minus the score of LABEL_2." in found.figure().texts[-1].get_text().replace("\n", " ")


def test_a_map_for_every_class_refuses_a_contrast_in_its_cell() -> None:
    model = vit()
    found = quick(model, VIT.images(), [Fixed(model, torch.ones(4, 4)), "gmar"], 1, 2)
    assert "the same map for every class" in found.failures["Fixed"]
    assert list(found.maps) == ["gmar"]


def test_the_top_class_is_found_once_and_is_the_same_for_all() -> None:
    model, images = vit(), VIT.images()
    asked: list[Any] = []
    keep = noting(lambda target: target, asked)
    calls: list[int] = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    found = quick(model, images, [keep, keep])
    handle.remove()
    assert [one.tolist() for one in asked] == [list(found.targets)] * 2
    assert len(calls) == 1


def test_a_head_of_the_users_own() -> None:
    vision_model: Any = vit().vit

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = vision_model

        def forward(self, pixels: Tensor) -> Tensor:
            states: Tensor = self.inner(pixels).last_hidden_state
            return states[:, 1:].mean(1)

    own = Head()
    found = quick(own, VIT.images(), ["gmar", Saliency(own)], 1, readout="patches")
    alone = GMAR(own, readout="patches").attribute_patches(VIT.images(), 1)
    assert same(found.maps["gmar"], alone)
    assert not found.failures


def test_scores_of_more_dimensions() -> None:
    model = vit()

    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixels: Tensor) -> Tensor:
            scores: Tensor = self.model(pixels).logits[:, :6]
            folded: Tensor = scores.unflatten(1, (2, 3))
            return folded

    folded = Folded()
    found = quick(folded, VIT.images(), ["gmar", InputXGradient(folded)], (1, 2))
    plain = quick(model, VIT.images(), ["gmar", InputXGradient(LogitsModel(model))], 5)
    for label, patches in plain.maps.items():
        assert torch.allclose(found.maps[label], patches, atol=1e-6)
    assert found.targets == (5, 5, 5)


# Labels.


def test_labels() -> None:
    model = vit()
    gmar, saliency = GMAR(model), Saliency(LogitsModel(model))
    given: list[Any] = [
        "gmar", gmar, saliency, ("gmar", {"norm": "l2"}), MethodSpec(saliency, "mine"), saliency,
        MethodSpec("gmar", "mine"), NoiseTunnel(saliency), "gmar",
    ]  # fmt: skip
    assert [column.label for column in as_method_specs(given)] == [
        "gmar", "gmar (2)", "Saliency", "gmar (norm=l2)", "mine", "Saliency (2)", "mine (2)",
        "NoiseTunnel of Saliency", "gmar (3)",
    ]  # fmt: skip
    assert [one.label for one in as_method_specs({"a": "gmar", "b": MethodSpec(gmar, "c")})] == [
        "a",
        "b",
    ]


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        (["gmarr"], "there is no method 'gmarr'; there are gmar"),
        ([("gmar", {"norms": "l2"})], "no option norms; it has norm"),
        ([], "one or more"),
        ({}, "one or more"),
        ("gmar", "must be a list"),
        ([3], "got 3"),
        (["saliency"], "and Captum's .*Saliency"),
        (["Saliency:"], "NAME:OPTION=VALUE"),
        ([Fixed], "register_method\\('NAME', Fixed\\)"),
        ([LayerGradCam], r"LayerGradCam\(hf_gmar.LogitsModel\(model\), ...\)"),
        ([dict], "dict can't be built on a model alone"),
        (GMAR, "must be a list"),
        ([("gmar", 3)], "a method is a name"),
        ([MethodSpec(3)], "a method is a name"),
    ],
)
def test_no_methods(methods: Any, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        quick(vit(), VIT.images(), methods)


def test_what_is_asked_wrongly_is_no_cell() -> None:
    model, images = vit(), VIT.images()
    with pytest.raises(TargetError, match="7 classes"):
        quick(model, images, ["gmar"], 7)
    with pytest.raises(TargetError, match="name two classes"):
        quick(model, images, ["gmar"], 1, 1)
    with pytest.raises(InputError, match="unsqueeze"):
        quick(model, images[0], ["gmar"])
    with pytest.raises(OptionError, match="unknown keyword size"):
        quick(model, images, ["gmar"], size=3)
    with pytest.raises(InputError, match="names must be a list of 3, one for each"):
        quick(model, images, ["gmar"], names=["a"])
    with pytest.raises(InputError, match="got 'abc'"):
        quick(model, images, ["gmar"], names="abc")
    with pytest.raises(InputError, match="images must be a list of 3"):
        quick(model, images, ["gmar"], images=[Image.new("RGB", (4, 4))])
    with pytest.raises(UnsupportedModelError):
        quick(nn.Linear(2, 2), images, ["gmar"])


# Failures.


def raising(error: BaseException) -> Calling:
    def call(*_: Any) -> Tensor:
        raise error

    return Calling(call)


@pytest.mark.usefixtures("timed_once")
@pytest.mark.parametrize("measure", [True, False])
def test_a_method_that_fails_says_why_and_the_others_go_on(measure: bool) -> None:
    model, images = vit(), VIT.images()
    tokens = LayerGradCam(LogitsModel(model), model.vit.layers[0])
    methods: dict[str, Any] = {
        "error": raising(ValueError("what\n  is wrong")),
        "ours": raising(OptionError("so it is")),
        "long": raising(ValueError("x" * 5000)),
        "shape": tokens,
        "nothing": Calling(lambda *_: None),
        "not finite": Calling(lambda inputs, _: inputs * NAN),
        "another grid": Fixed(model, torch.ones(2, 2)),
        "out of range": ("gmar", {"alpha": -1}),
        "gmar": "gmar",
    }
    found = compare(model, images, methods, 1, measure=measure)
    assert list(found.maps) == ["gmar"]
    assert found.failures["error"] == "ValueError: what is wrong"
    assert found.failures["ours"] == "so it is"
    assert len(found.failures["long"]) < 500
    assert "that of the inputs is needed, (3, 3, 32, 32)" in found.failures["shape"]
    assert "its attribution has the shape ()" in found.failures["nothing"]
    assert "NaN" in found.failures["not finite"]
    assert "(3, 2, 2), and (3, 4, 4) is needed" in found.failures["another grid"]
    assert "alpha must be" in found.failures["out of range"]
    assert list(found.costs) == (["gmar"] if measure else [])
    assert found.correlations.tolist() == [[1]]


@pytest.mark.parametrize("measure", [True, False])
def test_stopping_stops(measure: bool) -> None:
    model = VIT.build()
    with unchanged(model), pytest.raises(KeyboardInterrupt):
        compare(model, VIT.images(), [raising(KeyboardInterrupt())], measure=measure)


@pytest.mark.usefixtures("few_dots")
def test_all_methods_may_fail(tmp_path: Path) -> None:
    found = compare(vit(), VIT.images(), {"a": raising(ValueError()), "b": raising(TypeError())})
    assert found.correlations.shape == (0, 0)
    found.save(tmp_path)
    with np.load(tmp_path / "maps.npz") as stored:
        assert stored["maps"].shape[0] == 0


# Nothing is left behind.


class Careless(Attribution):  # type: ignore[misc]  # Captum's base is untyped
    """Changes what it can reach, and fails."""

    def attribute(self, inputs: Tensor, **_: Any) -> Tensor:
        """Leaves traces."""
        model: Any = self.forward_func
        inputs.detach().zero_()
        inputs.requires_grad_()
        model(inputs).sum().backward()
        for module in model.modules():
            module.register_forward_hook(lambda *_: None, with_kwargs=True)
            module.register_forward_pre_hook(lambda *_: None)
            module.register_full_backward_hook(lambda *_: None)
            module.rule = "mine"
            module.train(not module.training)
        for parameter in model.parameters():
            parameter.requires_grad_(not parameter.requires_grad)
            parameter.data = parameter.data * 2
            parameter.grad = torch.ones_like(parameter)
        torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002, S311
        torch.set_grad_enabled(True)
        raise ValueError("on the way")


@pytest.mark.usefixtures("timed_once")
@pytest.mark.parametrize("measure", [True, False])
@pytest.mark.parametrize("grads", [True, False])
def test_everything_comes_back_as_it_was(measure: bool, grads: bool) -> None:
    model = used(VIT)
    logits = LogitsModel(model)
    images = VIT.images().requires_grad_(grads)
    images.grad = torch.ones_like(images) if grads else None
    kept = images.detach().clone()
    methods: list[Any] = [
        Careless(logits), "gmar", DeepLift(logits), LRP(logits), GradientShap(logits),
        NoiseTunnel(Saliency(logits)),
        MethodSpec(IntegratedGradients(logits), options={"n_steps": 4}), Careless(logits.forward),
    ]  # fmt: skip
    with unchanged(model, logits), torch.set_grad_enabled(grads):
        found = compare(model, images, methods, 1, measure=measure)
    assert set(found.failures) == {"Careless", "LRP", "Careless (2)"}
    assert "on the way" in found.failures["Careless"]
    assert torch.equal(images, kept)
    assert images.requires_grad == grads
    assert images.grad is None or torch.equal(images.grad, torch.ones_like(images))
    expected = compare(vit(), VIT.images(), ["gmar"], 1, measure=False).maps["gmar"]
    assert torch.allclose(found.maps["gmar"], expected)


def test_a_deep_lift_that_fails_leaves_no_hooks() -> None:
    """Its hooks are set when its backward fails."""
    model = VIT.build()
    logits = LogitsModel(model)
    with unchanged(model, logits):
        found = quick(
            model,
            VIT.images(),
            [
                MethodSpec(DeepLift(logits), options={"baselines": "x"}),
                MethodSpec(DeepLiftShap(logits), "b", {"baselines": 1}),
            ],
        )
    assert len(found.failures) == 2


def test_inference_mode_is_no_hindrance() -> None:
    model, images = vit(), VIT.images()
    expected = quick(model, images, ["gmar", Saliency(LogitsModel(model))], 1)
    with torch.inference_mode():
        found = quick(model, images * 1, ["gmar", Saliency(LogitsModel(model))], 1)
    assert not found.failures
    for label, patches in expected.maps.items():
        assert torch.allclose(found.maps[label], patches)


def test_dropout_is_off_for_captum_too() -> None:
    model = VIT.build(hidden_dropout_prob=0.5)
    expected = quick(model, VIT.images(), [Saliency(LogitsModel(model))], 1)
    model.train()
    found = quick(model, VIT.images(), [Saliency(LogitsModel(model))], 1)
    assert torch.allclose(found.maps["Saliency"], expected.maps["Saliency"])
    assert model.training


@pytest.mark.usefixtures("timed_once")
def test_random_methods_repeat() -> None:
    model, images = vit(), VIT.images()
    logits = LogitsModel(model)

    def drawn(inputs: Tensor, _: Any) -> Tensor:
        return torch.rand_like(inputs) + np.random.rand() + random.random()  # noqa: NPY002, S311

    methods = [GradientShap(logits), NoiseTunnel(Saliency(logits)), Calling(drawn)]
    first, again = (
        compare(model, images, methods, 1, measure=measure) for measure in (True, False)
    )
    other = quick(model, images, methods, 1, seed=1)
    for label, patches in first.maps.items():
        assert torch.equal(patches, again.maps[label])
        assert not torch.equal(patches, other.maps[label])


# Costs.


def allocating(count: int) -> Calling:
    """Holds so many floats for a while, twice in turn."""

    def call(inputs: Tensor, _: Any) -> Tensor:
        for _again in range(2):
            kept = torch.ones(count)
            del kept
        return inputs

    return Calling(call)


class _InBackward(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        torch.ones(4_000_000)
        return gradient


@pytest.mark.usefixtures("timed_once")
def test_memory_of_known_allocations() -> None:
    model, images = vit(), VIT.images()

    def backward(inputs: Tensor, _: Any) -> Tensor:
        through: Any = _InBackward
        gradient: Tensor
        (gradient,) = torch.autograd.grad(through.apply(inputs).sum(), inputs)
        return gradient

    kept = torch.ones(8_000_000)  # what is there before does not count
    methods = {"four": allocating(4_000_000), "one": allocating(1_000_000)}
    found = compare(model, images, {**methods, "backward": Calling(backward)}, 1)
    assert found.peaks["four"] == pytest.approx(1.6e7, rel=0.01)
    assert found.peaks["one"] == pytest.approx(4e6, rel=0.02)
    assert found.peaks["backward"] == pytest.approx(1.6e7, rel=0.01)
    del kept


def test_what_a_call_frees_makes_room_for_nothing() -> None:
    """Bytes that were held before do not offset what is asked for afterwards."""
    held = [torch.ones(1_000_000)]

    def run() -> None:
        torch.ones(500_000)
        held.clear()

    _, spent = measure_cost(run, CPU)
    assert spent.peak == 2_000_000


@pytest.mark.usefixtures("timed_once")
def test_memory_of_the_streaming_engine_is_seen() -> None:
    """One layer's activations at least; the dense engine keeps all attention maps besides."""
    case = VIT
    model = case.build(image_size=128)
    images = torch.randn(2, 3, 128, 128)
    found = compare(model, images, {"s": ("gmar", {}), "d": ("gmar", {"engine": "dense"})}, 1)
    attention = 3 * 2 * 4 * 257**2 * 4
    assert found.peaks["s"] is not None
    assert found.peaks["d"] is not None
    assert found.peaks["s"] > 2 * 257 * 32 * 4 * 3
    assert found.peaks["d"] > attention


@pytest.mark.usefixtures("timed_once")
def test_costs_are_there() -> None:
    model = vit()
    found = compare(model, VIT.images(), ["gmar", Saliency(LogitsModel(model))], 1)
    assert found.forward is not None
    for label in found.maps:
        peak = found.peaks[label]
        assert found.seconds[label] > 0
        assert peak is not None
        assert peak > 0
        assert found.ratios[label] > 0
    assert found.forward.seconds > 0
    assert found.forward.peak


def test_methods_run_once_if_they_are_not_measured() -> None:
    calls: list[str] = []
    count = noting(lambda _: "x", calls)
    measured_too = compare(vit(), VIT.images(), [count])
    assert 2 <= len(calls) <= 6
    assert measured_too.costs
    calls.clear()
    unmeasured = quick(vit(), VIT.images(), [count])
    assert len(calls) == 1
    assert unmeasured.forward is None
    assert not unmeasured.costs
    assert not unmeasured.ratios


def test_the_first_call_does_not_count_and_the_median_does(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.125, 10.0, 10.25, 20.0, 20.0625, 30.0, 30.5])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    calls = itertools.count(1)
    result, spent = measure_cost(lambda: next(calls), torch.device("cpu"))
    assert spent.seconds == 0.1875  # of 0.125, 0.25, 0.0625 and 0.5, after which it is enough
    assert result == 5  # the first one warmed up


def test_a_ratio_is_to_the_reference_just_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rounds of reference and call: 0.5 and 0.25 twice, then 0.125 and 0.25."""
    steps = [(0.5, 0.25), (0.5, 0.25), (0.125, 0.25)]
    clock = iter([t for pair in steps for step in pair for t in (0.0, step)])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    monkeypatch.setattr("hf_gmar.comparison.cost._REPEATS", 3)
    monkeypatch.setattr("hf_gmar.comparison.cost._ENOUGH", 9)
    calls: list[str] = []
    _, spent = measure_cost(lambda: calls.append("call"), CPU, lambda: calls.append("reference"))
    assert spent.ratio == 0.5
    assert spent.seconds == 0.25
    assert calls == ["call", *["reference", "call"] * 3]


def test_the_reference_is_the_plain_forward() -> None:
    """A method that runs the model so many times costs so many forwards, about."""
    model, images = VIT.build(image_size=64), torch.randn(2, 3, 64, 64)
    calls: list[bool] = []
    model.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    compare(model, images, [Calling(lambda inputs, _: inputs)], 1)
    assert 4 <= len(calls) <= 6 + 5
    assert not any(calls)


@pytest.mark.usefixtures("timed_once")
def test_within_a_profiler_of_the_callers_memory_is_not_known() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        found = compare(vit(), VIT.images(), ["gmar"])
    assert found.peaks == {"gmar": None}
    assert found.seconds["gmar"] > 0
    assert json.loads(found.table("json"))["methods"][0]["peak_bytes"] is None
    assert "MB" not in found.figure().axes[1].texts[0].get_text()


@pytest.mark.usefixtures("timed_once")
def test_measuring_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    compare(vit(), VIT.images(), ["gmar"])
    assert capfd.readouterr() == ("", "")


def test_progress_names_each_method_before_it_runs() -> None:
    said: list[str] = []
    model = vit()
    note = noting(lambda _: "runs", said)
    quick(model, VIT.images(), {"a": note, "b": note}, progress=said.append)
    assert said == ["a", "runs", "b", "runs"]


# Agreement.


def test_ranks_by_hand() -> None:
    values = torch.tensor([3.0, 1.0, 3.0, 2.0, 3.0, 1.0])
    assert average_ranks(values).tolist() == [5, 1.5, 5, 3, 5, 1.5]


def test_correlation_with_ties_by_hand() -> None:
    """Ranks 1, 2.5, 2.5, 4 and 2, 1, 3, 4: centred products 4 over the root of 4.5 times 5."""
    left = torch.tensor([[[0.1, 0.5], [0.5, 0.9]]])
    right = torch.tensor([[[20.0, 10.0], [30.0, 40.0]]])
    expected = (1.5 * 0.5 + 0 * 1.5 + 0 * 0.5 + 1.5 * 1.5) / (4.5 * 5) ** 0.5
    found = rank_correlations([left, right])
    assert found[0, 1].item() == pytest.approx(expected, abs=1e-12)
    assert found[1, 0] == found[0, 1]
    assert found.diagonal().tolist() == [1, 1]


def test_correlation_is_the_mean_over_images() -> None:
    up = torch.arange(4.0).view(1, 2, 2)
    left, right = torch.cat([up, up, up]), torch.cat([up, -up, up])
    assert rank_correlations([left, right])[0, 1].item() == pytest.approx(1 / 3)


def test_a_constant_map_has_no_correlation() -> None:
    up, flat = torch.arange(4.0).view(1, 2, 2), torch.zeros(1, 2, 2)
    found = rank_correlations([up, flat])
    assert found[0, 1].isnan()
    assert found[1, 1].isnan()
    # With an image on which it is not constant, that one counts.
    pair = rank_correlations([torch.cat([up, up]), torch.cat([flat, -up])])
    assert pair[0, 1].item() == -1


def test_correlations_are_those_of_the_maps() -> None:
    model = vit()
    values = torch.randn(3, 4, 4)
    methods = {"a": Fixed(model, values), "b": Fixed(model, -values), "c": Fixed(model, values**3)}
    found = quick(model, VIT.images(), {**methods, "flat": Fixed(model, torch.ones(4, 4))})
    expected = [[1, -1, 1, NAN], [-1, 1, -1, NAN], [1, -1, 1, NAN], [NAN] * 4]
    assert torch.allclose(
        found.correlations, torch.tensor(expected, dtype=torch.float64), equal_nan=True
    )


# Table, figure, files.


def example_of(measure: bool) -> Comparison:
    model = vit()
    torch.manual_seed(5)
    methods: dict[str, Any] = {
        "up": Fixed(model, torch.randn(4, 4) - 1), "bad | one": raising(ValueError("no $ here")),
        "flat": Fixed(model, torch.zeros(4, 4)), "gmar": "gmar",
    }  # fmt: skip
    return compare(model, VIT.images(), methods, [5, 0, 3], names=["a.png", "b", "c"],
                   measure=measure)  # fmt: skip


@pytest.fixture(scope="module")
def example() -> Comparison:
    """Without costs."""
    return example_of(measure=False)


@pytest.fixture(scope="module")
def measured() -> Comparison:
    """With the costs of each."""
    return example_of(measure=True)


def test_the_table_as_markdown(measured: Comparison) -> None:
    found = measured
    lines = found.table().splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert table[0].endswith("| r with 1 | r with 3 | r with 4 |")
    assert {line.replace(r"\|", "").count("|") for line in table} == {8}
    assert table[3] == r"| 2 | bad \| one | - | - | - | - | - |"
    assert table[4].endswith("| - | - | - |")  # flat
    r = found.correlations[0, 2].item()
    assert table[2].endswith(f"| 1.00 | - | {r:.2f} |")
    assert f"| {found.ratios['up']:.2f} | {found.peaks['up'] / 1e6:.1f} |" in table[2]  # type: ignore[operator]
    assert lines[-1] == r"bad \| one failed: ValueError: no \$ here"


def test_the_table_as_json(measured: Comparison) -> None:
    found = measured
    stored = json.loads(found.table("json"))
    rows = stored["methods"]
    assert [row["method"] for row in rows] == ["up", "bad | one", "flat", "gmar"]
    assert rows[1]["failure"] == "ValueError: no $ here"
    assert rows[1]["seconds"] is None
    assert rows[0]["rank_correlation"]["flat"] is None
    assert rows[0]["rank_correlation"]["gmar"] == found.correlations[0, 2].item()
    assert rows[0]["seconds"] == found.seconds["up"]
    assert rows[0]["peak_bytes"] == found.peaks["up"]
    assert [image["target"] for image in stored["images"]] == [5, 0, 3]
    assert [image["name"] for image in stored["images"]] == ["a.png", "b", "c"]
    assert stored["settings"]["seed"] == 0


def test_the_table_as_a_data_frame(measured: Comparison) -> None:
    pandas = pytest.importorskip("pandas")
    frame = measured.table("pandas")
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.index) == ["up", "bad | one", "flat", "gmar"]
    assert frame.loc["up", "r with up"] == 1
    assert frame.loc["gmar", "seconds"] > 0


def test_without_pandas_it_is_said(example: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(OptionError, match="pip install pandas"):
        example.table("pandas")


def test_another_format_is_refused(example: Comparison) -> None:
    with pytest.raises(OptionError, match="markdown, json, pandas, got 'html'"):
        example.table("html")  # type: ignore[arg-type]


def test_probabilities_and_labels() -> None:
    model = vit()
    found = quick(model, VIT.images(), ["gmar"], [5, 0, 3])
    shares = model(VIT.images()).logits.softmax(1)
    expected = [shares[image, target].item() for image, target in enumerate([5, 0, 3])]
    assert found.scores == pytest.approx(expected, abs=1e-6)
    assert found.labels == ("LABEL_5", "LABEL_0", "LABEL_3")


def test_saved_files_can_be_read_back(measured: Comparison, tmp_path: Path) -> None:
    found = measured
    paths = found.save(tmp_path / "new" / "folder")
    assert [path.name for path in paths] == [
        "comparison.png", "comparison.md", "comparison.json", "maps.npz",
    ]  # fmt: skip
    with np.load(paths[3], allow_pickle=False) as stored:
        assert stored["methods"].tolist() == ["up", "flat", "gmar"]
        for patches, label in zip(stored["maps"], stored["methods"], strict=True):
            assert np.array_equal(patches, found.maps[str(label)])
        assert stored["targets"].tolist() == [5, 0, 3]
        assert stored["labels"].tolist() == list(found.labels)
        assert stored["names"].tolist() == ["a.png", "b", "c"]
        assert json.loads(str(stored["settings"])) == found.settings
    assert json.loads(paths[2].read_text()) == json.loads(found.table("json"))
    assert found.table() in paths[1].read_text()
    with Image.open(paths[0]) as picture:
        assert picture.width > 1000


@pytest.mark.usefixtures("few_dots")
def test_files_are_there_all_or_none(
    example: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "comparison.md").write_text("old")
    monkeypatch.setattr(np, "savez", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        example.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["comparison.md"]
    assert (tmp_path / "comparison.md").read_text() == "old"


def heats(figure: Figure) -> list[Any]:
    """The heatmaps of a figure, by row and then by method."""
    return [axes.images[1] for axes in figure.axes if len(axes.images) == 2]


@pytest.fixture(scope="module")
def figure(example: Comparison) -> Figure:
    """Of the example without costs."""
    return example.figure()


def test_the_figure_shows_each_map_on_one_scale(example: Comparison, figure: Figure) -> None:
    drawn = heats(figure)
    shown = [[example.maps[label][image] for image in range(3)] for label in example.maps]
    assert len(drawn) == 9
    for artist, patches in zip(drawn, itertools.chain(*shown), strict=True):
        top = patches.abs().max().item() or 1
        assert np.allclose(np.asarray(artist.get_array()), patches / top)
        assert artist.get_clim() == (-1, 1)  # one of them has negative values
        assert artist.get_cmap().name == "RdBu_r"


def test_a_figure_without_negative_values_starts_at_zero() -> None:
    found = quick(vit(), VIT.images(batch=1), ["gmar", ("gmar", {"norm": "l2"})])
    drawn = heats(found.figure())
    assert len(drawn) == 2
    for artist in drawn:
        assert artist.get_clim() == (0, 1)
        assert artist.get_cmap().name == "inferno"


def test_the_figure_says_what_it_shows(measured: Comparison, figure: Figure) -> None:
    with_costs = measured.figure()
    words = " ".join(text.get_text() for axes in with_costs.axes for text in axes.texts)
    words = " ".join(words.split())
    for part in ("LABEL_5", "a.png", "bad | one", r"failed: ValueError: no \$ here", "forwards",
                 "red: for the class, blue: against it"):  # fmt: skip
        assert part in words, part
    caption = " ".join(with_costs.texts[-1].get_text().split())
    for part in ("divided by its largest", "a plain forward", "memory in use before"):
        assert part in caption, part
    assert "Captum" in " ".join(figure.texts[-1].get_text().split())


@pytest.mark.parametrize("label", ["a label without an end " * 20, "x" * 300, "a\nb  \n c" * 50])
def test_the_figure_shortens_labels_and_never_a_score(example: Comparison, label: str) -> None:
    count = len(example.labels)
    figure = replace(example, labels=(label,) * count, names=(label,) * count).figure()
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    for score in example.scores:
        assert any(f"{score:.1%}" in text for text in texts)
    assert all(text.count("\n") <= 1 for text in texts if "%" in text)


def test_pixels_are_drawn_from_darkest_to_brightest() -> None:
    found = quick(vit(), VIT.images(), ["gmar"])
    for picture, pixels in zip(found.pictures, VIT.images(), strict=True):
        expected = (pixels - pixels.min()) / (pixels.max() - pixels.min()) * 255
        drawn = torch.tensor(np.asarray(picture)).permute(2, 0, 1)
        assert (drawn - expected).abs().max() <= 0.51


LONG = "a label that is much too long for its column"
SHAPES = [
    (2, 7, "short"), (1, 1, "short"), (1, 8, LONG), (2, 14, LONG), (1, 1, LONG),
]  # fmt: skip
MORE_SHAPES = [(1, 8, "short"), (1, 12, "short"), (1, 12, LONG), (2, 7, LONG), (3, 14, "short"),
               (3, 14, LONG)]  # fmt: skip


@pytest.mark.parametrize(
    ("images", "methods", "label"),
    [*SHAPES, *(pytest.param(*shape, marks=pytest.mark.extended) for shape in MORE_SHAPES)],
)
def test_nothing_in_the_figure_overlaps_or_is_cut_off(
    images: int, methods: int, label: str
) -> None:
    model = vit()
    ours = Fixed(model, torch.ones(4, 4))
    given: dict[str, Any] = {f"{label} {number}": ours for number in range(methods - 1)}
    given["bad"] = raising(ValueError("a reason that is long and goes on, " * 20))
    names = [f"{'photo_of_something_' * 4}{number}.png" for number in range(images)]
    found = quick(model, VIT.images(batch=images), given, names=names)
    figure = found.figure()
    figure.draw_without_rendering()
    parts: list[Any] = [text.get_window_extent() for text in figure.texts if text.get_text()]
    reasons: list[Any] = []
    for axes in figure.axes:
        parts.append(axes.get_window_extent())
        for text in axes.texts:
            inside = text.get_text().startswith("failed")
            if text.get_text():
                (reasons if inside else parts).append(text.get_window_extent())
            assert not inside or axes.bbox.containsx(reasons[-1].x0)
            assert not inside or axes.bbox.fully_containsy(reasons[-1].y0)
    for index, part in enumerate(parts):
        assert part.x0 >= 0
        assert part.y0 >= 0
        assert part.x1 <= figure.bbox.x1
        assert part.y1 <= figure.bbox.y1
        assert not any(part.overlaps(other) for other in parts[:index])


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_methods_run_in_the_precision(precision: str) -> None:
    """As each method does by itself under PyTorch's autocast, Captum's too."""
    loaded, scene = load_model("bundled"), draw_scene(18).image
    chosen: Any = ["gmar", "attn-lrp", Saliency, DeepLift]
    found = compare(loaded, scene, chosen, 6, measure=False, precision=precision)
    assert found.settings["precision"] == precision
    pixels = loaded.pixels(scene)
    with torch.autocast("cpu", getattr(torch, precision)):
        alone = {
            "gmar": GMAR(loaded.model).attribute_patches(pixels, 6),
            "Saliency": avg_pool2d(
                Saliency(LogitsModel(loaded.model)).attribute(pixels.requires_grad_(), 6).sum(1), 12
            ) * 144,
        }  # fmt: skip
        score = loaded.model(pixels).logits.detach().float().sigmoid()[0, 6]
    assert found.scores[0] == pytest.approx(float(score), abs=1e-7)
    exact = compare(loaded, scene, chosen, 6, measure=False, precision="float32")
    assert found.failures == exact.failures == {}
    for label, patches in found.maps.items():
        assert patches.dtype == torch.float32
        assert not torch.equal(patches, exact.maps[label])
        if label in alone:
            assert torch.allclose(patches, alone[label], rtol=1e-5, atol=1e-7)


def test_a_precision_that_does_not_exist() -> None:
    with pytest.raises(OptionError, match="precision must be one of"):
        compare("bundled", draw_scene(18).image, ["gmar"], precision="int8")


def test_errors_are_of_the_family() -> None:
    assert issubclass(OptionError, HfGmarError)
    assert KernelShap.__name__ in CAPTUM


def test_what_a_method_puts_in_place_goes_away() -> None:
    """Weights, attributes and modules, also where an error stops it half-way."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    first, weight = model[0], model[0].weight
    model.flag = [1]  # type: ignore[assignment]

    def change() -> None:
        model[0].weight = nn.Parameter(torch.zeros(2, 2))
        model[0] = nn.Identity()
        model.flag = [2]  # type: ignore[assignment]
        model.other = 3  # type: ignore[assignment]
        model.register_buffer("more", torch.zeros(1))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), preserve_state([model]):
        change()
    assert model[0] is first
    assert first.weight is weight
    assert model.flag == [1]
    assert not hasattr(model, "other")
    assert dict(model.named_buffers()) == {}
