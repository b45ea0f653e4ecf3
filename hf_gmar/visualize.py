"""Figures: a patch map over its image, with a colour bar."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

COLOUR_MAP = "inferno"
_OPACITY = 0.6


def overlay_figure(image: Image.Image, patches: Tensor, title: str, caption: str = "") -> Figure:
    """The image, and the image under its heatmap, side by side.

    Args:
        image: what the model saw.
        patches: relevance of each patch, (rows, columns).
        title: the explained class, for example with its probability.
        caption: one line below the picture.

    Returns:
        A matplotlib figure without a window; ``save_figure`` writes it.

    Example:
        >>> import torch
        >>> figure = overlay_figure(Image.new("RGB", (32, 32)), torch.rand(4, 4), "cat")
        >>> len(figure.axes)  # image, overlay, colour bar
        3
    """
    figure = Figure(figsize=(8.4, 4.3), layout="constrained")
    plain, heated = figure.subplots(1, 2)
    _show(plain, image)
    _show(heated, image)
    _draw_heat(figure, heated, image, patches.detach().float().cpu().numpy())
    # A label is text: matplotlib would read "$" as the start of a formula.
    heated.set_title(title.replace("$", r"\$"), fontsize=13)
    plain.set_title("what the model saw", fontsize=13)
    if caption:
        figure.supxlabel(caption.replace("$", r"\$"), fontsize=9, color="0.35")
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG, 150 dots per inch, all or nothing."""
    part = path.with_name(path.name + ".part")
    figure.savefig(part, dpi=150, format="png")
    part.replace(path)


def _show(axes: Axes, image: Image.Image) -> None:
    axes.imshow(np.asarray(image), interpolation="nearest")
    axes.set_axis_off()


def _draw_heat(figure: Figure, axes: Axes, image: Image.Image, heat: NDArray[np.float32]) -> None:
    drawn = axes.imshow(
        heat,
        cmap=COLOUR_MAP,
        alpha=_OPACITY,
        interpolation="bilinear",
        extent=(-0.5, image.width - 0.5, image.height - 0.5, -0.5),
    )
    bar = figure.colorbar(drawn, ax=axes, shrink=0.9)
    bar.set_label("share of relevance, per patch")
