"""Trains a small ResNet, ConvNeXt and Swin on scenes, and measures where their maps put relevance.

python -m benchmarks.hierarchical                    four minutes of training each
python -m benchmarks.hierarchical --model ResNet     one of them
python -m benchmarks.hierarchical --output FOLDER    writes the table and pictures, too

On a busy machine, OMP_NUM_THREADS=1 makes more steps of the same minutes.
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
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, binary_cross_entropy_with_logits
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
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

SIZE, BATCH, GRID, DIFFICULTY = 96, 32, (24, 24), 0.3
NAMES = (
    *(f"attn-lrp:gamma={gamma}" for gamma in (0, 0.05, 0.25, 1)),
    "input-x-gradient", "token-grad-cam", "random",
)  # fmt: skip
TEST_SEED = 500_000
PLACES = 12  # rows and columns of the objects' places, for training


def main(
    minutes: Annotated[float, typer.Option(help="Training of each model.")] = 4.0,
    scenes: Annotated[int, typer.Option(help="Scenes to train on.")] = 3_000,
    test: Annotated[int, typer.Option(help="Scenes to measure on.")] = 50,
    model: Annotated[str | None, typer.Option(help="ResNet, ConvNeXt or Swin.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for table and pictures.")] = None,
) -> None:
    """Train, measure, print and write."""
    drawn = [draw_scene(seed, SIZE, DIFFICULTY) for seed in range(scenes)]
    pixels = torch.from_numpy(np.stack([np.asarray(scene.image) for scene in drawn]))
    labels = torch.stack([_labels(scene) for scene in drawn])
    places = torch.stack([_places(scene) for scene in drawn])
    held_out = [draw_scene(TEST_SEED + number, SIZE, DIFFICULTY) for number in range(test)]
    lines = [
        "| model | accuracy | method | relevance mass | average precision |",
        "|---|---|---|---|---|",
    ]
    for network in _models():
        if model not in (None, _name(network)):
            continue
        steps = _train(network, pixels, labels, places, 60 * minutes)
        rows = _measured(network, held_out, steps, output)
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
    yield ResNetForImageClassification(
        ResNetConfig(
            embedding_size=24, hidden_sizes=[32, 48, 96], depths=[1, 1, 1], layer_type="basic",
            **settings,
        )
    )  # fmt: skip
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


def _train(
    model: PreTrainedModel, pixels: Tensor, labels: Tensor, places: Tensor, seconds: float
) -> int:
    """Train for some seconds with a falling rate; return the number of steps.

    Small heads on the inner feature maps learn the places of the objects, which takes fewer steps
    than the classes of the image alone. They are not part of the model.
    """
    heads = nn.ModuleList()
    for features in _features(model, pixels[:1]):
        heads.append(nn.Conv2d(features.shape[1], len(CLASSES), 1))
    optimizer = torch.optim.AdamW([*model.parameters(), *heads.parameters()], weight_decay=0.02)
    generator = torch.Generator().manual_seed(0)
    few_places = torch.tensor(5.0)  # most places have no object
    start, steps = time.monotonic(), 0
    while (passed := (time.monotonic() - start) / seconds) < 1:
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1, (steps + 1) / 60) * (1 - passed)
        index = torch.randint(len(pixels), (BATCH,), generator=generator)
        result = model.train()(_prepared(pixels[index]), output_hidden_states=True)
        loss = binary_cross_entropy_with_logits(result.logits, labels[index])
        for head, features in zip(heads, _inner(result), strict=True):
            where = adaptive_avg_pool2d(places[index], features.shape[-1]) > 0.25
            loss += binary_cross_entropy_with_logits(
                head(features), where.float(), pos_weight=few_places
            )
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
    model.eval()
    return steps


def _features(model: PreTrainedModel, pixels: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return _inner(model.eval()(_prepared(pixels), output_hidden_states=True))


def _inner(result: Any) -> list[Tensor]:
    """Return the feature maps (images, channels, rows, columns) of 12 x 12 and 6 x 6 places."""
    maps = getattr(result, "reshaped_hidden_states", None) or result.hidden_states
    last = {features.shape[-1]: features for features in maps}  # after all layers of a size
    return [last[PLACES], last[PLACES // 2]]


def _measured(
    model: PreTrainedModel, scenes: list[Scene], steps: int, output: Path | None
) -> list[str]:
    """Return the rows of a model, of the objects that it recognises."""
    hits, maps, covers = [], {name: [] for name in NAMES}, []  # type: ignore[var-annotated]
    specs = {name: METHODS.parse(name) for name in NAMES}
    methods = {
        name: METHODS.build(method, model, grid=GRID, **options)
        for name, (method, options) in specs.items()
    }
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
        of_gamma = f", gamma {name.partition('=')[2]}" if "=" in name else ""
        rows.append(
            f"| {_name(model)}, {steps} steps | {np.mean(hits):.3f} | "
            f"{METHODS[specs[name][0]].title}{of_gamma} | {mass} | {precision} |"
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
    return type(model).__name__.removesuffix("ForImageClassification").replace("Next", "NeXt")


def _prepared(pixels: Tensor) -> Tensor:
    """Return bytes (B, height, width, 3) as pixel values from -1 to 1."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def _places(scene: Scene) -> Tensor:
    """Return the share of each place that an object of each class covers."""
    places = torch.zeros(len(CLASSES), PLACES, PLACES)
    for index, mask in zip(scene.classes, scene.masks, strict=True):
        area = torch.as_tensor(mask)[None].float()
        places[index] = cell_sums(area, (PLACES, PLACES))[0] / (SIZE // PLACES) ** 2
    return places


def _labels(scene: Scene) -> Tensor:
    labels = torch.zeros(len(CLASSES))
    labels[list(scene.classes)] = 1
    return labels


if __name__ == "__main__":
    typer.run(main)
