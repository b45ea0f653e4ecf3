"""Draws every picture of the pages, the reports of the committed results, and the tour.

    python -m benchmarks.figures
    python -m benchmarks.figures docs/images/demo.png

Run it from the root of the repository after a change of what is drawn.
``docs/images/figures.json`` then holds the contents of each picture: its texts, and the arrays and
lines in short. ``tests/project/test_figures.py`` draws each figure again and compares the contents,
with a tolerance for the rounding of other machines.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import runpy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib.axis import Tick
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray
from PIL import Image

from benchmarks import tour
from benchmarks.captum_tools import CAPTUM_TOOLS
from benchmarks.drawings import DRAWINGS
from benchmarks.growth import Curve as GrowthCurve
from benchmarks.growth import Growth, growth_figure
from hf_gmar import ablate_heads, compare, head_importance, load_model
from hf_gmar._utils.files import save_arrays, whole_file
from hf_gmar.comparison import MethodSpec
from hf_gmar.data import draw_scene
from hf_gmar.evaluation.report.markdown import Picture, page
from hf_gmar.evaluation.report.results import Cell, Curve, Difference, Failure, Measure, Results
from hf_gmar.evaluation.report.writer import pictures_of
from hf_gmar.explainer import explain
from hf_gmar.heads.ablation import LERF, MORF, RANDOM, HeadAblation
from hf_gmar.methods import METHODS
from hf_gmar.models import sample_image
from hf_gmar.visualization import save_figure

ROOT = Path(__file__).parents[1]
CONTENTS = ROOT / "docs" / "images" / "figures.json"
ABLATION = ROOT / "benchmarks" / "results" / "head_ablation.npz"
VIDEOS_AND_SOUND = ROOT / "benchmarks" / "results" / "videos_and_sound.npz"
RESULTS = ("photos", "scenes")
SEEDS = (18, 3, 7)  # of the scenes of the comparison
_CELLS = 4  # an array is stored as means of so many rows and columns
_POINTS = 6  # a line is stored as so many of its points


def demo() -> Image.Image:
    """Explain the bundled scene, as ``make demo`` does."""
    methods = ["gmar", "attn-lrp:resolution=pixel"]
    results = explain(sample_image(), "bundled", ["heart", "cross"], method=methods, check=True)
    picture: Image.Image = results.picture()
    picture.info["texts"] = [
        text for result in results for text in (result.title, *result.faithfulness.lines)
    ]
    return picture


def check() -> Figure:
    """Draw the check of the page."""
    figure: Figure = (
        explain(draw_scene(18).image, "bundled", "heart", method="attn-lrp").check().figure()
    )
    return figure


def comparison() -> Figure:
    """Compare all methods, and Captum's Occlusion, on three scenes."""
    loaded, scenes = load_model("bundled"), [draw_scene(seed) for seed in SEEDS]
    images = [scene.image for scene in scenes]
    result = compare(
        loaded.model,
        loaded.processor(images=images, return_tensors="pt").pixel_values,
        [
            *(MethodSpec(name) for name in METHODS.built_in if METHODS[name].by_default),
            "Occlusion",
        ],
        images=images,
        names=[f"scene {seed}" for seed in SEEDS],
        measure=False,  # times change with the machine
    )
    return replace(result, settings={**result.settings, "model": loaded.name}).figure()


def captum_side_by_side() -> Figure:
    """Draw the figure of the example."""
    figure: Figure = _example("captum_side_by_side")["side_by_side"](18).figure()
    return figure


def heads_of_a_class() -> Figure:
    """Draw the importance of heads of the example."""
    figure: Figure = _example("heads_of_a_class")["measure"]("heart", 20)[0].figure()
    return figure


def head_maps() -> Figure:
    """Draw the maps of heads of the example."""
    figure: Figure = _example("heads_of_a_class")["measure"]("heart", 1)[1]
    return figure


def head_ablation() -> Figure:
    """Draw the curves of ``measure_head_ablation``, which takes a minute."""
    with np.load(ABLATION) as stored:
        curves = {order: stored[order.replace(" ", "_")] for order in (MORF, LERF, RANDOM)}
        settings = json.loads(str(stored["settings"]))
        return HeadAblation(stored["fractions"], curves, stored["targets"], settings).figure()


