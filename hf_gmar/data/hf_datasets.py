"""Data sets of the package ``datasets``: from disk, from the Hub, or built in Python."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from hf_gmar._utils.files import kind_of
from hf_gmar.data.base import Example, LabelledDataset
from hf_gmar.data.class_names import Classes, Labels
from hf_gmar.data.csv_table import LABEL_COLUMNS, MASK_COLUMNS, column
from hf_gmar.data.image_files import Result, read_image
from hf_gmar.data.masks import to_mask
from hf_gmar.errors import DataError, ImageFileError, OptionError, reason_of
from hf_gmar.models.pixel_values import to_rgb

IMAGE_NAMES = ("image", "img", "picture", "photo")
"""Names of the image column if several columns hold images."""


class HFDataset(LabelledDataset):
    """The rows of a ``datasets.Dataset``; images are decoded on access.

    Args:
        name: the name of the data set.
        rows: a ``datasets.Dataset``.
        classes: the model's classes.
        image_column: the column of images, needed if several columns hold images.
        label_column: the column of classes.
        mask_column: the column of masks.
        settings: where the data set comes from.

    Raises:
        OptionError: a column does not exist or has another type, or several columns fit.
    """

    def __init__(
        self,
        name: str,
        rows: Any,
        classes: Classes,
        *,
        image_column: str | None = None,
        label_column: str | None = None,
        mask_column: str | None = None,
        settings: Mapping[str, Any],
    ) -> None:
        rows = rows.with_format(None)
        self.mask_column = _mask_column(rows, mask_column)
        self.image_column = _image_column(rows, image_column, self.mask_column)
        label_column = _label_column(rows, label_column)
        labels = _labels(rows, label_column, classes)
        self.rows = _undecoded(rows, [self.image_column, self.mask_column])
        columns = {
            "image_column": self.image_column,
            "label_column": label_column,
            "mask_column": self.mask_column,
        }
        contents = zip(labels.of_images, _sizes(self.rows), strict=True)
        keys = [str(number) for number in range(len(rows))]
        super().__init__(name, {**settings, **columns}, keys, labels, contents)

    def __getitem__(self, index: int) -> Example:
        """Decode the image of a row, and its mask if it has one."""
        key = self.keys[index]
        row, name = self.rows[int(key)], f"row {key}"
        convert = partial(to_rgb, mode=self.mode)
        image = _decoded(row[self.image_column], f"the image of {name}", convert)
        cell = None if self.mask_column is None else row[self.mask_column]
        mask = None if cell is None else _decoded(cell, f"the mask of {name}", to_mask)
        return self._example(index, name, image, mask)


def is_saved(folder: Path) -> bool:
    """Return whether ``save_to_disk`` wrote the folder."""
    whole, several = ("dataset_info.json", "state.json"), ("dataset_dict.json",)
    return any(
        all(kind_of(folder / name) == "file" for name in names) for names in (whole, several)
    )


def is_dataset(source: object) -> bool:
    """Return whether the object is of the package ``datasets``, which need not be installed."""
    return type(source).__module__.split(".")[0] == "datasets"


def from_disk(folder: Path, split: str | None) -> Any:
    """Load the ``datasets.Dataset`` that was saved in a folder.

    Raises:
        DataError: ``datasets`` is not installed, the folder can't be read, or the split does not
            exist or must be chosen.
    """
    package = _package()
    data = _loaded(f"the folder {folder}", lambda: package.load_from_disk(str(folder)))
    return split_of(data, split, folder)


def from_hub(name: str, config: str | None, split: str | None) -> Any:
    """Load a ``datasets.Dataset`` from the Hub or its local cache.

    Raises:
        DataError: ``datasets`` is not installed, the data set can't be found or loaded, or its
            split must be chosen.
    """
    package = _package()
    subject = f"there is no file or folder {name!r}, and as a data set of the Hub it"
    if split is None:
        splits = _loaded(subject, lambda: package.get_dataset_split_names(name, config))
        split = _only(list(splits), name)
    return _loaded(subject, lambda: package.load_dataset(name, config, split=split))


def split_of(data: Any, split: str | None, name: object) -> Any:
    """Choose one split of the loaded data.

    Raises:
        DataError: the split does not exist, or must be chosen among several.
    """
    if isinstance(data, Mapping):
        split = _only(list(data), name) if split is None else split
        if split not in data:
            raise DataError(f"{name} has no split {split!r}; it has {', '.join(data)}")
        data = data[split]
    elif split is not None and split != str(data.split):
        raise DataError(f"{name} has no split {split!r}: it is one data set without splits")
    if not hasattr(data, "cast_column") or not hasattr(data, "__len__"):
        raise DataError(
            f"{name} is of the type {type(data).__name__}; needed is a Dataset, whose rows have "
            "numbers, not a stream"
        )
    return data


def _only(splits: list[str], name: object) -> str:
    if len(splits) != 1:
        raise DataError(
            f"{name} has the splits {', '.join(map(str, splits))}; choose one with split or as "
            f"{name}:{splits[0] if splits else 'SPLIT'}"
        )
    return str(splits[0])


def _package() -> Any:
    if importlib.util.find_spec("datasets") is None:
        raise DataError(
            "data sets on the Hub, and those saved by datasets, need the package datasets: "
            'pip install "hf-gmar[datasets]"'
        )
    return importlib.import_module("datasets")


def _loaded(subject: str, load: Callable[[], Result]) -> Result:
    """Call ``load``; turn any error into a DataError of one line."""
    try:
        return load()
    except Exception as error:  # of any library that datasets uses
        # A ValueError means that the config or split does not exist or must be chosen.
        hint = "; they are chosen by config and split" if type(error) is ValueError else ""
        raise DataError(f"{subject} can't be loaded: {reason_of(error)}{hint}") from error


def _image_column(rows: Any, name: str | None, mask: str | None) -> str:
    if name is not None:
        column("image", name, rows.column_names, (), "the data set")
        return _images_in(rows, name)
    candidates = [title for title in _of_type(rows, "Image") if title != mask]
    by_name = [title for title in candidates if title.casefold() in IMAGE_NAMES]
    choice = candidates if len(candidates) == 1 else by_name
    if len(choice) != 1:
        raise OptionError(
            f"the data set has the columns {_types(rows)}, of which "
            f"{', '.join(candidates) or 'none'} may be the images; choose one with image_column"
        )
    return choice[0]


def _mask_column(rows: Any, name: str | None) -> str | None:
    header = rows.column_names if name else _of_type(rows, "Image")
    name = column("mask", name, header, MASK_COLUMNS, "the data set")
    return None if name is None else _images_in(rows, name)


def _label_column(rows: Any, name: str | None) -> str | None:
    name = column("label", name, rows.column_names, LABEL_COLUMNS, "the data set")
    candidates = _of_type(rows, "ClassLabel")
    if name is None and len(candidates) > 1:
        raise OptionError(
            f"the data set has several columns of classes: {', '.join(candidates)}; choose one "
            "with label_column"
        )
    return name or (candidates[0] if candidates else None)


def _images_in(rows: Any, name: str) -> str:
    if name not in _of_type(rows, "Image"):
        raise OptionError(
            f"the column {name!r} holds no images; the data set has {_types(rows)}; in Python, "
            "cast_column(name, datasets.Image()) makes images of paths"
        )
    return name


def _of_type(rows: Any, kind: str) -> list[str]:
    return [name for name, feature in rows.features.items() if type(feature).__name__ == kind]


def _types(rows: Any) -> str:
    features = rows.features.items()
    return ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features)


def _labels(rows: Any, name: str | None, classes: Classes) -> Labels:
    """Find the classes of all rows by the column's class names, else by its text or numbers."""
    if name is None:
        return Labels.find([None] * len(rows), classes)
    feature, values = rows.features[name], list(rows[name])
    if (names := getattr(feature, "names", None)) is not None:
        return _class_labels(values, list(names), classes)
    kind = str(getattr(feature, "dtype", ""))
    if kind not in ("string", "large_string") and "int" not in kind:
        raise OptionError(
            f"the column {name!r} is of the type {feature}; needed is one class for each image, "
            "as ClassLabel, text or number"
        )
    # Data sets write -1 where the class is unknown or withheld.
    texts = [None if value in (None, -1, "") else str(value) for value in values]
    return Labels.find(texts, classes)


