"""The page of the tour shows what its notebook shows. If not: python -m benchmarks.tour."""

from __future__ import annotations

import base64
import re
from io import BytesIO
from typing import Any

import nbformat
import numpy as np
import pytest
from PIL import Image

from benchmarks import tour

LINES = re.compile(r"!\[[^\]]*\]\(images/tour/([^)]+)\)")


def test_the_page_has_each_cell_of_the_notebook_in_order() -> None:
    page, place = tour.PAGE.read_text(encoding="utf-8"), 0
    notebook: Any = nbformat.read(tour.NOTEBOOK, nbformat.current_nbformat)
    for cell in notebook.cells:
        text = cell.source.strip() if cell.cell_type == "markdown" else tour.code_block(cell.source)
        place = page.index(text, place) + len(text)


def test_the_page_shows_its_pictures_and_they_are_small() -> None:
    files = sorted(tour.PICTURES.iterdir())
    assert LINES.findall(tour.PAGE.read_text(encoding="utf-8")) == [path.name for path in files]
    assert sum(path.stat().st_size for path in files) < 400_000


@pytest.mark.extended  # 'make docs' runs it, too
def test_the_page_is_what_the_notebook_shows() -> None:
    made, stored = tour.render(tour.executed()), tour.stored_pictures()
    assert tour.differences(tour.PAGE.read_text(encoding="utf-8"), made.text) == []
    assert made.pictures.keys() == stored.keys()
    assert [
        name for name in stored if tour.picture_differs(stored[name], made.pictures[name])
    ] == []


def _noise(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 255, (2, 2, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


def test_another_picture_is_seen_and_a_packed_one_is_the_same() -> None:
    picture, packed = _noise(1), BytesIO()
    picture.save(packed, "WEBP", quality=80)
    with Image.open(packed) as same:
        assert not tour.picture_differs(picture, same)
    assert tour.picture_differs(picture, _noise(2))
    assert tour.picture_differs(picture, _noise(1, (64, 80)))


def test_outputs_become_pictures_tables_and_lines() -> None:
    buffer = BytesIO()
    _noise(1).save(buffer, "PNG")
    code = base64.b64encode(buffer.getvalue()).decode()
    html = (
        f'<img alt="a heart" src="data:image/png;base64,{code}">'
        "<table><caption>Costs</caption><tr><th>method</th><th>time</th></tr>"
        "<tr><td>a|b</td><td><b>1.5</b></td></tr></table>"
        "<table><tr><td>model</td><td>bundled</td></tr></table><p>r &lt; 1</p>"
    )
    cells: list[Any] = [
        nbformat.v4.new_markdown_cell("# Title"),
        nbformat.v4.new_code_cell(
            "show()",
            outputs=[
                nbformat.v4.new_output("stream", name="stderr", text="loading"),
                nbformat.v4.new_output("execute_result", {"text/html": html, "text/plain": "x"}),
            ],
        ),
    ]
    made = tour.render(nbformat.v4.new_notebook(cells=cells))
    for part in (
        "# Title\n\nThis page is the notebook",
        "```py\nshow()\n```\n\n![a heart](images/tour/01.webp)\n\n**Costs**\n\n",
        "**Costs**\n\n| method | time |\n| --- | --- |\n| a\\|b | **1.5** |\n\n",
        "\n\n|  |  |\n| --- | --- |\n| model | bundled |\n\nr \\< 1\n",
    ):
        assert part in made.text
    assert "loading" not in made.text
    assert np.array_equal(np.asarray(made.pictures["01.webp"]), np.asarray(_noise(1)))
