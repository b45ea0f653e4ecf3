"""Compares all methods on a few images: time, memory, and rank correlation of the maps.

    python -m benchmarks.compare
    python -m benchmarks.compare --model PATH --images PHOTO --images PHOTO --output FOLDER

Run it from the root of the repository. Times are multiples of a plain forward of the same images in
the same run, so they need a quiet machine. Maps, memory and correlations are reproducible. The
default images are three synthetic scenes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image
from rich.console import Console

from hf_gmar import Comparison, compare, load_model
from hf_gmar.comparison import CAPTUM
from hf_gmar.comparison.method_specs import MethodLike, as_method_specs
from hf_gmar.data import draw_scene, open_image
from hf_gmar.models import LoadedModel

SEEDS = (18, 3, 7)
SLOW = frozenset({"DeepLiftShap", "FeatureAblation", "KernelShap", "Lime", "ShapleyValueSampling"})
"""Methods left out by default, because they take minutes or give the same map as another one."""


def read(images: list[Path] | None) -> dict[str, Image.Image]:
    """Read the images, by name."""
    if images:
        return {path.name: open_image(path) for path in images}
    return {f"scene {seed}": draw_scene(seed).image for seed in SEEDS}


def run(loaded: LoadedModel, images: dict[str, Image.Image], captum: list[str]) -> Comparison:
    """Compare all methods of the registry and the named methods of Captum."""
    pixels = [
        loaded.processor(images=image, return_tensors="pt").pixel_values
        for image in images.values()
    ]
    specs: list[MethodLike] = [*as_method_specs(None), *captum]
    batch = torch.cat(pixels).to(loaded.model.device)
    console = Console(stderr=True)
    result = compare(loaded.model, batch, specs, names=list(images), progress=console.print)
    settings = {
        **result.settings,
        "model": Path(loaded.name).name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    return replace(result, settings=settings)


def main(
    model: Annotated[str, typer.Option(help="'bundled', a folder or a model on the Hub.")] = (
        "bundled"
    ),
    images: Annotated[list[Path] | None, typer.Option(help="A photo; may be repeated.")] = None,
    captum: Annotated[list[str] | None, typer.Option(help="Captum's methods.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for figure, table and maps.")] = Path(
        "explanations/compare"
    ),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
) -> None:
    """Compare, print the table, and write everything to OUTPUT."""
    if threads is not None:
        torch.set_num_threads(threads)
    names = captum or [name for name in CAPTUM if name not in SLOW]
    result = run(load_model(model, device), read(images), names)
    result.save(output)
    print(result.table())


if __name__ == "__main__":
    typer.run(main)