def _class_labels(values: list[int | None], names: list[str], classes: Classes) -> Labels:
    """Find the classes of a ClassLabel column, whose values are indices into ``names``."""
    indices = [None if value == -1 else value for value in values]
    unnamed = {index: f"LABEL_{index}" for index in range(len(names))}
    if dict(classes.labels) == unnamed and not classes.named:
        notice = (
            "the model has no names for its classes, and as many as the data set: they are "
            "taken to be in the same order"
        )
        return Labels(tuple(indices), (notice,))
    return Labels.find([None if index is None else names[index] for index in indices], classes)


def _undecoded(rows: Any, names: list[str | None]) -> Any:
    """Keep these columns as file bytes, so that the error for a broken image names its row."""
    columns = [name for name in names if name is not None]
    rows = rows.select_columns(columns)
    for name in columns:
        rows = rows.cast_column(name, _package().Image(decode=False))
    return rows


def _sizes(rows: Any) -> Iterator[list[object]]:
    """Yield the file names and byte counts of each row, without decoding the images."""
    compute = importlib.import_module("pyarrow.compute")
    for table in rows.with_format("arrow").iter(batch_size=1000):
        columns = []
        for name in rows.column_names:
            cells = table[name]
            sizes = compute.binary_length(compute.struct_field(cells, "bytes")).to_pylist()
            paths = compute.struct_field(cells, "path").to_pylist()
            files = [Path(path or "").name for path in paths]
            columns.append(list(zip(files, sizes, strict=True)))
        yield from (list(row) for row in zip(*columns, strict=True))


def _decoded(cell: Any, name: str, take: Callable[[Any], Result]) -> Result:
    content, path = (cell or {}).get("bytes"), (cell or {}).get("path")
    if content is None and not path:
        raise ImageFileError(f"{name} is empty")
    return read_image(Path(path or "") if content is None else content, name, take)
