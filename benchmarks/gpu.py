"""Runs what needs a GPU, in under ten minutes: tests, speed, memory, evaluation.

    python -m benchmarks.gpu --output benchmarks/results/gpu
    python -m benchmarks.gpu --part large --part evaluation --output benchmarks/results/gpu
    python -m benchmarks.gpu --device cpu --quick --output build/gpu

Run it from the root of the repository. Each part is a command with a time budget, after which it is
stopped. It writes its own table after each row, and ``gpu.md`` and ``gpu.json`` are written after
each part, so a stop loses no result. ``--quick`` tries the script with tiny models.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.report import machine
from hf_gmar._utils.files import save_json, save_text
from hf_gmar.models.hub import pick_device

ROOT = Path(__file__).parents[1]
TESTS = "tests"


@dataclass(frozen=True)
class Part:
    """A command and its results.

    Attributes:
        name: the name on the command line, and of the folder with the results.
        seconds: the time budget.
        words: the module that Python runs, with its arguments.
        table: the file with its table, in its folder; without one, the log is the result.
    """

    name: str
    seconds: float
    words: str
    table: str = ""


def parts(device: str, quick: bool) -> list[Part]:
    """Return all parts; their budgets add up to nine minutes."""
    engine = f"benchmarks.engine --device {device} --no-growth "
    large = f"benchmarks.large --device {device} --dtype bfloat16 --dtype float32 "
    rates = f"benchmarks.devices --device {device} "
    if quick:
        engine += "--quick --case T32 --repeats 1"
        large += "--model tiny --pixels 64 --batch 2"
        rates += "--model T96 --images 3 --cpu-images 3"
    else:
        engine += "--case B224x8 --case S1024 --case B1024 --slow-limit 10 --dense-limit-gb 60"
        large += "--model ViT-L/16 --pixels 1024 --batch 8 --limit-gb 24"
    return [
        Part("tests", 90, f"pytest -q -m gpu {' '.join(marked_files())}"),
        Part("engine-float32", 100, engine + " --dtype float32", "engine.md"),
        Part("engine-bfloat16", 100, engine + " --dtype bfloat16", "engine.md"),
        Part("large", 120, large, "large.md"),
        Part("evaluation", 130, rates, "devices.md"),
    ]


def marked_files() -> list[str]:
    """List the files with tests marked ``gpu``, because to collect all tests takes half a minute.

    Example:
        >>> marked_files()
        ['tests/contract/test_gpu.py']
    """
    files = sorted((ROOT / TESTS).rglob("test_*.py"))
    marked = [file for file in files if "mark.gpu" in file.read_text(encoding="utf-8")]
    return [file.relative_to(ROOT).as_posix() for file in marked]


def run(part: Part, output: Path) -> dict[str, Any]:
    """Run a part in a process group of its own, and return how it ended, with its results."""
    folder = output / part.name
    folder.mkdir(parents=True, exist_ok=True)
    words = [*part.words.split(), *(["--output", str(folder)] if part.table else [])]
    start = time.perf_counter()
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", *words],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            code = process.wait(part.seconds)
            ended = "ended" if code == 0 else f"ended with code {code}"
        except subprocess.TimeoutExpired:
            ended = f"stopped after its {part.seconds:g} s; rows until then"
        finally:
            if process.poll() is None:  # its own processes go with it
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    seconds = time.perf_counter() - start
    return {"ended": ended, "seconds": seconds, **results_of(part, folder)}


def results_of(part: Part, folder: Path) -> dict[str, Any]:
    """Return the table and the numbers that a part has written, or the last lines of its log."""
    table, numbers = folder / part.table, (folder / part.table).with_suffix(".json")
    if part.table and table.exists():
        # Without the title and the line about the machine, which is the same for all parts.
        text = table.read_text(encoding="utf-8").split("\n\n", 2)[2]
        text = re.sub("^## ", "### ", text, flags=re.MULTILINE)
        return {"text": text, "numbers": json.loads(numbers.read_text(encoding="utf-8"))}
    log = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
    lines = [line for line in log.splitlines() if re.match(r"FAILED|ERROR|\d+ \w+", line)]
    lines = lines or log.splitlines()[-5:]
    return {"text": "\n".join(f"    {line}" for line in lines) + "\n", "numbers": None}


def save(output: Path, where: dict[str, str], done: dict[str, dict[str, Any]]) -> str:
    """Write the results of all parts so far, and return the page."""
    lines = ["# On a GPU", "", ", ".join(f"{name} {value}" for name, value in where.items())]
    for name, result in done.items():
        lines += ["", f"## {name}", "", f"{result['ended']} ({result['seconds']:.0f} s)", ""]
        lines.append(result["text"].rstrip("\n"))
    text = "\n".join(lines) + "\n"
    save_text(output / "gpu.md", text)
    save_json(output / "gpu.json", {"machine": where, "parts": done})
    return text


def earlier(output: Path) -> dict[str, dict[str, Any]]:
    """Return the parts of an earlier run in the same folder, which stay unless they run again."""
    file = output / "gpu.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))["parts"]) if file.exists() else {}


def chosen(names: Sequence[str] | None, device: str, quick: bool) -> list[Part]:
    """Return the parts of these names, or all."""
    known = {part.name: part for part in parts(device, quick)}
    if unknown := [name for name in names or () if name not in known]:
        raise typer.BadParameter(f"there is no part {unknown[0]!r}; parts are {', '.join(known)}")
    return [known[name] for name in names or known]


def main(
    part: Annotated[list[str] | None, typer.Option(help="Only this part; may be repeated.")] = None,
    device: Annotated[str, typer.Option(help="cuda, or cpu to try the script.")] = "cuda",
    quick: Annotated[bool, typer.Option(help="Use tiny models.")] = False,
    output: Annotated[Path, typer.Option()] = Path("benchmarks/results/gpu"),
) -> None:
    """Run the parts, and print and write the page."""
    where = pick_device(device)
    output = output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    about, done = machine(where, torch.get_num_threads()), earlier(output)
    for one in chosen(part, device, quick):
        typer.echo(f"{one.name}: at most {one.seconds:g} s", err=True)
        done[one.name] = run(one, output)
        save(output, about, done)
    typer.echo(save(output, about, done), nl=False)
    failed = [name for name, result in done.items() if result["ended"] != "ended"]
    raise typer.Exit(1 if failed else 0)


if __name__ == "__main__":
    typer.run(main)
