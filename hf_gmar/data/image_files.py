"""Finding and reading image files, with precise errors."""

from __future__ import annotations

import base64
import functools
import os
import warnings
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # its own client
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from hf_gmar._utils.names import make_unique
from hf_gmar._utils.paths import path_is
from hf_gmar.errors import ImageFileError, InputError
from hf_gmar.models.pixel_values import to_rgb

Result = TypeVar("Result")

SUFFIXES = frozenset(
    ".avif .bmp .gif .jfif .jpeg .jpg .pgm .png .ppm .tif .tiff .webp".split()  # noqa: SIM905
)
"""Suffixes of image files in a folder; a file that the user names may have any suffix."""


def open_image(path: Path, mode: str = "RGB") -> Image.Image:
    """Read a whole image file, upright as its EXIF data says.

    Args:
        path: a file in any format that Pillow reads; an animation gives its first frame.
        mode: the mode of the result: ``"RGB"``, ``"L"`` or ``"RGBA"``.

    Returns:
        The image, in memory; the file is closed.

    Raises:
        ImageFileError: the file is missing, broken or no image, or has more pixels than Pillow's
            limit against decompression bombs.
    """
    return read_image(path, path, functools.partial(to_rgb, mode=mode))


def load_image(source: object, mode: str = "RGB", timeout: float | None = None) -> Image.Image:
    """Load an image of a path, a URL, base64 text or Pillow, as :func:`open_image` reads a file.

    Args:
        source: the image; base64 text may begin with ``data:image/...,``.
        mode: the mode of the result: ``"RGB"``, ``"L"`` or ``"RGBA"``.
        timeout: seconds to wait for a URL; ``None`` waits without end.

    Raises:
        ImageFileError: the image is missing, broken, too large, or no image.
        InputError: the source is of another type.
    """
    convert = functools.partial(to_rgb, mode=mode)
    if isinstance(source, Image.Image):
        return convert(source)
    if isinstance(source, str) and path_is(Path.is_file, source):
        source = Path(source)
    if isinstance(source, os.PathLike):
        return open_image(Path(source), mode)
    if not isinstance(source, str):
        raise InputError(
            f"an image is a path, a URL, base64 text or a Pillow image; got {type(source).__name__}"
        )
    name = source if len(source) <= _LONGEST_NAME else f"{source[:_LONGEST_NAME]}..."
    if source.startswith(("http://", "https://")):
        try:
            answer = httpx.get(source, timeout=timeout, follow_redirects=True).raise_for_status()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ImageFileError(f"{name} can't be loaded: {error}") from error
        return read_image(answer.content, name, convert)
    text = source.partition(",")[2] if source.startswith("data:image/") else source
    try:
        content = base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        raise ImageFileError(
            f"there is no image file {name}, and it is no URL and no base64 text"
        ) from None
    return read_image(content, name, convert)


_LONGEST_NAME = 200  # characters of a source in an error


def open_array(path: Path) -> NDArray[Any]:
    """Read an image of any number of channels from a ``.npy`` file.

    Raises:
        ImageFileError: the file is missing or broken, or holds no numbers of two or three axes.
    """
    if not path.is_file():
        raise ImageFileError(f"there is no file {path}")
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ImageFileError(f"{path} is broken or holds no plain array: {error}") from error
    if array.ndim not in (2, 3) or array.dtype.kind not in "uif" or 0 in array.shape:
        raise ImageFileError(
            f"{path} holds an array of {array.dtype} of the shape {array.shape}; needed are "
            "numbers, (height, width, channels) or (channels, height, width)"
        )
    return array


def read_image(file: Path | bytes, name: object, take: Callable[[Image.Image], Result]) -> Result:
    """Open an image, upright as its EXIF data says, and convert it by ``take``.

    Args:
        file: an image file or its bytes.
        name: the name of the image in errors.
        take: converts the image, which is still in its saved mode.

    Returns:
        The result of ``take``; the file is closed.

    Raises:
        ImageFileError: see :func:`open_image`.
    """
    if isinstance(file, Path) and not file.is_file():
        raise ImageFileError(f"there is no image file {name}")
    try:
        with warnings.catch_warnings():
            # Pillow warns above half its limit, but large photos are expected here.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(BytesIO(file) if isinstance(file, bytes) else file) as image:
                return take(ImageOps.exif_transpose(image))
    except (ImageFileError, InputError) as error:
        raise ImageFileError(f"{name}: {error}") from None
    except Image.DecompressionBombError as error:
        raise ImageFileError(f"{name} is too large: {error}; make it smaller first") from error
    except UnidentifiedImageError:
        raise ImageFileError(f"{name} is not an image in a format that Pillow reads") from None
    except Exception as error:  # decoders raise whatever a broken file provokes
        raise ImageFileError(f"{name} is broken or can't be read: {error}") from error


def find_images(path: Path, skip: Path | None = None) -> list[Path]:
    """Return the file itself, or the sorted image files below a folder, without hidden files.

    Args:
        path: a file or a folder.
        skip: a folder whose files are left out, for example the folder of the results.

    Raises:
        ImageFileError: the file is missing, or the folder has no images.
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
    """Name the results of each file; files of the same name in different folders get a number.

    Example:
        >>> unique_stems([Path("a/cat.jpg"), Path("b/cat.png"), Path("dog.jpg")])
        ['cat', 'cat-2', 'dog']
    """
    return make_unique((path.stem for path in paths), "{}-{}")
