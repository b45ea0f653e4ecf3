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
    """Half-life of the score."""

    name = "half-life"
    input_kind = "curves"
    higher_is_better = False
    summary = (
        "Share of the patches that can go, most relevant first, before half the score is lost."
    )
    formula = "the first share with less than half of the score, most relevant first"
    source = "this example"
    caveats = "no finer than the steps of the curve"
    perturbed = True

    def values(self, curves: Curves) -> Tensor:
        """From 0 to 1, (B,)."""
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
        """The image with patches at the lowest value of its pixels."""

        def pixels(kept: Tensor) -> Tensor:
            height, width = image.pixels.shape[-2:]
            size = height // kept.shape[1], width // kept.shape[2]
            there = kept.repeat_interleave(size[0], 1).repeat_interleave(size[1], 2)[:, None]
            return torch.where(there, image.pixels, image.pixels.min())

        return CopyPlan(pixels)


def main() -> None:
    """Print the report of a few scenes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=20)
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    found = evaluate(
        load_model("bundled"),
        f"scenes:{asked.scenes}",
        methods=["gmar", "grad-sam", "random"],
        metrics=[HalfLife(), "insertion-deletion"],
        perturbations=[Black(), "token-dropping"],
        output=asked.output,
    )
    for record in found.records():
        print(f"{record['measure']:35} {record['method']:10} {record['mean']:.2f}")


if __name__ == "__main__":
    main()
