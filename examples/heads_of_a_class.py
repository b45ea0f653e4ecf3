"""Which attention heads does the bundled model need to see a heart?

    python examples/heads_of_a_class.py heads

Draw scenes with a heart and measure the importance of each head for that class. Write a figure,
a table of numbers and the maps of all heads on the first scene into the folder.
"""

from __future__ import annotations

from itertools import count, islice
from pathlib import Path
from typing import Annotated

import typer
from matplotlib.figure import Figure

from hf_gmar import HeadImportance, head_importance, head_maps, load_model
from hf_gmar.data import CLASSES, draw_scene
from hf_gmar.visualization import head_maps_figure, save_figure


def measure(name: str, scenes: int) -> tuple[HeadImportance, Figure]:
    """Measure the heads on scenes with this class, and draw their maps on the first scene."""
    loaded, target = load_model("bundled"), CLASSES.index(name)
    suitable = (scene for scene in map(draw_scene, count()) if target in scene.classes)
    images = [scene.image for scene in islice(suitable, scenes)]
    pixels = loaded.processor(images=images, return_tensors="pt").pixel_values
    importance = head_importance(loaded.model, pixels.split(8), target)
    return importance, head_maps_figure(images[0], head_maps(loaded.model, pixels[:1])[0])


def main(
    folder: Annotated[Path, typer.Argument(help="Folder for the files.")] = Path("heads"),
    name: Annotated[str, typer.Option(help="The class.")] = "heart",
    scenes: Annotated[int, typer.Option(min=1, help="How many scenes.")] = 20,
) -> None:
    """Write heads.png, heads.json, heads.npz and maps.png."""
    importance, maps = measure(name, scenes)
    folder.mkdir(parents=True, exist_ok=True)
    files = importance.save(folder)
    save_figure(maps, folder / "maps.png")
    for layer, head in importance.rank()[:3]:
        share = float(importance.mean()[layer, head])
        typer.echo(f"layer {layer}, head {head}: {share:.0%} of its layer's gradient")
    for file in (*files, folder / "maps.png"):
        typer.echo(str(file))


if __name__ == "__main__":
    typer.run(main)
