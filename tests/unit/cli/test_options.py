"""What all commands do with their options, and with tables in narrow terminals."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.table import Table
from typer.main import get_command

from hf_gmar import GMAR
from hf_gmar.cli import app
from hf_gmar.cli import options as shared
from hf_gmar.methods import METHODS
from hf_gmar.models import LoadedModel
from tests.support.command import run

_COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
SINGLE = [
    (name, option)
    for name, command in _COMMANDS.items()
    for option in command.params
    if option.param_type_name == "option" and not (option.multiple or option.is_eager)
]
SEVERAL = {
    *(
        (name, option)
        for name in ("explain", "report", "card")
        for option in ("target", "option", "method")
    ),
    ("evaluate", "methods"),
    ("evaluate", "metrics"),
    ("evaluate", "perturbations"), ("evaluate", "captum"), ("compare", "methods"),
    ("compare", "captum"), ("app", "models"), *((name, "prompts") for name in ("explain", "report",
    "card", "compare", "heads", "evaluate", "app")),
}  # fmt: skip


@pytest.mark.parametrize(("name", "option"), SINGLE, ids=lambda item: getattr(item, "name", item))
def test_an_option_of_one_value_is_given_once(name: str, option: Any) -> None:
    words = [[option.opts[-1]], [(option.secondary_opts or option.opts)[-1]]]
    if not option.is_flag:
        words = [[words[0][0], "1"], [f"{words[1][0]}=2"]]
    done = run(name, *words[0], *words[1])
    assert done.code == 2
    text = " ".join(done.err.replace("│", " ").split())
    assert f"{option.opts[-1]}" in text
    assert "it is given 2 times; give it once" in text


@pytest.mark.parametrize(
    ("name", "place"),
    [
        (name, option)
        for name, command in _COMMANDS.items()
        for option in command.params
        if option.name
        in ("images", "data", "model", "output", "processor", "cache_dir", "similar_to")
        or "--model" in option.opts
    ],
    ids=lambda item: getattr(item, "name", item),
)
def test_an_empty_place_is_not_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, place: Any
) -> None:
    """A variable of the shell that is not set gives one."""
    monkeypatch.chdir(tmp_path)
    is_option = place.param_type_name == "option"
    done = run(name, *([place.opts[-1], ""] if is_option else [""]))
    assert done.code == 2
    text = " ".join(done.err.replace("│", " ").split())
    assert "it is empty; name a file or folder, '.' for the current one" in text


def test_a_url_and_a_pipe_are_no_image_files(tmp_path: Path) -> None:
    words = ("--model", "bundled", "--output", tmp_path / "out")
    for url in ("https://a.b/c.png", "s3://a/b.png", "file:///a.png"):
        done = run("explain", url, *words)
        assert (done.code, "is a URL" in done.error, "download it" in done.error) == (2, True, True)
    for file in ("/dev/null", tmp_path / "pipe"):
        if file != "/dev/null":
            os.mkfifo(file)
        error = run("explain", file, *words).error
        assert error.startswith(f"{file} is a pipe or a device, and can't be read as an image file")


def test_a_terminal_without_columns_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "0")
    assert type(shared.out)().width == 80


def test_only_these_take_several_values() -> None:
    """A new option that may be repeated must be one of which no value is dropped."""
    several = {
        (name, option.name)
        for name, command in _COMMANDS.items()
        for option in command.params
        if option.param_type_name == "option" and option.multiple
    }
    assert several == SEVERAL


def test_help_may_be_asked_for_twice() -> None:
    assert run("explain", "--help", "--help").code == 0


def test_several_targets_are_explained_in_their_order(
    tmp_path: Path, bundled: LoadedModel, scene: Image.Image
) -> None:
    words = "--target", "cross", "--target", "heart", "--method", "gmar"
    done = run("explain", *words, "--output", tmp_path)
    assert done.code == 0
    archives = [line for line in done.out.splitlines() if line.endswith(".npz")]
    assert [Path(line).name for line in archives] == ["scene.4-cross.npz", "scene.6-heart.npz"]
    pixels = bundled.processor(images=scene, return_tensors="pt").pixel_values
    for archive, index in zip(archives, (4, 6), strict=True):
        with np.load(archive) as stored:
            assert stored["target"] == index
            expected = GMAR(bundled.model).attribute_patches(pixels, index)[0]
            assert np.allclose(stored["patches"], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--target", "heart", "--target", "6"], "'heart' and '6' are the same class, 6 (heart)"),
        (["--target", "6", "--target", "4", "--contrast", "cross"], "--target and --contrast are"),
        (["--target", "6", "--target", "4", "--top-k", "2"], "either --target (those classes) or"),
    ],
)
def test_targets_that_do_not_fit_together(tmp_path: Path, words: list[str], text: str) -> None:
    done = run("explain", *words, "--output", tmp_path)
    assert done.code == 2
    assert text in done.error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("width", [20, 40, 60, 79, 100])
@pytest.mark.parametrize("name", ["methods", "models"])
def test_no_table_breaks_a_word(monkeypatch: pytest.MonkeyPatch, name: str, width: int) -> None:
    monkeypatch.setattr(shared.out, "_width", width)
    done = run(name)
    words = set(done.out.replace("│", " ").replace(",", " ").split())
    if name == "methods":
        wanted = {word for _, method in METHODS.items() for word in method.source.split()}
        wanted |= {*METHODS, "re-evaluation"}
    else:
        wanted = {"mobilevitv2", "siglip2_vision_model", "neighbourhoods", "untested;"}
    assert {word.replace(",", "") for word in wanted} <= words


@pytest.mark.parametrize("width", [10, 20, 26, 60])
def test_cells_stay_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    monkeypatch.setattr(shared.out, "_width", width)
    table = Table(title="Files")
    for heading in ("image", "note"):
        table.add_column(heading)
    table.add_row("a-very-long-name.png", "some words more")
    shared.print_table(table)
    lines = capsys.readouterr().out.splitlines()
    assert any("a-very-long-name.png" in line for line in lines)
    assert max(map(len, lines)) <= max(width, len("image: a-very-long-name.png"))
    assert os.linesep.join(lines).count("words") == 1
