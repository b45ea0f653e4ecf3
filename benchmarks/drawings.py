"""Draws what attention, rollout, GMAR, LRP and the check are, on a scene and the bundled model.

``python -m benchmarks.figures`` writes the drawings into ``docs/images/concepts``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, Rectangle
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hf_gmar import GMAR, AttentionRollout, AttnLRP, explain, load_model
from hf_gmar.data import draw_scene
from hf_gmar.metrics import patch_order
from hf_gmar.models import LoadedModel
from hf_gmar.perturbations import PERTURBATIONS

SEED = 18
HEART, CROSS = 6, 4
_HEAT = "inferno"
_SIGNED = "RdBu_r"
_GREY = "#777777"
_LINE = "#7e22ce"
_Map = NDArray[np.float64]


@functools.cache
def _loaded() -> LoadedModel:
    return load_model("bundled", attn_implementation="eager")


@functools.cache
def _image() -> Image.Image:
    return draw_scene(SEED).image


@functools.cache
def _pixels() -> Tensor:
    pixels: Tensor = _loaded().pixels(_image())
    return pixels


def _panels(
    columns: int, height: float = 2.5, width: float = 2.25, widths: Sequence[float] | None = None
) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width * columns, height), layout="compressed")
    axes = figure.subplots(1, columns, width_ratios=widths)
    for panel in axes:
        panel.set_xticks([])
        panel.set_yticks([])
    return figure, axes


def _show_map(axes: Axes, values: _Map, title: str, *, signed: bool = False) -> None:
    limit = float(np.abs(values).max())
    if signed:
        axes.imshow(values, cmap=_SIGNED, vmin=-limit, vmax=limit)
    else:
        axes.imshow(values, cmap=_HEAT, vmin=0, vmax=limit)
    axes.set_title(title, fontsize=8)


def _show_image(axes: Axes, image: Any, title: str) -> None:
    axes.imshow(np.asarray(image))
    axes.set_title(title, fontsize=8)


def attention() -> Figure:
    """Draw the image as patches, one attention matrix, and its row of CLS on the image."""
    with torch.no_grad():
        maps = _loaded().model(_pixels(), output_attentions=True).attentions
    matrix = maps[4][0, 1].double().numpy()
    figure, (left, middle, right) = _panels(3, 2.7)
    _show_image(left, _image(), "the image: 64 patches,\none token each, and CLS")
    for line in range(0, 97, 12):
        left.axhline(line - 0.5, color="white", linewidth=0.5)
        left.axvline(line - 0.5, color="white", linewidth=0.5)
    middle.imshow(matrix, cmap=_HEAT, vmax=float(np.quantile(matrix, 0.995)))
    middle.add_patch(Rectangle((-0.5, -0.5), 65, 1.5, fill=False, edgecolor="cyan", linewidth=1.2))
    middle.set_title("attention of one head: 65 x 65,\nevery row sums to 1", fontsize=8)
    middle.set_ylabel("query: who looks", fontsize=7)
    middle.set_xlabel("key: at whom", fontsize=7)
    _show_map(right, matrix[0, 1:].reshape(8, 8), "the first row, of CLS,\nlaid out as the image")
    return figure


def rollout() -> Figure:
    """Draw attention rollout from the top layer down to the lowest."""
    figure, axes = _panels(6, 2.0, 1.5)
    for layer, panel in zip(range(5, -1, -1), axes, strict=True):
        values = AttentionRollout(_loaded().model, start_layer=layer)
        grid = values.attribute_patches(_pixels())[0].double().numpy()
        layers = "layer 6 alone" if layer == 5 else f"layers 6 to {layer + 1}"
        _show_map(panel, grid, f"{layers}\n{grid.sum():.0%} on patches")
    return figure


def gmar() -> Figure:
    """Draw GMAR's weights of the heads and its maps for two classes."""
    method = GMAR(_loaded().model)
    weights = [_grid(method.head_importance(_pixels(), target)) for target in (HEART, CROSS)]
    maps = [_grid(method.attribute_patches(_pixels(), target)) for target in (HEART, CROSS)]
    figure, axes = _panels(4, 2.5)
    for panel, values, name in zip(axes[:2], weights, ("heart", "cross"), strict=True):
        panel.imshow(values, cmap="Purples", vmin=0, vmax=1, aspect="auto", origin="lower")
        panel.set_title(f"head weights for {name}", fontsize=8)
        panel.set_xlabel("4 heads", fontsize=7)
        panel.set_ylabel("6 layers", fontsize=7)
        for (layer, head), value in np.ndenumerate(values):
            dark = "white" if value > 0.5 else "black"
            panel.text(
                head, layer, f"{value:.2f}", ha="center", va="center", fontsize=6, color=dark
            )
    for panel, values, name in zip(axes[2:], maps, ("heart", "cross"), strict=True):
        _show_map(panel, values, f"GMAR's map for {name}")
    correlation = _rank_correlation(*maps)
    figure.supxlabel(
        f"Other weights, and almost the same map: rank correlation {correlation:.2f}", fontsize=8
    )
    return figure


