"""Draws what Captum's own tools make of GMAR, on a scene and the bundled model.

``python -m benchmarks.figures`` writes the drawings into ``docs/images/captum``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from captum.attr import IntegratedGradients, NoiseTunnel, visualization
from captum.metrics import infidelity, sensitivity_max
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from hf_gmar import GMAR, AttentionRollout, LogitsModel, load_model
from hf_gmar.data import draw_scene

SEED, HEART = 18, 6
_NOISE = 0.2
_SAMPLES = 16
_Array = NDArray[np.float32]


@functools.cache
def _scene() -> tuple[torch.nn.Module, Tensor]:
    loaded = load_model("bundled")
    return loaded.model, loaded.pixels(draw_scene(SEED).image)


def _channels_last(values: Tensor) -> _Array:
    array: _Array = values[0].permute(1, 2, 0).numpy()
    return array


def _original(pixels: Tensor) -> _Array:
    return _channels_last((pixels + 1) / 2)


def noise_tunnel() -> Figure:
    """Draw a map of GMAR, the mean of maps of noisy copies, and their variance."""
    model, pixels = _scene()
    tunnel = NoiseTunnel(GMAR(model))
    options = {"nt_samples": _SAMPLES, "stdevs": _NOISE, "target": HEART}
    torch.manual_seed(0)
    smooth = tunnel.attribute(pixels, nt_type="smoothgrad", **options)
    variance = tunnel.attribute(pixels, nt_type="vargrad", **options)
    maps = {
        "GMAR": GMAR(model).attribute(pixels, target=HEART),
        f"mean of {_SAMPLES} noisy copies": smooth,
        f"variance of {_SAMPLES} copies": variance,
    }
    figure = Figure(figsize=(8.4, 2.5), layout="compressed")
    first, *others = figure.subplots(1, 4)
    first.imshow(_original(pixels))
    first.set_title("image", fontsize=9)
    for axes, (title, values) in zip(others, maps.items(), strict=True):
        axes.imshow(_channels_last(values).sum(axis=2), cmap="inferno")
        axes.set_title(title, fontsize=9)
    for axes in (first, *others):
        axes.set_axis_off()
    return figure


def visualize_image_attr() -> Figure:
    """Draw a map of GMAR by Captum's own function for pictures, in each of its forms."""
    model, pixels = _scene()
    attribution = _channels_last(GMAR(model).attribute(pixels, target=HEART))
    forms = ["original_image", "heat_map", "blended_heat_map", "masked_image"]
    figure, _ = visualization.visualize_image_attr_multiple(
        attribution, _original(pixels), forms, ["all", *["positive"] * 3], titles=forms,
        fig_size=(8.4, 2.7), use_pyplot=False,
    )  # fmt: skip
    drawn: Figure = figure
    return drawn


def metrics() -> Figure:
    """Draw Captum's infidelity and sensitivity of GMAR beside those of other methods."""
    model, pixels = _scene()
    logits = LogitsModel(model)
    methods = {
        "GMAR": GMAR(model).attribute,
        "GMAR (L2)": GMAR(model, norm="l2").attribute,
        "Attention rollout": AttentionRollout(model).attribute,
        "Integrated Gradients": functools.partial(
            IntegratedGradients(logits).attribute, n_steps=16, internal_batch_size=16
        ),
    }
    found = {name: _measure(method, logits, pixels) for name, method in methods.items()}
    figure = Figure(figsize=(8.4, 2.2), layout="compressed")
    titles = "infidelity, scaled maps (lower is better)", "sensitivity (lower is better)"
    for number, (axes, title) in enumerate(zip(figure.subplots(1, 2), titles, strict=True)):
        values = [pair[number] for pair in found.values()]
        bars = axes.barh(list(found), values, color="#7e22ce")
        axes.bar_label(bars, fmt=" {:.2f}", fontsize=8)
        axes.set_xlim(0, max(values) * 1.2)
        axes.invert_yaxis()
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=8)
    return figure


def _measure(
    method: Callable[..., Tensor], logits: torch.nn.Module, pixels: Tensor
) -> tuple[float, float]:
    def perturb(inputs: Tensor) -> tuple[Tensor, Tensor]:
        noise = _NOISE * torch.randn_like(inputs)
        return noise, inputs - noise

    torch.manual_seed(0)
    fidelity = infidelity(
        logits, perturb, pixels, method(pixels, target=HEART), target=HEART,
        n_perturb_samples=64, max_examples_per_batch=16, normalize=True,
    )  # fmt: skip
    change = sensitivity_max(method, pixels, target=HEART, perturb_radius=0.1, n_perturb_samples=8)
    return float(fidelity), float(change)


CAPTUM_TOOLS: dict[str, Callable[[], Figure]] = {
    "docs/images/captum/noise_tunnel.png": noise_tunnel,
    "docs/images/captum/visualization.png": visualize_image_attr,
    "docs/images/captum/metrics.png": metrics,
}
"""What draws each picture, by its path."""
