"""Compares maps that are finer than a patch: on scenes with exact masks, and by removed pixels.

python -m benchmarks.sharper                  on the bundled model, prints a table
python -m benchmarks.sharper --output FOLDER  writes it as sharper.md, too
python -m benchmarks.sharper --photos FOLDER --model MODEL --output FOLDER
                                              insertion and deletion of photos, as sharper_photos.md
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.nn import functional

from hf_gmar import AttributionMethod, load_model
from hf_gmar._core.cell_layout import window_means
from hf_gmar._engines.shifts import shifted_maps
from hf_gmar._utils.files import whole_file
from hf_gmar._utils.stats import bootstrap
from hf_gmar.data import draw_scene, find_images, open_image
from hf_gmar.methods import METHODS
from hf_gmar.metrics.faithfulness_curves import Deletion, Insertion
from hf_gmar.metrics.inputs import Curves, LocalizationInput
from hf_gmar.metrics.localization import AveragePrecision, RelevanceMass
from hf_gmar.models import LoadedModel
from hf_gmar.perturbations import Blur
from hf_gmar.perturbations.base import PerturbationInput

NAMES = ("gmar", "legrad", "input-x-gradient", "attn-lrp")
PHOTO_NAMES = ("gmar", "attn-lrp")  # each map of a photo costs many forwards
STEPS = 8
"""Steps of removal, each of as many pixels."""


def main(
    photos: Annotated[Path | None, typer.Option(help="A folder of images; else scenes.")] = None,
    model: Annotated[str, typer.Option(help="A model on the Hub, or a folder.")] = "bundled",
    size: Annotated[int | None, typer.Option(help="Pixels of a side; the model's own.")] = None,
    images: Annotated[int, typer.Option(help="Number of images.")] = 60,
    output: Annotated[Path | None, typer.Option(help="Folder for the table.")] = None,
) -> None:
    """Measure, print and write."""
    loaded = load_model(model, size=size)
    table = on_scenes(loaded, images) if photos is None else on_photos(loaded, photos, images)
    print(table)
    if output is not None:
        name = "sharper.md" if photos is None else "sharper_photos.md"
        with whole_file(output / name) as part:
            part.write_text(table, encoding="utf-8")


def on_scenes(loaded: LoadedModel, count: int) -> str:
    """Tabulate how much relevance lies on the object, and how it ranks the pixels."""
    maps: dict[tuple[str, str], list[Tensor]] = {}
    covers = []
    for seed in range(count):
        scene = draw_scene(seed)
        pixels, target = loaded.pixels(scene.image), scene.classes[0]
        covers.append(torch.as_tensor(scene.masks[0])[None].double())
        for key, values in _all_maps(NAMES, loaded, pixels, target):
            maps.setdefault(key, []).append(values.double())
    rows = []
    for key, parts in maps.items():
        measured = LocalizationInput(torch.cat(parts), torch.cat(covers))
        metrics = (RelevanceMass(), AveragePrecision())
        rows.append([*key, *(bootstrap(metric.values(measured).numpy()) for metric in metrics)])
    share = torch.cat(covers).mean().item()
    note = f"{count} scenes; the object has {share:.3f} of the image."
    return _table(("method", "map", "relevance mass", "average precision"), rows, note)


def on_photos(loaded: LoadedModel, folder: Path, count: int) -> str:
    """Tabulate the score while pixels are removed in the order of each map."""
    curves: dict[tuple[str, str], list[Curves]] = {}
    paths = find_images(folder)
    photos = paths[:: max(len(paths) // count, 1)][:count]
    for photo in photos:
        pixels = loaded.pixels(open_image(photo))
        target = int(loaded.model(pixels).logits.argmax())
        for key, values in _all_maps(PHOTO_NAMES, loaded, pixels, target):
            curves.setdefault(key, []).append(_curves(loaded, pixels, target, values))
    metrics = (Insertion(), Deletion())
    areas = {
        key: [torch.cat([metric.values(each) for each in parts]) for metric in metrics]
        for key, parts in curves.items()
    }
    rows = []
    for (name, way), (insertion, deletion) in areas.items():
        base = areas[name, _BILINEAR]
        gain = (insertion - deletion) - (base[0] - base[1])
        intervals = [bootstrap(each.numpy()) for each in (insertion, deletion, gain)]
        rows.append([name, way, *(intervals if way != _BILINEAR else [*intervals[:2], ""])])
    headings = ("method", "map", "insertion", "deletion", "insertion - deletion, gain")
    note = (
        f"{len(photos)} photos of {pixels.shape[3]} pixels; {STEPS} steps of as many pixels, which "
        f'the blurred image replaces. Gain: against "{_BILINEAR}" on the same photos.'
    )
    return _table(headings, rows, note)


_BILINEAR = "patches, bilinear"


def _all_maps(
    names: Iterable[str], loaded: LoadedModel, pixels: Tensor, target: int
) -> Iterator[tuple[tuple[str, str], Tensor]]:
    """Yield maps (1, height, width) of one class, by method and what makes them finer."""
    for name in names:
        for way, values in _ways(name, loaded.model, pixels, target).items():
            yield (METHODS[name].title, way), values


def _ways(name: str, model: torch.nn.Module, pixels: Tensor, target: int) -> dict[str, Tensor]:
    method = METHODS.build(name, model)
    patches = method.attribute_patches(pixels, target)
    size, grid = (pixels.shape[2], pixels.shape[3]), (patches.shape[1], patches.shape[2])
    cells = 3 if size[0] // grid[0] % 3 == 0 else 2
    shifts = _shifted(method, pixels, target, grid, cells)
    ways = {
        "patches": functional.interpolate(patches[:, None], size)[:, 0],
        _BILINEAR: functional.interpolate(patches[:, None], size, mode="bilinear")[:, 0],
        f"patches, {cells**2} shifts": functional.interpolate(shifts[:, None], size)[:, 0],
    }
    if "pixel" in METHODS[name].resolutions:
        of_cells, of_pixels = (
            METHODS.build(name, model, resolution=value).attribute(pixels, target)
            for value in (cells, "pixel")
        )
        fine = of_pixels.sum(1)
        ways[f"{cells} x {cells} cells in a patch"] = of_cells[:, 0]
        ways["pixels"] = fine
        ways["pixels, mean of a patch around each"] = window_means(fine, grid)
    return ways


def _shifted(
    method: AttributionMethod, pixels: Tensor, target: int, grid: tuple[int, int], cells: int
) -> Tensor:
    """Return the mean over shifts, of methods whose ``resolution`` sums pixels instead, too."""
    request, spec = method._request(pixels, None, {}), method._target_spec(target, None)
    (shifts,) = shifted_maps(method._explain, request, [spec], grid, cells)
    return shifts


def _curves(loaded: LoadedModel, pixels: Tensor, target: int, values: Tensor) -> Curves:
    """Measure the class's probability while pixels are removed, by the map from both ends."""
    method = METHODS.build("random", loaded.model)
    blurred = Blur().baseline(PerturbationInput(method.adapter, pixels, None))
    order = values.flatten().argsort(descending=True, stable=True)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order))
    shares = torch.linspace(0, 1, STEPS + 1)
    removed = ranks.view(values.shape) < (shares * len(order))[:, None, None]
    others = removed.flip(0).logical_not()[1:-1]  # the last ones of the order first
    copies = torch.where(torch.cat([removed, others])[:, None], blurred, pixels)
    with torch.no_grad():
        scores = loaded.model(copies).logits.softmax(1)[:, target]
    whole, most, blank, least = scores.split([1, STEPS - 1, 1, STEPS - 1])
    sides = (torch.cat([whole, part, blank])[None] for part in (most, least))
    return Curves(shares, *sides)


def _table(headings: Iterable[str], rows: Iterable[list[Any]], note: str) -> str:
    lines = [f"| {' | '.join(headings)} |", f"|{'---|' * len(list(headings))}"]
    lines += [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join(lines) + f"\n\n{note}\n"


if __name__ == "__main__":
    typer.run(main)
