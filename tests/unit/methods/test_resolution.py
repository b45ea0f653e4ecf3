"""Maps that are finer than a patch: by shifts of the image, and of the relevance of pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import captum.attr
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hf_gmar import (
    GMAR,
    AttentionRollout,
    AttnLRP,
    AttributionMethod,
    InputXGradient,
    RandomAttribution,
    ShapleyValues,
    TokenGradCAM,
    attribute_jointly,
)
from hf_gmar._core.cell_layout import window_means
from hf_gmar.errors import OptionError
from tests.reference.cases import LABELS, MODELS, TARGETS, VIT, Around, ModelCase
from tests.reference.cell_models import CELL_CASES
from tests.reference.parity import same

OBLONG = next(case for case in MODELS if case.name == "vit-oblong-patches")
STEPS = {2: (0, 1), 4: (-1, 0, 1, 2)}
"""The shifts along each side, in cells, that bring a cell once to each place of a patch."""


class Row(NamedTuple):
    """A method at a resolution; patches have a height and a width in pixels."""

    case: ModelCase
    patch: tuple[int, int]
    build: Callable[..., AttributionMethod]
    cells: int
    options: dict[str, Any]


ROWS = {
    "gmar": Row(VIT, (8, 8), GMAR, 4, {}),
    "gmar-oblong": Row(OBLONG, (8, 4), GMAR, 2, {"norm": "l2"}),
    "rollout": Row(VIT, (8, 8), AttentionRollout, 2, {}),
    "token-grad-cam": Row(OBLONG, (8, 4), TokenGradCAM, 4, {"layer": 0}),
    "shapley": Row(VIT, (8, 8), ShapleyValues, 2, {"samples": 2, "groups": (2, 2)}),
    "random": Row(VIT, (8, 8), RandomAttribution, 2, {}),
}


def moved(images: Tensor, down: int, across: int) -> Tensor:
    """Images moved by some pixels, pixel by pixel; the edge is repeated where nothing comes."""
    height, width = images.shape[2:]
    result = torch.empty_like(images)
    for y in range(height):
        for x in range(width):
            above, left = min(max(y - down, 0), height - 1), min(max(x - across, 0), width - 1)
            result[:, :, y, x] = images[:, :, above, left]
    return result


def mean_of_shifts(explain: AttributionMethod, images: Tensor, row: Row) -> Tensor:
    """Each cell's mean over the shifts that still show it, cell by cell."""
    high, wide = row.patch[0] // row.cells, row.patch[1] // row.cells
    rows, columns = images.shape[2] // high, images.shape[3] // wide
    shifts = [(down, across) for down in STEPS[row.cells] for across in STEPS[row.cells]]
    maps = {
        (down, across): explain.attribute_patches(moved(images, down * high, across * wide), 3)
        for down, across in shifts
    }
    result = torch.zeros(len(images), rows, columns, dtype=images.dtype)
    for y in range(rows):
        for x in range(columns):
            values = [
                maps[down, across][:, (y + down) // row.cells, (x + across) // row.cells]
                for down, across in shifts
                if 0 <= y + down < rows and 0 <= x + across < columns
            ]
            result[:, y, x] = sum(values) / len(values)
    return result


@pytest.mark.parametrize("name", ROWS)
def test_cells_are_the_mean_of_shifts(name: str) -> None:
    row = ROWS[name]
    model, images = row.case.build().double(), row.case.images(torch.float64, batch=2)
    expected = mean_of_shifts(row.build(model, **row.options), images, row)
    method = row.build(model, resolution=row.cells, **row.options)
    result = method.attribute_with_scores(images, [3, 3])
    assert result.fine_maps is not None
    for fine, patches in zip(result.fine_maps, result.maps, strict=True):
        assert torch.allclose(fine, expected, rtol=1e-9, atol=1e-12)
        assert patches.shape == (2, *row.case.grid)
        cells = row.cells
        for place in ((0, 0, 0), (1, row.case.grid[0] - 1, row.case.grid[1] - 1)):
            image, y, x = place
            part = fine[image, y * cells : (y + 1) * cells, x * cells : (x + 1) * cells]
            assert torch.allclose(patches[place], part.mean(), rtol=1e-9)
    assert torch.allclose(method.attribute_patches(images, 3), result.maps[0], rtol=1e-9)
    high, wide = row.patch[0] // row.cells, row.patch[1] // row.cells
    pixels = method.attribute(images, 3)
    assert pixels.shape == images.shape
    for y, x in ((0, 0), (high, wide), (13, 7), (images.shape[2] - 1, images.shape[3] - 1)):
        assert (pixels[:, :, y, x] == pixels[:, :1, y, x]).all()
        assert torch.allclose(pixels[:, 0, y, x], expected[:, y // high, x // wide], rtol=1e-9)


def test_one_cell_is_the_patch() -> None:
    model, images = VIT.build(), VIT.images()
    for build in (GMAR, AttnLRP):
        one, patch = build(model, resolution=1), build(model)
        assert torch.equal(one.attribute(images, 3), patch.attribute(images, 3))
        assert one.attribute_with_scores(images).fine_maps is None
        assert one.facts()["cost"] == patch.facts()["cost"]


class Ones(AttributionMethod):
    """A method whose map has one value everywhere."""

    source = "none"
    cost = "forward"

    def _explain(self, request: Any, target_specs: Sequence[Any]) -> list[Tensor]:
        grid = self.adapter.layout.grid(*request.inputs.shape[-2:])
        return [torch.ones(len(request.inputs), *grid) for _ in target_specs]


def test_a_map_of_one_value_stays_one() -> None:
    """Cells at the edge, which some shifts lose, are no darker."""
    assert (Ones(VIT.build(), resolution=4).attribute(VIT.images(), 3) == 1).all()


def corner_decides(vit: Any, pixels: Tensor) -> Tensor:
    """Scores with class 1 at the top if the last pixel is positive, and class 0 otherwise."""
    top = functional.one_hot((pixels[:, 0, -1, -1] > 0).long(), LABELS)
    logits: Tensor = vit(pixels).logits
    return logits + 100 * top


def test_all_shifts_explain_the_class_of_the_image_itself() -> None:
    model, images = Around(VIT.build(), corner_decides), VIT.images()
    images[:, 0] = images[:, 0].abs()
    images[:, 0, -1, -1] = -1  # no longer the last pixel of a shifted image
    assert model(images).argmax(1).tolist() == [0, 0, 0]
    assert model(moved(images, 4, 0)).argmax(1).tolist() == [1, 1, 1]
    method = GMAR(model, resolution=2)
    expected = method.attribute_patches(images, 0)
    assert same(method.attribute_patches(images), expected)
    assert not same(method.attribute_patches(images, 1), expected)
    result = method.attribute_with_scores(images, top_k=2)
    assert same(result.scores, model(images).detach())
    assert result.classes[0].tolist() == [0, 0, 0]
    assert same(result.maps[0], expected)
    with pytest.raises(OptionError, match="no contrast"):
        AttentionRollout(VIT.build(), resolution=2).attribute(images, 0, contrast=1)


def test_an_image_has_the_same_map_in_any_batch() -> None:
    model, images = VIT.build(), VIT.images()
    for method in (GMAR(model, resolution=2), AttnLRP(model, resolution=2)):
        maps = method.attribute(images, TARGETS)
        for number, target in enumerate(TARGETS):
            assert same(maps[number], method.attribute(images[number : number + 1], target)[0])


def test_the_cost() -> None:
    """Shifts run one by one, no wider than the images; the relevance of pixels needs one pass."""
    model, images, batches = VIT.build(), VIT.images(), []
    model.register_forward_hook(lambda *call: batches.append(len(call[2].logits)))
    for method, expected in (
        (GMAR(model, resolution=2), [3, 3, 3, 3]),
        (InputXGradient(model, resolution=2), [3]),
        (InputXGradient(model, resolution="pixel"), [3]),
    ):
        batches.clear()
        method.attribute(images, TARGETS)
        assert batches == expected
        shifts = f"each of {len(expected)} shifts"
        assert (shifts in method.facts()["cost"]) == (len(expected) > 1)


def cells_of(pixels: Tensor, high: int, wide: int) -> Tensor:
    """The sum of each cell over channels and pixels, one cell after the other."""
    rows, columns = pixels.shape[2] // high, pixels.shape[3] // wide
    result = torch.zeros(len(pixels), rows, columns, dtype=pixels.dtype)
    for y in range(rows):
        for x in range(columns):
            cell = pixels[:, :, y * high : (y + 1) * high, x * wide : (x + 1) * wide]
            result[:, y, x] = cell.sum((1, 2, 3))
    return result


@pytest.mark.parametrize("cells", [2, 4])
def test_the_relevance_of_pixels_is_summed_in_cells(cells: int) -> None:
    model, images = OBLONG.build().double(), OBLONG.images(torch.float64)
    theirs = captum.attr.InputXGradient(lambda pixels: model(pixels).logits)
    expected = theirs.attribute(images.clone().requires_grad_(), target=2).detach()
    method = InputXGradient(model, resolution=cells)
    result = method.attribute_with_scores(images, [2])
    assert result.fine_maps is not None
    high, wide = 8 // cells, 4 // cells
    fine = cells_of(expected, high, wide)
    assert torch.allclose(result.fine_maps[0], fine, rtol=1e-9, atol=1e-12)
    assert torch.allclose(result.maps[0], cells_of(expected, 8, 4), rtol=1e-9, atol=1e-12)
    spread = method.attribute(images, 2)
    assert torch.allclose(spread[:, 1, high, wide], fine[:, 1, 1], rtol=1e-9)
    pixels = InputXGradient(model, resolution="pixel").attribute_with_scores(images, [2])
    assert pixels.fine_maps is not None
    assert torch.allclose(pixels.fine_maps[0], expected.sum(1), rtol=1e-9, atol=1e-12)


def test_methods_in_one_pass_and_by_themselves() -> None:
    model, images = VIT.build(), VIT.images()
    methods = [GMAR(model), GMAR(model, resolution=2), AttentionRollout(model), AttnLRP(model)]
    for method, patches in zip(methods, attribute_jointly(methods, images, 3), strict=True):
        assert same(patches, method.attribute_patches(images, 3))
    coarse, fine = (method.attribute_patches(images, 3) for method in methods[:2])
    assert not same(coarse, fine)


def test_the_mean_around_each_pixel() -> None:
    """Twice the mean over half a patch, which is three by five pixels here."""
    values = torch.randn(2, 12, 16, dtype=torch.float64)
    expected = values
    for _ in range(2):
        before, expected = expected, torch.zeros_like(values)
        for y in range(12):
            for x in range(16):
                part = before[:, max(0, y - 1) : y + 2, max(0, x - 2) : x + 3]
                expected[:, y, x] = part.mean((1, 2))
    assert torch.allclose(window_means(values, (2, 2)), expected, rtol=1e-9)


_SWIN: nn.Module = next(case for case in CELL_CASES if case.kind == "swin").model
WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "no divisor": (lambda: GMAR(VIT.build(), resolution=3), r"8 x 8 pixels: 1, 2, 4, 8; got 3"),
    "no divisor of both": (lambda: GMAR(OBLONG.build(), resolution=8), r"8 x 4 pixels: 1, 2, 4;"),
    "zero": (lambda: GMAR(VIT.build(), resolution=0), "got 0"),
    "a bool": (lambda: GMAR(VIT.build(), resolution=True), "got True"),
    "a fraction": (lambda: GMAR(VIT.build(), resolution=2.0), "got 2.0"),  # type: ignore[arg-type]
    "pixels of attention": (
        lambda: GMAR(VIT.build(), resolution="pixel"),
        "'pixel' is for AttnLRP and InputXGradient",
    ),
    "lower layers": (lambda: AttnLRP(VIT.build(), layers="lower", resolution=2), "one of pixels"),
    "a layer": (lambda: InputXGradient(VIT.build(), layer=1, resolution=2), "layer"),
    "cells": (lambda: AttnLRP(_SWIN, resolution=2), r"SwinForImageClassification .* grid=\(56"),
    "pixels of cells": (lambda: TokenGradCAM(_SWIN, resolution="pixel"), r"grid=\(56, 56\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused(name: str) -> None:
    action, words = WRONG[name]
    with pytest.raises(OptionError, match=words):
        action()
