"""GMAR beside Captum's methods: one scene, each of its objects explained in turn.

    python examples/captum_side_by_side.py OUTPUT_FOLDER

Every method explains the same model on the same pixels. Captum's methods attribute to pixels and
channels and may be negative; their absolute values are averaged over each patch, so that all maps
have the patch grid of GMAR. Each map has its own colour scale.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from captum.attr import GradientShap, InputXGradient, IntegratedGradients, Occlusion, Saliency
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import avg_pool2d

from hf_gmar import GMAR, LogitsModel, load_model
from hf_gmar.scenes import CLASSES, draw_scene
from hf_gmar.visualize import save_figure

Maps = dict[str, Callable[[Tensor, int], Tensor]]


def patch_maps(model: torch.nn.Module, patch: int) -> Maps:
    """For each method, a function of (pixels, target) that gives a patch map."""
    logits, gmar = LogitsModel(model), GMAR(model)
    window = {"sliding_window_shapes": (3, patch, patch), "strides": (3, patch, patch)}
    captum: dict[str, tuple[Any, dict[str, Any]]] = {
        "Integrated Gradients": (IntegratedGradients(logits), {"n_steps": 25}),
        "Input x Gradient": (InputXGradient(logits), {}),
        "Saliency": (Saliency(logits), {}),
        "GradientShap": (GradientShap(logits), {"baselines": torch.zeros(1, 3, 96, 96)}),
        "Occlusion": (Occlusion(logits), window),
    }
    maps: Maps = {"GMAR": lambda pixels, target: gmar.attribute_patches(pixels, target)[0]}
    for name, (method, options) in captum.items():
        maps[name] = functools.partial(captum_map, method, options, patch)
    return maps


def captum_map(
    method: Any, options: dict[str, Any], patch: int, pixels: Tensor, target: int
) -> Tensor:
    """Absolute attributions, averaged over the channels and over each patch."""
    heat: Tensor = method.attribute(pixels, target=target, **options)
    return avg_pool2d(heat.abs().mean(1), patch)[0].detach()


def main(
    output: Annotated[Path, typer.Argument()] = Path("explanations"),
    seed: Annotated[int, typer.Option(min=0, help="Which scene.")] = 18,
) -> None:
    """Draw the scene of SEED, explain each object, save the figure in OUTPUT."""
    torch.manual_seed(0)  # GradientShap draws random baselines
    loaded = load_model("bundled")
    scene = draw_scene(seed)
    pixels = loaded.processor(images=scene.image, return_tensors="pt").pixel_values
    chances = loaded.model(pixels).logits.sigmoid()[0]
    maps = patch_maps(loaded.model.eval(), loaded.model.config.patch_size)
    figure = Figure(figsize=(2.1 * (len(maps) + 1), 2.3 * len(scene.classes)), layout="constrained")
    rows = figure.subplots(len(scene.classes), len(maps) + 1, squeeze=False)
    for target, axes in zip(scene.classes, rows, strict=True):
        axes[0].imshow(scene.image)
        axes[0].set_title(f"{CLASSES[target]}  {chances[target]:.1%}")
        for axis, (name, patch_map) in zip(axes[1:], maps.items(), strict=True):
            axis.imshow(scene.image, extent=(0, 96, 96, 0))
            heat = patch_map(pixels, target)
            axis.imshow(heat, cmap="inferno", vmin=0, alpha=0.7, extent=(0, 96, 96, 0))
            axis.set_title(name)
        for axis in axes:
            axis.set_axis_off()
    figure.supxlabel("each map on a colour scale of its own, from zero to its largest value")
    output.mkdir(parents=True, exist_ok=True)
    save_figure(figure, output / "captum_side_by_side.png")
    typer.echo(f"{output / 'captum_side_by_side.png'}: {', '.join(scene.names)}")


if __name__ == "__main__":
    typer.run(main)
