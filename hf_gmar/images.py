"""Reading image files, with errors that say what is wrong with them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from hf_gmar.errors import ImageFileError


def open_image(path: Path) -> Image.Image:
    """Read a whole image file as RGB, upright as its EXIF data says.

    Args:
        path: a file in any format that Pillow reads; of an animation, the first frame.

    Returns:
        The image, in memory; the file is closed.

    Raises:
        ImageFileError: missing, not an image, broken, or with more pixels than Pillow's limit
            against decompression bombs.
    """
    if not path.is_file():
        raise ImageFileError(f"there is no image file {path}")
    try:
        with warnings.catch_warnings():
            # Above half its limit Pillow warns; large photos are wanted here.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return ImageOps.exif_transpose(image).convert("RGB")
    except Image.DecompressionBombError as error:
        raise ImageFileError(f"{path} is too large: {error}; make it smaller first") from error
    except UnidentifiedImageError:
        raise ImageFileError(f"{path} is not an image in a format that Pillow reads") from None
    except Exception as error:  # decoders raise whatever a broken file provokes
        raise ImageFileError(f"{path} is broken or can't be read: {error}") from error


def find_images(paths: Iterable[Path]) -> Iterator[Path]:
    """The files named, and for each folder the image files below it, sorted.

    Raises:
        ImageFileError: a folder without images.
    """
    for path in paths:
        if path.is_dir():
            yield from _images_below(path)
        else:
            yield path


def _images_below(folder: Path) -> list[Path]:
    known = Image.registered_extensions()
    found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in known)
    if not found:
        raise ImageFileError(f"the folder {folder} holds no image files")
    return found


def unique_stems(paths: Iterable[Path]) -> list[str]:
    """A name for each file's results; files of the same name in other folders get a number.

    Example:
        >>> unique_stems([Path("a/cat.jpg"), Path("b/cat.png"), Path("dog.jpg")])
        ['cat', 'cat-2', 'dog']
    """
    stems: list[str] = []
    for path in paths:
        stem, number = path.stem, 2
        while stem in stems:
            stem, number = f"{path.stem}-{number}", number + 1
        stems.append(stem)
    return stems
