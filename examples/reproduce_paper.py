"""Repeats the evaluation of the GMAR paper on models of the Hub and images of your own.

    python examples/reproduce_paper.py imagenet/val --limit 1000

GMAR with the L1 and the L2 norm is compared with attention rollout and Grad-CAM, on ViT-L/16 and
ViT-B/16, by average drop, increase in confidence, insertion and deletion (Jo, Jang and Park, ICIP
2025, arXiv 2504.19414). DATA is a folder of class folders, a data set of the datasets library, or
any other source of hf-gmar evaluate. A stopped run goes on where it stopped; accelerate launch
shares the images among processes. docs/paper.md says which settings are known of the paper.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from hf_gmar import evaluate, load_model
from hf_gmar.data import open_data
from hf_gmar.evaluation import Evaluation
from hf_gmar.models.labels import labels_of

PAPER_MODELS = ["google/vit-large-patch16-224", "google/vit-base-patch16-224"]
METHODS = {
    "gmar:norm=l1": "GMAR, L1 norm",
    "gmar:norm=l2": "GMAR, L2 norm",
    "attention-rollout": "Attention rollout",
    "token-grad-cam": "Grad-CAM on tokens",
    "random": "Random",
}
METRICS = {
    "average-drop": "Average drop (lower is better)",
    "increase-in-confidence": "Increase in confidence (higher)",
    "insertion": "Insertion (higher)",
    "deletion": "Deletion (lower)",
}


def table(results: Mapping[str, Evaluation]) -> str:
    """Write the means of all models, with 95 % intervals, as a Markdown table."""
    lines = [f"| Model | Method | {' | '.join(METRICS.values())} |", "|---" * 6 + "|"]
    for model, result in results.items():
        records = {(record["method"], record["metric"]): record for record in result.records()}
        for method, title in zip(result.summary.methods, METHODS.values(), strict=True):
            cells = " | ".join(_cell(records[method, metric]) for metric in METRICS)
            lines.append(f"| {model} | {title} | {cells} |")
    return "\n".join(lines)


def _cell(record: Mapping[str, Any]) -> str:
    if record["mean"] is None:
        return "none"
    digits = 1 if record["metric"] in ("average-drop", "increase-in-confidence") else 3
    mean, low, high = (f"{record[key]:.{digits}f}" for key in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def _progress(bar: Progress, name: str) -> Callable[[int, int, list[Any]], None]:
    task = bar.add_task(name, total=None)
    return lambda done, count, _: bar.update(task, completed=done, total=count)


def main(
    data: Annotated[str, typer.Argument(help="Images with labels: a folder, or a data set.")],
    model: Annotated[list[str] | None, typer.Option(help="Model; may be repeated.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Largest number of images.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a data set.")] = None,
    perturbation: Annotated[str, typer.Option(help="How patches are removed.")] = "blur",
    steps: Annotated[int, typer.Option(min=1, help="Steps of insertion and deletion.")] = 14,
    output: Annotated[Path, typer.Option(help="Folder of rows and reports.")] = Path("paper"),
) -> None:
    """Evaluate the methods of the paper, and write one table of all models."""
    is_main = os.environ.get("RANK", "0") == "0"
    console = Console(stderr=True, quiet=not is_main)
    results: dict[str, Evaluation] = {}
    columns = [*Progress.get_default_columns(), MofNCompleteColumn()]
    with Progress(*columns, console=console, transient=True) as bar:
        for name in model or PAPER_MODELS:
            loaded = load_model(name)
            results[name] = evaluate(
                loaded,
                open_data(data, labels_of(loaded.config), split=split, limit=limit),
                list(METHODS),
                list(METRICS),
                [perturbation],
                baseline="attention-rollout",
                steps=steps,
                output=output / name.replace("/", "--"),
                progress=_progress(bar, name),
            )
    if is_main:
        (output / "table.md").write_text(table(results) + "\n", encoding="utf-8")
        typer.echo(table(results))
        typer.echo(f"\nTable: {output / 'table.md'}; each model's folder has its report.")


if __name__ == "__main__":
    typer.run(main)
