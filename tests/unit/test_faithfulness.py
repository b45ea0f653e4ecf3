"""What a map is worth on its image, and the fewest patches that keep the class."""

from __future__ import annotations

import copy
import functools
import json
import math
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil, ViTModel

from hf_gmar import Explainer, Explanation, Explanations, FaithfulnessCheck, explain
from hf_gmar.data import draw_scene
from hf_gmar.data.masks import patch_coverage
from hf_gmar.errors import InputError, OptionError
from hf_gmar.faithfulness import ExplainedScore, ModelInput, check_maps
from hf_gmar.models import LoadedModel
from hf_gmar.models.score_kind import ScoreKind
from hf_gmar.perturbations import PERTURBATIONS
from tests.reference.models import build, own_head

SEEDS = (18, 3, 7)


@functools.cache
def of_scene(seed: int, method: str = "attn-lrp") -> Explanation:
    scene = draw_scene(seed)
    result: Explanation = explain(scene.image, "bundled", scene.names[0], method=method)
    return result


def truth(seed: int) -> Tensor:
    """The object of the explained class, as a map."""
    scene, result = draw_scene(seed), of_scene(seed)
    return patch_coverage(scene.masks[0], result.view, (8, 8)).float()


def subject(result: Explanation) -> ModelInput:
    assert result.subject is not None
    return result.subject


def score_of(result: Explanation, kept: Sequence[int], name: str = "token-dropping") -> float:
    """The probability with some patches alone, one copy at a time."""
    mask = torch.zeros(1, result.patches.numel(), dtype=torch.bool)
    mask[0, list(kept)] = True
    asked = subject(result)
    bound = PERTURBATIONS.build(name).bind(asked.adapter, asked.pixels)
    scores = bound.scores(mask.reshape(1, *result.patches.shape)).double()
    return float(scores[0, result.target].sigmoid())  # the bundled model's classes are independent


@pytest.mark.parametrize("name", ["token-dropping", "blur", "attention-masking"])
def test_a_check_is_the_scores_of_the_copies(name: str) -> None:
    result = of_scene(18)
    check = result.check((0.3, 0.1), draws=3, perturbation=name, seed=5)
    order = sorted(range(64), key=lambda index: -float(result.patches.flatten()[index]))
    generator = torch.Generator().manual_seed(5)
    random = [torch.randperm(64, generator=generator).tolist() for _ in range(3)]
    assert check.fractions == (0.1, 0.3)
    assert check.score == pytest.approx(result.score, abs=1e-5)
    for number, count in enumerate((6, 19)):
        for keep, remove, ranked in (
            (check.keep[number], check.remove[number], order),
            *zip(check.random_keep[number], check.random_remove[number], random, strict=True),
        ):
            assert keep == pytest.approx(score_of(result, ranked[:count], name), abs=1e-5)
            assert remove == pytest.approx(score_of(result, ranked[count:], name), abs=1e-5)


@pytest.mark.parametrize("seed", [18, 3, 7, 11, 21])
def test_the_object_itself_is_better_than_random(seed: int) -> None:
    check = replace(of_scene(seed), patches=truth(seed)).check()
    assert check.verdict == "better"
    assert "Better than all 9 random choices." in check.sentence


@pytest.mark.parametrize("seed", [11, 21])
def test_what_speaks_against_the_class_is_worse_than_random(seed: int) -> None:
    result = of_scene(seed)
    check = replace(result, patches=-result.patches).check()
    assert check.verdict == "worse"
    assert "Worse than all 9 random choices." in check.sentence


def test_random_maps_are_seldom_called_better_or_worse() -> None:
    """One of ten each, as each is as good as any of the nine others."""
    result, generator = of_scene(3), torch.Generator().manual_seed(1)
    maps = [torch.rand(8, 8, generator=generator) for _ in range(20)]
    explained = ExplainedScore("", result.score_kind, result.target)
    checks = [
        check_maps(subject(result), [(patches, explained)], seed=seed)[0]
        for seed, patches in enumerate(maps)
    ]
    verdicts = [check.verdict for check in checks]
    assert verdicts.count("better") <= 5
    assert verdicts.count("worse") <= 5
    beaten = [sum(value > 0 for value in check.advantages) for check in checks]
    assert 2.5 < sum(beaten) / len(beaten) < 6.5
    text = next(check.verdict_text for check in checks if check.verdict == "no better")
    assert "No better than random patches: it beats " in text


