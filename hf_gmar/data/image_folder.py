"""Image files as a data set: in one folder, in a folder for each class, or from a table."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hf_gmar._utils.files import kind_of
from hf_gmar._utils.names import make_unique
from hf_gmar._utils.text import encodable
from hf_gmar.data.base import Example, LabelledDataset
from hf_gmar.data.class_names import Classes, Labels
from hf_gmar.data.image_files import find_images, read_image
from hf_gmar.data.masks import to_mask
from hf_gmar.errors import DataError
from hf_gmar.models.pixel_values import to_rgb

_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


@dataclass(frozen=True)
class ImageFile:
    """One image of a data set of files.

    Attributes:
        name: the name of the image in the data set.
        path: the path of the image.
        class_name: the class name in the data set, or ``None``.
        mask: the path of the mask, or ``None``.
    """

    name: str
    path: Path
    class_name: str | None = None
    mask: Path | None = None


class ImageFolder(LabelledDataset):
    """A data set of image files, each read on access.

    Args:
        name: the name of the data set.
        files: the images, in order.
        classes: the model's classes.
        settings: what the data set is and how it was read.
    """

    def __init__(
        self, name: str, files: Sequence[ImageFile], classes: Classes, settings: Mapping[str, Any]
    ) -> None:
        keys = make_unique(encodable(file.name) for file in files)
        names = (file.class_name for file in files)
        labels = Labels.find([name and encodable(name) for name in names], classes)
        contents = (
            [key, label, _bytes(file.path), _bytes(file.mask)]
            for key, label, file in zip(keys, labels.of_images, files, strict=True)
        )
        super().__init__(encodable(name), settings, keys, labels, contents)
        self.files = tuple(files)

    def __getitem__(self, index: int) -> Example:
        """Read an image and its mask, if any."""
        key, file = self.keys[index], self.files[index]
        image = read_image(file.path, f"{key} ({file.path})", partial(to_rgb, mode=self.mode))
        if file.mask is None:
            return self._example(index, key, image, None)
        mask = read_image(file.mask, f"the mask of {key} ({file.mask})", to_mask)
        return self._example(index, key, image, mask)


def folder_of_images(
    folder: Path,
    classes: Classes,
    *,
    name: str,
    split: str | None = None,
    skip: Path | None = None,
) -> ImageFolder:
    """Open the image files of a folder, or of its subfolders, one for each class.

    Args:
        folder: a folder of images, or of one subfolder of images for each class.
        classes: the model's classes.
        name: the name of the data set.
        split: the subfolder to open instead of the folder.
        skip: a folder whose files are left out, for example the folder of the results.

    Raises:
        DataError: the split has no folder, images are both in the folder and in subfolders, or
            the subfolders are splits.
        ImageFileError: there are no images.
        OptionError: the name of a subfolder fits several classes.
    """
    if split is not None and kind_of(folder / split) != "folder":
        raise DataError(f"the folder {folder} has no subfolder {split!r} for that split")
    root = folder / split if split is not None else folder
    paths = [path.relative_to(root) for path in find_images(root, skip)]
    nested = [path for path in paths if len(path.parts) > 1]
    if nested and len(nested) < len(paths):
        raise DataError(
            f"the folder {root} has {len(paths) - len(nested)} images of its own and "
            f"{len(nested)} in subfolders, so that subfolders may be classes or not; give one "
            "folder with images alone, or with one subfolder for each class, or a CSV file"
        )
    tops = {path.parts[0] for path in nested}
    if tops and {top.casefold() for top in tops} <= _SPLITS:
        raise DataError(
            f"the subfolders of {root} look like splits, not classes: {', '.join(sorted(tops))}; "
            "choose one with split"
        )
    files = [
        ImageFile(path.as_posix(), root / path, path.parts[0] if nested else None) for path in paths
    ]
    kind = "folder by class" if nested else "folder"
    settings = {"kind": kind, "name": encodable(Path(os.path.realpath(root)).name)}
    return ImageFolder(name, files, classes, settings)


def _bytes(path: Path | None) -> int | None:
    try:
        return None if path is None else path.stat().st_size
    except (OSError, ValueError):  # a missing file raises an error when the image is read
        return None
