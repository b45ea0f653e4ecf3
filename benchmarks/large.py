"""Measures the peak memory of explanations of large models, weights included.

    python -m benchmarks.large
    python -m benchmarks.large --model ViT-L/16 --pixels 1024 --batch 8 --device cuda

Run it from the root of the repository. Weights are random. On a CPU, each row has its own process,
and the peak is its resident size, with Python and PyTorch. On a GPU, the peak is that of PyTorch's
allocator, and a row fits if the allocator can do with the limit, less what CUDA itself takes.
"""

from __future__ import annotations

import functools
import gc
import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import (
    SiglipForImageClassification,
    SiglipVisionConfig,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.models.siglip import SiglipConfig

from benchmarks.memory import Peak, in_own_process, peak_above, resident_peak
from benchmarks.report import in_gb, machine, save_table, short
from benchmarks.timing import seconds_of
from hf_gmar.methods import METHODS
from hf_gmar.models.hub import pick_device

TITLE = "Large models: does an explanation fit"
COLUMNS = ("model", "pixels", "images", "method", "weights", "peak, GB", "fits", "seconds")
_CUDA_BYTES = 1e9  # of the context and the libraries, outside the allocator
_LABELS = 1000


@dataclass(frozen=True)
class Shape:
    """The shape of a model with global attention."""

    kind: str
    hidden: int
    layers: int
    heads: int
    mlp: int
    patch: int

    def build(self, pixels: int, dtype: torch.dtype) -> Any:
        """Make a classifier with random weights on the current device."""
        sizes: dict[str, Any] = {
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": self.mlp,
            "image_size": pixels,
            "patch_size": self.patch,
        }
        config: Any = ViTConfig(**sizes)
        kind: Any = ViTForImageClassification
        if self.kind == "siglip":
            config = SiglipConfig(vision_config=SiglipVisionConfig(**sizes, vision_use_head=False))
            kind = SiglipForImageClassification
        config.num_labels = _LABELS
        return kind._from_config(config, dtype=dtype).eval()


SHAPES = {
    "ViT-L/16": Shape("vit", 1024, 24, 16, 4096, 16),
    "ViT-g/14": Shape("vit", 1408, 40, 16, 6144, 14),
    "SigLIP so400m/14": Shape("siglip", 1152, 27, 16, 4304, 14),
    "tiny": Shape("vit", 32, 2, 2, 64, 16),
}
WAYS: dict[str, tuple[str, dict[str, bool]]] = {
    "gmar, checkpoint": ("gmar", {"checkpoint": True}),
    "gmar": ("gmar", {}),
    "attn-lrp": ("attn-lrp", {}),
}
"""Methods with their options, by the name in the table."""


@dataclass(frozen=True)
class LargeCase:
    """One explanation of a batch of images; ``way`` is a name in ``WAYS``."""

    model: str
    pixels: int
    batch: int
    way: str
    dtype: str

    def run(self, device: torch.device) -> Any:
        """Build the model and its images; return the explanation, which has not yet run."""
        torch.manual_seed(0)
        dtype = getattr(torch, self.dtype)
        with device:
            model = SHAPES[self.model].build(self.pixels, dtype)
            images = torch.randn(self.batch, 3, self.pixels, self.pixels, dtype=dtype)
        name, options = WAYS[self.way]
        method = METHODS.build(name, model, **options)
        return functools.partial(method.attribute_patches, images, 3)


@dataclass(frozen=True)
class Measured:
    """The result of one case.

    Attributes:
        peak: peak memory with the weights, in bytes; ``None`` if the case did not end.
        fits: whether the case needs no more than the limit; ``None`` if it is not known.
        seconds: of one explanation; ``None`` if the case did not end.
        reason: why a value is missing.
    """

    peak: int | None = None
    fits: bool | None = None
    seconds: float | None = None
    reason: str = ""


def on_cpu(case: LargeCase, limit_gb: float, threads: int, time_limit: float) -> Measured:
    """Explain once in a new process, and stop it at the time limit."""
    found = in_own_process(functools.partial(_resident, case, threads), time_limit)
    if found.bytes is None:
        return Measured(reason=found.reason)
    return Measured(found.bytes, found.bytes <= limit_gb * 1e9, found.seconds)


def _resident(case: LargeCase, threads: int) -> Peak:
    torch.set_num_threads(threads)
    return resident_peak(case.run(torch.device("cpu")))


def on_cuda(case: LargeCase, limit_gb: float, device: torch.device) -> Measured:
    """Try to explain within the limit, then measure the peak and the time without it."""
    whole = torch.cuda.get_device_properties(device).total_memory
    room = limit_gb * 1e9 - _CUDA_BYTES
    fits = True
    try:
        run = case.run(device)
        try:
            torch.cuda.set_per_process_memory_fraction(min(1.0, room / whole), device)
            run()
        except torch.cuda.OutOfMemoryError:
            fits = False
        torch.cuda.set_per_process_memory_fraction(1.0, device)
        held = torch.cuda.memory_allocated(device)
        above = peak_above(run, device).bytes or 0
        return Measured(held + above, fits, seconds_of(run, device))
    except torch.cuda.OutOfMemoryError:
        return Measured(fits=False, reason="out of memory")
    finally:
        run = None
        gc.collect()
        torch.cuda.empty_cache()


def row(case: LargeCase, found: Measured) -> tuple[str, ...]:
    """Return the cells of a case, by ``COLUMNS``."""
    fits = {True: "yes", False: "no", None: found.reason}[found.fits]
    seconds = found.reason if found.seconds is None else short(found.seconds)
    return (
        case.model, str(case.pixels), str(case.batch), case.way, case.dtype,
        found.reason if found.peak is None else in_gb(found.peak), fits, seconds,
    )  # fmt: skip


def measure_all(  # a keyword each
    cases: Sequence[LargeCase],
    device: torch.device,
    limit_gb: float,
    threads: int,
    time_limit: float,
    output: Path | None,
) -> list[str]:
    """Measure all cases; write the table after each, so that no result is lost."""
    rows, results, lines = [], [], []
    for case in cases:
        found = (
            on_cuda(case, limit_gb, device)
            if device.type == "cuda"
            else on_cpu(case, limit_gb, threads, time_limit)
        )
        rows.append(row(case, found))
        results.append({**asdict(case), **asdict(found)})
        title = f"{TITLE} into {limit_gb:g} GB?"
        where = machine(device, threads)
        lines = save_table(output, "large", title, where, COLUMNS, rows, results)
    return lines


def main(
    model: Annotated[list[str] | None, typer.Option(help=f"{', '.join(SHAPES)}.")] = None,
    pixels: Annotated[list[int] | None, typer.Option(help="Sides of the images.")] = None,
    *,
    batch: Annotated[int, typer.Option(min=1, help="Images in a batch.")] = 1,
    dtype: Annotated[list[str] | None, typer.Option(help="float32, bfloat16.")] = None,
    way: Annotated[list[str] | None, typer.Option(help=f"{'; '.join(WAYS)}.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    limit_gb: Annotated[float, typer.Option(help="The memory that there is.")] = 12,
    time_limit: Annotated[float, typer.Option(help="Seconds of one row on a CPU.")] = 180,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    output: Annotated[Path | None, typer.Option(help="Folder of large.md and .json.")] = None,
) -> None:
    """Print the table, and write it to OUTPUT."""
    cases = [
        LargeCase(*names)
        for names in itertools.product(
            model or ("ViT-g/14", "SigLIP so400m/14"),
            pixels or (518, 1022),
            (batch,),
            way or WAYS,
            dtype or ("bfloat16",),
        )
    ]
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
    where = pick_device(device)
    torch.set_num_threads(threads)
    lines = measure_all(cases, where, limit_gb, threads, time_limit, output)
    typer.echo("\n".join(lines))


if __name__ == "__main__":
    typer.run(main)
