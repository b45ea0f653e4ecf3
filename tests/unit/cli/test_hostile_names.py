"""Each command with names of classes, images, models and arguments that try to be more."""

from __future__ import annotations

import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markdown_it import MarkdownIt
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

from hf_gmar.cli import app
from hf_gmar.models import LoadedModel
from tests.support import folders
from tests.support.command import Done, run
from tests.support.hostile import COLOURS, HOSTILE, MARKUP, hidden_in

pytestmark = pytest.mark.usefixtures("few_dots")

NAME = HOSTILE[-1]  # all at once

COMMANDS = {
    "explain": ["--target", "1", "--target", "6", "--contrast", "0"],
    "report": ["--target", "1", "--contrast", "0", "--title", NAME],
    "card": ["--target", "1", "--contrast", "0", "--examples", "1"],
    "compare": ["--target", "6", "--contrast", "0", "--methods", "gmar", "random", "grad-sam",
                "--no-measure"],
    "heads": ["--maps", "--ablate"],
    "evaluate": ["--methods", "gmar", "random", "--metrics", "deletion", "--steps", "2",
                 "--examples", "2"],
    "models": [],
    "methods": [],
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, bundled: LoadedModel) -> Path:
    """A model whose folder, type of processor and classes have hostile names."""
    config: Any = bundled.model.config
    labels = {str(index): f"{NAME}{index}" for index in config.id2label}
    folder = tmp_path_factory.mktemp("models") / NAME
    return folders.copy(folder, id2label=labels, label2id={})


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good images and a broken one."""
    folder = tmp_path_factory.mktemp("photos") / NAME
    folder.mkdir()
    for number, colour in enumerate(("teal", "coral")):
        Image.new("RGB", (96, 96), colour).save(folder / f"{NAME}{number}.png", "PNG")
    (folder / f"broken{NAME}.png").write_bytes(b"")
    return folder


def words_of(name: str, photos: Path, model: Path, output: Path) -> list[object]:
    if name == "methods":
        return [name]
    if name == "models":
        return [name, model]
    if name == "card":
        return [name, model, photos, *COMMANDS[name], "--output", output]
    return [name, photos, "--model", model, *COMMANDS[name], "--output", output]


class Tags(HTMLParser):
    """The tags of a page."""

    def __init__(self, page: str) -> None:
        """Read it at once."""
        super().__init__()
        self.found: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the tag, and where it points."""
        points = {value or "" for name, value in attrs if name in {"href", "src"}}
        if not all(
            re.match(
                r"#section-|#image-|#top$|data:image/|[a-z-]+\.png$|explanations/example-1\.webp$",
                value,
            )
            for value in points
        ):
            self.found.add(f"{tag} to {points}")
        self.found.add(tag)


def check(done: Done) -> None:
    """Nothing that a terminal obeys is printed, and no line of a name's own."""
    printed = done.out + done.err
    assert hidden_in(printed) <= {"\n"}
    assert "Traceback" not in printed
    assert not re.search(r"^(# f|- g|error: h)", printed, re.MULTILINE)


def test_these_are_all_commands() -> None:
    served = {"app"}  # its names are in tests/process/test_app.py
    assert set(get_command(app).commands) == set(COMMANDS) | served  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("error:Glyph")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_prints_and_writes_names_as_text(
    name: str, photos: Path, model: Path, tmp_path: Path
) -> None:
    output = tmp_path / f"out{NAME}"
    done = run(*words_of(name, photos, model, output))
    check(done)
    if name in {"methods", "models"}:
        assert done.code == 0
        return
    assert r"\x1b]52;c;eA==\x07" in done.out + done.err
    for part in (MARKUP, COLOURS):  # rich's own markup too
        assert part in done.out.replace("\n", "")
        assert part in done.err
    files = [path for path in output.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} & {".png", ".npz", ".html", ".webp"}
    for path in output.glob("examples/*.npz"):
        with np.load(path) as stored:
            title, name_in_file = str(stored["title"]).split("\n")
            assert re.search(r"  0\.\d\d$", title)  # two spaces: it is never cut
            assert hidden_in(title + name_in_file) == set()
    for path in files:
        if path.suffix in {".json", ".jsonl"}:
            assert path.read_text(encoding="utf-8").isascii()
        elif path.suffix in {".md", ".html"}:
            text = path.read_text(encoding="utf-8")
            assert hidden_in(text) <= {"\n"}
            page = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
            tags = Tags(page if path.suffix == ".md" else text).found
            assert not {tag for tag in tags if tag in {"b", "script", "c"} or " to " in tag}


