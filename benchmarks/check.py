"""Measures how often the map of each method is better than random patches, and what a check costs.

python -m benchmarks.check                                # synthetic scenes
python -m benchmarks.check --photos FOLDER --model MODEL
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from PIL import Image

from hf_gmar import Explainer, FaithfulnessCheck
from hf_gmar.data import draw_scene, find_images
from hf_gmar.faithfulness import Verdict, check_maps
from hf_gmar.methods import METHODS
from hf_gmar.models import load_model

VERDICTS: tuple[Verdict, ...] = ("better", "no better", "worse")


def main(
    photos: Annotated[Path | None, typer.Option(help="A folder of images; else scenes.")] = None,
    model: Annotated[str, typer.Option(help="A model on the Hub, or a folder.")] = "bundled",
    images: Annotated[int, typer.Option(help="Number of images.")] = 100,
    draws: Annotated[int, typer.Option(help="Random choices of patches.")] = 9,
) -> None:
    """Print the shares of images by verdict, and the time of a check by that of an explanation."""
    names = [name for name, method in METHODS.items() if method.by_default]
    explainer = Explainer(load_model(model), names)
    checks: dict[str, list[FaithfulnessCheck]] = defaultdict(list)
    ratios: dict[str, list[float]] = defaultdict(list)
    sources = _sources(photos, images)
    for number, source in enumerate(sources):
        results = explainer(source)
        maps = [(result.patches, result._explained) for result in results]
        for result, check in zip(
            results, check_maps(results[0].subject, maps, draws=draws, seed=number), strict=True
        ):
            checks[result.method].append(check)
        if number % 20 == 0:
            for name in ("gmar", "attn-lrp"):
                ratios[name].append(_ratio(explainer, name, source, draws))
    print(_table(checks, len(sources), draws))
    for name, values in ratios.items():
        print(f"\nCheck by explanation, {METHODS[name].title}: {median(values):.1f} (median)")


def _sources(photos: Path | None, count: int) -> Sequence[Path | Image.Image]:
    if photos is None:
        return [draw_scene(seed).image for seed in range(count)]
    paths = find_images(photos)
    return paths[:: max(len(paths) // count, 1)][:count]


def _ratio(explainer: Explainer, name: str, source: Any, draws: int) -> float:
    """Time a check and, just before, the explanation of the same image."""
    result = next(result for result in explainer(source) if result.method == name)
    start = time.perf_counter()
    explainer.methods[name].attribute_patches(result.subject.pixels, result.target)
    middle = time.perf_counter()
    result.check(draws=draws)
    return (time.perf_counter() - middle) / (middle - start)


def _table(checks: dict[str, list[FaithfulnessCheck]], images: int, draws: int) -> str:
    """Tabulate the verdicts, and how often a fraction alone is outside of the random range."""
    fractions = next(iter(checks.values()))[0].fractions
    headings = ["method", *VERDICTS]
    headings += [f"keep {share:.0%}" for share in fractions]
    headings += [f"remove {share:.0%}" for share in fractions]
    lines = [
        f"{images} images, {draws} random choices; shares of the images in %.",
        "keep and remove: the score is beyond all random choices, in the right direction.",
        "",
        f"| {' | '.join(headings)} |",
        f"|{'---|' * len(headings)}",
    ]
    for name, of_method in checks.items():
        verdicts = Counter(check.verdict for check in of_method)
        cells = [verdicts[verdict] for verdict in VERDICTS]
        numbers = range(len(fractions))
        cells += [sum(c.keep[n] > max(c.random_keep[n]) for c in of_method) for n in numbers]
        cells += [sum(c.remove[n] < min(c.random_remove[n]) for c in of_method) for n in numbers]
        shares = [f"{cell / len(of_method):.0%}".rstrip("%") for cell in cells]
        lines.append(f"| {METHODS[name].title} | {' | '.join(shares)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
