"""Maps finer than a patch, from the model to the picture and the files."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from hf_gmar import (
    GMAR,
    AttnLRP,
    Comparison,
    Explainer,
    LogitsModel,
    compare,
    quantus_explain,
    save_report,
)
from hf_gmar._core.cell_layout import window_means
from hf_gmar.data import draw_scene
from hf_gmar.explanation import Explanation
from hf_gmar.explanations import Explanations
from hf_gmar.methods import METHODS
from hf_gmar.models import LoadedModel
from hf_gmar.visualization.overlay import overlay_image
from tests.support.figures import drawn_texts

CASES = {
    "gmar-2": ("gmar", 2, "share of relevance per patch, mean of 4 shifts"),
    "attn-lrp-2": ("attn-lrp", 2, "relevance per cell, 2 x 2 in a patch"),
    "attn-lrp-pixel": ("attn-lrp", "pixel", "relevance per pixel, mean of a patch around each"),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Any:
    return CASES[request.param]


@pytest.fixture(scope="module")
def result(case: Any, tiny: LoadedModel) -> Any:
    image = draw_scene(3).image.resize((120, 96))
    return Explainer(tiny, case[0], resolution=case[1])(image, 3)


def test_the_numbers_are_those_of_the_method(
    case: Any, result: Explanation, tiny: LoadedModel
) -> None:
    pixels = tiny.pixels(result.image)
    method = METHODS.build(case[0], tiny.model, resolution=case[1])
    of_pixels = method.attribute(pixels, 3)[0]
    of_pixels = of_pixels.sum(0) if case[1] == "pixel" else of_pixels[0]
    heatmap = torch.from_numpy(result.heatmap)
    assert heatmap.shape == (96, 120)
    assert torch.allclose(heatmap, result.view.project(of_pixels), equal_nan=True, atol=1e-6)
    patches = METHODS.build(case[0], tiny.model, resolution=case[1]).attribute_patches(pixels, 3)
    assert torch.allclose(result.patches, patches[0], atol=1e-6)
    assert result.fine_map is not None
    assert result.fine_map.numel() > result.patches.numel()


def test_the_picture_shows_the_finer_map(case: Any, result: Explanation) -> None:
    assert result.fine_map is not None
    drawn = result.fine_map
    if case[1] == "pixel":
        drawn = window_means(drawn, (result.patches.shape[0], result.patches.shape[1]))
        assert not torch.allclose(drawn, result.fine_map)
    heatmap = result.view.project(drawn, smooth=True)
    assert result.overlay().tobytes() == overlay_image(result.image, heatmap).tobytes()
    figure = result.figure()
    (shown,) = figure.axes[1].images[-1:]
    assert np.allclose(np.asarray(shown.get_array()), drawn)
    words = " ".join(figure.axes[2].get_ylabel().split())
    assert words.startswith(case[2])
    assert all(name in words for name in case[2].split())


def report(result: Explanation) -> str:
    with tempfile.TemporaryDirectory() as folder:
        return save_report([result], Path(folder, "a.html"), check=False).read_text("utf-8")


DRAWN: dict[str, Callable[[Explanation], object]] = {
    "picture": lambda result: result.picture().tobytes(),
    "grid": lambda result: Explanations([result]).picture().tobytes(),
    "pictures of the report": lambda result: re.findall(r"<img[^>]*>", report(result)),
    "numbers of the report": lambda result: re.findall(r"<span>.*</span>", report(result)),
}


@pytest.mark.parametrize("name", DRAWN)
def test_only_the_finer_map_is_drawn(name: str, result: Explanation) -> None:
    draw, other = DRAWN[name], torch.rand_like(result.patches) * 100
    assert result.fine_map is not None
    before = draw(result)
    assert draw(replace(result, patches=other)) == before
    assert draw(replace(result, fine_map=torch.rand_like(result.fine_map))) != before


def test_saved_and_loaded(result: Explanation, tmp_path: Path) -> None:
    (picture, archive) = result.save(tmp_path / result.file_name("a"))
    resolution = result.settings["resolution"]
    assert ("pixels" if resolution == "pixel" else f"resolution={resolution}") in picture.name
    again = Explanation.load(archive)
    assert torch.equal(again.patches, result.patches)
    assert again.fine_map is not None
    assert result.fine_map is not None
    assert torch.equal(again.fine_map, result.fine_map)
    assert torch.equal(again.drawn_map, result.drawn_map)
    assert again.per == result.per


def test_grids_and_reports_say_what_has_a_value(tiny: LoadedModel, tmp_path: Path) -> None:
    image = draw_scene(3).image
    results = Explainer(tiny, ["gmar", "attn-lrp"], resolution=2)(image, [3])
    coarse = Explainer(tiny, ["gmar", "attn-lrp"])(image, [3])
    assert results.picture().tobytes() != coarse.picture().tobytes()
    assert results.picture().height > coarse.picture().height  # by a line of text
    page = tmp_path / "page.html"
    save_report([results], page, check=False)
    text = page.read_text(encoding="utf-8")
    assert "share of relevance, per patch, mean of 4 shifts" in text
    assert "relevance, per cell, 2 x 2 in a patch" in text
    assert "resolution" not in coarse[0].caption
    texts = [drawn.get_text() for drawn in drawn_texts(coarse[0].figure())]
    assert any("per patch" in " ".join(line.split()) for line in texts)


@pytest.mark.parametrize("resolution", [2, "pixel"])
def test_the_pipeline(tiny: LoadedModel, resolution: Any) -> None:
    pipeline: Any = transformers.pipeline  # its types know no other tasks than its own
    explain = pipeline(
        "image-attribution", model=tiny.model, image_processor=tiny.processor, method="attn-lrp"
    )
    images = [draw_scene(seed).image.resize((96, 80)) for seed in range(3)]
    batch = explain(images, resolution=resolution, overlay=True, top_k=2, batch_size=2)
    explainer = Explainer(tiny, "attn-lrp", resolution=resolution)
    for image, found in zip(images, batch, strict=True):
        for each, expected in zip(found, explainer(image, top_k=2), strict=True):
            assert each["label"] == expected.label
            assert torch.allclose(
                each["attribution"], torch.from_numpy(expected.heatmap), atol=1e-5, equal_nan=True
            )
            pair = np.asarray(each["overlay"], int), np.asarray(expected.overlay(), int)
            assert np.abs(pair[0] - pair[1]).max() <= 2


def test_a_comparison_draws_the_finer_maps(tiny: LoadedModel) -> None:
    image = draw_scene(3).image
    seen: list[Comparison] = []
    specs = ["gmar", "gmar:resolution=2", "attn-lrp:resolution=pixel"]
    result = compare(tiny, [image], specs, 3, measure=False, finished=seen.append)
    names = ["gmar (resolution=2)", "attn-lrp (resolution=pixel)"]
    assert [list(part.fine_maps) for part in seen] == [[], names[:1], names]
    figure = result.figure()
    shown = [axes.images[-1].get_array() for axes in figure.axes if len(axes.images) == 2]
    expected = [
        Explainer(tiny, method, resolution=resolution)(image, 3)
        for method, resolution in (("gmar", "patch"), ("gmar", 2), ("attn-lrp", "pixel"))
    ]
    for array, patches, each in zip(shown, result.maps.values(), expected, strict=True):
        scaled = each.drawn_map / each.drawn_map.abs().max()
        assert np.allclose(np.asarray(array), scaled, atol=1e-5)
        assert torch.allclose(patches[0], each.patches, atol=1e-6)


def test_a_comparison_keeps_the_finer_maps(tiny: LoadedModel, tmp_path: Path) -> None:
    """In its archive, too, by the place of the method; relevance of pixels is not averaged."""
    images = [draw_scene(seed).image for seed in (3, 4)]
    fine: Any = AttnLRP(tiny.model, resolution="pixel")
    specs: Any = {"gmar": "gmar", "2": "gmar:resolution=2", "mine": fine}
    result = compare(tiny, images, specs, 3, measure=False)
    pixels = torch.cat([tiny.pixels(image) for image in images])
    expected = {
        "2": GMAR(tiny.model, resolution=2).attribute_with_scores(pixels, [3]),
        "mine": fine.attribute_with_scores(pixels, [3]),
    }
    with np.load(result.save_maps(tmp_path)) as stored:
        assert [name for name in stored.files if "fine" in name] == ["fine_maps_1", "fine_maps_2"]
        for number, label in enumerate(stored["methods"].tolist()):
            if label not in expected:
                continue
            theirs: Any = expected[label].fine_maps
            assert np.allclose(stored[f"fine_maps_{number}"], theirs[0], atol=1e-6)
            assert np.allclose(stored["maps"][number], expected[label].maps[0], atol=1e-6)
            assert torch.equal(
                torch.from_numpy(stored[f"fine_maps_{number}"]), result.fine_maps[label]
            )
        settings = json.loads(str(stored["settings"]))
    assert settings["resolution"] == {"2": 2, "mine": "pixel"}


def test_quantus_gets_the_finer_maps(tiny: LoadedModel) -> None:
    """Its attributions have one channel; the relevance of pixels is summed over theirs."""
    model, pixels = LogitsModel(tiny.model), tiny.pixels(draw_scene(3).image)
    for method, resolution in (("attn-lrp", "pixel"), ("attn-lrp", 2), ("gmar", 2)):
        found = quantus_explain(model, pixels.numpy(), [3], method=method, resolution=resolution)
        built: Any = METHODS.build(method, tiny.model, resolution=resolution)
        fine = built.attribute_with_scores(pixels, [3]).fine_maps[0]
        side = pixels.shape[2] // fine.shape[1]
        spread = fine.repeat_interleave(side, 1).repeat_interleave(side, 2)
        assert np.allclose(found[:, 0], spread, atol=1e-6)
