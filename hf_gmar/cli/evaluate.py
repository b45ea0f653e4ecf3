"""``hf-gmar evaluate``: methods measured on a data set."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hf_gmar.cli.options import (
    AttnImplementation,
    CacheDir,
    Device,
    Dtype,
    ModelName,
    Prompts,
    Revision,
    Token,
    TrustRemoteCode,
    UseSafetensors,
    check_prompts,
    err,
    model_name,
    out,
    quiet,
    said_errors,
)
from hf_gmar.comparison.method_specs import (
    MethodLike,
    as_columns,
    captum_columns,
    check_captum_names,
)
from hf_gmar.data.base import ImageDataset
from hf_gmar.data.source import open_data
from hf_gmar.evaluation.evaluator import Evaluation, check_names
from hf_gmar.evaluation.evaluator import evaluate as measured
from hf_gmar.evaluation.run.distributed import Processes
from hf_gmar.evaluation.run.plan import Autocast, ExplainedClass, Score
from hf_gmar.evaluation.run.store import Row
from hf_gmar.methods.registry import METHODS
from hf_gmar.models.hub import load_model, pick_device
from hf_gmar.models.labels import labels_of
from hf_gmar.models.wrappers import LogitsModel

_SCENES = re.compile(r"scenes(:\d+)?")
_MB = 2**20
_BY_ACCELERATE = "ACCELERATE_MIXED_PRECISION"  # in the environment of all that it launches


def evaluate(
    data: Annotated[
        str,
        typer.Argument(
            help="scenes or scenes:300 (drawn ones, with masks), a folder, a folder of folders by "
            "class, a CSV file, or a data set of the datasets library, on disk or on the Hub.",
        ),
    ] = "scenes",
    model: ModelName = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            help="Methods, as NAME or NAME:OPTION=VALUE,...: gmar gmar:norm=l2,alpha=0.5 "
            "attention-rollout. All of them by default. All values up to the next option.",
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
            help="Metrics, as NAME or NAME:OPTION=VALUE,...; those that cost little by default.",
            metavar="NAME...",
        ),
    ] = None,
    perturbations: Annotated[
        list[str] | None,
        typer.Option(
            help="What it means that a patch is missing: blur, token-dropping, ...; blur by "
            "default.",
            metavar="NAME...",
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="The method that others are compared with; random if it is measured."),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for rows and report.")] = Path("evaluation"),
    resume: Annotated[
        bool,
        typer.Option(help="Go on with what is in the folder; --no-resume removes its rows first."),
    ] = True,
    score: Annotated[Score, typer.Option(help="probability or logit.")] = "probability",
    explained_class: Annotated[
        ExplainedClass,
        typer.Option(help="Which class is explained: predicted, or the image's label."),
    ] = "predicted",
    steps: Annotated[int, typer.Option(min=1, help="Steps in which patches are removed.")] = 10,
    limit: Annotated[
        int | None, typer.Option(min=1, help="So many images of the data set at most.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of a data set.")] = None,
    image_column: Annotated[str | None, typer.Option(help="MethodSpec of images or paths.")] = None,
    label_column: Annotated[str | None, typer.Option(help="MethodSpec of labels.")] = None,
    mask_column: Annotated[str | None, typer.Option(help="MethodSpec of masks.")] = None,
    memory: Annotated[
        int, typer.Option(min=1, help="MB that perturbed copies of an image may take at a time.")
    ] = 256,
    autocast: Annotated[
        Autocast | None,
        typer.Option(help="Half precision for perturbed copies alone: bfloat16 or float16."),
    ] = None,
    examples: Annotated[
        int, typer.Option(min=0, help="Images whose maps are drawn in the report.")
    ] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    prompts: Prompts = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    attn_implementation: AttnImplementation = None,
    revision: Revision = None,
    token: Token = None,
    cache_dir: CacheDir = None,
    trust_remote_code: TrustRemoteCode = False,
    use_safetensors: UseSafetensors = True,
) -> None:
    """Measure methods on a data set: how faithful, how well placed, how stable their maps are.

    Runs under 'accelerate launch' on several processes, and goes on where it was stopped.
    """
    with _stopped(output), said_errors():
        check_prompts(prompts, [Path(data)], model)
        check_captum_names(captum or [])
        # A misspelt name should not cost a download.
        check_names(methods, metrics, perturbations)
        name = model_name(model, not _SCENES.fullmatch(data))
        quiet()
        processes = Processes.launched(cpu=device == "cpu" or pick_device("auto").type == "cpu")
        loaded = load_model(
            name,
            processes.device or device,
            prompts=prompts,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            dtype=dtype,
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            use_safetensors=use_safetensors,
        )
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
        )
        _say_what_to_know(images, processes)
        own = as_columns(methods if methods or not captum else list(METHODS))
        columns: list[MethodLike] = [*own, *captum_columns(captum or [], LogitsModel(loaded.model))]
        with _bar(processes) as bar:
            found = measured(
                loaded,
                images,
                columns,
                metrics,
                perturbations or ("blur",),
                score=score,
                explained_class=explained_class,
                steps=steps,
                baseline=baseline,
                output=output,
                resume=resume,
                memory=memory * _MB,
                autocast=autocast,
                examples=examples,
                seed=seed,
                progress=bar,
            )
    if processes.is_main:
        _print(found)
    raise typer.Exit(0 if any(cell.mean is not None for cell in found.summary.cells) else 1)


def _say_what_to_know(images: ImageDataset, processes: Processes) -> None:
    if not processes.is_main:
        return
    for notice in images.notices:
        _warn(notice)
    if processes.count == 1 and _BY_ACCELERATE in os.environ:
        _warn(
            "accelerate launched one process; on a machine without GPUs it launches several only "
            "with --multi_gpu"
        )


@dataclass
class _Bar:
    """The progress of this process, and a line for each image that fails.

    Attributes:
        progress: rich's; ``None`` in processes that print nothing.
    """

    progress: Progress | None
    task: Any = None

    def __call__(self, done: int, total: int, rows: list[Row]) -> None:
        """Show how far it is."""
        if self.progress is None:
            return
        if self.task is None:
            self.task = self.progress.add_task("images", total=total)
        self.progress.update(self.task, completed=done)
        for row in rows:
            if row["method"] is None:
                what = escape(f"{row['key']}: {row['error']}")
                err.print(f"[yellow]skipped:[/yellow] {what}", soft_wrap=True, highlight=False)


@contextmanager
def _bar(processes: Processes) -> Iterator[_Bar]:
    if not processes.is_main:
        yield _Bar(None)
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeRemainingColumn(), console=err, transient=True) as progress:
        yield _Bar(progress)


@contextmanager
def _stopped(output: Path) -> Iterator[None]:
    """Whoever stops the run is told that nothing is lost."""
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _terminate) if in_main else None
    try:
        yield
    except (KeyboardInterrupt, _TerminatedError) as stop:
        kind = "terminated" if isinstance(stop, _TerminatedError) else "stopped"
        err.print(
            f"[red]error:[/red] {kind}; what was measured is in {output}: run the same command "
            "again, and it goes on from there",
            soft_wrap=True,
            highlight=False,
        )
        raise typer.Exit(143 if kind == "terminated" else 130) from None
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, before)


class _TerminatedError(BaseException):
    """SIGTERM: the launcher ends the run when one of its processes is gone."""


def _terminate(*_: Any) -> None:
    raise _TerminatedError


def _print(found: Evaluation) -> None:
    out.print(found.summary.table())
    summary = found.summary
    if summary.broken:
        _warn(f"{len(summary.broken)} images could not be measured; report.md says why")
    for label, failures in summary.failed.items():
        reasons = sorted({one.reason for one in failures})
        more = f" (and {len(reasons) - 1} other reasons)" if len(reasons) > 1 else ""
        _warn(f"{label} failed on {len(failures)} images: {reasons[0]}{more}")
    for path in found.files:
        out.print(str(path), soft_wrap=True, highlight=False)


def _warn(text: str) -> None:
    err.print(f"[yellow]note:[/yellow] {escape(text)}", soft_wrap=True, highlight=False)
