"""Print how far the package is from the oracle: ``python -m tests.reference.report_parity``."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    MetaClip2Config,
    MetaClip2Model,
    SiglipConfig,
    SiglipModel,
)

from hf_gmar import GMAR
from tests.reference.cases import BATCH, LABELS, VIT
from tests.reference.models import prompted
from tests.reference.parity import ROWS, Row, largest_error, largest_errors
from tests.reference.tolerances import PARITY

DTYPES = (torch.float32, torch.float64)


def machine() -> str:
    """What the rounding depends on."""
    capability = torch.backends.cpu.get_cpu_capability()
    threads = torch.get_num_threads()
    return f"CPU capability {capability}, {threads} threads, PyTorch {torch.__version__}."


def report(rows: tuple[Row, ...] = ROWS) -> str:
    """A table with one line for each model and method, and one for all."""
    head = ["model", "method"]
    for dtype in DTYPES:
        head += [str(dtype).removeprefix("torch."), "limit", "share of it"]
    lines = [machine(), "", _line(head), "|---" * len(head) + "|"]
    for model, method in largest_errors(DTYPES[0], rows):
        found = [max(largest_errors(dtype, rows)[model, method]) for dtype in DTYPES]
        lines.append(_line([model, method, *_cells(found)]))
    lines.append(_line(["all", "all", *_cells([largest_error(one, rows) for one in DTYPES])]))
    lines.append(
        "\nLargest |difference| / largest |value| of patch map, head importance and attribute(), "
        f"over {len(rows)} combinations of model, method, engine, loading and target; beside it "
        "what the tests allow."
    )
    return "\n".join(lines)


def prompt_correlation(model_class: Any, config_class: Any) -> float:
    """Mean correlation between the maps of two prompts, over all pairs of prompts and images.

    The models are tiny and random, but their attention is as sharp as in the tests of parity.
    """
    sharper = 3 if "Siglip" in model_class.__name__ else 12
    gmar = GMAR(prompted(model_class, config_class, sharper=sharper))
    maps = gmar.attribute_targets(VIT.images(), range(LABELS)).flatten(2)
    found = [np.corrcoef(maps[:, image]) for image in range(BATCH)]
    return float(np.mean([one[np.triu_indices(LABELS, 1)].mean() for one in found]))


def prompts() -> str:
    """One line for each family with prompts."""
    pairs = (CLIPModel, CLIPConfig), (MetaClip2Model, MetaClip2Config), (SiglipModel, SiglipConfig)
    lines = [f"{one.__name__}: {prompt_correlation(one, config):.4f}" for one, config in pairs]
    return "Mean correlation of the maps of two prompts. " + ", ".join(lines)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(errors: list[float]) -> list[str]:
    cells: list[str] = []
    for error, dtype in zip(errors, DTYPES, strict=True):
        limit = PARITY.of(dtype)
        cells += [f"{error:.1e}", f"{limit:.0e}", f"{error / limit:.3f}"]
    return cells


if __name__ == "__main__":
    sys.stdout.write(f"{report()}\n\n{prompts()}\n")
