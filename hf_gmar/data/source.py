"""Opens a data set by its name, folder, file or object."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hf_gmar._utils.files import absence, kind_of
from hf_gmar._utils.text import encodable
from hf_gmar._utils.validation import shown
from hf_gmar.data.base import ImageDataset, LabelledDataset, take_evenly
from hf_gmar.data.class_names import Classes, LabelMap
from hf_gmar.data.csv_table import table_of_images
from hf_gmar.data.hf_datasets import HFDataset, from_disk, from_hub, is_dataset, is_saved, split_of
from hf_gmar.data.image_folder import folder_of_images
from hf_gmar.data.image_list import ImageList
from hf_gmar.data.scene_dataset import SCENES, SceneDataset
from hf_gmar.errors import DataError, OptionError

_SCENES = re.compile(r"scenes(?::(\d{1,9}))?")
_HUB = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)?")
_COLUMNS = ("image_column", "label_column", "mask_column")
_FILES = {".csv", ".tsv", ".txt", ".json", ".jsonl", ".parquet", ".zip", ".tar", ".arrow"}


def open_data(  # noqa: PLR0913  # a keyword each
    source: str | Path | ImageDataset | Any,
    labels: Mapping[int, str],
    *,
    label_map: LabelMap = None,
    config: str | None = None,
    split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    mask_column: str | None = None,
    skip: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    mode: str = "RGB",
) -> ImageDataset:
    """Open a data set by its name, folder or file; images are read later.

    Args:
        source: one of

            - ``"scenes"`` or ``"scenes:100"``: the package's synthetic scenes with masks, 300 by
              default; a folder of that name is ``"./scenes"``.
            - a folder of images, or of one subfolder of images for each class.
            - a CSV file with a column of paths and optional columns of labels and masks.
            - a folder written by ``save_to_disk`` of the package ``datasets``, or the name of a
              data set on the Hub; append ``:SPLIT`` to choose a split.
            - a list of images (paths, URLs, Pillow images, arrays), or of pairs of an image and
              its class, by index or name.
            - a ``datasets.Dataset`` or ``DatasetDict``, or your own :class:`ImageDataset`.
        labels: the model's classes by index, ``model.config.id2label``.
        label_map: the model's class, as index or label, for each class name in the data; or the
            path of a CSV file with the columns ``name,class``. Other names are matched with the
            model's labels.
        config: the configuration of a data set on the Hub.
        split: the split to open, needed if there are several; for a folder, its subfolder.
        image_column: the column of images or paths; by default found by name and type.
        label_column: the column of classes; by default found in the same way.
        mask_column: the column of masks; by default found in the same way.
        skip: a folder whose image files are left out, for example the folder of the results.
        limit: the largest number of images, see :func:`~hf_gmar.data.base.take_evenly`.
        seed: seed of the choice of images.
        mode: the mode in which images of files and of ``datasets`` are read: ``"RGB"``, ``"L"`` or
            ``"RGBA"``.

    Returns:
        The data set. Images whose class the model lacks have no label, and a notice says so.

    Raises:
        DataError: the data set does not exist, or can't be read or understood.
        ImageFileError: the folder has no images.
        OptionError: the source lacks an option, a column does not exist or is ambiguous, a name
            fits several classes, or the limit is less than 1.

    Example:
        >>> from hf_gmar.data import CLASSES
        >>> data = open_data("scenes", dict(enumerate(CLASSES)), limit=20)
        >>> len(data), data.key(0), CLASSES[data.label(0)]
        (20, 'scene-5', 'ring')
    """
    choices = {"config": config, "split": split, "image_column": image_column,
               "label_column": label_column, "mask_column": mask_column}  # fmt: skip
    options = {name: value for name, value in choices.items() if value is not None}
    classes = Classes.of(labels, label_map)
    if isinstance(source, ImageDataset):
        _reject_unknown(
            [*options, *(["label_map"] if label_map is not None else [])], "images of your own"
        )
        data = source
    elif is_dataset(source):
        _reject_unknown(options, "a data set that is not on the Hub", ("split", *_COLUMNS))
        rows = split_of(source, options.get("split"), "the data set")
        data = _hf_dataset(rows, "the data set", classes, {"kind": "datasets"}, options)
    elif isinstance(source, str) and (match := _SCENES.fullmatch(source)):
        _reject_unknown(options, "scenes")
        data = SceneDataset(int(match[1] or SCENES), classes)
    elif isinstance(source, str) and source.startswith("scenes:"):
        raise OptionError(
            f"the number of scenes is a whole number, as in 'scenes:300'; got {shown(source)}"
        )
    elif isinstance(source, list | tuple):
        _reject_unknown(options, "a list of images")
        data = ImageList(source, classes)
    elif isinstance(source, (str, Path)):
        data = _by_name(*_split_from_name(source, options), encodable(str(source)), classes, skip)
    else:
        raise DataError(
            f"a data set of the type {type(source).__name__} is not known; needed is a name, a "
            "folder, a CSV file, a list of images or of pairs (image, class), a datasets.Dataset "
            "or an hf_gmar.data.ImageDataset"
        )
    if isinstance(data, LabelledDataset):
        data.mode = mode
    return take_evenly(data, limit, seed)


def _split_from_name(
    source: str | Path, options: dict[str, str]
) -> tuple[Path | str, dict[str, str]]:
    """Split ``NAME:SPLIT`` into a path, if it exists, or a name, and the options."""
    if isinstance(source, Path) or kind_of(source) != "missing":
        return Path(source), options
    name, _, split = source.partition(":")
    if split:
        if options.get("split", split) != split:
            raise OptionError(
                f"{source!r} names the split {split!r} and split is {options['split']!r}; give one"
            )
        options = {**options, "split": split}
    return (Path(name) if kind_of(name) != "missing" else name), options


def _by_name(
    source: Path | str, options: dict[str, str], name: str, classes: Classes, skip: Path | None
) -> ImageDataset:
    if isinstance(source, str):
        if not _HUB.fullmatch(source) or Path(source).suffix.casefold() in _FILES:
            raise DataError(absence(Path(source), "folder or file"))
        rows = from_hub(source, options.get("config"), options.get("split"))
        settings = {"kind": "datasets on the Hub", "name": source, "config": rows.config_name}
        return _hf_dataset(rows, name, classes, settings, options)
    kind = kind_of(source)
    if kind == "folder" and is_saved(source):
        _reject_unknown(options, "a data set that is not on the Hub", ("split", *_COLUMNS))
        rows = from_disk(source, options.get("split"))
        settings = {
            "kind": "datasets on disk",
            "name": encodable(Path(os.path.realpath(source)).name),
        }
        return _hf_dataset(rows, name, classes, settings, options)
    if kind == "folder":
        _reject_unknown(options, "a folder of images", ("split",))
        return folder_of_images(source, classes, name=name, split=options.get("split"), skip=skip)
    if kind == "file" and source.suffix.casefold() == ".csv":
        _reject_unknown(options, "a CSV file", _COLUMNS)
        return table_of_images(source, classes, name=name, **options)
    if kind != "missing":
        raise DataError(
            f"{source} is no folder and no .csv file; needed is a folder of images, a CSV file of "
            "their paths, a data set, or in Python a list: [image, ...]"
        )
    raise DataError(absence(source, "folder or file"))


def _hf_dataset(
    rows: Any,
    name: str,
    classes: Classes,
    settings: Mapping[str, str | None],
    options: dict[str, str],
) -> HFDataset:
    """Make a data set of ``datasets`` rows with the columns in the options."""
    columns = {key: value for key, value in options.items() if key in _COLUMNS}
    settings = {**settings, "split": options.get("split", rows.split and str(rows.split))}
    return HFDataset(name, rows, classes, settings=settings, **columns)


def _reject_unknown(options: Iterable[str], kind: str, known: tuple[str, ...] = ()) -> None:
    """Raise an error for an option that this kind of source does not use."""
    for name in options:
        if name not in known:
            has = f"has {', '.join(known)}" if known else "has no options of this kind"
            raise OptionError(f"{name} means nothing for {kind}, which {has}; leave it out")
