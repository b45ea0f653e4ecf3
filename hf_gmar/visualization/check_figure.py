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
_STACKED_SIZE = (3.5, 4.9)  # about as wide as a phone
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
    stacked: bool = False,
) -> Figure:
    """Draw the scores over the share of patches.

    Args:
        fractions: the shares of the patches.
        panels: the scores.
        score: the score of the whole image.
        measure: what the scores are.
        sentence: the text below the figure.
        percent: whether the scores are probabilities.
        stacked: whether the panels are one above the other, for a narrow page that has the sentence
            as text; the figure then leaves it out.

    Returns:
        A matplotlib figure without a window.

    Example:
        >>> panel = Panel("Only these patches", [0.9], [(0.3, 0.1, 0.5)])
        >>> len(check_figure([0.2], [panel, panel], 1.0, "probability of heart", "").axes)
        2
    """
    figure = NotebookFigure(figsize=_STACKED_SIZE if stacked else _SIZE)
    axes = figure.subplots(*((2, 1) if stacked else (1, 2)), sharex=True, sharey=True)
    for place, panel in zip(axes, panels, strict=True):
        _draw(place, fractions, panel, score)
        if percent:
            place.set_ylim(-0.03, 1.03)
            place.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    handles, labels = axes[0].get_legend_handles_labels()
    if stacked:
        figure.subplots_adjust(left=0.19, right=0.98, top=0.94, bottom=0.24, hspace=0.22)
        figure.supylabel(wrapped(measure, 3.4, 9, 2), fontsize=9, y=0.59)
        axes[-1].set_xlabel("share of all patches", fontsize=9)
        place, columns = (0.55, 0.14), 1
    else:
        figure.subplots_adjust(left=0.13, right=0.98, top=0.9, bottom=0.36, wspace=0.08)
        axes[0].set_ylabel(wrapped(measure, 2, 9, 2), fontsize=9)
        text = wrapped(sentence, _SIZE[0] - 0.3, 8.5, 3)
        figure.text(0.5, 0.02, text, fontsize=8.5, ha="center", va="bottom")
        place, columns = (0.55, 0.27), 3
    figure.legend(
        handles, labels, loc="upper center", bbox_to_anchor=place, ncols=columns, fontsize=8,
        frameon=False,
    )  # fmt: skip
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
