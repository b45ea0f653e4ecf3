"""What visitors send as an image is read as explain reads a file, or refused."""

from __future__ import annotations

import builtins
import socket
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops

from hf_gmar.app.images import EXAMPLES, open_visitors_image
from hf_gmar.app.limits import Limits
from hf_gmar.data import draw_scene, open_image
from hf_gmar.errors import ImageFileError
from tests.support.uploads import bad, file_of, good, header_alone, sent

LIMITS = Limits()
BAD = bad()
GOOD = good()


@pytest.mark.parametrize("name", GOOD)
def test_a_file_is_read_as_explain_reads_it(name: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(GOOD[name])
    image = open_visitors_image(sent(GOOD[name]), 3, LIMITS)
    expected = open_image(file)
    assert (image.mode, image.size) == (expected.mode, expected.size)
    assert ImageChops.difference(image, expected).getbbox() is None


@pytest.mark.parametrize("name", BAD)
def test_all_else_is_refused_without_files_and_network(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*words: Any, **_: Any) -> Any:
        raise AssertionError(f"something is opened: {words}")

    monkeypatch.setattr(builtins, "open", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(ImageFileError) as refused:
        open_visitors_image(BAD[name], 3, LIMITS)
    assert "passwd" not in str(refused.value)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_are_those_of_the_model(channels: int) -> None:
    image = open_visitors_image(sent(file_of(draw_scene(2).image)), channels, LIMITS)
    assert len(image.getbands()) == channels


def test_a_limit_is_the_largest_that_is_read() -> None:
    content = file_of(Image.new("RGB", (20, 10)))
    limits = Limits(image_bytes=len(content), image_pixels=200)
    assert open_visitors_image(sent(content), 3, limits).size == (20, 10)
    with pytest.raises(ImageFileError, match="million pixels"):
        open_visitors_image(sent(content), 3, Limits(image_pixels=199))
    with pytest.raises(ImageFileError, match="MB"):
        open_visitors_image(sent(content), 3, Limits(image_bytes=len(content) - 1))


def test_a_size_is_read_before_any_pixel() -> None:
    with pytest.raises(ImageFileError, match="more than 16 million pixels"):
        open_visitors_image(sent(header_alone(16_001, 1_000)), 3, LIMITS)


@pytest.mark.parametrize("seed", EXAMPLES)
def test_an_example_is_its_scene(seed: int) -> None:
    image = open_visitors_image(f"example:{seed}", 3, LIMITS)
    assert image.tobytes() == draw_scene(seed).image.tobytes()
