"""Reading image files, with errors that say what is wrong with them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from hf_gmar._utils.names import make_unique
from hf_gmar.errors import ImageFileError

Result = TypeVar("Result")

SUFFIXES = frozenset(
    ".avif .bmp .gif .jfif .jpeg .jpg .pgm .png .ppm .tif .tiff .webp".split()  # noqa: SIM905
)
"""What counts as an image file in a folder; a file that is named is tried whatever its suffix."""


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
    return read_image(path, path, to_rgb)


def read_image(file: Path | bytes, name: object, take: Callable[[Image.Image], Result]) -> Result:
    """Read from an image what ``take`` takes of it, upright as its EXIF data says.

    Args:
        file: an image file, or what is in one.
        name: what errors call it.
        take: called with the image, in the mode that it was saved in.

    Returns:
        What ``take`` gives; the file is closed.

    Raises:
        ImageFileError: as :func:`open_image`.
    """
    if isinstance(file, Path) and not file.is_file():
        raise ImageFileError(f"there is no image file {name}")
    try:
        with warnings.catch_warnings():
            # Above half its limit Pillow warns; large photos are wanted here.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(BytesIO(file) if isinstance(file, bytes) else file) as image:
                return take(ImageOps.exif_transpose(image))
    except ImageFileError as error:
        raise ImageFileError(f"{name}: {error}") from None
    except Image.DecompressionBombError as error:
        raise ImageFileError(f"{name} is too large: {error}; make it smaller first") from error
    except UnidentifiedImageError:
        raise ImageFileError(f"{name} is not an image in a format that Pillow reads") from None
    except Exception as error:  # decoders raise whatever a broken file provokes
        raise ImageFileError(f"{name} is broken or can't be read: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """The same image in 8 bits a channel; 16 bits keep their brightness.

    Raises:
        ImageFileError: pixels whose range is not known.
    """
    # Pillow's own conversion clips all that is over 255 to white.
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageFileError(
            f"the image has pixels of mode {image.mode!r} (32 bits), whose range is not known; "
            "save it with 8 or 16 bits"
        )
    return image.convert("RGB")


def find_images(path: Path, skip: Path | None = None) -> list[Path]:
    """The file itself, or the image files below a folder, sorted, hidden ones left out.

    Args:
        path: a file or a folder.
        skip: a folder whose files are left out, such as one for results.

    Raises:
        ImageFileError: a missing file, or a folder without images.
    """
    if not path.is_dir():
        if not path.is_file():
            raise ImageFileError(f"there is no image file {path}")
        return [path]
    files = sorted(file for file in path.rglob("*") if _is_image(file, path, skip))
    if not files:
        raise ImageFileError(
            f"the folder {path} holds no image files ({', '.join(sorted(SUFFIXES))})"
        )
    return files


def _is_image(file: Path, folder: Path, skip: Path | None) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    skipped = skip is not None and file.resolve().is_relative_to(skip.resolve())
    return file.suffix.lower() in SUFFIXES and not hidden and not skipped and file.is_file()


def unique_stems(paths: Iterable[Path]) -> list[str]:
    """A name for each file's results; files of the same name in other folders get a number.

    Example:
        >>> unique_stems([Path("a/cat.jpg"), Path("b/cat.png"), Path("dog.jpg")])
        ['cat', 'cat-2', 'dog']
    """
    return make_unique((path.stem for path in paths), "{}-{}")
