"""Questions without a class: similarity to another image, and attention from a place."""

from __future__ import annotations

import functools
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    ViTModel,
)

from hf_gmar import (
    Explainer,
    Explanation,
    RawAttention,
    SimilarityModel,
    SimilarTo,
    compare,
    evaluate,
    explain,
    load_model,
)
from hf_gmar.data import draw_scene
from hf_gmar.errors import (
    HfGmarError,
    InputError,
    ModelLoadError,
    OptionError,
    TargetError,
    UnsupportedModelError,
)
from hf_gmar.models import LoadedModel, ScoreKind, bundled_folder
from tests.reference.models import build, of_two

ONE, OTHER, THIRD = (draw_scene(seed).image for seed in (18, 3, 7))
PROCESSOR = ViTImageProcessorPil(size={"height": 32, "width": 32})


def tiny(kind: Any = Dinov2Model, config: Any = Dinov2Config) -> LoadedModel:
    return LoadedModel("tiny", build(kind, config), PROCESSOR)


def saved(folder: Path, model: Any) -> str:
    """A folder with a model and an image processor."""
    model.save_pretrained(folder)
    shutil.copy(bundled_folder() / "preprocessor_config.json", folder)
    return str(folder)


@pytest.fixture
def backbone(tmp_path: Path) -> str:
    return saved(tmp_path / "body", build(Dinov2Model, Dinov2Config, image_size=96))


@pytest.mark.parametrize("method", ["gmar", "attn-lrp", "attention-rollout"])
def test_similarity_of_a_backbone(method: str) -> None:
    loaded = tiny()
    explainer = Explainer(loaded, method)
    result = explainer(ONE, target=SimilarTo(OTHER, "the other"))
    pixels, reference = loaded.pixels(ONE), loaded.pixels(OTHER)
    model = SimilarityModel(loaded.model, reference)
    expected = type(explainer.methods[method])(model).attribute_patches(pixels, 0)
    assert torch.allclose(result.patches, expected[0], atol=1e-6)
    assert result.score == pytest.approx(float(model(pixels).detach()), abs=1e-6)
    assert (result.label, result.score_kind) == ("similar to the other", ScoreKind.VALUE)
    assert result.title == f"similar to the other  {result.score:.4g}"
    assert result.probability is None
    assert result.settings["similar_to"] == ["the other"]
    assert "similar_to" not in result.caption


def test_an_image_is_similar_to_itself(tmp_path: Path) -> None:
    ONE.save(tmp_path / "one.png")
    results = explain(
        [ONE, tmp_path / "one.png"], "bundled", target=[SimilarTo(OTHER), SimilarTo(ONE, "it")]
    )
    for first, second in results:
        assert first.label == "similar to image"
        assert second.label == "similar to it"
        assert second.score == pytest.approx(1, abs=1e-5)
        assert first.score < 0.99
    by_file = explain(OTHER, "bundled", target=SimilarTo(tmp_path / "one.png"))
    assert by_file.label == "similar to one.png"
    assert by_file.file_name("x").startswith("x.0-similar-to-one-png")


def test_a_contrast_is_another_similarity() -> None:
    explainer = Explainer(tiny(), "attn-lrp")
    a, b = SimilarTo(OTHER, "a"), SimilarTo(THIRD, "b")
    result = explainer(ONE, a, contrast=b)
    difference = explainer(ONE, a).patches - explainer(ONE, b).patches
    assert torch.allclose(result.patches, difference, atol=1e-5)
    assert (result.label, result.contrast) == ("similar to a", "similar to b")


def test_similarity_of_a_model_of_image_and_text() -> None:
    loaded = tiny(CLIPModel, functools.partial(of_two, CLIPConfig))
    result = Explainer(loaded)(ONE, SimilarTo(OTHER))
    features = [
        loaded.model.get_image_features(loaded.pixels(image)).pooler_output.detach()
        for image in (ONE, OTHER)
    ]
    cosine = float(torch.nn.functional.cosine_similarity(*features))
    assert result.score == pytest.approx(cosine, abs=1e-5)


