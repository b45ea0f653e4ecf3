"""Reading image files."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hf_gmar.data import find_images, open_image
from hf_gmar.data.image_files import load_image, open_array, unique_stems
from hf_gmar.errors import ImageFileError, InputError, OptionError
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


@pytest.mark.parametrize("suffix", ["eps", "png"])
def test_no_program_is_run_for_an_image(tmp_path: Path, suffix: str) -> None:
    """Pillow lets Ghostscript run the program that an EPS file is, whatever its name."""
    path = tmp_path / f"image.{suffix}"
    Image.new("RGB", (8, 6)).save(path, "EPS")
    for source in (path, base64.b64encode(path.read_bytes()).decode()):
        with pytest.raises(ImageFileError, match=r"an EPS file is a program.* convert it to PNG"):
            load_image(source)


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


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["Cat", "cat", "CAT-2"], ["Cat", "cat-3", "CAT-2"]),
        (["Stra\xdfe", "STRASSE"], ["Stra\xdfe", "STRASSE-2"]),
        (["caf\xe9", "cafe\u0301", "CAFE\u0301"], ["caf\xe9", "cafe\u0301-2", "CAFE\u0301-3"]),
        (["caf\udce9", "caf\udcea"], ["caf_", "caf_-2"]),
    ],
)
def test_stems_differ_on_every_file_system(names: list[str], expected: list[str]) -> None:
    assert unique_stems(Path(f"{name}.png") for name in names) == expected


def test_sixteen_bits_keep_their_brightness(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None]
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    read = np.asarray(open_image(tmp_path / "ramp.png"))[0, :, 0]
    assert np.abs(read.astype(int) - np.arange(256)).max() <= 1


@pytest.mark.parametrize("most", [65_535, 1000])
def test_grey_maps_of_sixteen_bits_keep_their_brightness(tmp_path: Path, most: int) -> None:
    """Pillow opens them in a mode of 32 bits, in the range of 16."""
    ramp = np.linspace(0, most, 256).round().astype(">u2")
    (tmp_path / "ramp.pgm").write_bytes(b"P5 256 1 %d\n" % most + ramp.tobytes())
    with Image.open(tmp_path / "ramp.pgm") as opened:
        images = open_image(tmp_path / "ramp.pgm"), load_image(opened)
    for image in images:
        read = np.asarray(image)[0, :, 0]
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


def found_below(folder: Path, skip: Path | None = None) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in find_images(folder, skip)]


def test_links_are_followed_and_each_folder_is_read_once(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "top" / "z").mkdir(parents=True)
    top = tmp_path / "top"
    (top / "z" / "own.png").write_bytes(b"")
    (tmp_path / "around.png").write_bytes(b"")
    for name, target in {
        "cats": photos, "a": top / "z", "again": photos, "self": top / "self", "loop": top,
        "z/up": top, "z/out": tmp_path, "one.png": photos / "scene.png", "gone.png": top / "gone",
        "round.png": top / "round.png", ".hidden": photos, "nothing": top / "gone",
    }.items():  # fmt: skip
        (top / name).symlink_to(target)
    (photos / "back").symlink_to(top)
    assert found_below(top) == [
        "again/more/grey.png", "again/more/scene.webp", "again/scene.png", "again/wide.jpg",
        "gone.png", "one.png", "round.png", "z/own.png",
    ]  # fmt: skip
    for name, reason in {"gone.png": "no image file", "round.png": "symbolic link"}.items():
        with pytest.raises(ImageFileError, match=reason):
            open_image(top / name)


def test_a_folder_that_is_a_link_is_read(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "link").symlink_to(photos)
    assert found_below(tmp_path / "link") == found_below(photos)


def test_a_folder_that_cannot_be_read_is_left_out_with_a_warning(tmp_path: Path) -> None:
    """Its path is longer than the system takes, which no permissions of the user change."""
    (tmp_path / "good.png").write_bytes(b"")
    folder = os.open(tmp_path, os.O_RDONLY)
    for _ in range(17):
        os.mkdir("d" * 250, dir_fd=folder)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    os.close(folder)
    with pytest.warns(UserWarning, match="is left out: File name too long"):
        assert found_below(tmp_path) == ["good.png"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_without_permission_is_left_out_with_a_warning(tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(b"")
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.warns(UserWarning, match="closed is left out: Permission denied"):
        assert found_below(tmp_path) == ["good.png"]
    with pytest.raises(ImageFileError, match="can't be read: Permission denied"):
        find_images(tmp_path / "closed")
    with pytest.raises(ImageFileError, match="can't be read: Permission denied"):
        find_images(tmp_path / "closed" / "a.png")


def test_results_around_the_images_are_no_reason_to_leave_them_out(photos: Path) -> None:
    assert found_below(photos / "more", skip=photos) == ["grey.png", "scene.webp"]
    assert found_below(photos, skip=photos / "more") == ["scene.png", "wide.jpg"]
    (photos / "link").symlink_to(photos / "more")
    assert found_below(photos, skip=photos / "link") == ["scene.png", "wide.jpg"]


def test_results_among_the_images_are_refused(photos: Path) -> None:
    with pytest.raises(OptionError, match=r"name another one for the results, such as .*results"):
        find_images(photos, skip=photos / "more" / "..")


@pytest.mark.parametrize(
    ("name", "reason"),
    [("a" * 300 + ".png", "can't be read: File name too long"), ("a\0b.png", "can't be read"),
     ("scene.png/below.png", "there is no image file"), ("more", "there is no image file")],
)  # fmt: skip
def test_paths_that_the_system_refuses_are_errors(photos: Path, name: str, reason: str) -> None:
    with pytest.raises(ImageFileError, match=reason):
        open_image(photos / name)
    if name != "more":
        with pytest.raises(ImageFileError, match=reason):
            find_images(photos / name)


def test_arrays_that_are_broken_are_errors(tmp_path: Path) -> None:
    path, several = tmp_path / "a.npy", io.BytesIO()
    np.savez(several, a=np.zeros(3))
    for content, reason in {
        b"": "broken", b"text": "broken", several.getvalue()[:50]: "broken",
        several.getvalue(): "archive of arrays",
    }.items():  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(ImageFileError, match=reason):
            open_array(path)
    for name in ("no.npy", "", "a" * 300):
        with pytest.raises(ImageFileError, match=r"there is no file|too long"):
            open_array(tmp_path / name)
