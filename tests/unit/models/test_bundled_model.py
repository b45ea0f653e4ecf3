"""The bundled model does what its card says, on scenes that it was not trained on."""

from __future__ import annotations

import re

import pytest
import torch
from PIL import Image

from hf_gmar import GMAR
from hf_gmar.data import CLASSES, Scene, draw_scene, grey_out
from hf_gmar.models import LoadedModel, bundled_folder, label_of

SEEDS = range(500_000, 500_200)  # not those of the figures in the card


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(seed) for seed in SEEDS]


def _pixels(loaded: LoadedModel, images: list[Image.Image]) -> torch.Tensor:
    pixels: torch.Tensor = loaded.processor(images=images, return_tensors="pt").pixel_values
    return pixels


@torch.inference_mode()
def _chances(loaded: LoadedModel, images: list[Image.Image]) -> torch.Tensor:
    chances: torch.Tensor = loaded.model(_pixels(loaded, images)).logits.sigmoid()
    return chances


@pytest.fixture(scope="module")
def chances(bundled: LoadedModel, scenes: list[Scene]) -> torch.Tensor:
    """Of every class, for each scene."""
    return _chances(bundled, [scene.image for scene in scenes])


def _present(scenes: list[Scene]) -> torch.Tensor:
    kinds = range(len(CLASSES))
    return torch.tensor([[kind in scene.classes for kind in kinds] for scene in scenes])


def test_objects_found_and_false_alarms(chances: torch.Tensor, scenes: list[Scene]) -> None:
    said = chances > 0.5
    present = _present(scenes)
    assert said[present].float().mean() >= 0.95
    assert said[~present].float().mean() <= 0.05


def test_a_greyed_out_object_loses_its_class(
    bundled: LoadedModel, chances: torch.Tensor, scenes: list[Scene]
) -> None:
    own = [scene.classes[0] for scene in scenes[:100]]
    rows = torch.arange(len(own))
    before = chances[rows, own]
    greyed = [grey_out(scene.image, scene.masks[0]) for scene in scenes[:100]]
    after = _chances(bundled, greyed)[rows, own]
    found = before > 0.5
    assert (after[found] <= 0.5).float().mean() >= 0.95
    assert after[found].mean() < 0.1 * before[found].mean()


def test_heat_finds_the_explained_object(bundled: LoadedModel, scenes: list[Scene]) -> None:
    """More heat in the object's mask than heat spread evenly would put there."""
    patch, few = bundled.model.config.patch_size, scenes[:40]
    pixels = _pixels(bundled, [scene.image for scene in few])
    heats = GMAR(bundled.model).attribute_patches(pixels, [scene.classes[0] for scene in few])
    inside, even = [], []
    for scene, heat in zip(few, heats, strict=True):
        mask = torch.from_numpy(scene.masks[0]).float()[None]
        covered = torch.nn.functional.avg_pool2d(mask, patch)[0]
        inside.append((heat * covered).sum() / heat.sum())
        even.append(covered.mean())
    assert torch.stack(inside).mean() > 1.5 * torch.stack(even).mean()


def test_labels_and_problem_type(bundled: LoadedModel) -> None:
    config = bundled.model.config
    assert config.problem_type == "multi_label_classification"
    assert [label_of(config, index) for index in range(len(CLASSES))] == list(CLASSES)


def test_it_is_small_and_complete() -> None:
    names = {path.name for path in bundled_folder().iterdir()}
    assert {
        "config.json", "model.safetensors", "preprocessor_config.json", "README.md",
        "training_log.jsonl",
    } <= names  # fmt: skip
    assert sum(path.stat().st_size for path in bundled_folder().iterdir()) <= 8 * 2**20


def test_the_cards_figures_hold_on_other_scenes(chances: torch.Tensor, scenes: list[Scene]) -> None:
    card = (bundled_folder() / "README.md").read_text()
    stated = [
        float(re.findall(rf"\| {name} \| (\d+\.\d) %", card)[0])
        for name in ("objects found", "false alarms, among absent classes")
    ]
    said = chances > 0.5
    present = _present(scenes)
    found, alarms = (100 * said[here].float().mean().item() for here in (present, ~present))
    assert [found, alarms] == pytest.approx(stated, abs=1.0)