def measure_head_ablation() -> None:
    """Mask heads by GMAR's importance on 100 scenes, and store the curves."""
    loaded, scenes = load_model("bundled"), [draw_scene(seed) for seed in range(100)]
    images, targets = [scene.image for scene in scenes], [scene.classes[0] for scene in scenes]
    pixels = loaded.processor(images=images, return_tensors="pt").pixel_values
    importance = head_importance(loaded.model, pixels, targets)
    ablation = ablate_heads(loaded.model, pixels, importance)
    save_arrays(
        ABLATION,
        fractions=ablation.fractions,
        targets=ablation.targets,
        settings=json.dumps(dict(ablation.settings)),
        **{order.replace(" ", "_"): curve for order, curve in ablation.curves.items()},
    )


def film_strip() -> Image.Image:
    """Draw the clip of the example ``videos_and_sound.py`` from its stored maps."""
    with np.load(VIDEOS_AND_SOUND) as stored:
        picture: Image.Image = _example("videos_and_sound")["clip_picture"](stored)
        picture.info["texts"] = [str(stored["clip"])]
    return picture


def spectrogram() -> Figure:
    """Draw the spectrogram of the example ``videos_and_sound.py`` from its stored map."""
    with np.load(VIDEOS_AND_SOUND) as stored:
        figure: Figure = _example("videos_and_sound")["sound_figure"](stored)
    return figure


def growth() -> Figure:
    """Draw the growth of time and memory from the benchmark's committed output."""
    text = (ROOT / "benchmarks" / "results" / "engine.json").read_text(encoding="utf-8")
    stored = json.loads(text)["growth"]
    curves = {name: GrowthCurve(**curve) for name, curve in stored["curves"].items()}
    return growth_figure(Growth(**{**stored, "curves": curves}))


def _example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "examples" / f"{name}.py"))


def results(name: str) -> Results:
    """Read the committed summary of an evaluation."""
    path = ROOT / "docs" / "results" / name / "summary.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    cells = [
        Cell(
            cell["method"], cell["measure"], cell["mean"], cell["low"], cell["high"],
            cell["images"], cell["difference"] and Difference(**cell["difference"]),
        )
        for cell in stored["cells"]
    ]  # fmt: skip
    return Results(
        stored["settings"],
        tuple(stored["methods"]),
        tuple(Measure(**measure) for measure in stored["measures"]),
        stored["baseline"],
        stored["statistics"]["seed"],
        stored["images"],
        tuple(cells),
        tuple(Curve(**curve) for curve in stored["curves"]),
        tuple(Failure(**failure) for failure in stored["failures"]),
    )


def report_pictures(name: str) -> list[Picture]:
    """List the pictures of a committed report; its example maps are not committed."""
    return pictures_of(results(name), [])


def report(name: str) -> str:
    """Write the page of a committed summary."""
    return page(results(name), report_pictures(name))


def _report_figures() -> Iterator[tuple[str, Callable[[], Figure]]]:
    for name in RESULTS:
        for picture in report_pictures(name):
            yield f"docs/results/{name}/{picture.file}", picture.draw


FIGURES: dict[str, Callable[[], Figure | Image.Image]] = {
    "docs/images/demo.png": demo,
    "docs/images/check.png": check,
    "docs/images/comparison.png": comparison,
    "docs/images/captum_side_by_side.png": captum_side_by_side,
    "docs/images/heads_of_a_class.png": heads_of_a_class,
    "docs/images/head_maps.png": head_maps,
    "docs/images/head_ablation.png": head_ablation,
    "docs/images/film_strip.png": film_strip,
    "docs/images/spectrogram.png": spectrogram,
    "benchmarks/results/growth.png": growth,
    **DRAWINGS,
    **CAPTUM_TOOLS,
    **dict(_report_figures()),
}
"""What draws each picture, by its path."""


