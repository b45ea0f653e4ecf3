"""Reading image files."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hf_gmar.data import find_images, open_image
from hf_gmar.data.image_files import load_image, unique_stems
from hf_gmar.errors import ImageFileError, InputError
from tests.support.web_server import serve


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "CMYK", "I;16", "1"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.new(mode, (8, 6)).save(path)
    image = open_image(path)
    assert (image.mode, image.size) == ("RGB", (8, 6))


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # stands on its side
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(tmp_path / "turned.jpg").size == (4, 8)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageFileError, match=r"no image file .*nothing\.png"):
        open_image(tmp_path / "nothing.png")


def test_text_is_no_image(tmp_path: Path) -> None:
    path = tmp_path / "text.png"
    path.write_text("hello")
    with pytest.raises(ImageFileError, match="not an image in a format"):
        open_image(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "tif"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_cut_off_file_is_broken(tmp_path: Path, suffix: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ImageFileError):
        open_image(path)


def test_a_decompression_bomb_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "huge.png"
    Image.new("1", (300, 300)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageFileError, match="too large"):
        open_image(path)


def test_a_large_photo_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between Pillow's warning and its error."""
    path = tmp_path / "large.png"
    Image.new("1", (15, 10)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert open_image(path).size == (15, 10)


def test_folders_are_searched_in_order(photos: Path) -> None:
    found = [path.relative_to(photos).as_posix() for path in find_images(photos)]
    assert found == ["more/grey.png", "more/scene.webp", "scene.png", "wide.jpg"]


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ImageFileError, match="holds no image files"):
        find_images(tmp_path)


def test_stems_are_unique_even_when_numbers_clash() -> None:
    paths = [Path("a/x.png"), Path("b/x.png"), Path("c/x-2.png"), Path("d/x.png")]
    stems = unique_stems(paths)
    assert len(set(stems)) == len(stems)
    assert stems[0] == "x"


def test_sixteen_bits_keep_their_brightness(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None]
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    read = np.asarray(open_image(tmp_path / "ramp.png"))[0, :, 0]
    assert np.abs(read.astype(int) - np.arange(256)).max() <= 1


def test_pixels_of_unknown_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).random((4, 4), np.float32)).save(tmp_path / "f.tiff")
    with pytest.raises(ImageFileError, match="mode 'F'"):
        open_image(tmp_path / "f.tiff")


def test_a_missing_file_is_found_missing_early(tmp_path: Path) -> None:
    with pytest.raises(ImageFileError, match="no image file"):
        find_images(tmp_path / "nothing.png")


def test_hidden_files_results_and_folders_are_no_images(photos: Path) -> None:
    (photos / "._scene.png").write_bytes(b"")
    (photos / "album.png").mkdir()
    (photos / "paper.pdf").write_bytes(b"")
    results = photos / "results"
    results.mkdir()
    (results / "scene.0-disc.png").write_bytes(b"")
    names = [path.name for path in find_images(photos, skip=results)]
    assert names == ["grey.png", "scene.webp", "scene.png", "wide.jpg"]


def _png(path: Path, values: np.ndarray[Any, Any]) -> Path:
    Image.fromarray(values).save(path)
    return path


def test_every_source_gives_the_same_image(tmp_path: Path) -> None:
    """A path, text, base64 and Pillow; 16 bits and 8 bits, lying on their side or not."""
    deep = np.linspace(0, 65535, 48).reshape(6, 8).astype(np.uint16)
    upright = Image.Exif()
    upright[0x0112] = 6
    Image.fromarray((deep // 257).astype(np.uint8)).save(tmp_path / "turned.png", exif=upright)
    for path in (_png(tmp_path / "deep.png", deep), tmp_path / "turned.png"):
        expected = open_image(path)
        text = base64.b64encode(path.read_bytes()).decode()
        lines = "\n".join(text[place : place + 60] for place in range(0, len(text), 60))
        for source in (path, str(path), text, lines, f"data:image/png;base64,{text}"):
            assert load_image(source) == expected
        with Image.open(path) as image:
            assert load_image(image) == expected


def test_a_url_gives_what_its_file_gives(tmp_path: Path) -> None:
    path = _png(tmp_path / "deep.png", np.linspace(0, 65535, 48).reshape(6, 8).astype(np.uint16))
    with serve(tmp_path) as address:
        assert load_image(f"{address}/deep.png", timeout=60) == open_image(path)
        with pytest.raises(ImageFileError, match=r"nothing\.png can't be loaded: .*404"):
            load_image(f"{address}/nothing.png", timeout=60)
        (tmp_path / "text.png").write_text("hello")
        with pytest.raises(ImageFileError, match=r"text\.png is not an image"):
            load_image(f"{address}/text.png", timeout=60)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nothing.png", "there is no image file nothing.png, and it is no URL and no base64"),
        ("x" * 100_001, "x{200}\\.\\.\\., and it"),
        ("aGVsbG8=", "is not an image"),
        ("http://[", "can't be loaded"),
        ("a\0b", "there is no image file"),
    ],
)
def test_texts_that_are_no_images(source: str, said: str) -> None:
    with pytest.raises(ImageFileError, match=said):
        load_image(source)


def test_other_types_are_no_images() -> None:
    with pytest.raises(InputError, match="a path, a URL, base64 text or a Pillow image; got int"):
        load_image(3)
