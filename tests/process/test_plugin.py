"""Installed packages that offer methods, metrics and perturbations by entry points."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hf_gmar.models import bundled_folder, sample_image
from tests.support.command import Done, run_elsewhere
from tests.support.interpreter import run_python

ROOT = Path(__file__).parents[2]


def with_folder(folder: Path) -> str:
    """A PYTHONPATH with a folder of installed packages."""
    return os.pathsep.join([str(ROOT), str(folder)])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the example is installed in, as pip does it."""
    root = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(ROOT / "examples" / "plugin", root / "source")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
         "--no-build-isolation", "--disable-pip-version-check", "--target", root / "site", source],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    return root / "site"


CALLS = {
    "methods": ["methods"],
    "explain": ["explain", "--method", "upper-gmar", "--option", "alpha=0.5"],
    "compare": ["compare", "--no-measure"],
    "evaluate": [
        "evaluate", "scenes:2", "--methods", "upper-gmar:alpha=2", "random", "--metrics",
        "lost-at-half", "--perturbations", "black", "--steps", "4",
    ],
    "no such option": ["explain", "--method", "upper-gmar", "--option", "norm=l2"],
}  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(site: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Done]]:
    """The folder in which the calls ran, and what came of them."""
    folder = tmp_path_factory.mktemp("calls")
    done = run_elsewhere(list(CALLS.values()), folder, PYTHONPATH=with_folder(site))
    return folder, dict(zip(CALLS, done, strict=True))


def test_the_command_knows_what_the_package_offers(outcomes: tuple[Path, dict[str, Done]]) -> None:
    folder, done = outcomes
    assert {name: call.code for name, call in done.items()} == {
        "methods": 0, "explain": 0, "compare": 0, "evaluate": 0, "no such option": 2,
    }  # fmt: skip
    assert "upper-gmar" in done["methods"].out
    assert "this example" in done["methods"].out
    assert "'upper-gmar' has no option norm; it has alpha" in done["no such option"].error
    assert list((folder / "explanations").glob("*.upper-gmar.npz"))
    compared = json.loads((folder / "comparison" / "comparison.json").read_text())["methods"]
    assert [row["failure"] for row in compared if row["method"] == "upper-gmar"] == [None]
    lines = (folder / "evaluation" / "rows.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert {row["method"] for row in rows} == {"upper-gmar (alpha=2)", "random"}
    assert {name for row in rows for name in row["values"]} == {"lost-at-half:black"}


def test_the_pipeline_knows_the_method(site: Path, tmp_path: Path) -> None:
    script = (
        "import sys, hf_gmar, transformers\n"
        "make = transformers.pipeline\n"
        "maps = [make('image-attribution', model=sys.argv[1], **options)(sys.argv[2])[0]\n"
        "        for options in ({}, {'method': 'upper-gmar', 'alpha': 1.0})]\n"
        "assert maps[0]['label'] == maps[1]['label'] == 'heart'\n"
        "assert not maps[0]['attribution'].equal(maps[1]['attribution'])\n"
    )
    words = ["-c", script, bundled_folder(), sample_image()]
    run_python(words, tmp_path, {"PYTHONPATH": with_folder(site)})


def offer(site: Path, package: str, name: str, place: str) -> None:
    """Install metadata of a package with one method."""
    folder = site / f"{package}-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(f"[hf_gmar.methods]\n{name} = {place}\n")


def test_packages_that_are_at_fault_stop_nothing_else(tmp_path: Path) -> None:
    site = tmp_path / "site"
    offer(site, "broken", "broken-method", "broken_module:Method")
    (site / "broken_module.py").write_text("import no_such_library\n")
    offer(site, "taker", "gmar", "broken_module:Method")
    offer(site, "other", "no-method", "pathlib:Path")
    calls = [
        ["methods"], ["explain"], ["compare", "--no-measure"],
        ["evaluate", "scenes:2", "--metrics", "deletion", "--steps", "2"],
        ["explain", "--method", "broken-method"], ["compare", "--methods", "broken-method"],
        ["evaluate", "scenes:2", "--methods", "no-method"],
    ]  # fmt: skip
    methods, *done = run_elsewhere(calls, tmp_path, PYTHONPATH=with_folder(site))
    assert [call.code for call in (methods, *done)] == [0, 0, 0, 0, 2, 2, 2]
    notes = sorted(line for line in methods.err.splitlines() if line)
    broken = (
        "the method 'broken-method' of the package broken can't be loaded: ModuleNotFoundError: "
        "No module named 'no_such_library'"
    )
    taken = "the method 'gmar' of broken_module:Method is left out: the name is hf_gmar's own"
    no_method = (
        "the method 'no-method' must be a subclass of hf_gmar.methods.base.AttributionMethod"
    )
    assert len(notes) == 3
    assert notes[0] == f"note: {broken}"
    assert notes[1] == f"note: {taken}; its package has to take another one"
    assert notes[2] == f"note: {no_method}, got {Path}"
    assert "broken-method" not in methods.out
    assert done[3].error == done[4].error == broken
    assert done[5].error.startswith(no_method)
    assert list((tmp_path / "explanations").glob("*.npz"))
