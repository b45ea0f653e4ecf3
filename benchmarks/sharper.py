"""Compares maps that are finer than a patch, on scenes with exact masks.

python -m benchmarks.sharper                  on the bundled model, prints a table
python -m benchmarks.sharper --output FOLDER  writes it as sharper.md, too
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor
from torch.nn import functional

from hf_gmar import AttributionMethod, load_model
from hf_gmar._utils.files import whole_file
from hf_gmar._utils.stats import bootstrap
from hf_gmar.data import draw_scene
from hf_gmar.methods import METHODS
from hf_gmar.metrics.inputs import LocalizationInput
from hf_gmar.metrics.localization import AveragePrecision, RelevanceMass

NAMES = ("gmar", "legrad", "input-x-gradient", "attn-lrp")
SHIFTS = 3


def main(
    scenes: Annotated[int, typer.Option(help="Number of scenes.")] = 100,
    output: Annotated[Path | None, typer.Option(help="Folder for the table.")] = None,
) -> None:
    """Measure, print and write."""
    loaded = load_model("bundled")
    maps: dict[tuple[str, str], list[Tensor]] = {}
    covers = []
    for seed in range(scenes):
        scene = draw_scene(seed)
        pixels, target = loaded.pixels(scene.image), scene.classes[0]
        covers.append(torch.as_tensor(scene.masks[0])[None].double())
        for name in NAMES:
            for way, values in _ways(name, loaded.model, pixels, target).items():
                maps.setdefault((name, way), []).append(values.double())
    lines = ["| method | map | relevance mass | average precision |", "|---|---|---|---|"]
    for (name, way), parts in maps.items():
        measured = LocalizationInput(torch.cat(parts), torch.cat(covers))
        mass, precision = (
            bootstrap(metric.values(measured).numpy())
            for metric in (RelevanceMass(), AveragePrecision())
        )
        lines.append(f"| {METHODS[name].title} | {way} | {mass} | {precision} |")
    share = torch.cat(covers).mean().item()
    table = "\n".join(lines) + f"\n\n{scenes} scenes; the object has {share:.3f} of the image.\n"
    print(table)
    if output is not None:
        with whole_file(output / "sharper.md") as part:
            part.write_text(table, encoding="utf-8")


def _ways(name: str, model: torch.nn.Module, pixels: Tensor, target: int) -> dict[str, Tensor]:
    """Return maps (1, height, width) of one class, by what makes them as fine as pixels."""
    method = METHODS.build(name, model)
    patches = method.attribute_patches(pixels, target)
    size = (pixels.shape[2], pixels.shape[3])
    ways = {
        "patches": functional.interpolate(patches[:, None], size)[:, 0],
        "patches, bilinear": functional.interpolate(patches[:, None], size, mode="bilinear")[:, 0],
        f"patches, {SHIFTS**2} shifts": _shifted(method, pixels, target),
    }
    if "resolution" in METHODS.options(name):
        fine = METHODS.build(name, model, resolution="pixel").attribute(pixels, target).sum(1)
        side = pixels.shape[3] // patches.shape[2] // 2 * 2 + 1
        ways["pixels"] = fine
        ways["pixels, mean of a patch around each"] = functional.avg_pool2d(
            fine[:, None], side, 1, side // 2
        )[:, 0]
    return ways


def _shifted(method: AttributionMethod, pixels: Tensor, target: int) -> Tensor:
    """Average the maps of the image shifted by parts of a patch, each shifted back."""
    total = torch.zeros(1, *pixels.shape[2:])
    patch = pixels.shape[3] // method.attribute_patches(pixels, target).shape[2]
    steps = [step * patch // SHIFTS for step in range(SHIFTS)]
    around = functional.pad(pixels, (patch, patch, patch, patch), "replicate")
    height, width = pixels.shape[2:]
    for down in steps:
        for across in steps:
            part = around[..., patch - down :, patch - across :][..., :height, :width]
            spread = functional.interpolate(
                method.attribute_patches(part, target)[:, None], (height, width)
            )[:, 0]
            padded = functional.pad(spread[None], (0, patch, 0, patch), "replicate")[0]
            total += padded[:, down : down + height, across : across + width]
    return total / SHIFTS**2


if __name__ == "__main__":
    typer.run(main)
