"""Draw scenes with known objects: images, masks and labels.

    python examples/draw_scenes.py OUTPUT_FOLDER --scenes 3 --first-seed 18

The metadata of each image holds its seed; the bundled sample was made with this script.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hf_gmar.data import draw_scene


def main(
    output: Path,
    scenes: Annotated[int, typer.Option(min=1, help="How many scenes.")] = 1,
    first_seed: Annotated[int, typer.Option(min=0, help="Seed of the first scene.")] = 18,
) -> None:
    """Write ``SEED.png`` and a mask for each object, ``SEED.CLASS.png``, to OUTPUT."""
    output.mkdir(parents=True, exist_ok=True)
    for seed in range(first_seed, first_seed + scenes):
        scene = draw_scene(seed)
        facts = PngInfo()
        facts.add_text("seed", str(seed))
        scene.image.save(output / f"{seed}.png", pnginfo=facts)
        for name, mask in zip(scene.names, scene.masks, strict=True):
            Image.fromarray(mask).save(output / f"{seed}.{name}.png")
        typer.echo(f"{output / f'{seed}.png'}: {', '.join(scene.names)}")


if __name__ == "__main__":
    typer.run(main)
