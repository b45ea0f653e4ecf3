"""Commands that are stopped, that find the disk full, or that meet names of any bytes."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hf_gmar import GMAR
from hf_gmar.comparison import run as comparison
from hf_gmar.evaluation.run import per_image
from hf_gmar.heads import importance
from tests.support.command import Done, run
from tests.support.limits import NEEDS_LIMITS, largest_file

WORDS: dict[str, Sequence[str]] = {
    "explain": ("--batch-size", "1", "--method", "gmar"),
    "heads": (),
    "compare": ("--methods", "gmar", "random", "--no-measure"),
    "evaluate": ("--methods", "gmar", "--metrics", "average-drop"),
}

STEPS: dict[str, tuple[Any, str]] = {  # what each command calls once for a result
    "explain": (GMAR, "attribute_with_scores"),
    "heads": (importance, "head_importance"),
    "compare": (comparison, "_seeded_call"),
    "evaluate": (per_image, "predict"),
}

pytestmark = pytest.mark.usefixtures("few_dots")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of three images, of which the second makes large files."""
    folder = tmp_path / "images"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8)
    for name, image in {
        "a": Image.new("RGB", (300, 300)), "b": Image.fromarray(noise),
        "c": Image.new("RGB", (300, 300)),
    }.items():  # fmt: skip
        image.save(folder / f"{name}.png")
    return folder


def called(command: str, *words: object, output: Path) -> Done:
    """The command with the bundled model; the first words are images."""
    return run(command, *words, *WORDS[command], "--model", "bundled", "--output", output)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def listed(done: Done, output: Path) -> set[str]:
    """The files that the command lists, all of which exist."""
    names = {line.rpartition("/")[2] for line in done.out.splitlines() if str(output) in line}
    assert names <= names_in(output)
    return names


def second_call(function: Any, act: Callable[[], object]) -> Callable[..., Any]:
    """The function, whose second call does something first."""
    calls = list[None]()

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == 2:
            act()
        return function(*args, **kwargs)

    return wrapped


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("command", ["explain", "heads", "compare"])
def test_a_stop_lists_what_was_finished(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    command: str, number: signal.Signals, code: int,
) -> None:  # fmt: skip
    place: Any
    place, name = STEPS[command]
    stop = second_call(getattr(place, name), lambda: signal.raise_signal(number))
    monkeypatch.setattr(place, name, stop)
    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    output = tmp_path / "out"
    done = called(command, images, output=output)
    assert done.code == code
    word = "stopped" if code == 130 else "terminated"
    assert done.error == f"{word}; what was finished is in {output}"
    files = listed(done, output)
    assert files == names_in(output)
    assert len(files) == {"explain": 2, "heads": 1, "compare": 1}[command]
    assert ("Explanations" in done.out) == (command == "explain")
    assert handlers == [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]


