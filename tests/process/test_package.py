"""What is released: archives that are built the same twice, and run where they are installed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import tomllib
import urllib.request
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from urllib.error import URLError

import pytest
import yaml
from PIL import Image

from tests.reference.tolerances import PATIENCE
from tests.support.page_server import free_port

pytestmark = [
    pytest.mark.package,
    pytest.mark.skipif(sys.platform != "linux", reason="archives are built on Linux"),
    pytest.mark.xdist_group("package"),
]
GIT = str(shutil.which("git"))
ROOT = Path(__file__).parents[2]
LARGEST = 8_000_000
"""Bytes of the wheel."""
UNSAID = {"protobuf", "transformers"}
"""Packages whose metadata have no licence: BSD-3-Clause and Apache-2.0, by their files."""


def _build(folder: Path) -> tuple[Path, Path]:
    environment = {**os.environ, "PYTHON": sys.executable}
    subprocess.run([ROOT / ".ci" / "build", folder], check=True, env=environment)
    return next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the source archive."""
    return _build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, archives: tuple[Path, Path]) -> Path:
    """The folder of an environment that holds the wheel with what it needs, and nothing else."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    wheel = f"hf-gmar[app] @ {archives[0].as_uri()}"
    subprocess.run([*pip, "-c", str(ROOT / "constraints.txt"), wheel], check=True)
    return folder


def _command(installed: Path, *words: object) -> list[str]:
    """The installed command, with its environment read-only where root could write to it."""
    command = [str(installed / "bin" / "hf-gmar"), *map(str, words)]
    if os.geteuid() or not shutil.which("unshare"):
        return command
    read_only = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", read_only, str(installed), *command]


def _bare(temporary: Path) -> dict[str, str]:
    """An environment without home, caches or a locale."""
    return {
        "PATH": os.environ["PATH"], "LANG": "C", "LC_ALL": "C", "HOME": "/nonexistent",
        "HF_HUB_OFFLINE": "1", "TMPDIR": str(temporary),
    }  # fmt: skip


def _run(installed: Path, folder: Path, *words: object) -> str:
    done = subprocess.run(
        _command(installed, *words), cwd=folder, env=_bare(folder), check=False,
        capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_the_same_commit_gives_the_same_bytes(archives: tuple[Path, Path], tmp_path: Path) -> None:
    for first, second in zip(archives, _build(tmp_path), strict=True):
        assert first.name == second.name
        assert _hash(first) == _hash(second)


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_archives_hold_the_package_and_its_licence(archives: tuple[Path, Path]) -> None:
    wheel, source = archives
    assert wheel.stat().st_size < LARGEST
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top.split("-")[0] for top in tops} == {"hf_gmar"}
    assert "hf_gmar/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    with tarfile.open(source) as opened:
        assert "README.md" in {name.partition("/")[2] for name in opened.getnames()}
    committed = subprocess.run(
        [GIT, "ls-files", "hf_gmar"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()  # fmt: skip
    assert set(committed) <= set(names)


def test_the_registry_will_take_and_show_them(archives: Sequence[Path]) -> None:
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *archives], check=True)


def test_the_wheel_explains_its_sample(installed: Path, tmp_path: Path) -> None:
    words = ["explain", "--target", "heart", "--target", "cross", "--output", tmp_path / "out"]
    printed = _run(installed, tmp_path, *words)
    picture = next((tmp_path / "out").glob("*.png"))
    assert picture.name in printed.replace("\n", "")
    with Image.open(picture) as opened:
        assert opened.size > (800, 400)


def test_the_wheel_knows_its_version(installed: Path, archives: Sequence[Path]) -> None:
    version = archives[0].name.split("-")[1]
    assert version in _run(installed, installed.parent, "--version")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == version


def test_the_citation_is_valid(tmp_path: Path) -> None:
    """For cffconvert, which needs an older jsonschema than notebooks do."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    programs = tmp_path / "venv" / "bin"
    subprocess.run([programs / "pip", "install", "--quiet", "cffconvert==2.0.0"], check=True)
    subprocess.run([programs / "cffconvert", "--validate"], cwd=ROOT, check=True)


def test_the_wheel_shows_its_page(installed: Path, tmp_path: Path) -> None:
    port = free_port()
    process = subprocess.Popen(
        _command(installed, "app", "--port", port), cwd=tmp_path, env=_bare(tmp_path),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        requests: dict[str, object] = {}
        while not requests:
            assert process.poll() is None, process.communicate()[0]
            with (
                suppress(URLError, ConnectionError),
                urllib.request.urlopen(f"http://127.0.0.1:{port}/gradio_api/info") as reply,
            ):
                requests = json.load(reply)["named_endpoints"]
            time.sleep(0.1)
        assert "/explain" in requests
    finally:
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=PATIENCE)
    assert "Traceback" not in printed


def test_all_that_is_installed_says_its_licence(installed: Path, tmp_path: Path) -> None:
    file = tmp_path / "sbom.json"
    words = ["environment", str(installed / "bin" / "python"), "--output-file", str(file)]
    subprocess.run([sys.executable, "-m", "cyclonedx_py", *words], check=True)
    components = json.loads(file.read_text(encoding="utf-8"))["components"]
    names = {component["name"] for component in components}
    assert {"hf-gmar", "torch", "transformers", "captum", "gradio"} <= names
    assert not {"pytest", "mypy", "ruff"} & names
    silent = {one["name"] for one in components if not one.get("licenses")}
    assert silent <= UNSAID


def test_one_command_makes_a_version(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run([GIT, "clone", "--quiet", ROOT, clone], check=True)
    author = {"GIT_AUTHOR_NAME": "Test", "GIT_AUTHOR_EMAIL": "test@example.org"}
    committer = {"GIT_COMMITTER_NAME": "Test", "GIT_COMMITTER_EMAIL": "test@example.org"}
    subprocess.run(
        [sys.executable, "-m", "bumpversion", "bump", "major"], check=True,
        cwd=clone, env={**os.environ, **author, **committer},
    )  # fmt: skip
    version = tomllib.loads((clone / "pyproject.toml").read_text())["project"]["version"]
    assert version == "1.0.0"
    assert f"version: {version}" in (clone / "CITATION.cff").read_text()
    assert re.search(
        rf"## Unreleased\n\n## {version}, \d{{4}}-\d\d-\d\d\n",
        (clone / "CHANGELOG.md").read_text(),
    )
    tags = subprocess.run([GIT, "-C", clone, "tag"], check=True, capture_output=True, text=True)
    assert f"v{version}" in tags.stdout.split()
