"""Measures the CPU seconds of the command's start and of the package's import.

python -m benchmarks.startup
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median

REFERENCE = "import torch; import captum.attr; from transformers import pipeline"
RUNS = 5


def cpu_seconds(command: list[str], runs: int = RUNS) -> float:
    """Return the median user and system seconds of several runs of a process."""
    seconds = []
    for _ in range(runs):
        before = os.times()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
        after = os.times()
        seconds.append(
            after.children_user + after.children_system
            - before.children_user - before.children_system
        )  # fmt: skip
    return median(seconds)


def main() -> None:
    """Print a table of the seconds, and their ratio to the import of the libraries alone."""
    command = shutil.which("hf-gmar", path=str(Path(sys.executable).parent)) or "hf-gmar"
    processes = {
        REFERENCE: [sys.executable, "-c", REFERENCE],
        "import hf_gmar": [sys.executable, "-c", "import hf_gmar"],
        "from hf_gmar import GMAR": [sys.executable, "-c", "from hf_gmar import GMAR"],
        "hf-gmar --help": [command, "--help"],
        "hf-gmar --version": [command, "--version"],
    }
    seconds = {name: cpu_seconds(process) for name, process in processes.items()}
    print("| process | CPU seconds | relative to the libraries |\n|---|---|---|")
    for name, value in seconds.items():
        print(f"| `{name}` | {value:.2f} | {value / seconds[REFERENCE]:.2f} |")


if __name__ == "__main__":
    main()
