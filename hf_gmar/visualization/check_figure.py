"""The figure of a faithfulness check: the scores with a map's patches beside random ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from hf_gmar.visualization.notebook import NotebookFigure
from hf_gmar.visualization.text import wrapped

VERDICT_COLOURS = {"better": "#0072b2", "no better": "#595959", "worse": "#d55e00"}
"""Colours of verdicts, by Okabe and Ito: colour-blind people tell them apart."""

_SIZE = (6.4, 3.1)  # inches
_MAP, _RANDOM = (
    "#d55e00",
    "0.6",
)  # orange of Okabe and Ito, which colour-blind people tell from grey


@dataclass(frozen=True)
class Panel:
    """One half of the figure.

    Attributes:
        title: which patches the model sees.
        values: the score with a map's patches, for each fraction.
        random: mean, lowest and highest score with random patches, for each fraction.
    """

    title: str
    values: Sequence[float]
    random: Sequence[tuple[float, float, float]]


def check_figure(
    fractions: Sequence[float],
    panels: Sequence[Panel],
    score: float,
    measure: str,
    sentence: str,
    percent: bool = True,
) -> Figure:
    """Draw the scores over the share of patches.

    Args:
        fractions: the shares of the patches.
        panels: the scores.
        score: the score of the whole image.
        measure: what the scores are.
        sentence: the text below the figure.
        percent: whether the scores are probabilities.

    Returns:
        A matplotlib figure without a window.

    Example:
        >>> panel = Panel("Only these patches", [0.9], [(0.3, 0.1, 0.5)])
        >>> len(check_figure([0.2], [panel, panel], 1.0, "probability of heart", "").axes)
        2
    """
    figure = NotebookFigure(figsize=_SIZE)
    axes = figure.subplots(1, 2, sharey=True)
    figure.subplots_adjust(left=0.13, right=0.98, top=0.9, bottom=0.36, wspace=0.08)
    for place, panel in zip(axes, panels, strict=True):
        _draw(place, fractions, panel, score)
        if percent:
            place.set_ylim(-0.03, 1.03)
            place.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes[0].set_ylabel(wrapped(measure, 2, 9, 2), fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="upper center", bbox_to_anchor=(0.55, 0.27), ncols=3, fontsize=8,
        frameon=False,
    )  # fmt: skip
    figure.text(
        0.5, 0.02, wrapped(sentence, _SIZE[0] - 0.3, 8.5, 3), fontsize=8.5, ha="center", va="bottom"
    )
    return figure


def _draw(axes: Axes, fractions: Sequence[float], panel: Panel, score: float) -> None:
    places = range(len(fractions))
    means = [mean for mean, _, _ in panel.random]
    down = [mean - low for mean, low, _ in panel.random]
    up = [high - mean for mean, _, high in panel.random]
    axes.axhline(score, color="0.3", linewidth=0.8, linestyle=":", label="the whole image")
    axes.errorbar(
        places, means, (down, up), fmt="_", color=_RANDOM, elinewidth=7, markersize=14,
        markeredgecolor="0.25", label="random patches: mean and range",
    )  # fmt: skip
    axes.plot(places, panel.values, "o", color=_MAP, markersize=6, label="the map's patches")
    axes.set_xticks(places, [f"{share:.0%}" for share in fractions], fontsize=9)
    axes.set_xlim(-0.6, len(fractions) - 0.4)
    axes.set_title(panel.title, fontsize=10)
    axes.tick_params(axis="y", labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