def relevance() -> Figure:
    """Draw how a neuron shares out its relevance, and AttnLRP's maps of two classes."""
    figure, axes = _panels(4, 2.5, widths=(1.5, 1, 1, 1))
    _draw_neuron(axes[0])
    _show_image(axes[1], _image(), "the image")
    for panel, target, name in ((axes[2], HEART, "heart"), (axes[3], CROSS, "cross")):
        values = _grid(AttnLRP(_loaded().model).attribute_patches(_pixels(), target))
        _show_map(panel, values, f"AttnLRP's map for {name}", signed=True)
    return figure


def _draw_neuron(axes: Axes) -> None:
    axes.set_xlim(0, 10)
    axes.set_ylim(0, 10)
    axes.set_axis_off()
    axes.set_aspect("equal")
    axes.set_title("relevance, from the score down", fontsize=8)
    top, inputs = (5.0, 8.0), ((2.0, 2.0), (5.0, 2.0), (8.0, 2.0))
    texts = (("x w = 6", "0.75"), ("x w = 3", "0.375"), ("x w = -1", "-0.125"))
    for place, (product, share) in zip(inputs, texts, strict=True):
        colour = "#b2182b" if share[0] != "-" else "#2166ac"
        axes.add_patch(
            FancyArrowPatch(
                top, place, arrowstyle="-|>", mutation_scale=9, shrinkA=12, shrinkB=12,
                color=colour, linewidth=4 * abs(float(share)) + 0.6,
            )
        )  # fmt: skip
        axes.add_patch(Circle(place, 0.75, facecolor="white", edgecolor=_GREY))
        axes.text(place[0], 0.5, f"{product}\ngets {share}", ha="center", va="center", fontsize=6)
    axes.add_patch(Circle(top, 0.95, facecolor="white", edgecolor=_GREY))
    axes.text(*top, "1", ha="center", va="center", fontsize=9)
    axes.text(6.3, 8.0, "sum 8", ha="left", va="center", fontsize=7)


def scales() -> Figure:
    """Draw how the scale of the colours and smoothing change what a map seems to say."""
    model, image = _loaded(), _image()
    flat = explain(image, model, "heart", method="attention-rollout")
    noise = explain(image, model, "heart", method="random")
    sharp = explain(image, model, "heart", method="attn-lrp")
    figure, axes = _panels(5, 2.3, 1.8)
    _show_image(axes[0], image, "the image")
    _show_image(axes[1], flat.overlay(scale="max"), "rollout,\ncolours from 0")
    _show_image(axes[2], flat.overlay(scale="percentile"), "the same map,\ncolours stretched")
    _show_image(axes[3], noise.overlay(smooth=True), "random numbers,\nsmoothed")
    _show_image(axes[4], sharp.overlay(scale="max"), "AttnLRP, heart")
    return figure


def check() -> Figure:
    """Draw what the model sees in a check, and what it says."""
    values = AttnLRP(_loaded().model).attribute_patches(_pixels(), HEART)
    best = patch_order(values)[0]
    chance = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    named = _mask(best[:13])
    cases = (
        ("all patches", torch.ones(8, 8, dtype=torch.bool)),
        ("keep: the map's best 20%", named),
        ("remove: all others", ~named),
        ("a random 20%", _mask(chance[:13])),
    )
    scores = _heart(torch.stack([mask for _, mask in cases]))
    figure, axes = _panels(len(cases), 2.3)
    for panel, (title, mask), score in zip(axes, cases, scores, strict=True):
        _show_image(panel, _only(mask), f'{title}\n"heart": {score:.1%}')
    return figure


def _mask(patches: Tensor) -> Tensor:
    mask = torch.zeros(64, dtype=torch.bool)
    mask[patches] = True
    return mask.reshape(8, 8)


def _heart(masks: Tensor) -> list[float]:
    """Give the probability of the heart with the patches of each mask alone."""
    bound = PERTURBATIONS.build("token-dropping").bind(_loaded().model, _pixels())
    probabilities: list[float] = bound.scores(masks).sigmoid()[:, HEART].tolist()
    return probabilities


def _only(mask: Tensor) -> NDArray[np.uint8]:
    """Show the patches of a mask, and grey for the others."""
    shown: NDArray[np.uint8] = np.asarray(_image().convert("RGB")).copy()
    shown[~np.kron(mask.numpy(), np.ones((12, 12), dtype=bool))] = 225
    return shown


def _grid(values: Tensor) -> _Map:
    return values[0].detach().double().numpy()


def _rank_correlation(first: _Map, second: _Map) -> float:
    ranks = [np.argsort(np.argsort(values.ravel())) for values in (first, second)]
    correlation: Any = np.corrcoef(np.stack(ranks))
    return float(correlation[0, 1])


DRAWINGS: dict[str, Callable[[], Figure]] = {
    f"docs/images/concepts/{draw.__name__}.png": draw
    for draw in (attention, rollout, gmar, relevance, scales, check)
}
"""What draws each picture, by its path."""
