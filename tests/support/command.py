"""The command, run in this process or, several times, in one that has settings of its own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

from hf_gmar.cli import app
from tests.support.interpreter import run_python


@dataclass(frozen=True)
class Done:
    """What a command left behind.

    Attributes:
        code: exit code.
        out: what it printed.
        err: what it printed as errors.
    """

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """Its one error, of one line."""
        assert "Traceback" not in self.err
        (line,) = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return line.removeprefix("error: ")


def run(*arguments: object) -> Done:
    """The command in this process."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return Done(done.exit_code, done.stdout, done.stderr)


_ELSEWHERE = """
import json, sys
from dataclasses import asdict
from tests.support.command import run
print(json.dumps([asdict(run(*words)) for words in json.loads(sys.argv[1])]))
"""


def run_elsewhere(calls: list[list[str]], cwd: Path, **environment: str) -> list[Done]:
    """The command for each list of arguments, in one process in that folder.

    The settings of the Hub's client are read when it is imported; none of ours reach it.
    """
    words = ["-c", _ELSEWHERE, json.dumps(calls)]
    done = run_python(words, cwd, {"COLUMNS": "160", **environment})
    return [Done(**outcome) for outcome in json.loads(done.stdout)]
