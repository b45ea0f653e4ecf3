"""Measure methods by the metrics of Quantus, which is no dependency: ``pip install quantus``.

    python -m benchmarks.quantus_metrics --scenes 20

Explain the first object of each synthetic scene with the bundled model, and print the mean of each
metric: of pixel flipping, the mean score over its steps. Quantus calls ``hf_gmar.quantus_explain``
for changed images and randomized models as well.
"""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import numpy as np
import torch
import typer

from hf_gmar import LogitsModel, load_model, quantus_explain
from hf_gmar.data import open_data
from hf_gmar.models.labels import labels_of

METHODS = ("gmar", "attention-rollout", "grad-sam", "attn-lrp", "random")
METRICS: dict[str, dict[str, Any]] = {
    "PixelFlipping": {"features_in_step": 144, "perturb_baseline": "mean"},  # pixels of a patch
    "RelevanceMassAccuracy": {},
    "RelevanceRankAccuracy": {},
    "PointingGame": {},
    "Sparseness": {},
    "MaxSensitivity": {"nr_samples": 4},
    "RandomLogit": {"num_classes": 8},
}
MANY_PASSES = {"MPRT": {"return_average_correlation": True}}


def main(
    scenes: Annotated[int, typer.Option(min=1, help="Number of scenes.")] = 20,
    randomized: Annotated[
        bool, typer.Option(help="Randomize the model layer by layer, too (MPRT).")
    ] = False,
) -> None:
    """Print a table with a row for each metric."""
    quantus: Any = importlib.import_module("quantus")
    loaded = load_model("bundled")
    examples = list(open_data(f"scenes:{scenes}", labels_of(loaded.config)))
    masks = [example.mask_of(example.label or 0) for example in examples]
    batch = {
        "model": LogitsModel(loaded.model),
        "x_batch": torch.cat([loaded.pixels(example.image) for example in examples]).numpy(),
        "y_batch": np.array([example.label for example in examples]),
        "s_batch": np.stack([np.asarray(mask) for mask in masks])[:, None],
        "a_batch": None,
        "device": "cpu",
        "explain_func": quantus_explain,
    }
    typer.echo(f"| Quantus {quantus.__version__} | {' | '.join(METHODS)} |")
    typer.echo(f"|---|{'---|' * len(METHODS)}")
    for name, options in (METRICS | (MANY_PASSES if randomized else {})).items():
        cells = []
        for method in METHODS:
            metric = getattr(quantus, name)(
                display_progressbar=False, disable_warnings=True, **options
            )
            torch.manual_seed(0)
            np.random.seed(0)  # noqa: NPY002  # Quantus draws from it
            scores = metric(**batch, explain_func_kwargs={"method": method})
            cells.append(f"{np.mean(np.asarray(scores, float)):.3f}")
        typer.echo(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    typer.run(main)
