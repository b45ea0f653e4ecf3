"""``hf-gmar report``: the page, its place, images that fail, stops and a full disk."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hf_gmar import GMAR
from hf_gmar.report import ReportWriter
from tests.support.command import Done, run
from tests.support.limits import NEEDS_LIMITS, largest_file


@pytest.fixture
def images(tmp_path: Path, scene: Image.Image) -> Path:
    """A folder of three images."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, size in {"a": 96, "b": 60, "c": 96}.items():
        scene.resize((size, size)).save(folder / f"{name}.png")
    return folder


def report(*words: object, output: Path) -> Done:
    return run("report", *words, "--model", "bundled", "--output", output)


def headings(page: Path) -> list[str]:
    return re.findall(r"<h2>\d\. (.+?)</h2>", page.read_text(encoding="utf-8"))


def test_a_folder_becomes_one_page(images: Path, tmp_path: Path) -> None:
    page = tmp_path / "new" / "scenes.html"
    done = report(images, "--title", "My scenes", output=page)
    assert done.code == 0, done.err
    assert headings(page) == [str(images / f"{name}.png") for name in "abc"]
    assert "<h1>My scenes</h1>" in page.read_text(encoding="utf-8")
    assert list(page.parent.iterdir()) == [page]
    lines = done.out.splitlines()
    assert str(page) in lines
    assert any(re.match(r"3 images, \d\.\d MB", line) for line in lines)
    assert "What the maps are worth" in done.out


@pytest.mark.parametrize("place", ["", "results", "results.html"])
def test_a_folder_for_the_page(images: Path, tmp_path: Path, place: str) -> None:
    output = tmp_path / "out" / place
    output.mkdir(parents=True)
    assert report(images / "a.png", "--no-check", output=output).code == 0
    assert (output / "report.html").is_file()


def test_a_page_may_lie_beside_its_images(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(images)
    for _ in range(2):  # a page is no image for the next run
        done = run("report", ".", "--no-check", "--model", "bundled")
        assert done.code == 0, done.err
        assert headings(images / "report.html") == ["a.png", "b.png", "c.png"]


def test_an_image_that_cannot_be_read_costs_nothing_else(images: Path, tmp_path: Path) -> None:
    (images / "b.png").write_bytes(b"broken")
    page = tmp_path / "report.html"
    done = report(images, tmp_path / "missing.png", "--no-check", output=page)
    assert done.code == 1
    assert headings(page) == [str(images / "a.png"), str(images / "c.png")]
    text = page.read_text(encoding="utf-8")
    assert f"<strong>{images / 'b.png'}</strong>: " in text
    assert "is not an image in a format" in text
    assert "missing.png" in done.err


def test_without_an_image_there_is_no_page(images: Path, tmp_path: Path) -> None:
    (images / "a.png").write_bytes(b"broken")
    done = report(images / "a.png", output=tmp_path / "report.html")
    assert done.code == 1
    assert "is not an image in a format" in done.error
    assert not (tmp_path / "report.html").exists()


def test_no_check_asks_nothing(images: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    done = report(images / "a.png", "--no-check", "--top-k", "2", output=page)
    assert done.code == 0
    text = page.read_text(encoding="utf-8")
    assert "suffice" not in text
    assert "What the maps are worth" not in text + done.out
    assert text.count("<h3>") == 2


def test_a_method_that_fails_is_named(images: Path, tmp_path: Path) -> None:
    methods = ["--method", "gmar", "gmar:start_layer=99"]
    page = tmp_path / "report.html"
    done = report(images / "a.png", "--no-check", *methods, output=page)
    assert done.code in (1, 2)
    reason = "start_layer"
    assert reason in done.out + done.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_leaves_the_page_of_what_was_finished(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals, code: int,
) -> None:  # fmt: skip
    calls = list[None]()
    original: Any = GMAR.attribute_with_scores

    def stopped(*args: Any, **options: Any) -> Any:
        calls.append(None)
        if len(calls) == 2:
            signal.raise_signal(number)
        return original(*args, **options)

    monkeypatch.setattr(GMAR, "attribute_with_scores", stopped)
    page = tmp_path / "report.html"
    done = report(images, "--batch-size", "1", "--no-check", output=page)
    assert done.code == code
    assert done.error.endswith(f"; what was finished is in {page}")
    assert headings(page) == [str(images / "a.png")]
    assert "Stopped before the end: this is 1 image of 3." in page.read_text(encoding="utf-8")
    assert str(page) in done.out


@NEEDS_LIMITS
@pytest.mark.parametrize("share", [0.1, 0.7, 0.999])  # at the first image, later, at the end
def test_a_full_disk_is_one_line_and_keeps_the_older_page(
    images: Path, tmp_path: Path, share: float
) -> None:
    page = tmp_path / "report.html"
    assert report(images, "--no-check", output=page).code == 0
    size = page.stat().st_size
    page.write_text("older", encoding="utf-8")
    with largest_file(int(size * share)):
        done = report(images, "--no-check", "--batch-size", "1", output=page)
    assert done.code == 1
    assert done.error == (
        f"{page} can't be written: File too large; make room, or name another place with --output"
    )
    assert page.read_text(encoding="utf-8") == "older"
    assert str(page) not in done.out


def test_an_output_that_the_system_refuses_is_one_line(images: Path) -> None:
    done = report(images, output=images / "a.png" / "report.html")
    assert done.code == 2
    assert "nothing can be written to" in done.error


def test_an_image_that_cannot_be_drawn_costs_nothing_else(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original: Any = ReportWriter._rows

    def failing(self: ReportWriter, results: Any) -> Any:
        if results[0].source == "b.png":
            raise ValueError("odd picture")
        return original(self, results)

    monkeypatch.setattr(ReportWriter, "_rows", failing)
    page = tmp_path / "report.html"
    done = report(images, "--no-check", output=page)
    assert done.code == 1
    assert headings(page) == [str(images / "a.png"), str(images / "c.png")]
    assert "ValueError: odd picture" in page.read_text(encoding="utf-8")