def contents(figure: Figure | Image.Image) -> dict[str, Any]:
    """Describe what a picture shows, independent of fonts, dots and places.

    Returns:
        ``texts``, without those of ticks, and ``numbers``: the means of arrays, points of lines.
    """
    if isinstance(figure, Image.Image):
        values = np.asarray(figure, dtype=float) / 255
        return {"texts": figure.info["texts"], "numbers": [_means(values)]}
    ticks = {text for tick in figure.findobj(Tick) for text in tick.findobj(Text)}
    texts = [text for text in figure.findobj(Text) if text not in ticks]
    numbers: list[list[float]] = []
    for axes in figure.axes:
        for image in axes.images:
            values = np.asarray(image.get_array(), dtype=float)
            numbers.append(_means(values / 255 if values.ndim == 3 else values))
        for line in axes.lines:
            points = np.asarray(line.get_xydata(), dtype=float)
            chosen = np.linspace(0, len(points) - 1, min(len(points), _POINTS)).astype(int)
            numbers.append(_short(points[chosen]))
    words = [" ".join(text.get_text().split()) for text in texts]
    return {"texts": [text for text in words if text], "numbers": numbers}


def _means(values: NDArray[np.float64]) -> list[float]:
    """Return the means of an array's parts, by rows and columns."""
    parts = [
        part.mean(axis=(0, 1))
        for band in np.array_split(values, min(_CELLS, values.shape[0]), axis=0)
        for part in np.array_split(band, min(_CELLS, values.shape[1]), axis=1)
    ]
    return _short(np.stack(parts))


def _short(values: NDArray[np.float64]) -> list[float]:
    return [float(f"{value:.3g}") for value in np.nan_to_num(values).ravel()]


def differences(stored: dict[str, Any], drawn: dict[str, Any]) -> list[str]:
    """Compare contents: words must be the same, and numbers within rounding.

    Example:
        >>> differences({"texts": ["a 0.12"], "numbers": []}, {"texts": ["a 0.13"], "numbers": []})
        []
        >>> differences({"texts": ["a 1"], "numbers": []}, {"texts": ["b 1"], "numbers": []})
        ["text 'a 1' is now 'b 1'"]
    """
    problems = [
        f"{len(stored[kind])} {kind} are now {len(drawn[kind])}"
        for kind in ("texts", "numbers")
        if len(stored[kind]) != len(drawn[kind])
    ]
    for old, new in zip(stored["texts"], drawn["texts"], strict=False):
        if not _same_text(old, new):
            problems.append(f"text {old!r} is now {new!r}")
    for number, (old, new) in enumerate(zip(stored["numbers"], drawn["numbers"], strict=False)):
        scale = max(map(abs, old), default=0)
        if len(old) != len(new) or not np.allclose(old, new, rtol=0.02, atol=0.02 * scale):
            problems.append(f"array or line {number} has other values")
    return problems


_NUMBER = re.compile(r"\d*\.?\d+")


def _same_text(old: str, new: str) -> bool:
    if _NUMBER.sub("#", old) != _NUMBER.sub("#", new):
        return False
    for before, after in zip(_NUMBER.findall(old), _NUMBER.findall(new), strict=True):
        decimals = len(before.partition(".")[2])
        unit = 10.0**-decimals if decimals else 0  # a count is exact
        if abs(float(before) - float(after)) > 2.01 * unit:
            return False
    return True


def digest(path: Path) -> str:
    """Return the digest of a picture's file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


@functools.cache
def stored_contents() -> dict[str, Any]:
    """Read the contents of all pictures."""
    stored: dict[str, Any] = json.loads(CONTENTS.read_text(encoding="utf-8"))
    return stored


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Paths; default: all.")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Mask the heads again.")] = False,
) -> None:
    """Draw the pictures, and write the reports and the contents."""
    if measure:
        measure_head_ablation()
    stored = stored_contents() if CONTENTS.exists() else {}
    for name in names or FIGURES:
        figure, path = FIGURES[name](), ROOT / name
        drawn = contents(figure)
        if isinstance(figure, Figure):
            save_figure(figure, path)
        else:
            with whole_file(path) as part:
                figure.save(part, "PNG", optimize=True)
        stored[name] = {"file": digest(path), **drawn}
        typer.echo(name)
    if not names:
        tour.main()
    for name in RESULTS:
        with whole_file(ROOT / "docs" / "results" / name / "report.md") as part:
            part.write_text(report(name), encoding="utf-8")
    lines = [
        f"{json.dumps(name)}: {json.dumps(stored[name])}" for name in FIGURES if name in stored
    ]
    with whole_file(CONTENTS) as part:
        part.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
