"""A data set of the package ``datasets``: saved on disk, from the Hub, or built in Python."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from hf_gmar.data.base import Example, ImageDataset, digest
from hf_gmar.data.class_names import Classes, Labels
from hf_gmar.data.csv_table import LABEL_COLUMNS, MASK_COLUMNS, column
from hf_gmar.data.image_files import read_image, to_rgb
from hf_gmar.data.image_folder import fitting
from hf_gmar.data.masks import to_mask
from hf_gmar.errors import DataError, ImageFileError, OptionError

IMAGE_NAMES = ("image", "img", "picture", "photo")
"""What the column of images may be called where several hold images."""

Taken = TypeVar("Taken")


class Rows(ImageDataset):
    """The rows of a data set; its images are decoded when they are asked for.

    Args:
        name: of the data set.
        rows: a ``datasets.Dataset``.
        classes: of the model.
        image_column: the column of images, if there are several.
        label_column: that of classes.
        mask_column: that of masks.
        settings: where it comes from.

    Raises:
        OptionError: no such column, or several that it could be, or one of another type.
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
        self._name = name
        rows = rows.with_format(None)
        self.mask_column = _mask_column(rows, mask_column)
        self.image_column = _image_column(rows, image_column, self.mask_column)
        label_column = _label_column(rows, label_column)
        self.labels = _labels(rows, label_column, classes)
        self.rows = _undecoded(rows, [self.image_column, self.mask_column])
        self._settings = {
            **settings,
            "image_column": self.image_column,
            "label_column": label_column,
            "mask_column": self.mask_column,
            "images": len(rows),
            "content": digest(zip(self.labels.of_images, _sizes(self.rows), strict=True)),
        }

    @property
    def name(self) -> str:
        """As the user gave it."""
        return self._name

    @property
    def settings(self) -> Mapping[str, Any]:
        """Where it comes from, its columns, and labels and sizes of images in short."""
        return self._settings

    @property
    def notices(self) -> tuple[str, ...]:
        """Names of classes that the model does not have, and classes taken by number."""
        return self.labels.notices

    @property
    def has_masks(self) -> bool:
        """Whether there is a column of masks."""
        return self.mask_column is not None

    def __len__(self) -> int:
        """How many rows."""
        return len(self.rows)

    def key(self, index: int) -> str:
        """The number of the row, from 0."""
        return str(range(len(self))[index])

    def label(self, index: int) -> int | None:
        """What the column of classes says."""
        return self.labels.of_images[range(len(self))[index]]

    def __getitem__(self, index: int) -> Example:
        """Decode the image of a row, and its mask if it has one."""
        key, label = self.key(index), self.label(index)
        row = self.rows[int(key)]
        image = _decoded(row[self.image_column], f"the image of row {key}", to_rgb)
        if self.mask_column is None or row[self.mask_column] is None:
            return Example(key, image, label)
        mask = _decoded(row[self.mask_column], f"the mask of row {key}", to_mask)
        return Example(key, image, label, {label: fitting(mask, image.size, f"row {key}")})


