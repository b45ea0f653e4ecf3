"""What is loaded when: help and mistakes need none of the heavy libraries, in real processes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from hf_gmar.cli import app
from tests.support.interpreter import run_python

ROOT = Path(__file__).parents[2]
HEAVY = {"captum", "matplotlib", "numpy", "torch", "transformers"}
COMMANDS = list(get_command(app).commands)  # type: ignore[attr-defined]
COMPLETION = {
    "_HF_GMAR_COMPLETE": "complete_bash", "COMP_WORDS": "hf-gmar expl", "COMP_CWORD": "1",
}  # fmt: skip


def started(*words: str, **environment: str) -> tuple[set[str], str]:
    """The packages that a Python process loads, and what it prints."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    modules = re.findall(r"^import time:.*\| +([\w.]+)$", done.stderr, re.MULTILINE)
    assert "site" in modules
    return {name.partition(".")[0] for name in modules}, done.stdout + done.stderr


def installed() -> str:
    """The command that pip made."""
    path = shutil.which("hf-gmar", path=str(Path(sys.executable).parent))
    assert path
    return path


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--help"], "evaluate"),
        *[([name, "--help"], "Show this message") for name in COMMANDS],
        (["--version"], "hf-gmar 0"),
        (["explain", "--tarket", "1"], "No such option"),
        (["explian"], "No such command"),
        (["explain", "--top-k", "0"], "top-k"),
        (["explain", "--method", "gmra"], "there is no method 'gmra'"),
        (["evaluate", "--score", "logits"], "'logits' is not one of"),
    ],
    ids=" ".join,
)
def test_help_and_mistakes_load_nothing_heavy(words: list[str], text: str) -> None:
    loaded, printed = started("-m", "hf_gmar", *words)
    assert "typer" in loaded
    assert text in " ".join(printed.replace("│", " ").split())
    assert not loaded & HEAVY


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_of_few_letters_gets_the_others_as_escapes(encoding: str) -> None:
    """Also of what typer prints."""
    narrow = {"PYTHONIOENCODING": encoding, "COLUMNS": "40"}  # help is cut with an ellipsis
    for words in (["--help"], ["evaluate", "--help"]):
        _, printed = started("-m", "hf_gmar", *words, **narrow)
        assert r"\u2026" in printed
        assert "Traceback" not in printed
    _, printed = started("-m", "hf_gmar", "explain✓", PYTHONIOENCODING=encoding)
    assert "No such command 'explain\\u2713'" in printed


def test_a_window_system_that_is_not_there_does_not_matter() -> None:
    code = "from hf_gmar.cli.options import command; command(lambda: __import__('matplotlib'))()"
    environment = {**os.environ, "MPLBACKEND": "bogus"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
@pytest.mark.parametrize("words", [["--help"], ["explain", "--help"], ["--version"]])
def test_help_that_cannot_be_written_is_one_line(words: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "hf_gmar", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "error: No space left on device\n")


def test_a_folder_that_is_gone_is_one_line(tmp_path: Path) -> None:
    # With "" on the path, as of -c, Python 3.13.0 can't import pydantic from no folder.
    code = "import os, pydantic; from tests.support.command import run; os.rmdir(os.getcwd())\n"
    folder = tmp_path / "gone"
    folder.mkdir()
    done = run_python(["-c", f"{code}print(run('methods').error)"], folder)
    assert done.stdout.startswith("the current folder does not exist any more; change to another")


@pytest.mark.parametrize("environment", [{}, COMPLETION], ids=["help", "completion"])
def test_the_installed_command_loads_nothing_heavy(environment: dict[str, str]) -> None:
    loaded, printed = started(installed(), *([] if environment else ["--help"]), **environment)
    assert "explain" in printed
    assert not loaded & HEAVY


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded, _ = started("-c", "import hf_gmar; assert 'GMAR' in dir(hf_gmar)")
    assert "hf_gmar" in loaded
    assert not loaded & HEAVY


def test_the_check_sees_what_is_loaded() -> None:
    loaded, _ = started("-c", "import hf_gmar, numpy")
    assert loaded & HEAVY == {"numpy"}


REGISTRY = "from transformers.pipelines import PIPELINE_REGISTRY"
LOOKED_FOR = "import importlib.util; importlib.util.find_spec('transformers.pipelines')"


@pytest.mark.parametrize(
    "imports",
    [
        ("import hf_gmar", REGISTRY),
        (REGISTRY, "import hf_gmar"),
        ("import hf_gmar", LOOKED_FOR, REGISTRY),
        ("import hf_gmar.pipeline", REGISTRY),
    ],
)
def test_the_task_is_known_in_any_order_of_imports(
    tmp_path: Path, imports: tuple[str, ...]
) -> None:
    known = "assert 'image-attribution' in PIPELINE_REGISTRY.supported_tasks; print('known')"
    done = run_python(["-c", "\n".join([*imports, known])], tmp_path)
    assert done.stdout == "known\n"


WITHOUT_MATPLOTLIB = """
import sys
import captum.attr  # which loads matplotlib itself
for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
    del sys.modules[name]
sys.modules["matplotlib"] = None
import hf_gmar, torch, transformers
loaded = hf_gmar.load_model("bundled")
images = torch.zeros(1, 3, 96, 96)
hf_gmar.GMAR(loaded.model).attribute(images)
hf_gmar.compare(loaded.model, images, ["gmar"])
hf_gmar.head_importance(loaded.model, images)
hf_gmar.evaluate(loaded, "scenes:1", ["gmar"], ["deletion"], steps=2)
explain = transformers.pipeline("image-attribution", model=str(hf_gmar.models.bundled_folder()))
explain(str(hf_gmar.models.sample_image()))
try:
    explain(str(hf_gmar.models.sample_image()), overlay=True)
except ImportError as error:
    print("no overlay")
"""


def test_matplotlib_is_loaded_only_to_draw(tmp_path: Path) -> None:
    assert "no overlay" in run_python(["-c", WITHOUT_MATPLOTLIB], tmp_path).stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_every_option_whole_on_a_narrow_terminal(name: str) -> None:
    _, printed = started("-m", "hf_gmar", name, "--help", COLUMNS="80")
    for parameter in get_command(app).commands[name].params:  # type: ignore[attr-defined]
        for option in parameter.opts:
            assert not option.startswith("--") or option in printed, option


def test_help_says_the_same_without_docstrings() -> None:
    script = (
        "import runpy, sys\n"
        f"for words in {[[], *([name] for name in COMMANDS)]}:\n"
        "    sys.argv = ['hf-gmar', *words, '--help']\n"
        "    try:\n"
        "        runpy.run_module('hf_gmar', run_name='__main__')\n"
        "    except SystemExit as stop:\n"
        "        assert not stop.code"
    )
    pages = [
        subprocess.run(
            [sys.executable, *optimized, "-c", script],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, check=True,
        ).stdout
        for optimized in ([], ["-OO"])
    ]  # fmt: skip
    assert pages[0].count("Usage: hf-gmar") == len(COMMANDS) + 1
    assert pages[0] == pages[1]
