"""The figures of the bundled model on fresh scenes.

    python examples/measure_bundled_model.py --scenes 2000

Seeds below a million are never trained on. An object counts as found where its class has a
probability over one half. Greying out covers the object's mask and two pixels around it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image
from torch import Tensor
from torch.nn import functional

from hf_gmar.data import CLASSES, Scene, draw_scene, grey_out
from hf_gmar.models import LoadedModel, load_model


@torch.inference_mode()
def chances(loaded: LoadedModel, images: list[Image.Image]) -> Tensor:
    """Probability of each class in each image, (images, classes)."""
    pixels = loaded.processor(images=images, return_tensors="pt").pixel_values
    return torch.cat([loaded.model(part).logits.sigmoid() for part in pixels.split(250)])


def share(hits: Tensor) -> float | None:
    """How many of them are true; ``None`` of nothing."""
    return hits.float().mean().item() if hits.numel() else None


def detection(loaded: LoadedModel, scenes: list[Scene]) -> dict[str, float | None]:
    """Objects found, and false alarms among the classes that are absent."""
    said = chances(loaded, [scene.image for scene in scenes]) > 0.5
    present = torch.zeros_like(said)
    for row, scene in enumerate(scenes):
        present[row, list(scene.classes)] = True
    by_class = {
        f"found_{name}": share(said[present[:, index], index]) for index, name in enumerate(CLASSES)
    }
    return {
        "objects_found": share(said[present]),
        "false_alarms": share(said[~present]),
        "scenes_all_right": share((said == present).all(dim=1)),
        **by_class,
    }


def greying(loaded: LoadedModel, scenes: list[Scene]) -> dict[str, float | None]:
    """What happens to a found object's class, and to the others, when it is greyed out."""
    jobs = [(scene, number) for scene in scenes for number in range(len(scene.classes))]
    own = functional.one_hot(
        torch.tensor([scene.classes[number] for scene, number in jobs]), len(CLASSES)
    ).bool()
    before = chances(loaded, [scene.image for scene, _ in jobs])
    after = chances(loaded, [grey_out(scene.image, scene.masks[n]) for scene, n in jobs])
    present = torch.zeros_like(own)
    for row, (scene, _) in enumerate(jobs):
        present[row, list(scene.classes)] = True
    found = present & (before > 0.5)
    return {
        "probability_before": share(before[found & own]),
        "probability_greyed_out": share(after[found & own]),
        "class_removed": share(after[found & own] <= 0.5),
        "other_objects_still_found": share(after[found & ~own] > 0.5),
    }


def main(
    scenes: Annotated[int, typer.Option(min=1, help="How many fresh scenes.")] = 2000,
    model: Annotated[str, typer.Option(help="'bundled' or a folder.")] = "bundled",
    output: Annotated[Path | None, typer.Option(help="Also write the figures as JSON.")] = None,
) -> None:
    """Print the figures as JSON."""
    loaded = load_model(model)
    drawn = [draw_scene(seed) for seed in range(scenes)]
    figures = {"scenes": scenes, **detection(loaded, drawn), **greying(loaded, drawn[:500])}
    text = json.dumps(figures, indent=2)
    typer.echo(text)
    if output is not None:
        output.write_text(text + "\n")


if __name__ == "__main__":
    typer.run(main)
