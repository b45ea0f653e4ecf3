"""Figures of an evaluation: curves, paired differences, example maps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hf_gmar.evaluation.report.results import Curve, Difference, ExampleMaps, Measure, Results
from hf_gmar.evaluation.report.tables import direction
from hf_gmar.visualization.grid import GridColumn, grid_figure
from hf_gmar.visualization.notebook import NotebookFigure
from hf_gmar.visualization.text import legend_columns, wrapped

_PANELS = 5  # curves side by side
_FORESTS = 4  # measures side by side
_NAME = 2.0  # inches of a method's name in one line
_LEGEND = 8.5  # points
_RED, _BLUE, _GREY = "#c1272d", "#0072b2", "0.45"

_ORDERS = {
    "morf": (_RED, "most relevant removed first: the area is deletion"),
    "lerf": (_BLUE, "least relevant removed first: the area is insertion"),
}
_VERDICTS = {
    "better": (_BLUE, "better"),
    "worse": (_RED, "worse"),
    "higher": ("black", "differs, neither direction is better"),
    "lower": ("black", "differs, neither direction is better"),
    "no difference": (_GREY, "no difference found"),
}


def curves_figure(results: Results, perturbation: str) -> Figure:
    """Draw the target's mean score while patches are removed, with one panel for each method.

    A panel has two curves with 95 % bands, and the curves of the baseline as dashed lines.
    """
    curves = [curve for curve in results.curves if curve.perturbation == perturbation]
    known = {curve.method for curve in curves}
    methods = [name for name in results.methods if name in known]
    across = min(len(methods), _PANELS)
    down = math.ceil(len(methods) / across)
    width, height = 2.1 * max(across, 3) + 0.7, 1.95 * down + 1.4
    figure = NotebookFigure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flatten()
    for panel, method in zip(panels, methods, strict=False):
        _draw_curves(panel, curves, method, results)
        panel.set_title(
            wrapped(results.title(method), (width - 1.0) / across - 0.25, 9, 2), fontsize=9
        )
    for panel in panels[max(len(methods) - across, 0) : len(methods)]:
        panel.tick_params(labelbottom=True)  # even if the row below has no panel in this column
    score = str(results.settings.get("score", "score"))
    figure.supxlabel(
        wrapped(f"share of patches removed{_kept(curves)}", width - 0.3, 9), fontsize=9
    )
    score = wrapped(f"{score} of the explained class, mean and 95 %", height - 1.0, 9, 2)
    figure.supylabel(score, fontsize=9)
    _legend(figure, list(panels), len(methods))
    return figure


def _kept(curves: Sequence[Curve]) -> str:
    """Say that a patch is left at the end, where the two orders then end apart."""
    ends: dict[str, set[float]] = {}
    for curve in curves:
        ends.setdefault(curve.method, set()).add(curve.mean[-1])
    if all(len(scores) < 2 for scores in ends.values()):
        return ""
    return "; at 1 the last patch stays, as the model needs one: a different patch in each order"


def _draw_curves(panel: Axes, curves: Sequence[Curve], method: str, results: Results) -> None:
    baseline = results.baseline
    for curve in curves:
        colour, order_label = _ORDERS[curve.order]
        if curve.method == baseline != method:
            dashed = {"color": colour, "linewidth": 0.9, "linestyle": (0, (3, 2)), "alpha": 0.8}
            panel.plot(curve.fractions, curve.mean, **dashed)  # type: ignore[arg-type]
            label = f"{results.title(curve.method)}, the baseline"
            panel.plot([], [], label=label, **dashed | {"color": _GREY})  # type: ignore[arg-type]
        if curve.method != method:
            continue
        panel.plot(curve.fractions, curve.mean, color=colour, linewidth=1.5, label=order_label)
        if curve.low is not None and curve.high is not None:
            panel.fill_between(
                curve.fractions, curve.low, curve.high, color=colour, alpha=0.2, linewidth=0
            )
    panel.set_xlim(0, 1)
    panel.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    panel.tick_params(labelsize=8)
    panel.grid(alpha=0.25)


def differences_figure(results: Results, measures: Sequence[Measure]) -> Figure:
    """Draw paired differences to the baseline with 95 % intervals, one panel for each measure.

    The baseline must be evaluated, and each measure must have differences. Filled marks are
    significant after Holm's correction.
    """
    methods = [name for name in results.methods if name != results.baseline]
    across = min(len(measures), _FORESTS)
    down = math.ceil(len(measures) / across)
    names = [wrapped(results.title(name), _NAME, 9, 2) for name in methods]
    lines = max(name.count("\n") for name in names) + 1
    height = (0.07 + 0.14 * lines) * len(methods) + 0.9
    width = 2.3 * max(across, 2) + 1.8
    figure = NotebookFigure(figsize=(width, height * down + 0.9), layout="constrained")
    panels = figure.subplots(down, across, sharey=True, squeeze=False).flatten()
    for panel, measure in zip(panels, measures, strict=False):
        _draw_forest(panel, [results.by_place[measure.label, name].difference for name in methods])
        title = f"{wrapped(measure.title, (width - 2.4) / across, 9, 2)}\n{direction(measure)}"
        panel.set_title(title.strip(), fontsize=9)
    panels[0].set_yticks(range(len(methods)), names)
    panels[0].set_ylim(len(methods) - 0.4, -0.6)  # the first method at the top
    baseline = f"difference to {results.title(str(results.baseline))}, mean and 95 %"
    figure.supxlabel(wrapped(baseline, width - 0.3, 9, 2), fontsize=9)
    _legend(figure, list(panels), len(measures))
    return figure


def _draw_forest(panel: Axes, differences: Sequence[Difference | None]) -> None:
    panel.axvline(0, color="0.2", linewidth=0.9)
    for place, item in enumerate(differences):
        if item is None:
            continue
        colour, label = _VERDICTS[item.verdict]
        if item.low is not None and item.high is not None:
            panel.plot([item.low, item.high], [place, place], color=colour, linewidth=1.4)
        face = "white" if item.verdict == "no difference" else colour
        style = {"markersize": 4.5, "markerfacecolor": face, "color": colour, "linestyle": "none"}
        panel.plot([item.mean], [place], marker="o", label=label, **style)  # type: ignore[arg-type]
    panel.xaxis.set_major_locator(MaxNLocator(4))
    panel.ticklabel_format(axis="x", scilimits=(-3, 4))
    panel.xaxis.get_offset_text().set_fontsize(7.5)
    panel.tick_params("x", labelsize=8)
    panel.tick_params("y", labelsize=9)
    panel.grid(axis="x", alpha=0.25)


def examples_figure(results: Results, examples: Sequence[ExampleMaps]) -> Figure:
    """Draw one row for each image and one column for each method with at least one map.

    Examples whose patch grid differs from the first example's are left out.
    """
    shape = next(iter(examples[0].maps.values())).shape
    chosen = [item for item in examples if {m.shape for m in item.maps.values()} == {shape}]
    failed = torch.full(shape, torch.nan)  # NaN is drawn without a colour
    columns = []
    for name in results.methods:
        if any(name in item.maps for item in chosen):
            maps = [item.maps.get(name, failed).detach().float().cpu() for item in chosen]
            columns.append(GridColumn(results.title(name), maps=torch.stack(maps)))
    caption = (
        "Each map is divided by its largest absolute value: compare the places of the colours, not "
        "their strength. If an image is plain grey, the method failed on it."
    )
    pictures, titles = [item.picture for item in chosen], [item.title for item in chosen]
    return grid_figure(pictures, titles, columns, caption)


def _legend(figure: Figure, panels: Sequence[Axes], used: int) -> None:
    """Draw a legend with each mark once above all panels, and hide unused panels."""
    for panel in panels[used:]:
        panel.set_axis_off()
    marks: dict[str, Artist] = {}
    for panel in panels[:used]:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            marks.setdefault(label, handle)
    width = figure.get_figwidth() - 0.2
    figure.legend(
        list(marks.values()),
        [wrapped(label, width - 0.6, _LEGEND, 2) for label in marks],
        loc="outside upper center",
        ncols=legend_columns(list(marks), width, _LEGEND),
        frameon=False,
        fontsize=_LEGEND,
    )
