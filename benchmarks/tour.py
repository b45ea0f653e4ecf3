"""Runs the notebook of the tour, and writes it with its outputs as a page.

    python -m benchmarks.tour

``python -m benchmarks.figures`` does so, too. ``tests/project/test_tour.py`` says whether the page
is stale: it compares the texts, and the pictures with a tolerance for other machines.
"""

from __future__ import annotations

import base64
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
from nbclient import NotebookClient
from numpy.typing import NDArray
from PIL import Image

from hf_gmar._utils.files import whole_file
from hf_gmar._utils.text import markdown

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "tour.ipynb"
PAGE = ROOT / "docs" / "tour.md"
PICTURES = ROOT / "docs" / "images" / "tour"

_NOTE = (
    "This page is the notebook [examples/tour.ipynb](../examples/tour.ipynb) with its outputs.\n"
    "Times are of the machine that ran it, on one thread."
)
_WIDEST = 900  # pixels of a picture
_QUALITY = 80  # of WebP
_LONGEST_TEXT = 160  # letters of a picture's description
_PATIENCE = 600  # seconds for a cell
_PARTS = 8  # rows and columns of the parts whose mean colours are compared
_TOLERANCE = 6.0  # of 255


@dataclass
class Tour:
    """The page with its pictures by file name."""

    text: str
    pictures: dict[str, Image.Image]


def executed() -> Any:
    """Run the notebook without a network, in an empty folder."""
    notebook = nbformat.read(NOTEBOOK, nbformat.current_nbformat)
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    variables["OMP_NUM_THREADS"] = "1"  # on a machine that others use, times of threads vary most
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=_PATIENCE,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
        )
        client.execute(env=variables)
    return notebook


def render(notebook: Any) -> Tour:
    """Write a notebook that was run as a page of Markdown."""
    parts: list[str] = []
    pictures: dict[str, Image.Image] = {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts += [cell.source.strip(), *([_NOTE] if not pictures and len(parts) == 0 else [])]
            continue
        parts.append(code_block(cell.source))
        for output in cell.outputs:
            for shown in _outputs(output):
                if isinstance(shown, str):
                    parts.append(shown)
                    continue
                name = f"{len(pictures) + 1:02}.webp"
                pictures[name] = shown.picture
                parts.append(f"![{markdown(shown.text)}](images/tour/{name})")
    return Tour("\n\n".join(parts) + "\n", pictures)


def code_block(source: str) -> str:
    """Return a cell's code; ``py`` blocks are not run as the blocks of other pages are."""
    return f"```py\n{source.strip()}\n```"


@dataclass(frozen=True)
class _Picture:
    picture: Image.Image
    text: str


def _outputs(output: Any) -> Iterator[str | _Picture]:
    """Yield the pictures, tables and lines of an output; progress bars have none."""
    data = output.get("data", {})
    if "text/html" in data:
        page = _Page()
        page.feed(data["text/html"])
        yield from page.shown
    elif "image/png" in data:
        yield _Picture(_picture(data["image/png"]), "output of the cell")


def _picture(code: str) -> Image.Image:
    with Image.open(BytesIO(base64.b64decode(code))) as image:
        picture = image.convert("RGB")
    picture.thumbnail((_WIDEST, 10_000))
    return picture


@dataclass
class _Page(HTMLParser):
    """What a notebook shows of an object: pictures, tables and lines."""

    shown: list[str | _Picture] = field(default_factory=list)
    _rows: list[list[str]] = field(default_factory=list)
    _words: str = ""
    _heads: bool = False
    _bold: bool = False

    def __post_init__(self) -> None:
        """Begin to parse."""
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take a picture, or begin a table or a text."""
        values = dict(attrs)
        if tag == "img":
            text = str(values["alt"])
            text = text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}..."
            code = str(values["src"]).partition("base64,")[2]
            self.shown.append(_Picture(_picture(code), text))
        elif tag == "table":
            self._rows, self._heads = [], False
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("p", "caption", "td", "th"):
            self._words, self._bold = "", False
            self._heads |= tag == "th"
        elif tag == "b":
            self._bold = True

    def handle_data(self, data: str) -> None:
        """Add the words of a text."""
        self._words += data

    def handle_endtag(self, tag: str) -> None:
        """End a text or a table."""
        words = markdown(self._words)
        if tag == "p":
            self.shown.append(words)
        elif tag == "caption":
            self.shown.append(f"**{words}**")
        elif tag in ("td", "th"):
            self._rows[-1].append(f"**{words}**" if self._bold else words)
        elif tag == "table":
            rows = self._rows if self._heads else [[""] * len(self._rows[0]), *self._rows]
            ruler = ["---"] * len(rows[0])
            lines = (f"| {' | '.join(row)} |" for row in (rows[0], ruler, *rows[1:]))
            self.shown.append("\n".join(lines))


def differences(stored: str, made: str) -> list[str]:
    """Compare two pages line by line; numbers may differ, as times do on each machine.

    Example:
        >>> differences("GMAR, 3.2 forwards", "GMAR, 2.9 forwards")
        []
        >>> differences("GMAR 3.2", "LeGrad 3.2")
        ["'GMAR #' is now 'LeGrad #'"]
    """
    old, new = (_NUMBER.sub("#", text).splitlines() for text in (stored, made))
    problems = [f"{len(old)} lines are now {len(new)}"] if len(old) != len(new) else []
    pairs = zip(old, new, strict=False)
    return problems + [f"{one!r} is now {other!r}" for one, other in pairs if one != other]


_NUMBER = re.compile(r"-?\d[\d.,]*(e-?\d+)?|(?<=\| )-(?= \|)")


def picture_differs(stored: Image.Image, made: Image.Image) -> bool:
    """Whether two pictures have another size, or parts of other colours."""
    sizes = zip(stored.size, made.size, strict=True)
    if any(abs(one - other) > 0.05 * one for one, other in sizes):
        return True
    difference = _mean_colours(stored) - _mean_colours(made)
    return bool(np.abs(difference).max() > _TOLERANCE)


def _mean_colours(picture: Image.Image) -> NDArray[np.float64]:
    small = picture.convert("RGB").resize((_PARTS, _PARTS), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float64)


def stored_pictures() -> dict[str, Image.Image]:
    """Read the pictures of the page by file name."""
    pictures = {}
    for path in sorted(PICTURES.glob("*")):
        with Image.open(path) as image:
            pictures[path.name] = image.convert("RGB")
    return pictures


def write(tour: Tour) -> None:
    """Write the page and its pictures, and remove pictures of an earlier page."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    for path in PICTURES.glob("*"):
        if path.name not in tour.pictures:
            path.unlink()
    _write_pictures(tour.pictures)
    with whole_file(PAGE) as part:
        part.write_text(tour.text, encoding="utf-8")


def _write_pictures(pictures: Mapping[str, Image.Image]) -> None:
    for name, picture in pictures.items():
        with whole_file(PICTURES / name) as part:
            picture.save(part, "WEBP", quality=_QUALITY, method=6)


def main() -> None:
    """Run the notebook, and write the page."""
    write(render(executed()))


if __name__ == "__main__":
    main()
