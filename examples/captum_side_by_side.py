"""GMAR beside Captum's methods: one scene, each of its objects explained in turn.

    python examples/captum_side_by_side.py OUTPUT_FOLDER

Every method explains the same model on the same pixels, once for each object. Captum's methods
attribute to pixels and channels, with negative values as evidence against the class. ``compare``
sums their attributions over the pixels of each patch, so all maps have the patch grid of GMAR.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from captum.attr import GradientShap, InputXGradient, IntegratedGradients, Occlusion, Saliency

from hf_gmar import Comparison, LogitsModel, MethodSpec, compare, load_model
from hf_gmar.data import draw_scene
from hf_gmar.visualization import save_figure


def side_by_side(seed: int) -> Comparison:
    """Draw the scene of the seed and explain each of its objects by all methods."""
    loaded = load_model("bundled")
    scene = draw_scene(seed)
    pixels = loaded.processor(images=scene.image, return_tensors="pt").pixel_values
    logits = LogitsModel(loaded.model)
    objects = len(scene.classes)
    return compare(
        loaded.model,
        pixels.repeat(objects, 1, 1, 1),
        {
            "GMAR": "gmar",
            "Integrated Gradients": MethodSpec(
                IntegratedGradients(logits), options={"n_steps": 25}
            ),
            "Input x Gradient": InputXGradient(logits),
            "Saliency": Saliency(logits),
            "GradientShap": GradientShap(logits),
            "Occlusion": Occlusion(logits),
        },
        target=list(scene.classes),
        images=[scene.image] * objects,
        names=[f"scene {seed}"] * objects,
        measure=False,  # the picture must not change with the machine
    )


def main(
    output: Annotated[Path, typer.Argument()] = Path("explanations"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the scene.")] = 18,
) -> None:
    """Draw the scene of SEED, explain each object, save the figure in OUTPUT."""
    comparison = side_by_side(seed)
    output.mkdir(parents=True, exist_ok=True)
    save_figure(comparison.figure(), output / "captum_side_by_side.png")
    typer.echo(f"{output / 'captum_side_by_side.png'}: {', '.join(comparison.labels)}")
    typer.echo(comparison.table())


if __name__ == "__main__":
    typer.run(main)
