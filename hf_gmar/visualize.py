"""Figures: a patch map over its image, with a colour bar."""

from __future__ import annotations

import textwrap
import warnings
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hf_gmar.files import whole_file

COLOUR_MAP = "inferno"
_OPACITY = 0.6


def overlay_figure(image: Image.Image, patches: Tensor, title: str, caption: str = "") -> Figure:
    """The image, and the image under its heatmap, side by side.

    Args:
        image: what the model saw.
        patches: relevance of each patch, (rows, columns); the colours start at zero.
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
    heated.set_title(_text(title, 40), fontsize=13)
    plain.set_title("what the model saw", fontsize=13)
    if caption:
        figure.supxlabel(_text(caption, 120), fontsize=9, color="0.35")
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG, 150 dots per inch, all or nothing."""
    with whole_file(path) as part, warnings.catch_warnings():
        # A letter that the font lacks becomes a box; the label is in the numbers as well.
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        figure.savefig(part, dpi=150, format="png")


def _text(text: str, width: int) -> str:
    """At most three lines; a label is text, and "$" no start of a formula."""
    return textwrap.fill(text, width, max_lines=3).replace("$", r"\$")


def _show(axes: Axes, image: Image.Image) -> None:
    axes.imshow(np.asarray(image), interpolation="nearest")
    axes.set_axis_off()


def _draw_heat(figure: Figure, axes: Axes, image: Image.Image, heat: NDArray[np.float32]) -> None:
    drawn = axes.imshow(
        heat,
        cmap=COLOUR_MAP,
        vmin=0,  # a flat map must look flat
        alpha=_OPACITY,
        interpolation="bilinear",
        extent=(-0.5, image.width - 0.5, image.height - 0.5, -0.5),
    )
    bar = figure.colorbar(drawn, ax=axes, shrink=0.9)
    bar.set_label("share of relevance, per patch")