@pytest.mark.parametrize(
    "words",
    [
        [f"no{NAME}"],
        [f"--\x1b[2J\x9b\u202e{NAME}"],
        ["explain", f"no{NAME}.png"],
        ["explain", f"--\x1b[2J\x9b\u202e{NAME}"],
        ["explain", "--target", NAME],
        ["explain", "--contrast", NAME],
        ["explain", "--top-k", NAME],
        ["explain", "--method", NAME],
        ["explain", "--option", NAME],
        ["explain", "--option", f"{NAME}=1"],
        ["explain", "--norm", NAME],
        ["explain", "--model", f"./{NAME}"],
        ["explain", "--model", NAME],
        ["explain", "--device", NAME],
        ["explain", "--dtype", NAME],
        ["explain", "--size", NAME],
        ["explain", "--processor", NAME],
        ["explain", "--model", "bundled", "--prompts", NAME],
        ["explain", "--target", "heart", "--target", NAME],
        ["compare", "--methods", NAME],
        ["compare", "--captum", NAME],
        ["heads", "--criterion", NAME],
        ["heads", "--norm", NAME],
        ["heads", "--target", NAME],
        ["evaluate", NAME],
        ["evaluate", "--metrics", NAME],
        ["evaluate", "--perturbations", NAME],
        ["evaluate", "--baseline", NAME, "scenes:1"],
        ["evaluate", "--score", NAME],
        ["evaluate", "--seed", NAME],
        ["models", f"./{NAME}"],
        ["methods", NAME],
        ["app", "--models", NAME],
        ["app", "--host", NAME],
    ],
    ids=lambda words: " ".join(words[:-1]) or "command",
)
def test_a_wrong_argument_is_shown_as_text(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = run(*words)
    assert done.code in {1, 2}
    check(done)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("letter", [b"a", "é".encode(), "视".encode(), b"\xe9"], ids=repr)
@pytest.mark.parametrize("name", ["explain", "heads", "compare", "evaluate"])
def test_images_of_names_as_long_as_a_file_system_takes(
    name: str, letter: bytes, tmp_path: Path
) -> None:
    """In any encoding: each has its results."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for length in (244, 248):
        stem = (letter * 250)[: length - length % len(letter)]
        path = folder / os.fsdecode(stem + b".png")
        with path.open("wb") as file:
            Image.new("RGB", (96, 96), "teal").save(file, "PNG")
    words = ["explain", "--target", "6", "--contrast", "1"] if name == "explain" else [name]
    done = run(
        *words, folder, "--model", "bundled", *LONG.get(name, []), "--output", tmp_path / "o"
    )
    assert done.code == 0
    check(done)
    files = [path for path in (tmp_path / "o").rglob("*") if path.is_file()]
    assert len(files) == {"explain": 6, "heads": 7, "compare": 4}.get(name, len(files))


LONG = {
    "heads": ["--maps"],
    "compare": ["--methods", "gmar", "--no-measure"],
    "evaluate": ["--methods", "gmar", "--metrics", "deletion", "--steps", "2"],
}

WORDS = "é ✓ 视觉 ▲"
FEW_LETTERS = [("explain", "latin-1"), ("explain", "cp1252"), ("none", "latin-1")]


@pytest.mark.parametrize(
    ("name", "charset"),
    [*((name, "ascii") for name in (*COMMANDS, "--help", "none")), *FEW_LETTERS],
)
def test_a_terminal_of_few_letters_gets_the_others_as_escapes(
    name: str, charset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Windows has it: nothing ends in an error after the work is done."""
    monkeypatch.chdir(tmp_path)  # a short path: the table of classes fits
    photo = Path(f"{WORDS}.png")
    Image.new("RGB", (96, 96), "teal").save(photo)
    to_folder = ["--model", "bundled", "--output", f"out {WORDS}"]
    calls: dict[str, list[object]] = {
        "explain": [name, photo, *to_folder],
        "report": [name, photo, *to_folder],
        "card": [name, "bundled", photo, "--output", f"out {WORDS}"],
        "compare": [name, photo, *to_folder, "--no-measure", "--methods", "gmar"],
        "heads": [name, photo, *to_folder],
        "evaluate": [name, ".", *to_folder, *COMMANDS["evaluate"]],
        "none": [f"none{WORDS}"],
    }
    words = calls.get(name, [name])
    done = CliRunner(charset=charset).invoke(app, list(map(str, words)))
    assert done.exit_code == (2 if name == "none" else 0), done.output
    printed = done.stdout_bytes + done.stderr_bytes
    assert b"Traceback" not in printed
    lines = printed.decode(charset).splitlines()
    widths = {len(line) for line in lines if line[:1] in {"+", "|"}}
    if name in {"explain", "report", "card", "compare", "heads", "evaluate"}:
        assert len(widths) == 1  # a table knows the width of escapes
    if len(words) > 1 or name == "none":
        assert "✓".encode(charset, "backslashreplace") in printed