@pytest.mark.parametrize(
    ("target", "contrast", "error", "words"),
    [
        (SimilarTo(ONE), "heart", OptionError, "can't be mixed"),
        ("heart", SimilarTo(ONE), OptionError, "can't be mixed"),
        ([SimilarTo(ONE), "heart"], None, OptionError, "can't be mixed"),
        (SimilarTo("nowhere.png"), None, HfGmarError, "nowhere.png"),
    ],
)
def test_similarities_that_can_not_be(target: Any, contrast: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        explain(ONE, "bundled", target, contrast)


def test_similarity_is_one_target() -> None:
    with pytest.raises(OptionError, match="either target"):
        Explainer("bundled")(ONE, SimilarTo(OTHER), top_k=2)
    with pytest.raises(OptionError, match="same map for every class"):
        Explainer("bundled", "raw-attention")(ONE, SimilarTo(OTHER), SimilarTo(THIRD))


@pytest.mark.parametrize(
    ("kind", "config", "readout", "label"),
    [
        (Dinov2Model, Dinov2Config, None, "attention from CLS"),
        (Dinov2Model, Dinov2Config, "patches", "attention from the patches"),
        (Dinov2Model, Dinov2Config, "tokens", "attention from all tokens"),
        (Dinov2Model, Dinov2Config, (0.5,), "attention from CLS and the patches"),
        (Dinov2Model, Dinov2Config, (3, 1), "attention from patch (3, 1)"),
        (SiglipVisionModel, SiglipVisionConfig, None, "attention from the pooling head"),
        (ViTForImageClassification, ViTConfig, (3, 1), "attention from patch (3, 1)"),
    ],
)
def test_attention_of_no_class(
    kind: Any, config: Any, readout: Any, label: str, tmp_path: Path
) -> None:
    loaded = tiny(kind, config)
    result = Explainer(loaded, "raw-attention", readout=readout)(ONE)
    method = RawAttention(loaded.model, readout=readout)
    assert torch.allclose(result.patches, method.attribute_patches(loaded.pixels(ONE))[0])
    assert (result.label, result.title, result.target) == (label, label, -1)
    assert math.isnan(result.score)
    assert result.probability is None
    assert repr(result) == f"Explanation({label}, image, Raw attention)"
    assert "nan" not in f"{result.title} {result.caption} {result._repr_html_()[-400:]}"
    assert result.picture().size[0] > 100
    name = result.file_name("x")
    assert name.startswith("x.attention-from-")
    loaded_again = Explanation.load(result.save(tmp_path / name)[1])
    assert (loaded_again.title, loaded_again.target) == (label, -1)
    assert loaded_again.score_kind is ScoreKind.NONE
    assert math.isnan(loaded_again.score)


def test_a_random_map_of_no_class() -> None:
    assert Explainer(tiny(), "random")(ONE).label == "no class"


@pytest.mark.parametrize(
    "options", [{"target": "heart"}, {"target": 3}, {"contrast": 3}, {"top_k": 2}]
)
def test_a_place_has_no_class(options: Any) -> None:
    explainer = Explainer("bundled", "attention-rollout", readout=(0, 7))
    assert explainer(ONE).label == "attention from patch (0, 7)"
    with pytest.raises(TargetError, match=r"attention from patch \(0, 7\), and is of no class"):
        explainer(ONE, **options)


def test_a_place_outside_of_the_image() -> None:
    with pytest.raises(InputError, match="outside of the images' grid of 8 x 8"):
        explain(ONE, "bundled", method="raw-attention", readout=(8, 0))
    with pytest.raises(OptionError, match="methods without gradients"):
        explain(ONE, "bundled", method="gmar", readout=(1, 0))


@pytest.mark.parametrize("methods", [["raw-attention", "gmar"], ["gmar", "raw-attention"]])
def test_a_method_that_waits_leaves_the_others(methods: list[str]) -> None:
    explainer = Explainer(tiny(Dinov2Model, Dinov2Config), methods)
    for results in explainer.stream([ONE, OTHER]):
        assert [result.label for result in results] == ["attention from CLS"]
        assert list(results.failures) == ["GMAR"]
        assert results.picture().size[0] > 100
    results = explainer(ONE, SimilarTo(OTHER))
    assert [result.method for result in results] == methods
    assert not results.failures


def test_a_backbone_waits_for_a_question() -> None:
    explainer = Explainer(tiny())
    assert explainer.methods["gmar"].facts()["method"] == "GMAR"
    asked: list[dict[str, Any]] = [{}, {"target": 3}, {"top_k": 2}]
    for options in asked:
        with pytest.raises(UnsupportedModelError, match=r"Dinov2Model .*SimilarTo"):
            explainer(ONE, **options)
    with pytest.raises(UnsupportedModelError, match="class scores of Dinov2Model"):
        Explainer(tiny(), "raw-attention")(ONE, 3)


def test_a_named_backbone(backbone: str) -> None:
    with pytest.raises(ModelLoadError, match=r"no trained image classifier.*head=False"):
        load_model(backbone)
    for head in (False, None):
        loaded = load_model(backbone, head=head)
        assert type(loaded.model) is Dinov2Model
        assert loaded.facts()["classes"] == "none: no class head"
    assert explain(ONE, backbone, target=SimilarTo(ONE)).score == pytest.approx(1, abs=1e-5)
    result = explain(ONE, backbone, method="raw-attention", readout=(1, 2))
    assert result.label == "attention from patch (1, 2)"
    assert Explainer(backbone, head=False)(ONE, SimilarTo(OTHER)).score < 1.01
    with pytest.raises(ModelLoadError, match="no trained image classifier"):
        Explainer(backbone)


def test_a_classifier_with_and_without_its_head() -> None:
    classifier, backbone = load_model(head=None).model, load_model(head=False).model
    assert type(classifier) is ViTForImageClassification
    assert type(backbone) is ViTModel
    assert backbone.pooler is None
    pixels = load_model().pixels(ONE)
    tokens = classifier.vit(pixels).last_hidden_state
    assert torch.equal(backbone(pixels).last_hidden_state, tokens)
    scores = [explain(ONE, LoadedModel("", model, load_model().processor), SimilarTo(OTHER)).score
              for model in (classifier, backbone)]  # fmt: skip
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_a_backbone_that_lacks_weights(tmp_path: Path) -> None:
    config: Any = ViTConfig(num_hidden_layers=1, hidden_size=32, num_attention_heads=2)
    folder = saved(tmp_path, ViTModel(config, add_pooling_layer=False))
    config.num_hidden_layers = 2
    config.save_pretrained(folder)
    with pytest.raises(ModelLoadError, match=r"lack .*; it is no trained model of Transformers"):
        load_model(folder, head=False)


def test_prompts_are_classes() -> None:
    with pytest.raises(OptionError, match="prompts are the classes"):
        load_model("anything", prompts=["a dog"], head=False)


def test_similarity_is_evaluated_as_a_value() -> None:
    loaded = tiny()
    similar = replace(loaded, model=SimilarityModel(loaded.model, loaded.pixels(OTHER)))
    found = evaluate(similar, "scenes:2", ["gmar", "random"], ["deletion"], steps=2)
    assert found.settings["score"] == "value"
    assert "similar to image 0" in compare(similar, [ONE], ["gmar"], measure=False).labels[0]


def test_any_form_of_the_other_image() -> None:
    explainer, path = Explainer("bundled"), Path("scene.png")
    expected = explainer(OTHER, SimilarTo(ONE)).score
    assert explainer(OTHER, SimilarTo(np.asarray(ONE))).score == pytest.approx(expected, abs=1e-6)
    assert str(SimilarTo(path)) == "scene.png"
    assert str(SimilarTo(Image.new("RGB", (2, 2)))) == "image"
