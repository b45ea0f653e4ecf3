"""Trains a small ConvNeXt and a small Swin on scenes, and measures where their maps put relevance.

python -m benchmarks.hierarchical                    five minutes of training each
python -m benchmarks.hierarchical --output FOLDER    writes the table and pictures, too
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    PreTrainedModel,
    SwinConfig,
    SwinForImageClassification,
)

from hf_gmar import AttributionMethod
from hf_gmar._core.cell_layout import cell_sums
from hf_gmar._utils.files import whole_file
from hf_gmar._utils.stats import bootstrap
from hf_gmar.data import CLASSES, Scene, draw_scene
from hf_gmar.methods import METHODS
from hf_gmar.metrics.inputs import LocalizationInput
from hf_gmar.metrics.localization import AveragePrecision, RelevanceMass
from hf_gmar.visualization import overlay_image

SIZE, BATCH, GRID = 96, 64, (24, 24)
NAMES = ("attn-lrp", "input-x-gradient", "token-grad-cam", "random")
TEST_SEED = 500_000


def main(
    minutes: Annotated[float, typer.Option(help="Training of each model.")] = 5.0,
    scenes: Annotated[int, typer.Option(help="Scenes to train on.")] = 8_000,
    test: Annotated[int, typer.Option(help="Scenes to measure on.")] = 200,
    output: Annotated[Path | None, typer.Option(help="Folder for table and pictures.")] = None,
) -> None:
    """Train, measure, print and write."""
    drawn = [draw_scene(seed, SIZE, 0.5) for seed in range(scenes)]
    pixels = torch.from_numpy(np.stack([np.asarray(scene.image) for scene in drawn]))
    labels = torch.stack([_labels(scene) for scene in drawn])
    held_out = [draw_scene(TEST_SEED + number, SIZE, 0.5) for number in range(test)]
    lines = [
        "| model | accuracy | method | relevance mass | average precision |",
        "|---|---|---|---|---|",
    ]
    for model in _models():
        steps = _train(model, pixels, labels, 60 * minutes)
        rows = _measured(model, held_out, steps, output)
        print(*rows, sep="\n", flush=True)
        lines += rows
        if output is not None:
            with whole_file(output / "hierarchical.md") as part:
                part.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _models() -> Iterator[PreTrainedModel]:
    settings: dict[str, Any] = {
        "problem_type": "multi_label_classification",
        "id2label": dict(enumerate(CLASSES)),
    }
    torch.manual_seed(0)
    yield ConvNextForImageClassification(
        ConvNextConfig(
            hidden_sizes=[32, 64, 96, 128], depths=[1, 1, 2, 1], layer_scale_init_value=1.0,
            drop_path_rate=0.0, **settings,
        )
    )  # fmt: skip
    torch.manual_seed(0)
    yield SwinForImageClassification(
        SwinConfig(
            image_size=SIZE, embed_dim=32, depths=[2, 2, 2], num_heads=[2, 4, 4], window_size=6,
            drop_path_rate=0.0, **settings,
        )
    )  # fmt: skip


def _train(model: PreTrainedModel, pixels: Tensor, labels: Tensor, seconds: float) -> int:
    """Train for some seconds with a falling rate; return the number of steps."""
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.02)
    generator = torch.Generator().manual_seed(0)
    start, steps = time.monotonic(), 0
    while (passed := (time.monotonic() - start) / seconds) < 1:
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1, steps / 100) * (1 - passed)
        index = torch.randint(len(pixels), (BATCH,), generator=generator)
        images = _prepared(pixels[index])
        turns = int(torch.randint(4, (), generator=generator))
        scores = model.train()(images.rot90(turns, (2, 3))).logits
        binary_cross_entropy_with_logits(scores, labels[index]).backward()
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
    model.eval()
    return steps


def _measured(
    model: PreTrainedModel, scenes: list[Scene], steps: int, output: Path | None
) -> list[str]:
    """Return the rows of a model, of the objects that it recognises."""
    hits, maps, covers = [], {name: [] for name in NAMES}, []  # type: ignore[var-annotated]
    methods = {name: METHODS.build(name, model, grid=GRID) for name in NAMES}
    for number, scene in enumerate(scenes):
        images = _prepared(torch.from_numpy(np.array(scene.image))[None])
        with torch.no_grad():
            scores = model(images).logits[0]
        hits.append(((scores > 0) == (_labels(scene) > 0)).float().mean().item())
        for target, mask in zip(scene.classes, scene.masks, strict=True):
            if scores[target] <= 0:
                continue
            area = torch.as_tensor(mask)[None].double()
            covers.append(cell_sums(area, GRID) / (SIZE // GRID[0]) ** 2)
            for name, method in methods.items():
                maps[name].append(method.attribute_patches(images, target).double())
        if output is not None and number < 3:
            _draw(methods, scene, images, output / f"{_name(model)}-{number}.png")
    if not covers:
        return [f"| {_name(model)}, {steps} steps | {np.mean(hits):.3f} | nothing recognised | | |"]
    rows = []
    for name in NAMES:
        measured = LocalizationInput(torch.cat(maps[name]), torch.cat(covers))
        mass, precision = (
            bootstrap(metric.values(measured).numpy())
            for metric in (RelevanceMass(), AveragePrecision())
        )
        rows.append(
            f"| {_name(model)}, {steps} steps | {np.mean(hits):.3f} | {METHODS[name].title} | "
            f"{mass} | {precision} |"
        )
    share = torch.cat(covers).mean().item()
    return [*rows, f"| {_name(model)} | | area of the objects ({len(covers)}) | {share:.3f} | |"]


def _draw(methods: dict[str, AttributionMethod], scene: Scene, images: Tensor, path: Path) -> None:
    """Draw a scene, and its first object's map by each method."""
    path.parent.mkdir(parents=True, exist_ok=True)
    side = 2 * SIZE
    picture = Image.new("RGB", (side * (1 + len(methods)), side))
    picture.paste(scene.image.resize((side, side)), (0, 0))
    for place, method in enumerate(methods.values(), 1):
        cells = method.attribute_patches(images, scene.classes[0])[0]
        patches = cells.repeat_interleave(side // GRID[0], 0).repeat_interleave(side // GRID[1], 1)
        drawn = overlay_image(scene.image.resize((side, side)), patches)
        picture.paste(drawn.resize((side, side)), (side * place, 0))
    picture.save(path)


def _name(model: PreTrainedModel) -> str:
    return type(model).__name__.removesuffix("ForImageClassification")


def _prepared(pixels: Tensor) -> Tensor:
    """Return bytes (B, height, width, 3) as pixel values from -1 to 1."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def _labels(scene: Scene) -> Tensor:
    labels = torch.zeros(len(CLASSES))
    labels[list(scene.classes)] = 1
    return labels


if __name__ == "__main__":
    typer.run(main)