def test_an_advantage_is_from_minus_one_to_one() -> None:
    values: Any = {
        "label": "heart", "score_kind": ScoreKind.SOFTMAX, "score": 0.9, "fractions": (0.1, 0.2),
        "keep": (1.0, 0.5), "remove": (0.0, 0.25), "random_keep": ((0.0, 1.0), (0.5, 0.5)),
        "random_remove": ((1.0, 0.0), (0.25, 0.25)), "perturbation": "blur", "seed": 0,
    }  # fmt: skip
    check = FaithfulnessCheck(**values)
    assert check.advantages == (0.5, 0.0)
    assert check.verdict == "no better"  # a tie is not better
    assert FaithfulnessCheck.from_dict(json.loads(json.dumps(check.to_dict()))) == check
    assert check.sentence == (
        "With the 20% of the patches that the map names, the model says heart at 50.0% (random: "
        "50.0%); without them 25.0% (random: 25.0%). No better than random patches: it beats 1 of "
        "2 random choices."
    )
    assert "%" not in replace(check, score_kind=ScoreKind.VALUE).lines[1].replace("20%", "")


def test_maps_of_an_image_share_the_random_patches(bundled: LoadedModel) -> None:
    image = draw_scene(18).image
    results = explain(image, bundled, ["heart", "cross"], method=["gmar", "attn-lrp"])
    assert isinstance(results, Explanations)
    for result, check in zip(results, results.check(seed=2), strict=True):
        alone = result.check(seed=2)
        assert check.verdict == alone.verdict
        assert np.allclose(check.random_keep, alone.random_keep, atol=1e-5)
        assert np.allclose(check.keep, alone.keep, atol=1e-5)
        assert check.label == result.label


def test_with_a_contrast_it_is_one_class_or_the_other(bundled: LoadedModel) -> None:
    result = explain(draw_scene(18).image, bundled, "heart", contrast="cross")
    check = result.check()
    scores = bundled.model(subject(result).pixels).logits[0].detach()
    assert check.score == pytest.approx(float((scores[6] - scores[4]).sigmoid()), abs=1e-5)
    assert check.label == "heart rather than cross"


def test_a_check_is_drawn_saved_and_loaded(tmp_path: Path) -> None:
    result = explain(draw_scene(18).image, "bundled", "heart", method="attn-lrp", check=True)
    plain = explain(draw_scene(18).image, "bundled", "heart", method="attn-lrp")
    check = result.faithfulness
    assert check == plain.check()
    assert result.picture().size[1] > plain.picture().size[1]
    assert check.sentence in result._repr_html_()
    _, archive = result.save(tmp_path / "heart")
    loaded = Explanation.load(archive)
    assert loaded.faithfulness == check
    assert Explanation.load(plain.save(tmp_path / "plain")[1]).faithfulness is None
    for ask in (loaded.check, loaded.sufficient_set):
        with pytest.raises(OptionError, match="is from a file or a pickle, without its model"):
            ask()


def test_a_copy_shares_the_model_and_a_pickle_leaves_it_out() -> None:
    result, other = of_scene(18), of_scene(3)
    assert copy.deepcopy(result).subject is copy.copy(result).subject is result.subject
    stored = pickle.dumps(result)
    assert len(stored) < 200_000
    with pytest.raises(OptionError, match="or a pickle, without its model"):
        pickle.loads(stored).check()  # noqa: S301
    fewest = result.sufficient_set()
    again = pickle.loads(pickle.dumps(fewest))  # noqa: S301
    assert again.picture().tobytes() == fewest.picture().tobytes()
    assert Explanations([result, other]).index(other) == 1


def test_a_map_without_an_order_is_a_random_map() -> None:
    """Ties in rows would judge the upper rows of the image, which are background."""
    flat = replace(of_scene(18), patches=torch.zeros(8, 8))
    verdicts = [flat.check(fractions=(0.1, 0.2), seed=seed).verdict for seed in range(8)]
    assert verdicts.count("no better") >= 5
    checks = [flat.check(fractions=(0.2,), seed=seed) for seed in (0, 1)]
    assert checks[0].keep != checks[1].keep


def test_options_of_numpy(tmp_path: Path) -> None:
    result = explain(
        draw_scene(18).image, "bundled", alpha=np.float32(0.5), start_layer=np.int64(1)
    )
    check = result.check(draws=np.int64(3), seed=np.int64(5))
    assert check == result.check(draws=3, seed=5)
    _, archive = replace(result, faithfulness=check).save(tmp_path / "heart")
    loaded = Explanation.load(archive)
    assert loaded.faithfulness == check
    assert loaded.settings == result.settings
    assert type(loaded.settings["start_layer"]) is int


