"""The result of a comparison: maps, costs and rank correlations, as figure, table and files."""

from __future__ import annotations

import functools
import importlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image
from rich.table import Table
from torch import Tensor

from hf_gmar._core.cell_layout import drawn_map
from hf_gmar._utils.files import save_arrays, save_text, whole_file
from hf_gmar._utils.html import html_line, html_table
from hf_gmar._utils.stats import rank_correlations
from hf_gmar._utils.text import brief, code_span, counted, markdown, visible
from hf_gmar._utils.version import __version__
from hf_gmar.comparison.cost import Cost
from hf_gmar.errors import OptionError
from hf_gmar.faithfulness import (
    DRAWS,
    FRACTIONS,
    ExplainedScore,
    FaithfulnessCheck,
    ModelInput,
    check_maps,
)
from hf_gmar.models.score_kind import ScoreKind

if TYPE_CHECKING:  # matplotlib is loaded when something is drawn
    from matplotlib.figure import Figure

Format = Literal["markdown", "json", "pandas"]

MAPS = "maps.npz"
"""The archive of the maps in the folder of a comparison."""

_SHOWN = 4  # images in a notebook

R_EXPLAINED = "r: Spearman's rank correlation of two maps over the patches, mean over the images"


@dataclass(frozen=True, repr=False)
class Comparison:
    """The maps of several methods for the same model, images and classes.

    Attributes:
        maps: relevance of each patch by method label, (B, rows, columns), on the CPU; failed
            methods have no map.
        failures: reasons of the failed methods, one line each, by label.
        costs: seconds and peak memory of each method by label; empty if not measured.
        forward: the cost of a plain forward of the images, without gradients; ``None`` if not
            measured.
        order: labels of all methods, in the order of the call.
        names: names of the images.
        targets: the explained class of each image.
        labels: the names of these classes.
        scores: their probabilities, or the values of a model without probabilities.
        score_kind: what the scores are: softmax, sigmoid or value.
        contrasts: the names of the classes whose scores were subtracted, or ``None``.
        pictures: the images, cropped to the part that the model saw.
        settings: other settings that the result depends on.
        titles: names of the methods as papers write them, by label; a label without one is shown.
        contrast_targets: the indices of the contrasts, ``None`` without any.
        subjects: the model with each image.
        checks: for each method, the check of each image, if they were asked for.
        fine_maps: the maps of methods whose ``resolution`` is finer than the patch, by label:
            relevance of each cell, (B, rows * k, columns * k), or of each pixel, (B, height,
            width).
    """

    maps: dict[str, Tensor]
    failures: dict[str, str]
    costs: dict[str, Cost]
    forward: Cost | None
    order: tuple[str, ...]
    names: tuple[str, ...]
    targets: tuple[int, ...]
    labels: tuple[str, ...]
    scores: tuple[float, ...]
    score_kind: ScoreKind
    contrasts: tuple[str, ...] | None
    pictures: tuple[Image.Image, ...]
    settings: dict[str, Any]
    titles: Mapping[str, str] = field(default_factory=dict)
    contrast_targets: tuple[int | None, ...] = ()
    subjects: tuple[ModelInput, ...] = ()
    checks: Mapping[str, Sequence[FaithfulnessCheck]] = field(default_factory=dict)
    fine_maps: Mapping[str, Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Count the images, and name the methods."""
        methods = brief(", ".join(map(visible, self.order)), 200)
        failed = f", {len(self.failures)} failed" if self.failures else ""
        return f"Comparison({counted(len(self.names), 'image')}, {methods}{failed})"

    def _repr_html_(self) -> str:
        """Show the first images and the table in a notebook."""
        from hf_gmar.visualization.notebook import html_image

        hidden = len(self.names) - _SHOWN
        notes = list(self.failure_lines())
        notes += [f"and {counted(hidden, 'more image')}: figure() draws all"] * (hidden > 0)
        lines = "".join(map(html_line, [R_EXPLAINED, *notes]))
        picture = html_image(self._figure(_SHOWN), f"{self!r}. {self._caption()}")
        return picture + html_table(self.terminal_table()) + lines

    @functools.cached_property
    def correlations(self) -> Tensor:
        """Spearman's rank correlation of each two methods, (M, M), in the order of ``maps``.

        Ties get average ranks. The mean is over the images where neither map is constant; NaN
        without such images.
        """
        return rank_correlations(list(self.maps.values()))

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each method."""
        return {label: cost.seconds for label, cost in self.costs.items()}

    @property
    def peaks(self) -> dict[str, int | None]:
        """Peak bytes of each method, above the bytes in use before."""
        return {label: cost.peak for label, cost in self.costs.items()}

    @property
    def ratios(self) -> dict[str, float]:
        """Seconds of each method divided by the seconds of a plain forward just before."""
        return {label: cost.ratio for label, cost in self.costs.items()}

    def title(self, label: str) -> str:
        """Return the name of a method for a reader."""
        return self.titles.get(label, label)

    def failure_lines(self) -> Iterator[str]:
        """Yield a line for each method that failed, and one for all that were left out."""
        if left_out := self.settings.get("left_out"):
            yield left_out
        for label, reason in self.failures.items():
            yield f"{self.title(label)} failed: {reason}"

    def figure(self) -> Figure:
        """Draw one row for each image and one column for each method, with one colour scale.

        Returns:
            A matplotlib figure without a window; ``figure.savefig(path)`` writes it.
        """
        return self._figure(len(self.names))

    def _figure(self, images: int) -> Figure:
        """Draw the first images."""
        from hf_gmar.visualization.grid import GridColumn, grid_figure

        maps, failures = self._drawn_maps, self.failures
        columns = [
            GridColumn(
                self.title(label),
                self._cost_text(label),
                maps[label][:images] if label in maps else None,
                failures.get(label, ""),
                [check.verdict for check in self.checks.get(label, [])],
            )
            for label in self.order
        ]
        titles = [
            f"{visible(label)}  {self.score_kind.text(score)}\n{visible(name)}"
            for label, score, name in zip(self.labels, self.scores, self.names, strict=True)
        ]
        return grid_figure(self.pictures[:images], titles[:images], columns, self._caption())

    def check(
        self,
        fractions: Sequence[float] = FRACTIONS,
        draws: int = DRAWS,
        perturbation: str | None = None,
        seed: int = 0,
    ) -> dict[str, list[FaithfulnessCheck]]:
        """Ask the model what each map is worth, see :meth:`hf_gmar.Explanation.check`.

        Returns:
            For each method with maps, the check of each image. All methods share the random
            patches.
        """
        checks: dict[str, list[FaithfulnessCheck]] = {label: [] for label in self.maps}
        for number, subject in enumerate(self.subjects if self.maps else ()):
            contrast = "" if self.contrasts is None else f" rather than {self.contrasts[number]}"
            explained = ExplainedScore(
                self.labels[number] + contrast,
                self.score_kind,
                self.targets[number],
                self.contrast_targets[number],
            )
            maps = [(patches[number], explained) for patches in self.maps.values()]
            found = check_maps(subject, maps, fractions, draws, perturbation, seed)
            for label, check in zip(checks, found, strict=True):
                checks[label].append(check)
        return checks

    def checked(self) -> Comparison:
        """Return the comparison with its checks, for the figure, the table and the files."""
        return replace(self, checks=self.check())

    def table(self, format: Format = "markdown") -> Any:  # noqa: A002  # the word users know
        """Make a table with the costs and rank correlations of each method, or its failure.

        Args:
            format: ``"markdown"`` and ``"json"`` give a string, ``"pandas"`` gives a DataFrame with
                the labels as index.

        Raises:
            OptionError: the format is unknown, or pandas is not installed.
        """
        writers = {"markdown": self._markdown, "json": self._json, "pandas": self._pandas}
        if format not in writers:
            raise OptionError(f"format must be one of {', '.join(writers)}, got {format!r}")
        return writers[format]()

    def records(self) -> list[dict[str, Any]]:
        """Return the rows of the table with unformatted numbers, ``None`` for a missing number.

        Without measurement, the rows have no costs.
        """
        return [self._record(label) for label in self.order]

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Return headings and rows of the table as strings, with numbered methods."""
        numbers = {label: str(number) for number, label in enumerate(self.order, 1)}
        headings = ["", "method", *["better than random"] * bool(self.checks)]
        headings += [heading for heading, *_ in self._cost_columns]
        headings += [f"r with {numbers[label]}" for label in self.maps]
        return headings, [[numbers[row["method"]], *self._row(row)] for row in self.records()]

    def terminal_table(self, columns: int | None = None) -> Table:
        """Make the table for the terminal, of the first columns or all."""
        headings, rows = self.cells()
        table = Table(title="Comparison")
        for number, heading in enumerate(headings[:columns]):
            table.add_column(visible(heading), justify="left" if number < 2 else "right")
        for row in rows:
            table.add_row(*map(visible, row[:columns]))
        return table

    def save(self, folder: str | Path) -> list[Path]:
        """Write ``comparison.png``, ``.md`` and ``.json``, and ``maps.npz``: all or none of them.

        The archive has ``maps`` (methods, images, rows, columns), ``methods``, ``names``,
        ``targets``, ``labels``, ``settings`` (JSON) and ``version``; ``numpy.load`` reads it
        without pickle. ``fine_maps_N`` is the map of method N, from 0, at a ``resolution`` that is
        finer than the patch. A missing folder is created.

        Returns:
            The four files.
        """
        from hf_gmar.visualization.overlay import save_figure

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        writers = {
            "comparison.png": lambda part: save_figure(self.figure(), part),
            "comparison.md": lambda part: save_text(part, self._page()),
            "comparison.json": lambda part: save_text(part, self._json() + "\n"),
            MAPS: self._save_maps,
        }
        with ExitStack() as stack:
            for name, write in writers.items():
                write(stack.enter_context(whole_file(folder / name)))
        return [folder / name for name in writers]

    @property
    def _drawn_maps(self) -> dict[str, Tensor]:
        """The maps of the figure by method label, (B, rows, columns) of any number."""
        resolutions = self.settings.get("resolution", {})
        return {
            label: drawn_map(patches, self.fine_maps.get(label), resolutions.get(label, "patch"))
            for label, patches in self.maps.items()
        }

    @property
    def _cost_columns(self) -> list[tuple[str, str, str, float]]:
        """Heading, field, format and unit of each measured cost."""
        columns = [("time / forward", "time_to_forward", ".2f", 1.0)]
        if any(peak is not None for peak in self.peaks.values()):
            columns.append(("peak memory, MB", "peak_bytes", ".1f", 1e6))
        return columns if self.forward is not None else []

    def _record(self, label: str) -> dict[str, Any]:
        cost, labels = self.costs.get(label), list(self.maps)
        row = self.correlations[labels.index(label)].tolist() if label in self.maps else []
        costs = {
            "seconds": cost and cost.seconds,
            "time_to_forward": cost and cost.ratio,
            "peak_bytes": cost and cost.peak,
        }
        verdicts = [check.verdict for check in self.checks.get(label, [])]
        better = {"better_than_random": verdicts.count("better"), "checked": len(verdicts)}
        return {
            "method": label,
            **(better if self.checks else {}),
            **(costs if self.forward is not None else {}),
            "rank_correlation": {
                other: None if math.isnan(value) else value
                for other, value in zip(labels, row, strict=False)
            },
            "failure": self.failures.get(label),
        }

    def _row(self, row: Mapping[str, Any]) -> list[str]:
        if row["failure"] is not None:
            empty = bool(self.checks) + len(self._cost_columns) + len(self.maps)
            return [self.title(row["method"]), *["-"] * empty]
        correlations = row["rank_correlation"]
        better = [f"{row['better_than_random']} of {row['checked']}"] if self.checks else []
        return [
            self.title(row["method"]),
            *better,
            *(_cell(row[name], form, unit) for _, name, form, unit in self._cost_columns),
            *(_cell(correlations[other], ".2f") for other in self.maps),
        ]

    def _markdown(self) -> str:
        headings, rows = self.cells()
        ruler = [":--" if number < 2 else "--:" for number in range(len(headings))]
        rows = [[number, markdown(method), *numbers] for number, method, *numbers in rows]
        lines = [f"| {' | '.join(row)} |" for row in (headings, ruler, *rows)]
        for line in self.failure_lines():
            lines += ["", markdown(line)]
        return "\n".join(lines)

    def _page(self) -> str:
        text = self.score_kind.text
        images = [
            f"- {markdown(name)}: {markdown(label)}, {text(score)}"
            for name, label, score in zip(self.names, self.labels, self.scores, strict=True)
        ]
        settings = json.dumps(self.settings, default=str)
        return "\n".join(
            [
                "# Comparison", "", self._markdown(), "", f"{R_EXPLAINED}.", "",
                *images, "", markdown(self._caption()), "",
                f"Settings: {code_span(settings)}, hf-gmar {__version__}.", "",
            ]
        )  # fmt: skip

    def _json(self) -> str:
        forward = self.forward
        summary = {
            "methods": self.records(),
            "images": [
                {"name": name, "target": target, "label": label, "score": score}
                for name, target, label, score in zip(
                    self.names, self.targets, self.labels, self.scores, strict=True
                )
            ],
            "score_kind": self.score_kind.value,
            "checks": {
                label: [check.to_dict() for check in checks]
                for label, checks in self.checks.items()
            },
            "contrasts": self.contrasts,
            "forward": forward and {"seconds": forward.seconds, "peak_bytes": forward.peak},
            "settings": self.settings,
            "version": __version__,
        }
        return json.dumps(summary, indent=1, allow_nan=False, default=str)

    def _pandas(self) -> Any:
        try:
            pandas = importlib.import_module("pandas")
        except ImportError as error:
            raise OptionError(
                'format="pandas" needs pandas, which is not installed: pip install pandas, or take '
                '"markdown" or "json"'
            ) from error
        flat = []
        for row in self.records():
            correlations = row.pop("rank_correlation")
            flat.append({**row, **{f"r with {key}": value for key, value in correlations.items()}})
        return pandas.DataFrame(flat).set_index("method")

    def save_maps(self, folder: str | Path) -> Path:
        """Write only ``maps.npz``, with the maps of the methods that are finished."""
        path = Path(folder) / MAPS
        path.parent.mkdir(parents=True, exist_ok=True)
        self._save_maps(path)
        return path

    def _save_maps(self, path: Path) -> None:
        maps = [patches.numpy() for patches in self.maps.values()]
        save_arrays(
            path,
            maps=np.stack(maps) if maps else np.empty((0, len(self.names), 0, 0)),
            methods=list(self.maps),
            names=self.names,
            targets=np.array(self.targets),
            labels=self.labels,
            settings=json.dumps(self.settings, default=str),
            version=__version__,
            **{
                f"fine_maps_{number}": self.fine_maps[label].numpy()
                for number, label in enumerate(self.maps)
                if label in self.fine_maps
            },
        )

    def _cost_text(self, label: str) -> str:
        if (cost := self.costs.get(label)) is None:
            return ""
        memory = "" if cost.peak is None else f", {_size(cost.peak)}"
        return f"{cost.ratio:.1f} forwards{memory}"

    def _caption(self) -> str:
        """Explain the numbers and colours in one paragraph."""
        sentences = [f"Model: {self.settings['model']}."] if self.settings.get("model") else []
        sentences += [self.score_kind.note] * bool(self.score_kind.note)
        if self.contrasts is not None:
            contrast = " or ".join(dict.fromkeys(self.contrasts))
            sentences.append(f"The maps explain the class's score minus the score of {contrast}.")
        sentences.append(
            "Each map is divided by its largest absolute value: compare the places of the colours, "
            "not their strength."
        )
        if self.settings.get("captum"):
            sentences.append(
                "Captum's attributions are summed over channels and over the pixels of each patch."
            )
        if self.checks:
            draws = len(next(iter(self.checks.values()))[0].advantages)
            sentences.append(
                "Better than random: the model's scores with and without the map's highest patches "
                f"are better than with all of {draws} random choices."
            )
        if self.forward is not None:
            sentences.append(
                f"Times are multiples of a plain forward of the same images, run just before "
                f"({self.forward.seconds:.2g} s). MB are the peak memory that PyTorch allocated "
                "above the memory in use before."
            )
        return " ".join(sentences)


def _cell(value: float | None, form: str, unit: float = 1) -> str:
    return "-" if value is None else format(value / unit, form)


def picture_of(pixels: Tensor) -> Image.Image:
    """Convert pixel values (channels, height, width) to an image, scaled to the full range.

    Example:
        >>> picture_of(torch.tensor([[[-1.0, 1.0]]])).getpixel((1, 0))
        (255, 255, 255)
    """
    values = pixels.detach().float().cpu()
    low, high = values.min(), values.max()
    scaled = (values - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny)
    colours = scaled[:3] if len(scaled) >= 3 else scaled[:1].expand(3, -1, -1)
    return Image.fromarray((colours * 255).round().byte().permute(1, 2, 0).numpy())


def _size(peak: float) -> str:
    return f"{peak / 1e9:.1f} GB" if peak >= 1e9 else f"{peak / 1e6:.{int(peak < 1e7)}f} MB"
