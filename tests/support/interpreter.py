"""Python processes that need not import torch: each is forked from one that has it already.

Importing torch and what Transformers takes from it costs seconds of every process that a test
starts. These processes have modules, memory, environment, folder, signals and exit code of their
own. Neither Transformers nor the Hub's client is loaded before, since both read the environment
when they are imported. A test of what is imported when starts ``sys.executable`` instead.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from types import MappingProxyType

from tests.reference.tolerances import PATIENCE

ROOT = Path(__file__).parents[2]

NOTHING: Mapping[str, str] = MappingProxyType({})

_LIBRARIES = [
    "torch", "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor", "torch.export",
    "PIL.Image", "jinja2", "markdown_it", "matplotlib.pyplot", "numpy", "safetensors.torch",
]  # fmt: skip
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(_LIBRARIES)


def start_fork_server() -> None:
    """Start what processes are forked from, before other code starts it with other modules."""
    forkserver.ensure_running()


class Interpreter:
    """A process that runs ``python *words``: used as ``subprocess.Popen`` is.

    Args:
        words: what follows ``python``: ``-m module``, ``-c code`` or a file, then its arguments.
        cwd: its folder.
        environment: what is added to the environment of the tests, less the Hub's settings.

    Attributes:
        pid: the number of the process.
    """

    def __init__(
        self,
        words: Sequence[object],
        cwd: Path,
        environment: Mapping[str, str] = NOTHING,
    ) -> None:
        self._printed = Path(tempfile.mkdtemp(prefix="interpreter-"))
        clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment = {**clean, "HF_HUB_DISABLE_XET": "1", **environment}
        self._process = _FORKS.Process(
            target=_run, args=([str(word) for word in words], cwd, environment, self._printed)
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        atexit.register(self._process.kill)  # before multiprocessing waits for it

    @property
    def returncode(self) -> int | None:
        """The exit code, the negative number of the signal that ended it, or None."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The exit code if it has ended."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it has not ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def communicate(self, timeout: float = PATIENCE) -> tuple[str, str]:
        """Wait until it ends; what it printed, and what it printed as errors."""
        self._process.join(timeout)
        assert self._process.exitcode is not None
        return self._printed.joinpath("1").read_text(), self._printed.joinpath("2").read_text()


def run_python(
    words: Sequence[object],
    cwd: Path,
    environment: Mapping[str, str] = NOTHING,
    *,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run an :class:`Interpreter` to its end.

    Args:
        words: what follows ``python``.
        cwd: its folder.
        environment: what is added to the environment.
        check: whether it must end with exit code 0.
    """
    process = Interpreter(words, cwd, environment)
    printed, errors = process.communicate()
    assert process.returncode is not None
    assert not check or process.returncode == 0, errors
    return subprocess.CompletedProcess(
        [str(word) for word in words], process.returncode, printed, errors
    )


def _run(words: list[str], cwd: Path, environment: dict[str, str], printed: Path) -> None:
    """Be ``python *words``, in a process that is just forked."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor in (1, 2):
        file = os.open(printed / str(descriptor), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch = sys.modules["torch"]
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", "1")))
    searched = [str(ROOT), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    sys.path[:] = [*searched, *(path for path in sys.path if path not in searched)]
    form, *rest = words
    try:
        if form in ("-c", "-m"):
            sys.argv = [form, *rest[1:]]
            if form == "-c":
                exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102
            else:
                runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            sys.path.insert(0, str(Path(form).parent))
            runpy.run_path(form, run_name="__main__")
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
