"""A CSV file of image paths, labels and mask paths as a data set."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from hf_gmar._utils.csv_rows import read_csv
from hf_gmar._utils.text import encodable
from hf_gmar.data.class_names import Classes
from hf_gmar.data.image_folder import ImageFile, ImageFolder
from hf_gmar.errors import DataError, OptionError

IMAGE_COLUMNS = ("path", "image", "image_path", "file", "file_name", "filename")
LABEL_COLUMNS = ("label", "class")
MASK_COLUMNS = ("mask", "mask_path")
"""Default names of the columns, in upper or lower case."""


def table_of_images(
    path: Path,
    classes: Classes,
    *,
    name: str,
    image_column: str | None = None,
    label_column: str | None = None,
    mask_column: str | None = None,
) -> ImageFolder:
    """Open a CSV file with one image for each row; the first row has the column names.

    Args:
        path: the CSV file; the paths in it are relative to its folder.
        classes: the model's classes.
        name: the name of the data set.
        image_column: the column of image paths; by default one of :data:`IMAGE_COLUMNS`.
        label_column: the column of labels or class indices; cells may be empty.
        mask_column: the column of mask paths; cells may be empty.

    Raises:
        DataError: the file can't be read, has no rows, or has a row of another length or without
            a path.
        OptionError: a column does not exist, or several columns fit.
    """
    header, rows = _read(path)
    images = column("image", image_column, header, IMAGE_COLUMNS, path)
    labels = column("label", label_column, header, LABEL_COLUMNS, path)
    masks = column("mask", mask_column, header, MASK_COLUMNS, path)
    if images is None:
        raise OptionError(
            f"{path} has the columns {', '.join(header)}, of which none is called "
            f"{', '.join(IMAGE_COLUMNS[:-1])} or {IMAGE_COLUMNS[-1]}; name the one with the paths "
            "in image_column"
        )
    settings = {
        "kind": "table", "name": encodable(path.name),
        "image_column": images, "label_column": labels, "mask_column": masks,
    }  # fmt: skip
    files = [_file(path, line, row, images, labels, masks) for line, row in rows]
    return ImageFolder(name, files, classes, settings)


def column(
    kind: str, name: str | None, header: Sequence[str], names: Sequence[str], data: object
) -> str | None:
    """Find the column that the user names, else the column with one of the default names, if any.

    Raises:
        OptionError: the named column does not exist, or several columns have a default name.
    """
    if name is not None:
        if name not in header:
            raise OptionError(f"{data} has no column {name!r}; it has {', '.join(header)}")
        return name
    candidates = [title for title in header if title.casefold() in names]
    if len(candidates) > 1:
        raise OptionError(
            f"{data} has several columns that may be the {kind}: {', '.join(candidates)}; choose "
            f"one with {kind}_column"
        )
    return candidates[0] if candidates else None


def _read(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Read the column names, and each row with its line number."""
    try:
        lines = read_csv(path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} can't be read as a CSV file in UTF-8: {error}") from error
    if len(lines) < 2:
        raise DataError(f"{path} has no rows; needed are column names and a row for each image")
    header = [name.strip() for name in lines[0][1]]
    if len(set(header)) < len(header):
        raise DataError(f"{path} has two columns of one name: {', '.join(header)}")
    for number, row in lines[1:]:
        if len(row) != len(header):
            raise DataError(
                f"line {number} of {path} has {len(row)} cells and the first row {len(header)}; "
                "put quotes around cells that hold the separator"
            )
        if any("\0" in cell for cell in row):
            raise DataError(
                f"line {number} of {path} has a NUL character, which no path can have; write the "
                "file again as text in UTF-8"
            )
    return header, [(number, dict(zip(header, row, strict=True))) for number, row in lines[1:]]


def _file(
    table: Path, line: int, row: dict[str, str], images: str, labels: str | None, masks: str | None
) -> ImageFile:
    image, label, mask = (row[name].strip() if name else "" for name in (images, labels, masks))
    if not image:
        raise DataError(f"line {line} of {table} has no path in its column {images!r}")
    folder = table.parent
    return ImageFile(image, folder / image, label or None, folder / mask if mask else None)
