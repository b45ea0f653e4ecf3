"""Measures the images per second of an evaluation on a GPU, beside the CPU.

    python -m benchmarks.devices

Run it from the root of the repository. Two models evaluate drawn scenes by GMAR and AttnLRP: the
bundled one, and a ViT-B/16 at 224 pixels with random weights. Each device has its own number of
images, since a large model is slow on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import ViTImageProcessorPil

from benchmarks.contest import Bench, Case
from benchmarks.evaluation import work
from benchmarks.report import machine, save_table, short
from hf_gmar import load_model
from hf_gmar.data import open_data
from hf_gmar.models import LoadedModel
from hf_gmar.models.hub import pick_device
from hf_gmar.models.labels import labels_of

TITLE = "Evaluation: images per second by device"
COLUMNS = ("model", "device", "images", "images per second", "relative to the CPU")
METHODS = ("gmar", "attn-lrp")


@dataclass(frozen=True)
class Rate:
    """The images per second of a model on a device, over a number of images."""

    model: str
    device: str
    images: int
    rate: float


def cells(results: Sequence[Rate]) -> list[tuple[str, ...]]:
    """Return the rows of the table.

    Example:
        >>> cells([Rate("B224", "cuda", 32, 6.0), Rate("B224", "cpu", 4, 0.5)])[0]
        ('B224', 'cuda', '32', '6.00', '12.0')
    """
    on_cpu = {one.model: one.rate for one in results if one.device == "cpu"}
    return [
        (
            one.model, one.device, str(one.images), short(one.rate),
            short(one.rate / on_cpu[one.model]) if one.model in on_cpu else "",
        )
        for one in results
    ]  # fmt: skip


def loaded(name: str, device: torch.device) -> LoadedModel:
    """Load the bundled model, or make the model of a case, on a device."""
    if name == "bundled":
        return load_model(name, str(device))
    case = Case.parse(name)
    size = {"height": case.pixels, "width": case.pixels}
    return LoadedModel(name, Bench.build(case, device).model, ViTImageProcessorPil(size=size))


def main(
    model: Annotated[list[str] | None, typer.Option(help="bundled, or a case: B224.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    images: Annotated[int, typer.Option(min=3, help="Images on a GPU.")] = 32,
    cpu_images: Annotated[int, typer.Option(min=3, help="Images on the CPU.")] = 4,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: as PyTorch.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of devices.md and .json.")] = None,
) -> None:
    """Print the table, and write it to OUTPUT after each row."""
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
    threads = threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    where, cpu = pick_device(device), torch.device("cpu")
    results: list[Rate] = []
    lines: list[str] = []
    for name in model or ("bundled", "B224"):
        for each in dict.fromkeys((where, cpu)):  # the GPU first: the time may end
            explained = loaded(name, each)
            count = cpu_images if each == cpu else images
            data = open_data("scenes", labels_of(explained.config), limit=count)
            results.append(Rate(name, each.type, count, work(explained, data, METHODS)))
            details, about = [asdict(rate) for rate in results], machine(where, threads)
            lines = save_table(output, "devices", TITLE, about, COLUMNS, cells(results), details)
    typer.echo("\n".join(lines))


if __name__ == "__main__":
    typer.run(main)
