"""``hf-gmar evaluate``: methods measured on a data set."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_gmar.cli.options import (
    ModelOptions,
    command,
    err,
    note,
    out,
    print_lines,
    print_marked,
    stop_if_interrupted,
)
from hf_gmar.evaluation.choices import Autocast, ExplainedClass
from hf_gmar.metrics.score_choice import ScoreChoice

if TYPE_CHECKING:
    from hf_gmar.evaluation.evaluator import Evaluation
    from hf_gmar.evaluation.run.runner import Progress
    from hf_gmar.evaluation.run.store import Row


@command
def evaluate(
    model: ModelOptions,
    data: Annotated[
        str,
        typer.Argument(
            help="scenes or scenes:300 (synthetic, with masks), a folder, a folder of class "
            "folders, a CSV file, or a data set of the datasets library, on disk or on the Hub.",
        ),
    ] = "scenes",
    methods: Annotated[
        list[str] | None,
        typer.Option(
            help="Methods, as NAME or NAME:OPTION=VALUE,...: gmar gmar:norm=l2,alpha=0.5 "
            "attention-rollout. Default: all that apply to the model. Takes all values up to the "
            "next option.",
            metavar="NAME...",
        ),
    ] = None,
    captum: Annotated[
        list[str] | None,
        typer.Option(help="Captum's methods: IntegratedGradients, ...", metavar="NAME..."),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            help="Metrics, as NAME or NAME:OPTION=VALUE,...; default: those that cost little.",
            metavar="NAME...",
        ),
    ] = None,
    perturbations: Annotated[
        list[str] | None,
        typer.Option(
            help="Ways to remove patches: blur, token-dropping, ...; default: blur.",
            metavar="NAME...",
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="Method that others are compared with; default: random, if measured."),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for rows and report.")] = Path("evaluation"),
    resume: Annotated[
        bool,
        typer.Option(help="Continue from the rows in the folder; --no-resume removes them first."),
    ] = True,
    score: Annotated[
        ScoreChoice | None,
        typer.Option(
            help="Score: probability or logit; default: probability, or the value of a model "
            "without probabilities."
        ),
    ] = None,
    explained_class: Annotated[
        ExplainedClass,
        typer.Option(help="Which class is explained: predicted, or the image's label."),
    ] = "predicted",
    steps: Annotated[int, typer.Option(min=1, help="Steps in which patches are removed.")] = 10,
    limit: Annotated[int | None, typer.Option(min=1, help="Largest number of images.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a data set.")] = None,
    image_column: Annotated[str | None, typer.Option(help="Column of images or paths.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of labels.")] = None,
    mask_column: Annotated[str | None, typer.Option(help="Column of masks.")] = None,
    memory: Annotated[
        int, typer.Option(min=1, help="Memory budget for a batch of perturbed copies, in MB.")
    ] = 256,
    autocast: Annotated[
        Autocast | None,
        typer.Option(help="Half precision for perturbed copies only: bfloat16 or float16."),
    ] = None,
    examples: Annotated[
        int, typer.Option(min=0, help="Number of images whose maps are drawn in the report.")
    ] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all random choices.")] = 0,
) -> None:
    """Run ``hf-gmar evaluate``."""
    from hf_gmar.comparison.method_specs import as_method_specs, check_captum_names
    from hf_gmar.data.source import open_data
    from hf_gmar.evaluation.evaluator import check_names
    from hf_gmar.evaluation.evaluator import evaluate as measured
    from hf_gmar.evaluation.run.distributed import Processes
    from hf_gmar.models.hub import pick_device
    from hf_gmar.models.labels import labels_of
    from hf_gmar.models.pixel_values import MODES

    model.check_prompts(has_images=True)
    check_captum_names(captum or [])
    # Check names before the download of a model.
    check_names(methods, metrics, perturbations)
    cpu = model.device == "cpu" or pick_device("auto").type == "cpu"
    with _joining():
        processes = Processes.launched(cpu=cpu)
    loaded = model.load(not re.fullmatch(r"scenes(:\d+)?", data), processes.device)
    images = open_data(
        data,
        labels_of(loaded.model.config),
        split=split,
        image_column=image_column,
        label_column=label_column,
        mask_column=mask_column,
        limit=limit,
        seed=seed,
        skip=output,
        mode=MODES.get(loaded.channels, "RGB"),
    )
    if processes.is_main:
        for notice in images.notices:
            note(notice)
        if processes.count == 1 and "ACCELERATE_MIXED_PRECISION" in os.environ:
            note(
                "accelerate launched one process; on a machine without GPUs it launches "
                "several only with --multi_gpu"
            )
    with _progress(processes.is_main) as progress:
        result = measured(
            loaded,
            images,
            [*as_method_specs(methods or None), *(captum or [])],
            metrics,
            perturbations or ("blur",),
            score=score,
            explained_class=explained_class,
            steps=steps,
            baseline=baseline,
            output=output,
            resume=resume,
            memory=memory * 2**20,
            autocast=autocast,
            examples=examples,
            seed=seed,
            progress=progress,
        )
    if processes.is_main:
        _print(result)
    raise typer.Exit(0 if any(cell.mean is not None for cell in result.summary.cells) else 1)


_PATIENCE = 5  # seconds


@contextmanager
def _joining() -> Iterator[None]:
    """Say after some seconds for what a run waits, and let a signal end it at once.

    Processes join in C++, where no handler that is written in Python runs.
    """
    text = (
        f"waiting for the other processes of WORLD_SIZE={os.environ.get('WORLD_SIZE')}; start them "
        "with 'accelerate launch', or stop and unset WORLD_SIZE"
    )
    timer = threading.Timer(_PATIENCE, note, [text])
    timer.daemon = True
    timer.start()
    in_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if in_main else ()
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    try:
        yield
    finally:
        timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _progress(is_main: bool) -> Iterator[Progress]:
    """Show a bar, and a line for each failed image, in the main process only."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Bar(
        *columns, TimeRemainingColumn(), console=err, transient=True, disable=not is_main
    ) as bar:
        task = bar.add_task("images", total=None)

        def show(done: int, total: int, rows: list[Row]) -> None:
            bar.update(task, completed=done, total=total)
            for row in rows:
                if row["method"] is None and is_main:
                    print_marked("skipped", "yellow", f"{row['key']}: {row['error']}")
            stop_if_interrupted()

        yield show


def _print(result: Evaluation) -> None:
    from hf_gmar.models.score_kind import ScoreKind

    summary = result.summary
    out.print(summary.table())
    if result.settings["score"] == "value":
        out.print(f"score: {ScoreKind.VALUE.note}", highlight=False)
    if left_out := result.settings.get("left_out"):
        note(left_out)
    if summary.broken:
        note(f"{len(summary.broken)} images could not be measured; report.md says why")
    for label, failures in summary.failed.items():
        reasons = sorted({failure.reason for failure in failures})
        more = f" (and {len(reasons) - 1} other reasons)" if len(reasons) > 1 else ""
        note(f"{label} failed on {len(failures)} images: {reasons[0]}{more}")
    print_lines(result.files)
