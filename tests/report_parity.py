"""Print how far the package is from the oracle: ``python -m tests.report_parity``."""

from __future__ import annotations

import sys

import torch

from tests.parity import ROWS, Row, largest_error, largest_errors

DTYPES = (torch.float32, torch.float64)


def report(rows: tuple[Row, ...] = ROWS) -> str:
    """A table with one line for each model and method, and one for all."""
    lines = ["| model | method | float32 | float64 |", "|---|---|---|---|"]
    for model, method in largest_errors(DTYPES[0], rows):
        found = [max(largest_errors(dtype, rows)[model, method]) for dtype in DTYPES]
        lines.append(f"| {model} | {method} | {_cells(found)} |")
    lines.append(f"| all | all | {_cells([largest_error(dtype, rows) for dtype in DTYPES])} |")
    lines.append(
        "\nLargest |difference| / largest |value| of patch map, head importance and attribute(), "
        f"over {len(rows)} combinations of model, method, engine, loading and target."
    )
    return "\n".join(lines)


def _cells(errors: list[float]) -> str:
    return " | ".join(f"{error:.1e}" for error in errors)


if __name__ == "__main__":
    sys.stdout.write(report() + "\n")
