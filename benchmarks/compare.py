"""How the methods compare on a few images: time, memory, and how alike their maps are.

    python -m benchmarks.compare
    python -m benchmarks.compare --model PATH --images PHOTO --images PHOTO --output FOLDER

Run it from the root of the repository. Times are ratios to one plain forward of the same images in
the same run, so a quiet machine is needed for figures that hold; maps, memory and correlations
are the same each time. Without images, three drawn scenes are taken.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image
from rich.console import Console

from hf_gmar import Comparison, LogitsModel, compare, load_model
from hf_gmar.comparison import CAPTUM, MethodSpec
from hf_gmar.comparison.method_specs import MethodLike, captum_specs
from hf_gmar.data import draw_scene, open_image
from hf_gmar.methods import METHODS
from hf_gmar.models import LoadedModel

SEEDS = (18, 3, 7)
SLOW = frozenset({"DeepLiftShap", "FeatureAblation", "KernelShap", "Lime", "ShapleyValueSampling"})
"""Left out unless they are named: the same map as another's, or minutes."""


def read(images: list[Path] | None) -> dict[str, Image.Image]:
    """The images by name."""
    if images:
        return {path.name: open_image(path) for path in images}
    return {f"scene {seed}": draw_scene(seed).image for seed in SEEDS}


def run(loaded: LoadedModel, images: dict[str, Image.Image], captum: list[str]) -> Comparison:
    """All methods of the registry, and Captum's of these names."""
    pixels = [
        loaded.processor(images=image, return_tensors="pt").pixel_values
        for image in images.values()
    ]
    columns: list[MethodLike] = [MethodSpec(name) for name in METHODS]
    columns += captum_specs(captum, LogitsModel(loaded.model))
    batch = torch.cat(pixels).to(loaded.model.device)
    console = Console(stderr=True)
    found = compare(loaded.model, batch, columns, names=list(images), progress=console.print)
    settings = {
        **found.settings,
        "model": Path(loaded.name).name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    return replace(found, settings=settings)


def main(
    model: Annotated[str, typer.Option(help="'bundled', a folder or a model on the Hub.")] = (
        "bundled"
    ),
    images: Annotated[list[Path] | None, typer.Option(help="Photos; say it for each.")] = None,
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
    found = run(load_model(model, device), read(images), names)
    found.save(output)
    print(found.table())


if __name__ == "__main__":
    typer.run(main)
