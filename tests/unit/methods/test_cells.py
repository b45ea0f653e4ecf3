"""Maps of cells of pixels, of models whose tokens are no fixed grid of patches."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import captum.attr
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

from hf_gmar import (
    GMAR,
    AttentionRollout,
    AttnLRP,
    InputXGradient,
    LeGrad,
    RandomAttribution,
    ShapleyValues,
    TokenGradCAM,
    explain,
    load_model,
)
from hf_gmar._core.families import CELL_FAMILIES, UNSUPPORTED
from hf_gmar.errors import HfGmarError, InputError, OptionError, UnsupportedModelError
from hf_gmar.methods import METHODS
from hf_gmar.perturbations import PERTURBATIONS
from tests.reference.cases import MODELS, VIT, ModelCase
from tests.reference.cell_models import CELL_CASES, LABELS, SIDE, CellCase, saved, without_biases
from tests.support.state import unchanged

BY_KIND = {case.kind: case for case in CELL_CASES}
WITH_FEATURES = [case for case in CELL_CASES if case.has_feature_map]
TARGETS = [1, 2]


def _sums(pixels: Tensor, rows: int, columns: int) -> Tensor:
    """Sums over channels and over the pixels of each cell, one cell after the other."""
    height, width = pixels.shape[2] // rows, pixels.shape[3] // columns
    sums = torch.zeros(len(pixels), rows, columns, dtype=pixels.dtype)
    for row in range(rows):
        for column in range(columns):
            cell = pixels[..., row * height :, column * width :][..., :height, :width]
            sums[:, row, column] = cell.sum((1, 2, 3))
    return sums


def _close(one: Tensor, other: Tensor, limit: float = 1e-9) -> bool:
    return bool((one - other).abs().max() <= limit * other.abs().max())


def test_each_family_is_in_the_table() -> None:
    assert BY_KIND.keys() == CELL_FAMILIES.keys()
    assert CELL_FAMILIES.keys() <= UNSUPPORTED.keys()


@pytest.mark.parametrize("case", CELL_CASES, ids=str)
def test_input_x_gradient_is_captums(case: CellCase) -> None:
    model, images = case.model, case.images()
    theirs = captum.attr.InputXGradient(lambda pixels: model(pixels).logits)
    expected = theirs.attribute(images.requires_grad_(), target=torch.tensor(TARGETS)).detach()
    assert _close(InputXGradient(model).attribute_patches(images, TARGETS), _sums(expected, 32, 32))
    of_cells = InputXGradient(model, grid=(4, 8)).attribute_patches(images, TARGETS)
    assert _close(of_cells, _sums(expected, 4, 8))


@pytest.mark.parametrize("case", [case for case in CELL_CASES if case.conserves], ids=str)
def test_relevance_sums_to_the_score(case: CellCase) -> None:
    """Without biases, all rules but that of softmax keep the sum, and each model is such a sum."""
    model, images = copy.deepcopy(case.model), case.images()
    without_biases(model)
    relevance = AttnLRP(model).attribute_patches(images, TARGETS)
    scores = model(images).logits[range(2), TARGETS].detach()
    assert torch.allclose(relevance.sum((1, 2)), scores, rtol=1e-9)
    assert relevance.abs().max() > 0


@pytest.mark.parametrize(
    "case", [case for case in CELL_CASES if case.model._supports_sdpa], ids=str
)
def test_relevance_is_the_same_by_both_implementations(case: CellCase) -> None:
    """One has the rule of SDPA, the other those of its products and of softmax."""
    model, maps = copy.deepcopy(case.model), []
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        maps.append(AttnLRP(model).attribute_patches(case.images(), TARGETS))
    assert _close(maps[0], maps[1], 1e-7)  # eager softmax is in float32


@pytest.mark.parametrize("case", CELL_CASES, ids=str)
def test_relevance_is_finite_and_of_each_image_alone(case: CellCase) -> None:
    model, images = case.model, case.images()
    together = AttnLRP(model).attribute_patches(images, TARGETS)
    alone = AttnLRP(model).attribute_patches(images[1:], TARGETS[1])
    assert _close(together[1:], alone)
    assert together.isfinite().all()
    assert (together != 0).flatten(1).any(1).all()
    other = AttnLRP(model).attribute_patches(images, 0)
    assert not _close(together, other, 1e-3)


LAST_STAGES = {
    "resnet": lambda model: model.resnet.encoder.stages[-1],
    "convnext": lambda model: model.convnext.encoder.stages[-1],
    "textnet": lambda model: model.textnet.encoder.stages[-1],
}


@pytest.mark.parametrize("kind", LAST_STAGES)
def test_grad_cam_is_captums(kind: str) -> None:
    model, images = BY_KIND[kind].model, BY_KIND[kind].images()
    theirs = captum.attr.LayerGradCam(lambda pixels: model(pixels).logits, LAST_STAGES[kind](model))
    expected = theirs.attribute(images, target=torch.tensor(TARGETS), relu_attributions=True)
    resized = functional.interpolate(expected, (32, 32), mode="bilinear")[:, 0].detach()
    found = TokenGradCAM(model).attribute_patches(images, TARGETS)
    assert _close(found / found.amax((1, 2), True), resized / resized.amax((1, 2), True))


@pytest.mark.parametrize("case", WITH_FEATURES, ids=str)
def test_grad_cam_of_tokens_and_of_maps(case: CellCase) -> None:
    """The map is the formula on what the base model gives; its other values come from there."""
    model, images, seen = case.model, case.images(), []
    base: Any = model.encoder if case.kind == "hgnet_v2" else model.base_model
    handle = base.register_forward_hook(lambda *call: seen.append(call[2][0]))
    scores = model(images).logits
    handle.remove()
    (gradient,) = torch.autograd.grad(scores[range(2), TARGETS].sum(), seen)
    features, gradient = (
        part.detach().flatten(2).mT if part.dim() == 4 else part.detach()
        for part in (seen[0], gradient)
    )
    cam = torch.einsum("bpc,bc->bp", features, gradient.mean(1)).relu()
    side = round(cam.shape[1] ** 0.5)
    assert side**2 == cam.shape[1]
    cam = functional.interpolate(cam.view(2, 1, side, side), (32, 32), mode="bilinear")[:, 0]
    assert torch.allclose(TokenGradCAM(model).attribute_patches(images, TARGETS), cam, rtol=1e-9)


@pytest.mark.parametrize("case", [c for c in CELL_CASES if not c.has_feature_map], ids=str)
def test_a_head_that_reads_no_position_has_no_grad_cam(case: CellCase) -> None:
    with pytest.raises(UnsupportedModelError, match="reads a CLS token"):
        TokenGradCAM(case.model).attribute_patches(case.images(), 1)


@pytest.mark.parametrize("case", CELL_CASES, ids=str)
@pytest.mark.parametrize("method", [GMAR, AttentionRollout, LeGrad])
def test_methods_of_attention_are_refused_with_the_reason(
    case: CellCase, method: Callable[..., Any]
) -> None:
    with pytest.raises(UnsupportedModelError) as refused:
        method(case.model)
    assert UNSUPPORTED[case.kind] in str(refused.value)
    assert "attn-lrp, input-x-gradient and shapley-values explain it" in str(refused.value)


def test_shapley_values_of_two_players() -> None:
    """With two players, both orders are one pair; absent cells have the image's mean colour."""
    case = BY_KIND["convnext"]
    images, model = case.images(), case.model

    def value(*present: int) -> Tensor:
        colour = images.mean((2, 3), keepdim=True).expand_as(images)
        parts = [
            (images if half else colour)[..., start : start + SIDE // 2]
            for half, start in zip(present, (0, SIDE // 2), strict=True)
        ]
        scores = model(torch.cat(parts, -1)).logits.detach()
        chosen: Tensor = scores[range(2), TARGETS]
        return chosen

    empty, left, right, full = (value(*present) for present in ((0, 0), (1, 0), (0, 1), (1, 1)))
    expected = torch.stack([left - empty + full - right, right - empty + full - left], 1) / 2
    shapley = ShapleyValues(model, samples=2, groups=(1, 1), grid=(1, 2))
    result = shapley.attribute_with_errors(images, TARGETS)
    assert torch.allclose(result.maps[:, 0], expected, rtol=1e-9)
    assert torch.allclose(result.full_scores - result.empty_scores, expected.sum(1), rtol=1e-9)
    players = ShapleyValues(model, samples=2, batch_size=32).attribute_patches(images[:1], 1)
    assert len(players.unique()) == 64  # 4 x 4 cells in each, by default


def test_each_pixel_has_the_value_of_its_cell_and_the_model_is_as_it_was() -> None:
    case = BY_KIND["swin"]
    model, images = case.model, case.images()
    with unchanged(model):
        for method in (AttnLRP, InputXGradient, TokenGradCAM, RandomAttribution):
            method(model, grid=(8, 4)).attribute_patches(images, TARGETS)
    for method in (AttnLRP, InputXGradient, TokenGradCAM, RandomAttribution):
        explainer = method(model, grid=(8, 4))
        pixels = explainer.attribute(images, TARGETS)
        assert pixels.shape == images.shape
        patches = explainer.attribute_patches(images, TARGETS)
        assert patches.shape == (2, 8, 4)
        for row, column in ((0, 0), (9, 17), (63, 63)):
            expected = patches[:, None, row // 8, column // 16].expand(2, 3)
            assert torch.equal(pixels[:, :, row, column], expected)


def test_a_head_of_ones_own_on_a_base_model() -> None:
    """No readout is needed, as no token is read."""
    swin = BY_KIND["swin"].model

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = swin.base_model, nn.Linear(16, LABELS).double()

        def forward(self, pixels: Tensor) -> Tensor:
            scores: Tensor = self.head(self.body(pixels).pooler_output)
            return scores

    model, images = Own(), BY_KIND["swin"].images()
    theirs = captum.attr.InputXGradient(model).attribute(images.requires_grad_(), target=1).detach()
    found = InputXGradient(model, grid=(8, 8)).attribute_patches(images, 1)
    assert _close(found, _sums(theirs, 8, 8))
    assert TokenGradCAM(model).attribute_patches(images, 1).shape == (2, 32, 32)


def test_a_hierarchical_model_of_timm() -> None:
    pytest.importorskip("timm")
    torch.manual_seed(0)
    labels: dict[str, Any] = {"num_labels": LABELS}
    config = TimmWrapperConfig(architecture="resnet10t", **labels)
    model = TimmWrapperForImageClassification(config).double().eval()
    images = BY_KIND["resnet"].images()
    theirs = captum.attr.InputXGradient(lambda pixels: model(pixels).logits)
    expected = _sums(theirs.attribute(images.requires_grad_(), target=1).detach(), 32, 32)
    assert _close(InputXGradient(model).attribute_patches(images, 1), expected)
    without_biases(model)
    relevance = AttnLRP(model).attribute_patches(images, 1)
    assert torch.allclose(relevance.sum((1, 2)), model(images).logits[:, 1].detach(), rtol=1e-9)
    with pytest.raises(UnsupportedModelError, match="no feature map"):
        TokenGradCAM(model).attribute_patches(images, 1)


_SWIN: Any = BY_KIND["swin"]
WRONG: dict[str, tuple[Callable[[], Any], type[HfGmarError], str]] = {
    "a readout": (lambda: AttnLRP(_SWIN.model, readout="cls"), OptionError, "leave it out"),
    "lower layers": (lambda: AttnLRP(_SWIN.model, layers="lower"), OptionError, "one of pixels"),
    "lower layers of pixels": (
        lambda: AttnLRP(VIT.build(), layers="lower", resolution="pixel"),
        OptionError,
        "one of pixels",
    ),
    "a resolution": (
        lambda: METHODS.build("attn-lrp", VIT.build(), resolution="fine"),
        OptionError,
        "resolution",
    ),
    "a layer": (lambda: InputXGradient(_SWIN.model, layer=1), OptionError, "layer"),
    "a grid of patches": (lambda: AttnLRP(VIT.build(), grid=(4, 4)), OptionError, "leave grid out"),
    "a grid of three": (lambda: AttnLRP(_SWIN.model, grid=(4, 4, 4)), OptionError, "grid must be"),
    "no whole cells": (
        lambda: AttnLRP(_SWIN.model, grid=(7, 8)).attribute_patches(_SWIN.images(), 1),
        InputError,
        "7 x 8 cells does not divide an image of 64 x 64",
    ),
    "a prime size": (
        lambda: AttnLRP(_SWIN.model).attribute_patches(torch.zeros(1, 3, 67, 64).double(), 1),
        InputError,
        "67 x 64 pixels",
    ),
    "tokens are dropped": (
        lambda: PERTURBATIONS.build("token-dropping").bind(_SWIN.model, _SWIN.images()[:1]),
        UnsupportedModelError,
        "take a perturbation of pixels",
    ),
    "tokens are masked": (
        lambda: PERTURBATIONS.build("attention-masking").bind(_SWIN.model, _SWIN.images()[:1]),
        UnsupportedModelError,
        "take a perturbation of pixels",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused(name: str) -> None:
    action, error, words = WRONG[name]
    with pytest.raises(error, match=words):
        action()


def test_explain_gives_the_map_and_says_why_gmar_does_not_apply(tmp_path: Any) -> None:
    """From a folder, with the check and the sufficient set, which hide pixels here."""
    image = Image.effect_noise((80, 64), 90).convert("RGB")
    results = explain(
        image, load_model(saved("swin", tmp_path)), method=["gmar", "attn-lrp"], check=True
    )
    (result,) = results
    assert result.patches.shape == (32, 32)
    assert result.faithfulness.perturbation == "mean"
    assert "attends within windows" in str(results.failures["GMAR"])
    assert 1 <= result.sufficient_set(0.5).mask.sum() <= 1024
    assert result.overlay().size[0] > 0


@pytest.mark.parametrize("kind", ["resnet", "swin"])
def test_gamma_by_default(kind: str) -> None:
    """It is 0 for a model with a fixed grid of patches."""
    model, images = BY_KIND[kind].model, BY_KIND[kind].images()
    maps = {
        gamma: AttnLRP(model, gamma).attribute_patches(images, TARGETS) for gamma in (None, 0.25, 0)
    }
    assert torch.equal(maps[None], maps[0.25])
    assert not _close(maps[None], maps[0], 0.1)
    assert AttnLRP(VIT.build()).gamma == 0


PIXEL_CASES = [case for case in MODELS if case.name in ("vit", "vit-oblong", "beit-mean")]


@pytest.mark.parametrize("case", PIXEL_CASES, ids=lambda case: case.name)
def test_the_relevance_of_pixels_is_captums(case: ModelCase) -> None:
    """Of a ViT, too, with Captum's shape; the map sums it in each patch."""
    model, images = case.build().double(), case.images().double()
    theirs = captum.attr.InputXGradient(lambda pixels: model(pixels).logits)
    expected = theirs.attribute(images.clone().requires_grad_(), target=2).detach()
    method = InputXGradient(model, resolution="pixel")
    (found,) = method.attribute((images,), 2)
    assert _close(found, expected)
    rows, columns = method.attribute_patches(images, 2).shape[1:]
    assert _close(method.attribute_patches(images, 2), _sums(expected, rows, columns))


@pytest.mark.parametrize("gamma", [0.0, 0.5])
@pytest.mark.parametrize("case", PIXEL_CASES, ids=lambda case: case.name)
def test_pixels_have_what_their_patches_token_has(case: ModelCase, gamma: float) -> None:
    """If the embedding of a patch is its projection alone, without a bias and a position."""
    model, images = case.build().double(), case.images().double()
    for name, weight in model.named_parameters():
        if "position_embeddings" in name or name.endswith("projection.bias"):
            weight.data.zero_()
    tokens = AttnLRP(model, gamma).attribute_patches(images, 1, contrast=2)
    method = AttnLRP(model, gamma, resolution="pixel")
    pixels = method.attribute(images, 1, contrast=2)
    assert pixels.shape == images.shape
    assert _close(_sums(pixels, *tokens.shape[1:]), tokens)
    assert _close(method.attribute_patches(images, 1, contrast=2), tokens)
    spread = AttnLRP(model, gamma).attribute(images, 1, contrast=2)
    assert not torch.allclose(pixels, spread)
