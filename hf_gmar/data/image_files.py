"""Finding and reading image files, with precise errors."""

from __future__ import annotations

import base64
import functools
import os
import re
import unicodedata
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias, TypeVar
from urllib.parse import urlsplit

import numpy as np
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # its own client
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from hf_gmar._utils.files import absence, kind_of, reason_of_system
from hf_gmar._utils.names import make_unique
from hf_gmar.errors import ImageFileError, InputError, OptionError
from hf_gmar.models.pixel_values import MODES, to_rgb, with_16_bits

Result = TypeVar("Result")

ImageSource: TypeAlias = str | Path | Image.Image | NDArray[Any] | Tensor
"""An image: a path, URL, base64 text, Pillow image, or an array of one image."""

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
    if isinstance(source, str) and kind_of(source) == "file":
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


def read_input(image: object, channels: int, timeout: float | None = None) -> Any:
    """Read an image as the model's processor takes it: a Pillow image or an array.

    Args:
        image: a path, URL, base64 text, Pillow image or array; a ``.npy`` file gives an array.
        channels: the number of channels that the model takes.
        timeout: seconds to wait for a URL.

    Raises:
        ImageFileError: the image is missing, broken or too large.
        InputError: the image is of another type.
    """
    if isinstance(image, np.ndarray | Tensor):
        return image
    if isinstance(image, str | Path) and str(image).lower().endswith(".npy"):
        return open_array(Path(image))
    return load_image(image, MODES.get(channels, "RGB"), timeout)


def name_of_image(image: object) -> str:
    """Return the name of an image's file, or "image".

    Example:
        >>> name_of_image("photos/dog.jpg"), name_of_image(Image.new("RGB", (1, 1)))
        ('dog.jpg', 'image')
    """
    name = getattr(image, "filename", "") if isinstance(image, Image.Image) else image
    if isinstance(name, Path) or (isinstance(name, str) and len(name) < _LONGEST_PATH):
        path = urlsplit(str(name)).path if "://" in str(name) else str(name)
        return Path(path).name or "image"
    return "image"


_LONGEST_NAME = 200  # characters of a source in an error
_LONGEST_PATH = 4096  # a longer text is an image in base64


def open_array(path: Path) -> NDArray[Any]:
    """Read an image of any number of channels from a ``.npy`` file.

    Raises:
        ImageFileError: the file is missing or broken, or holds no numbers of two or three axes.
    """
    if kind_of(path) != "file":
        raise ImageFileError(absence(path, "file"))
    try:
        with path.open("rb") as file:
            array: NDArray[Any] = np.load(file, allow_pickle=False)
    except Exception as error:  # of NumPy or zipfile, whatever a broken file provokes
        raise ImageFileError(f"{path} is broken or holds no plain array: {error}") from error
    if not isinstance(array, np.ndarray):
        raise ImageFileError(f"{path} is an archive of arrays; needed is one array, in a .npy file")
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
    if isinstance(file, Path) and kind_of(file) != "file":
        raise ImageFileError(absence(file, "image file", name))
    try:
        with warnings.catch_warnings():
            # Pillow warns above half its limit, but large photos are expected here.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(BytesIO(file) if isinstance(file, bytes) else file) as image:
                _check_format(image)
                return take(ImageOps.exif_transpose(with_16_bits(image)))
    except (ImageFileError, InputError) as error:
        raise ImageFileError(f"{name}: {error}") from None
    except Image.DecompressionBombError as error:
        raise ImageFileError(f"{name} is too large: {error}; make it smaller first") from error
    except UnidentifiedImageError:
        raise ImageFileError(f"{name} is not an image in a format that Pillow reads") from None
    except Exception as error:  # decoders raise whatever a broken file provokes
        raise ImageFileError(f"{name} is broken or can't be read: {error}") from error


def _check_format(image: Image.Image) -> None:
    if image.format == "EPS":
        raise ImageFileError(
            "an EPS file is a program, which Pillow would let Ghostscript run; convert it to PNG "
            "first"
        )


def find_images(path: Path, skip: Path | None = None) -> list[Path]:
    """Return the file itself, or the sorted image files below a folder, without hidden files.

    Links to folders are followed, except to a folder around the link. A folder that can be reached
    in several ways is read once, and under its own path if that is below ``path``. A subfolder that
    can't be read is left out, with a warning.

    Args:
        path: a file or a folder.
        skip: a folder whose files are left out, for example the folder of the results.

    Raises:
        ImageFileError: the file is missing, or the folder can't be read or has no images.
        OptionError: ``skip`` is the folder itself.
    """
    kind = kind_of(path)
    if kind == "file":
        return [path]
    if kind != "folder":
        raise ImageFileError(absence(path, "image file"))
    real, skipped = _real(path), None if skip is None else _real(skip)
    if real == skipped:
        raise OptionError(
            f"the folder of the images, {path}, is the folder of the results as well, whose "
            f"pictures would be taken for images; name another one for the results, such as "
            f"{path / 'results'}"
        )
    files = sorted(_image_files(path, skipped))
    if not files:
        raise ImageFileError(
            f"the folder {path} holds no image files ({', '.join(sorted(SUFFIXES))})"
        )
    return files


def _real(path: Path) -> Path:
    """Return the path without links; ``Path.resolve`` raises an error for a link to itself."""
    return Path(os.path.realpath(path))


def _image_files(top: Path, skipped: Path | None) -> Iterator[Path]:
    """Yield the image files below a folder, and links to missing files, which can't be read."""
    seen = {skipped}
    folders, links = deque([top]), deque[Path]()
    while folders or links:  # links last, so that folders below the top have their own paths
        folder = folders.popleft() if folders else links.popleft()
        if (real := _real(folder)) in seen:
            continue
        seen.add(real)
        for name, is_folder in _entries(folder, top):
            path = folder / name
            if is_folder:
                folders.append(path)
            elif (kind := kind_of(path)) == "folder":
                if _real(path) not in real.parents:  # else it leads to all folders around it
                    links.append(path)
            elif path.suffix.lower() in SUFFIXES and kind in ("file", "missing"):
                yield path


def _entries(folder: Path, top: Path) -> list[tuple[str, bool]]:
    """Return the sorted names in a folder that are not hidden, and whether each is a folder."""
    try:
        with os.scandir(folder) as found:
            entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]
    except OSError as error:
        reason = reason_of_system(error)
        if folder == top:
            raise ImageFileError(f"the folder {top} can't be read: {reason}") from error
        warnings.warn(f"the folder {folder} is left out: {reason}", stacklevel=3)
        return []
    return sorted(entry for entry in entries if not entry[0].startswith("."))


def unique_stems(paths: Iterable[Path]) -> list[str]:
    """Name the results of each file; files of the same name in different folders get a number.

    Names that differ only in case or in the form of their accents count as the same, as many file
    systems do not distinguish them.

    Example:
        >>> unique_stems([Path("a/cat.jpg"), Path("b/Cat.png"), Path("dog.jpg")])
        ['cat', 'Cat-2', 'dog']
    """
    return make_unique(map(_result_stem, paths), "{}-{}", _without_case)


def _result_stem(path: Path) -> str:
    return re.sub("[\ud800-\udfff]", "_", path.stem)  # bytes that are not UTF-8


def _without_case(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