def is_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` has made the folder."""
    whole = (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()
    return whole or (folder / "dataset_dict.json").is_file()


def is_dataset(source: object) -> bool:
    """Whether it is an object of the package ``datasets``, which need not be installed."""
    return type(source).__module__.split(".")[0] == "datasets"


def from_disk(folder: Path, split: str | None) -> Any:
    """The ``datasets.Dataset`` that was saved in a folder.

    Raises:
        DataError: ``datasets`` is not installed, the folder can't be read, or the split is not
            there or must be chosen.
    """
    load = _package().load_from_disk
    return split_of(_said(f"the folder {folder}", lambda: load(str(folder))), split, folder)


def from_hub(name: str, config: str | None, split: str | None) -> Any:
    """A ``datasets.Dataset`` from the Hub, or what is in its local cache.

    Raises:
        DataError: ``datasets`` is not installed, or the data set can't be found or loaded, or its
            split must be chosen.
    """
    package, what = (
        _package(),
        f"there is no file or folder {name!r}, and as a data set of the Hub it",
    )
    if split is None:
        splits = _said(what, lambda: package.get_dataset_split_names(name, config))
        split = _only(list(splits), name)
    return _said(what, lambda: package.load_dataset(name, config, split=split))


def split_of(found: Any, split: str | None, name: object) -> Any:
    """One split of what was loaded.

    Raises:
        DataError: it is not there, or there are several to choose from.
    """
    if isinstance(found, Mapping):
        chosen = _only(list(found), name) if split is None else split
        if chosen not in found:
            raise DataError(f"{name} has no split {chosen!r}; it has {', '.join(found)}")
        found = found[chosen]
    elif split is not None and split != str(found.split):
        raise DataError(f"{name} has no split {split!r}: it is one data set without splits")
    if not hasattr(found, "cast_column") or not hasattr(found, "__len__"):
        raise DataError(
            f"{name} is of the type {type(found).__name__}; needed is a Dataset, whose rows have "
            "numbers, not a stream"
        )
    return found


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


def _said(what: str, call: Callable[[], Taken]) -> Taken:
    """What a call gives; what it raises, in one line."""
    try:
        return call()
    except Exception as error:  # of any library below
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        # That of a configuration or split that does not exist, or must be chosen.
        hint = "; they are chosen by config and split" if type(error) is ValueError else ""
        raise DataError(f"{what} can't be loaded: {reason}{hint}") from error


def _image_column(rows: Any, given: str | None, mask: str | None) -> str:
    found = [name for name in _of_type(rows, "Image") if name != mask]
    if given is not None:
        column("image", given, rows.column_names, (), "the data set")
        return _images_in(rows, given)
    named = [name for name in found if name.casefold() in IMAGE_NAMES]
    choice = found if len(found) == 1 else named
    if len(choice) != 1:
        raise OptionError(
            f"the data set has the columns {_types(rows)}, of which "
            f"{', '.join(found) or 'none'} may be the images; choose one with image_column"
        )
    return choice[0]


def _mask_column(rows: Any, given: str | None) -> str | None:
    found = column(
        "mask",
        given,
        rows.column_names if given else _of_type(rows, "Image"),
        MASK_COLUMNS,
        "the data set",
    )
    return None if found is None else _images_in(rows, found)


def _label_column(rows: Any, given: str | None) -> str | None:
    found = column("label", given, rows.column_names, LABEL_COLUMNS, "the data set")
    classed = _of_type(rows, "ClassLabel")
    if found is None and len(classed) > 1:
        raise OptionError(
            f"the data set has several columns of classes: {', '.join(classed)}; choose one with "
            "label_column"
        )
    return found or (classed[0] if classed else None)


def _images_in(rows: Any, name: str) -> str:
    if name not in _of_type(rows, "Image"):
        raise OptionError(
            f"the column {name!r} holds no images; the data set has {_types(rows)}; in Python, "
            "cast_column(name, datasets.Image()) makes images of paths"
        )
    return name


def _of_type(rows: Any, kind: str) -> list[str]:
    return [name for name, found in rows.features.items() if type(found).__name__ == kind]


def _types(rows: Any) -> str:
    return ", ".join(f"{name} ({type(found).__name__})" for name, found in rows.features.items())


def _labels(rows: Any, name: str | None, classes: Classes) -> Labels:
    """Classes of all rows, by the names that the data set has for them or by their text."""
    if name is None:
        return Labels.find([None] * len(rows), classes)
    feature, values = rows.features[name], list(rows[name])
    if (names := getattr(feature, "names", None)) is not None:
        return _classed(values, list(names), classes)
    kind = str(getattr(feature, "dtype", ""))
    if kind not in ("string", "large_string") and "int" not in kind:
        raise OptionError(
            f"the column {name!r} is of the type {feature}; needed is one class for each image, "
            "as ClassLabel, text or number"
        )
    return Labels.find([_text(value) for value in values], classes)


def _classed(values: list[int | None], names: list[str], classes: Classes) -> Labels:
    """Classes that are numbers with names."""
    unnamed = {index: f"LABEL_{index}" for index in range(len(names))}
    if dict(classes.labels) == unnamed and not classes.named:
        said = (
            "the model has no names for its classes, and as many as the data set: they are "
            "taken to be in the same order"
        )
        return Labels(tuple(None if value in (None, -1) else value for value in values), (said,))
    texts = [None if value in (None, -1) else names[value] for value in values]
    return Labels.find(texts, classes)


def _text(value: str | int | None) -> str | None:
    """Minus one is what data sets write where the class is kept secret."""
    return None if value in (None, -1, "") else str(value)


def _undecoded(rows: Any, names: list[str | None]) -> Any:
    """These columns as the bytes of files, so that a broken one is said with its row."""
    package = _package()
    kept = [name for name in names if name is not None]
    rows = rows.select_columns(kept)
    for name in kept:
        rows = rows.cast_column(name, package.Image(decode=False))
    return rows


def _sizes(rows: Any) -> Iterator[list[object]]:
    """File name and length of what is in each row, without reading it."""
    compute = importlib.import_module("pyarrow.compute")
    for table in rows.with_format("arrow").iter(batch_size=1000):
        columns = []
        for name in rows.column_names:
            cells = table[name]
            lengths = compute.binary_length(compute.struct_field(cells, "bytes")).to_pylist()
            paths = compute.struct_field(cells, "path").to_pylist()
            columns.append(
                [(Path(path or "").name, size) for path, size in zip(paths, lengths, strict=True)]
            )
        yield from (list(row) for row in zip(*columns, strict=True))


def _decoded(cell: Mapping[str, Any] | None, what: str, take: Callable[[Any], Taken]) -> Taken:
    content, path = (cell or {}).get("bytes"), (cell or {}).get("path")
    if content is None and not path:
        raise ImageFileError(f"{what} is empty")
    return read_image(Path(path or "") if content is None else content, what, take)