class Dropping:
    """Python drops what its destructor raises."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def __del__(self) -> None:
        """Be interrupted."""
        signal.raise_signal(self.number)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("command", WORDS)
def test_a_stop_that_python_drops_ends_the_command_all_the_same(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    command: str, number: signal.Signals, code: int,
) -> None:  # fmt: skip
    """It counts after the result in whose making it came."""
    place: Any
    place, name = STEPS[command]
    stop = second_call(getattr(place, name), lambda: Dropping(number))
    monkeypatch.setattr(place, name, stop)
    output, hook = tmp_path / "out", sys.unraisablehook
    done = called(command, images, output=output)
    assert done.code == code
    assert "stopped;" in done.error or "terminated;" in done.error
    if command == "evaluate":
        assert (output / "rows.jsonl").read_bytes().count(b"\n") == 2
    else:
        assert listed(done, output) == names_in(output)
        assert len(names_in(output)) == {"explain": 4, "heads": 2, "compare": 1}[command]
    assert sys.unraisablehook is hook


@NEEDS_LIMITS
@pytest.mark.parametrize("command", ["explain", "heads", "compare"])
def test_a_full_disk_is_one_line_and_what_was_finished_is_listed(
    images: Path, tmp_path: Path, command: str
) -> None:
    whole = called(command, images, output=tmp_path / "whole")
    assert whole.code == 0, whole.err
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "whole").iterdir()}
    pictures = [size for name, size in sizes.items() if re.search(r"(^b.*|son|tance)\.png", name)]
    output = tmp_path / "out"
    with largest_file(max(pictures) - 1):
        done = called(command, images, output=output)
    assert done.code == 1
    assert done.error == (
        f"{output} can't be written: File too large; what was finished is kept: make room, or "
        "name another folder with --output"
    )
    files = listed(done, output)
    assert files == names_in(output) <= set(sizes)
    if command == "explain":
        assert {name[0] for name in files} == {"a"}
    elif command == "heads":
        assert files == {*(f"{name}.heads.npz" for name in "abc"), "importance.npz"}
    else:
        assert files == {"maps.npz"}
        with np.load(output / "maps.npz") as archive:
            assert archive["methods"].tolist() == ["gmar", "random"]


@NEEDS_LIMITS
def test_a_full_disk_ends_an_evaluation_in_one_line(images: Path, tmp_path: Path) -> None:
    with largest_file(2000):
        done = called("evaluate", images, output=tmp_path / "out")
    assert done.code == 1
    assert "can't be written: File too large; what was measured is kept" in done.error


@pytest.fixture
def foreign(images: Path) -> Path:
    """The images, one of them under a name of Latin-1, in a folder of such a name."""
    folder = Path(os.fsdecode(os.fsencode(images) + b"-\xe9"))
    try:
        images.rename(folder)
        (folder / "b.png").rename(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png"))
    except (OSError, UnicodeError):
        pytest.skip("the file system takes no such names")
    return folder


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are UTF-8")
@pytest.mark.parametrize("command", WORDS)
def test_file_names_that_are_not_utf_8_are_shown_with_escapes(
    foreign: Path, tmp_path: Path, command: str
) -> None:
    output = Path(os.fsdecode(os.fsencode(tmp_path / "out") + b"\xe9"))
    done = called(command, foreign, output=output)
    assert done.code == 0, done.err
    for path in output.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".md", ".html"):
            path.read_text(encoding="utf-8")
        if path.suffix == ".npz":
            with np.load(path) as archive:
                "".join(str(archive[name]) for name in archive).encode()
    if command == "explain":
        assert sorted({name.split(".")[0] for name in names_in(output)}) == ["a", "c", "caf_"]
        assert len(names_in(output)) == 6
        assert r"caf\udce9.png" in done.out
    elif command == "evaluate":
        rows = [json.loads(line) for line in (output / "rows.jsonl").read_text().splitlines()]
        assert [row["key"] for row in rows] == ["a.png", "c.png", r"caf\udce9.png"]
        before = (output / "summary.json").read_bytes(), (output / "rows.jsonl").read_bytes()
        again = called(command, foreign, output=output)
        assert again.code == 0, again.err
        assert before == ((output / "summary.json").read_bytes(),
                          (output / "rows.jsonl").read_bytes())  # fmt: skip


@pytest.mark.parametrize("command", WORDS)
def test_a_loop_of_links_is_read_once(images: Path, tmp_path: Path, command: str) -> None:
    (images / "loop").symlink_to(images)
    (images / "self").symlink_to("self")
    (images / "self.png").symlink_to("self.png")
    done = called(command, images, output=tmp_path / "out")
    assert done.code == (0 if command == "evaluate" else 1)  # an image could not be read
    assert "Traceback" not in done.err
    (line,) = [line for line in done.err.splitlines() if "self.png" in line]
    assert "Too many levels of symbolic links" in line


@pytest.mark.parametrize("command", WORDS)
def test_results_among_the_images_are_refused(images: Path, command: str) -> None:
    done = called(command, images, output=images)
    assert done.code in (1, 2)
    assert f"name another one for the results, such as {images / 'results'}" in done.error


LONG = "a" * 300


@pytest.mark.parametrize("command", WORDS)
@pytest.mark.parametrize("path", [f"{LONG}.png", f"{LONG}/a.png", "loop/a.png", "a.png/b.png"])
def test_paths_that_the_system_refuses_are_one_line(
    images: Path, tmp_path: Path, command: str, path: str
) -> None:
    (images / "loop").symlink_to("loop")
    done = called(command, images / path, output=tmp_path / "out")
    assert done.code == 1
    reason = {"a": "no", "l": "Too many levels of symbolic links"}[path[0]]
    assert ("File name too long" if LONG in path else reason) in done.error


@pytest.mark.parametrize("command", WORDS)
@pytest.mark.parametrize("path", [LONG, "loop/out", "a.png", "a.png/out"])
def test_outputs_that_the_system_refuses_are_one_line(
    images: Path, command: str, path: str
) -> None:
    (images / "loop").symlink_to("loop")
    done = called(command, images / "b.png" if command != "evaluate" else "scenes:1",
                  output=images / path)  # fmt: skip
    assert done.code in (1, 2)
    assert "nothing can be written to" in done.error


@pytest.mark.parametrize(
    ("command", "option", "reason"),
    [
        ("explain", "--prompts", "--prompts need a model"),
        ("compare", "--methods", "there is no method"),
        ("compare", "--captum", "Captum has no method"),
        ("explain", "--model", "is not in the local cache"),
        ("explain", "--processor", "is not in the local cache"),
    ],
)
@pytest.mark.parametrize("text", ["a" * 5000, "loop/a"])
def test_long_arguments_that_may_be_paths_are_one_line(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    command: str, option: str, reason: str, text: str,
) -> None:  # fmt: skip
    (images / "loop").symlink_to("loop")
    monkeypatch.chdir(images)
    model = ["--model", "bundled"] if option == "--processor" else []
    done = run(command, "a.png", option, text, *model, "--output", tmp_path / "out")
    assert done.code in (1, 2)
    assert reason in done.error or f"there is no model {text!r}" in done.error


@pytest.mark.parametrize("row", ["a\0.png,a.png", "a.png,a\0.png"])
def test_a_nul_in_a_table_is_named_with_its_line(tmp_path: Path, row: str) -> None:
    table = tmp_path / "table.csv"
    table.write_text(f"path,mask\nb.png,\n{row}\n")
    done = called("evaluate", table, output=tmp_path / "out")
    assert done.code == 1
    assert done.error.startswith(f"line 3 of {table} has a NUL character")
