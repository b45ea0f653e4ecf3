"""Write files atomically: complete or not at all.

NumPy is loaded only when an archive is written: the commands import this module for their help.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any, Literal

from hf_gmar._utils.text import encodable


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a new, empty file in the same folder, which replaces ``path`` or is deleted.

    The content is on disk before the file gets its name. An error or an interrupt deletes the new
    file and leaves ``path`` as it was. The new file has a random name, so that several writers do
    not meet, and it never is an existing file or link. If ``path`` is a link, the link is replaced,
    not the file that it names.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "note.txt"
        >>> with whole_file(path) as part:
        ...     _ = part.write_text("done")
        >>> path.read_text(), part.exists()
        ('done', False)
    """
    # The name does not contain the name of the file, which may be as long as the system allows.
    part = path.with_name(f".{secrets.token_hex(16)}.part")
    try:
        part.touch(exist_ok=False)  # with the permissions of any new file
        yield part
        _sync(part, os.O_RDWR)
        part.replace(path)
        with suppress(OSError):  # Windows and some file systems can't sync a folder
            _sync(path.parent, os.O_RDONLY)
    finally:
        part.unlink(missing_ok=True)


def _sync(path: Path, flags: int) -> None:
    """Return when the file or folder is on disk."""
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_text(path: Path, text: str) -> None:
    """Write a text in UTF-8 atomically; what UTF-8 can't hold is escaped."""
    with whole_file(path) as part:
        part.write_text(encodable(text), encoding="utf-8")


def save_arrays(path: Path, **arrays: Any) -> None:
    """Write an ``.npz`` archive of arrays and texts atomically."""
    # In memory first, since an archive that can't be closed on a full disk hides the error.
    content = archive_of(**arrays)
    with whole_file(path) as part:
        part.write_bytes(content)


def archive_of(**arrays: Any) -> bytes:
    """Return the bytes of an ``.npz`` archive of arrays and texts."""
    import numpy as np

    archive = BytesIO()
    np.savez(archive, **{name: _encodable_texts(value) for name, value in arrays.items()})
    return archive.getvalue()


def _encodable_texts(value: Any) -> Any:
    """Escape a text, or the texts of a list, for any reader of the archive."""
    import numpy as np

    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return np.array([encodable(item) for item in value], dtype=np.str_)
    return value


def save_json(path: Path, data: Any) -> None:
    """Write plain data as JSON atomically."""
    save_text(path, json.dumps(data, indent=1) + "\n")


def kind_of(path: str | Path) -> Literal["file", "folder", "other", "missing"]:
    """Return what is at a path; ``"missing"`` also where the system refuses to look.

    ``Path.is_file`` raises an error for a path below an unreadable folder, or of too many letters.
    """
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116  # any text, which need not be a path
    except (OSError, ValueError):
        return "missing"
    return "file" if S_ISREG(mode) else "folder" if S_ISDIR(mode) else "other"


def expanded(path: str | Path) -> Path:
    """Expand a leading ``~``; a path of an unknown user does not change."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def absence(path: Path, what: str, name: object = None) -> str:
    """Say that there is no such file or folder, or why the system refuses to look.

    Args:
        path: the path.
        what: ``"file"``, ``"image file"``, ``"folder"``.
        name: the name of the file in the message, by default its path.

    Example:
        >>> absence(Path("no.png"), "image file"), absence(Path("x" * 5000), "file")[-18:]
        ('there is no image file no.png', 'File name too long')
    """
    try:
        if not (S_ISREG(mode := path.stat().st_mode) or S_ISDIR(mode)):
            return (
                f"{name or path} is a pipe or a device, and can't be read as {_article(what)}; "
                "write what it gives into a file first"
            )
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        return f"{name or path} can't be read: {reason_of_system(error)}"
    return f"there is no {what} {name or path}"


def _article(what: str) -> str:
    return f"{'an' if what[0] in 'aeiou' else 'a'} {what}"


def reason_of_system(error: OSError | ValueError) -> str:
    """Return the words of the system for an error of a file, without number and path."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
