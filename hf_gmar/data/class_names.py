"""Finds the model's class for each class name of a data set."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hf_gmar._utils.csv_rows import read_csv
from hf_gmar.errors import DataError, OptionError
from hf_gmar.models.labels import classes_called

LabelMap = Mapping[str, int | str] | str | Path | None
"""The model's class (index or label) for each name in the data, or a CSV file ``name,class``."""

_SHOWN = 5  # the largest number of names in a notice


@dataclass(frozen=True)
class Classes:
    """The classes of a model, found by the class names of a data set.

    Attributes:
        labels: the model's labels by class index.
        named: the class index for each name of the user's label map.

    Example:
        >>> classes = Classes({0: "tabby, tabby cat", 1: "sea_snake"}, {"n02123045": 0})
        >>> [classes.find(name) for name in ("Tabby Cat", "sea snake", "1", "n02123045", "dog")]
        [0, 1, 1, 0, None]
    """

    labels: Mapping[int, str]
    named: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, labels: Mapping[int, str], label_map: LabelMap = None) -> Classes:
        """Combine the labels of a model with the user's label map.

        Raises:
            OptionError: the label map names a class that the model does not have.
            DataError: the file of the label map can't be read.
        """
        plain = cls({int(index): str(label) for index, label in labels.items()})
        if label_map is None:
            return plain
        pairs = label_map if isinstance(label_map, Mapping) else _read(Path(label_map))
        named = {str(name): plain._index(name, choice) for name, choice in pairs.items()}
        return cls(plain.labels, named)

    def find(self, name: str) -> int | None:
        """Find the class of a name, label, part of a label, or number; ``None`` if not found.

        Underscores count as spaces if the exact name is not found.

        Raises:
            OptionError: the name fits several classes.
        """
        if name in self.named:
            return self.named[name]
        # Python refuses to read very long numbers.
        number = int(name) if re.fullmatch(r"\s*\d{1,9}\s*", name) else -1
        indices = {number} & set(self.labels) | set(classes_called(self.labels, name))
        if not indices:
            spaced = {index: label.replace("_", " ") for index, label in self.labels.items()}
            indices = set(classes_called(spaced, name.replace("_", " ")))
        if len(indices) > 1:
            choices = ", ".join(f"{index} ({self.labels[index]})" for index in sorted(indices))
            raise OptionError(
                f"the data call a class {name!r}, and the model has several of that name or "
                f"number: {choices}; give the class of {name!r} in label_map"
            )
        return indices.pop() if indices else None

    def _index(self, name: str, choice: int | str) -> int:
        """Return the class that the user's label map gives a name."""
        if isinstance(choice, int) and choice in self.labels:
            return choice
        index = self.find(str(choice))
        if index is None:
            raise OptionError(
                f"label_map gives {name!r} the class {choice!r}, but the model has no such class"
            )
        return index


@dataclass(frozen=True)
class Labels:
    """The class of each image, and notices about images without a class.

    Attributes:
        of_images: the model's class index of each image, or ``None``.
        notices: sentences about names that fit no class.
    """

    of_images: tuple[int | None, ...]
    notices: tuple[str, ...] = ()

    @classmethod
    def find(cls, names: Sequence[str | None], classes: Classes) -> Labels:
        """Find the class of each image by its class name; a name may be ``None``.

        Raises:
            OptionError: a name fits several classes.
        """
        known = {name: classes.find(name) for name in dict.fromkeys(names) if name is not None}
        indices = tuple(None if name is None else known[name] for name in names)
        if not known:
            return cls(indices, ("the data do not say of what class an image is",))
        unknown = sorted(name for name, index in known.items() if index is None)
        if not unknown:
            return cls(indices)
        images = sum(name is not None and known[name] is None for name in names)
        text = ", ".join(map(repr, unknown[:_SHOWN])) + (", ..." if unknown[_SHOWN:] else "")
        notice = (
            f"{len(unknown)} of {len(known)} class names of the data ({text}) fit no class of the "
            f"model: {images} image{' has' if images == 1 else 's have'} no label; label_map can "
            "say which classes they are"
        )
        return cls(indices, (notice,))


def _read(path: Path) -> dict[str, str]:
    """Read the names and classes from a CSV file with two columns."""
    try:
        rows = [row for _, row in read_csv(path)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"label_map {path} can't be read: {error}") from error
    if rows and [cell.strip().casefold() for cell in rows[0]] == ["name", "class"]:
        rows = rows[1:]
    bad_rows = [row for row in rows if len(row) != 2]
    if bad_rows:
        raise DataError(
            f"label_map {path} has a row {bad_rows[0]}; needed are two columns: the name in the "
            "data and the class of the model"
        )
    classes = dict(rows)
    if len(classes) < len(rows):
        raise DataError(f"label_map {path} gives a name twice; each name has one class")
    return classes