def test_each_result_of_several_images_is_checked(bundled: LoadedModel) -> None:
    images = [draw_scene(seed).image for seed in SEEDS]
    results = explain(images, bundled, method=["attn-lrp"], check=True)
    assert [len(each) for each in results] == [1, 1, 1]
    assert all(each[0].faithfulness.verdict == "better" for each in results)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"fractions": ()}, "fractions must be shares of the patches above 0 and below 1"),
        ({"fractions": (0.1, 1.0)}, "fractions must be"),
        ({"fractions": 0.2}, "fractions must be"),
        ({"fractions": (math.nan,)}, "fractions must be"),
        ({"draws": 2}, "draws must be"),
        ({"draws": True}, "draws must be"),
        ({"seed": -1}, "seed must be"),
        ({"perturbation": "holes"}, "there is no perturbation 'holes'"),
        ({"perturbation": "blur:size=3"}, "has no option size"),
    ],
    ids=str,
)
def test_what_a_check_refuses(options: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        of_scene(18).check(**options)


def test_a_head_of_ones_own_is_asked_with_its_readout() -> None:
    model = own_head(ViTModel, ViTConfig, lambda tokens: tokens[:, 0])
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    image = Image.effect_noise((32, 32), 90).convert("RGB")
    result = Explainer(model, processor=processor, readout="cls")(image)
    assert result.check().score == pytest.approx(result.score, abs=1e-5)


def test_one_patch_has_no_others() -> None:
    config: Any = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=16, patch_size=16, id2label={0: "a", 1: "b", 2: "c"},
    )  # fmt: skip
    model = ViTForImageClassification(config).eval()
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    result = Explainer(model, processor=processor)(Image.new("RGB", (16, 16), "teal"))
    with pytest.raises(InputError, match="a single patch"):
        result.check()
    assert result.sufficient_set().count == 1


@pytest.mark.parametrize(("seed", "share"), [(18, 0.9), (3, 0.9), (7, 0.5), (18, 1.0)])
def test_a_sufficient_set_is_the_fewest_top_patches(seed: int, share: float) -> None:
    result = of_scene(seed)
    found = result.sufficient_set(share)
    order = torch.argsort(-result.patches.flatten().double(), stable=True).tolist()
    whole = score_of(result, order)
    counts = (count for count in range(1, 65) if score_of(result, order[:count]) >= share * whole)
    fewest = next(counts, 64)
    assert found.count == fewest <= 64
    assert found.mask.flatten().nonzero().flatten().tolist() == sorted(order[:fewest])
    assert found.kept_score == pytest.approx(score_of(result, order[:fewest]), abs=1e-5)
    assert found.sentence.startswith(f"{fewest} of 64 patches ({fewest / 64:.0%}) suffice for ")


def test_a_sufficient_set_of_many_patches() -> None:
    """Larger sets are tried in steps, and the last step patch by patch."""
    size = 16
    model = build(ViTForImageClassification, ViTConfig, image_size=size * 4, patch_size=4)
    processor = ViTImageProcessorPil(size={"height": size * 4, "width": size * 4})
    image = Image.effect_noise((64, 64), 90).convert("RGB")
    result = Explainer(model, "random", processor=processor)(image)
    order = torch.argsort(-result.patches.flatten().double(), stable=True).tolist()

    def probability(count: int) -> float:
        mask = torch.zeros(1, size * size, dtype=torch.bool)
        mask[0, order[:count]] = True
        bound = subject(result).bind("token-dropping")
        scores = bound.scores(mask.reshape(1, size, size)).double().softmax(1)
        return float(scores[0, result.target])

    found = result.sufficient_set(1.0)
    whole = probability(size * size)
    assert found.kept_score >= whole - 1e-7
    assert probability(found.count) == pytest.approx(found.kept_score, abs=1e-6)


def test_a_sufficient_set_is_drawn_alone() -> None:
    result = of_scene(18)
    found = result.sufficient_set()
    drawn, image = np.asarray(found.picture()), np.asarray(result.image.convert("RGB"))
    assert drawn.shape == image.shape
    patches = np.kron(found.mask.numpy(), np.ones((12, 12), bool))  # 96 pixels, 8 patches
    assert (drawn[patches] == image[patches]).all()
    assert (drawn[~patches] == 128).all()
    assert found._repr_html_().startswith("<img")
    assert len(repr(found)) < 400


def test_what_a_sufficient_set_refuses() -> None:
    result = of_scene(18)
    for share in (0, 1.5, "much", math.nan):
        with pytest.raises(OptionError, match="share"):
            result.sufficient_set(share)  # type: ignore[arg-type]
    value = replace(result, score_kind=ScoreKind.VALUE, target=0)  # no disc is there: a logit < 0
    with pytest.raises(InputError, match="a share is of a positive score"):
        value.sufficient_set()


def test_a_check_and_its_figure_are_short() -> None:
    check = replace(of_scene(18), label="<b>" * 200).check(fractions=(0.2,))
    assert len(repr(check)) < 400
    assert "<b>" not in check._repr_html_()
    assert [axes.get_title() for axes in check.figure().axes] == [
        "Only these patches", "All but these patches",
    ]  # fmt: skip
    assert check.table().row_count == 1
