"""Measure the accuracy of the bundled model on new scenes.

    python examples/measure_bundled_model.py --scenes 2000

Training never uses seeds below a million. An object counts as found if the probability of its
class is over one half. Greying out covers the object's mask and two pixels around it.
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
def probabilities(loaded: LoadedModel, images: list[Image.Image]) -> Tensor:
    """Compute the probability of each class in each image, (images, classes)."""
    pixels = loaded.processor(images=images, return_tensors="pt").pixel_values
    return torch.cat([loaded.model(part).logits.sigmoid() for part in pixels.split(250)])


def share(hits: Tensor) -> float | None:
    """Compute the share of true values; ``None`` for an empty tensor."""
    return hits.float().mean().item() if hits.numel() else None


def detection(loaded: LoadedModel, scenes: list[Scene]) -> dict[str, float | None]:
    """Measure the shares of objects found and of false alarms among absent classes."""
    predicted = probabilities(loaded, [scene.image for scene in scenes]) > 0.5
    present = torch.zeros_like(predicted)
    for row, scene in enumerate(scenes):
        present[row, list(scene.classes)] = True
    by_class = {
        f"found_{name}": share(predicted[present[:, i], i]) for i, name in enumerate(CLASSES)
    }
    return {
        "objects_found": share(predicted[present]),
        "false_alarms": share(predicted[~present]),
        "scenes_all_right": share((predicted == present).all(dim=1)),
        **by_class,
    }


def greying(loaded: LoadedModel, scenes: list[Scene]) -> dict[str, float | None]:
    """Measure the effect of greying out an object on its own class and on other objects."""
    jobs = [(scene, number) for scene in scenes for number in range(len(scene.classes))]
    target = functional.one_hot(
        torch.tensor([scene.classes[number] for scene, number in jobs]), len(CLASSES)
    ).bool()
    before = probabilities(loaded, [scene.image for scene, _ in jobs])
    after = probabilities(loaded, [grey_out(scene.image, scene.masks[n]) for scene, n in jobs])
    present = torch.zeros_like(target)
    for row, (scene, _) in enumerate(jobs):
        present[row, list(scene.classes)] = True
    detected = present & (before > 0.5)
    return {
        "probability_before": share(before[detected & target]),
        "probability_greyed_out": share(after[detected & target]),
        "class_removed": share(after[detected & target] <= 0.5),
        "other_objects_still_found": share(after[detected & ~target] > 0.5),
    }


def main(
    scenes: Annotated[int, typer.Option(min=1, help="Number of new scenes.")] = 2000,
    model: Annotated[str, typer.Option(help="'bundled' or a folder.")] = "bundled",
    output: Annotated[Path | None, typer.Option(help="Also write the figures as JSON.")] = None,
) -> None:
    """Print the figures as JSON."""
    loaded = load_model(model)
    samples = [draw_scene(seed) for seed in range(scenes)]
    figures = {"scenes": scenes, **detection(loaded, samples), **greying(loaded, samples[:500])}
    text = json.dumps(figures, indent=2)
    typer.echo(text)
    if output is not None:
        output.write_text(text + "\n")


if __name__ == "__main__":
    typer.run(main)
