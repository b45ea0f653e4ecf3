"""A metric and a perturbation of your own, measured beside those of the package.

python examples/own_metric.py [--scenes 20] [--output FOLDER]
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hf_gmar import evaluate, load_model
from hf_gmar.metrics import Curves, Metric
from hf_gmar.perturbations import CopyPlan, Perturbation, PerturbationInput


class HalfLife(Metric[Curves]):
    """Half-life of the score as patches are removed."""

    name = "half-life"
    input_kind = "curves"
    higher_is_better = False
    summary = "Share of patches removed, most relevant first, until half of the score is lost."
    formula = "the first share with less than half of the score, most relevant first"
    source = "this example"
    caveats = "no finer than the steps of the curve"
    perturbed = True

    def values(self, curves: Curves) -> Tensor:
        """Return a share from 0 to 1 for each image, (B,)."""
        lost = curves.morf < curves.morf[:, :1] / 2
        first = torch.where(lost.any(1), lost.int().argmax(1), len(curves.fractions) - 1)
        return curves.fractions[first]


@dataclass(frozen=True)
class Black(Perturbation):
    """A missing patch is black."""

    name = "black"
    soft = False
    summary = "black"
    source = "this example"

    def copies(self, image: PerturbationInput) -> CopyPlan:
        """Set missing patches to the lowest value of the image's pixels."""

        def pixels(keep_mask: Tensor) -> Tensor:
            height, width = image.pixels.shape[-2:]
            size = height // keep_mask.shape[1], width // keep_mask.shape[2]
            kept = keep_mask.repeat_interleave(size[0], 1).repeat_interleave(size[1], 2)[:, None]
            return torch.where(kept, image.pixels, image.pixels.min())

        return CopyPlan(pixels)


def main() -> None:
    """Evaluate a few scenes and print the means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=20)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    evaluation = evaluate(
        load_model("bundled"),
        f"scenes:{arguments.scenes}",
        methods=["gmar", "grad-sam", "random"],
        metrics=[HalfLife(), "insertion-deletion"],
        perturbations=[Black(), "token-dropping"],
        output=arguments.output,
    )
    for record in evaluation.records():
        print(f"{record['measure']:35} {record['method']:10} {record['mean']:.2f}")


if __name__ == "__main__":
    main()
