"""Writes the results as Markdown, without absolute times, and as complete JSON."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch

from benchmarks.contest import CONTESTANTS, FORWARD, TARGET_CONTESTANTS
from benchmarks.growth import Curve, Growth, extra_bytes
from benchmarks.memory import Peak
from benchmarks.timing import Ratios, Times
from hf_gmar._utils.files import save_json, save_text, whole_file

PACKAGES = ("hf-gmar", "torch", "transformers", "captum")


@dataclass
class CaseResult:
    """The results of one case: peaks by contestant, and times of the contestants that ran."""

    tokens: int
    at_once: int
    peaks: dict[str, Peak]
    times: Times


@dataclass
class Report:
    """The results of one run so far."""

    machine: dict[str, str]
    repeats: int
    cases: dict[str, CaseResult] = field(default_factory=dict)
    growth: Growth | None = None

    def save(self, folder: Path) -> None:
        """Write all results, and overwrite earlier files."""
        with whole_file(folder / "engine.json") as part:
            part.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        with whole_file(folder / "engine.md") as part:
            part.write_text(self.markdown(), encoding="utf-8")

    def markdown(self) -> str:
        """Return the tables with their explanations."""
        line = ", ".join(f"{name} {value}" for name, value in self.machine.items())
        tables = [_summary, _times, _peaks, _targets, _growth]
        rows = (row for table in tables for row in table(self))
        return "\n".join(["# Time and memory of the engines", "", line, *rows]) + "\n"


def machine(device: torch.device, threads: int) -> dict[str, str]:
    """Describe the device, CPU, threads and versions of a run."""
    where = {"device": device.type, "CPU": _cpu(), "threads": str(threads)}
    if device.type == "cuda":
        where["GPU"] = torch.cuda.get_device_name(device)
    packages = {name: version(name) for name in PACKAGES}
    return where | {"Python": platform.python_version()} | packages


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1] if match else platform.processor() or platform.machine()


def short(number: float) -> str:
    """Format a number with about three digits.

    Example:
        >>> short(3.14159), short(31.4159), short(31415.9)
        ('3.14', '31.4', '31,416')
    """
    digits = 2 if abs(number) < 10 else 1 if abs(number) < 100 else 0
    return f"{number:,.{digits}f}"


def spread(ratios: Sequence[float], scaled: str = "") -> str:
    """Format ratios as median (lowest to highest), or a single ratio alone.

    Example:
        >>> spread([3.0, 2.5, 4.0]), spread([51.0], "5 of 50 passes")
        ('3.00 (2.50 to 4.00)', '~51.0')
    """
    middle = ("~" if scaled else "") + short(median(ratios))
    return (
        middle if len(ratios) == 1 else f"{middle} ({short(min(ratios))} to {short(max(ratios))})"
    )


def in_mb(size: float | None) -> str:
    """Format bytes in millions."""
    return "n/a" if size is None else short(size / 1e6)


def in_gb(size: float) -> str:
    """Format bytes in thousands of millions."""
    return f"{size / 1e9:.2f}"


def save_table(  # what a page of results has
    folder: Path | None,
    name: str,
    title: str,
    where: dict[str, str],
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    results: Sequence[object],
) -> list[str]:
    """Return a page with one table; write it, and the results as JSON, if there is a folder."""
    line = ", ".join(f"{name} {value}" for name, value in where.items())
    head = [_row(*columns), "|" + "---|" * len(columns)]
    lines = [f"# {title}", "", line, "", *head, *(_row(*cells) for cells in rows)]
    if folder is not None:
        save_json(folder / f"{name}.json", {"machine": where, "results": list(results)})
        save_text(folder / f"{name}.md", "\n".join(lines) + "\n")
    return lines


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _head(title: str, *columns: str) -> list[str]:
    return ["", f"## {title}", "", _row(*columns), "|" + "---|" * len(columns)]


def _summary(report: Report) -> Iterator[str]:
    """Yield one row for each contestant, with one column for each case."""
    yield from _head("Time and memory in short", "", *report.cases)
    for name in CONTESTANTS:
        yield _row(name, *(_in_short(result, name) for result in report.cases.values()))
    yield ""
    yield (
        "Cells: median time as a multiple of the plain forward, and peak memory above the plain "
        "forward's peak. Cases: S is ViT-S/16, B is ViT-B/16; then the pixels of the image, and x "
        "with the batch size. `~`: scaled from a part of the run. A dash: not run, see below."
    )


def _in_short(result: CaseResult, name: str) -> str:
    ratios = result.times.ratios.get(name)
    if ratios is None:
        return "-"
    extra = extra_bytes(result.peaks, name)
    memory = "" if extra is None or name == FORWARD else f", {extra / 1e9:+z.2f} GB"
    return ("~" if ratios.scaled else "") + short(median(ratios.to_forward)) + memory


def _times(report: Report) -> Iterator[str]:
    yield from _head("Time", "case", "contestant", "/ plain forward", "/ forward + backward")
    for case, result in report.cases.items():
        for name in CONTESTANTS:
            ratios = result.times.ratios.get(name)
            yield _row(case, name, *_time_cells(ratios, result.peaks[name]))
    for note in (_how_timed(report), _how_captum_is_timed(report), *_scaled(report)):
        yield from ("", note)


def _time_cells(ratios: Ratios | None, peak: Peak) -> tuple[str, str]:
    if ratios is None:
        return (peak.reason or "n/a",) * 2
    return spread(ratios.to_forward, ratios.scaled), spread(ratios.to_backward, ratios.scaled)


def _how_timed(report: Report) -> str:
    return (
        "Cells: median (lowest to highest) of the ratio within a round. In a round, every "
        f"contestant runs once. There are {report.repeats} rounds after a dropped first round. "
        "Cases: S is ViT-S/16, B is ViT-B/16 (T is a tiny model to try the script), with random "
        "weights; then the pixels of the square images, and x with the batch size. `forward + "
        "backward` computes the unmodified model's gradient with respect to the pixels, with "
        "frozen weights."
    )


def _how_captum_is_timed(report: Report) -> str:
    at_once = ", ".join(f"{result.at_once} in {case}" for case, result in report.cases.items())
    return (
        "Captum's methods run once, between two runs of both references, and are compared with "
        "the mean of the two runs. Integrated Gradients has frozen weights. Largest number of "
        f"copies of the batch in one pass: {at_once}."
    )


def _scaled(report: Report) -> Iterator[str]:
    for case, result in report.cases.items():
        for name, ratios in result.times.ratios.items():
            if ratios.scaled:
                yield f"`~` {case}, {name}: scaled from {ratios.scaled} of each image."


def _peaks(report: Report) -> Iterator[str]:
    columns = "above the state before the call, MB", "above the plain forward's peak, MB"
    yield from _head("Peak memory", "case", "contestant", *columns)
    for case, result in report.cases.items():
        for name in CONTESTANTS:
            peak = result.peaks[name]
            cells = in_mb(peak.bytes), in_mb(extra_bytes(result.peaks, name))
            yield _row(case, name, *((peak.reason,) * 2 if peak.reason else cells))
    yield ""
    on_gpu = report.machine["device"] == "cuda"
    kind = "the memory of PyTorch's allocator" if on_gpu else "the resident size"
    own = "" if on_gpu else " in its own process,"
    yield (
        f"Cells: peak of {kind}, in millions of bytes. Each contestant runs{own} "
        "after one plain forward. On a CPU, freed tensors of a megabyte or more return to the "
        "system at once; by default, glibc keeps some, up to twice the memory in use. Captum's "
        "methods run a part of their passes here, because all passes need the same memory."
    )


def _targets(report: Report) -> Iterator[str]:
    if not any(result.times.to_streaming for result in report.cases.values()):
        return
    yield from _head("Several targets", "case", "contestant", "/ one GMAR streaming call")
    for case, result in report.cases.items():
        for name in TARGET_CONTESTANTS:
            if name in result.times.to_streaming:
                yield _row(case, name, spread(result.times.to_streaming[name]))
    yield ""
    yield "All rows use the streaming engine, in the same rounds as above."


def _growth(report: Report) -> Iterator[str]:
    growth = report.growth
    if growth is None:
        return
    yield from _head(
        f"Growth, {growth.cases[0][0]} model, one image",
        "case", "tokens", "contestant", f"time / {FORWARD} at {growth.cases[0]}",
        "peak above the state before, MB", "above the plain forward's peak, MB",
    )  # fmt: skip
    for number, (case, tokens) in enumerate(zip(growth.cases, growth.tokens, strict=True)):
        for name, curve in growth.curves.items():
            yield _row(case, str(tokens), name, *_growth_cells(curve, number))
    for name, curve in growth.curves.items():
        powers = (curve.exponents[part] for part in ("time", "memory", "extra"))
        texts = ["n/a" if power is None else f"{power:z.2f}" for power in powers]
        yield _row("exponent", "", name, *texts)
    yield ""
    yield (
        "Exponent: the power of the number of tokens, by least squares of the logarithms over the "
        "positive values. Time: median of the ratio within a round of all sizes."
    )


def _growth_cells(curve: Curve, number: int) -> tuple[str, str, str]:
    time, missing = curve.time[number], curve.reasons[number] or "n/a"
    sizes = (curve.memory[number], curve.extra[number])
    first, second = (missing if size is None else in_mb(size) for size in sizes)
    return missing if time is None else short(time), first, second
