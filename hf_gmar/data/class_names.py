"""Names of a data set's classes, and which classes of the model they are."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hf_gmar.errors import DataError, OptionError
from hf_gmar.models.labels import classes_called

LabelMap = Mapping[str, int | str] | str | Path | None
"""The model's class (index or label) of a data set's names, or a CSV file of ``name,class``."""

_SHOWN = 5  # names in a notice


@dataclass(frozen=True)
class Classes:
    """The classes of a model, to find by the names that a data set gives them.

    Attributes:
        labels: of the model, by class index.
        named: the class of names that the user gave.

    Example:
        >>> classes = Classes({0: "tabby, tabby cat", 1: "sea_snake"}, {"n02123045": 0})
        >>> [classes.find(name) for name in ("Tabby Cat", "sea snake", "1", "n02123045", "dog")]
        [0, 1, 1, 0, None]
    """

    labels: Mapping[int, str]
    named: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, labels: Mapping[int, str], label_map: LabelMap = None) -> Classes:
        """Those of a model, with names that the user gives.

        Raises:
            OptionError: a name is given a class that the model does not have.
            DataError: the file of names can't be read.
        """
        plain = cls({int(index): str(label) for index, label in labels.items()})
        if label_map is None:
            return plain
        pairs = label_map if isinstance(label_map, Mapping) else _read(Path(label_map))
        named = {str(name): plain._given(name, wanted) for name, wanted in pairs.items()}
        return cls(plain.labels, named)

    def find(self, name: str) -> int | None:
        """The class of that name, label, part of a label, or number; ``None`` if there is none.

        Underscores count as spaces where that is needed to find one.

        Raises:
            OptionError: it could be several.
        """
        if name in self.named:
            return self.named[name]
        found = self._number(name) | set(classes_called(self.labels, name))
        if not found:
            spaced = {index: _spaced(label) for index, label in self.labels.items()}
            found = set(classes_called(spaced, _spaced(name)))
        if len(found) > 1:
            choices = ", ".join(f"{index} ({self.labels[index]})" for index in sorted(found))
            raise OptionError(
                f"the data call a class {name!r}, and the model has several of that name or "
                f"number: {choices}; give the class of {name!r} in label_map"
            )
        return found.pop() if found else None

    def _number(self, name: str) -> set[int]:
        # Python refuses to read very long numbers.
        found = int(name) if re.fullmatch(r"\s*\d{1,9}\s*", name) else -1
        return {found} & set(self.labels)

    def _given(self, name: str, wanted: int | str) -> int:
        known = wanted in self.labels if isinstance(wanted, int) else False
        found = wanted if known else self.find(str(wanted))
        if not isinstance(found, int):
            raise OptionError(
                f"label_map gives {name!r} the class {wanted!r}, but the model has no such class"
            )
        return found


@dataclass(frozen=True)
class Labels:
    """The class of each image, and what to say of those that have none.

    Attributes:
        of_images: class index of the model, or ``None``.
        notices: a sentence on names that fit no class.
    """

    of_images: tuple[int | None, ...]
    notices: tuple[str, ...] = ()

    @classmethod
    def find(cls, names: Sequence[str | None], classes: Classes) -> Labels:
        """Labels of images whose class the data set calls so; ``None`` where it does not say.

        Raises:
            OptionError: a name fits several classes.
        """
        known = {name: classes.find(name) for name in dict.fromkeys(names) if name is not None}
        found = tuple(None if name is None else known[name] for name in names)
        if not known:
            return cls(found, ("the data do not say of what class an image is",))
        lost = [name for name, index in known.items() if index is None]
        return cls(found, _lost(lost, len(known), names) if lost else ())


def _lost(lost: Sequence[str], count: int, names: Iterable[str | None]) -> tuple[str, ...]:
    unknown = set(lost)
    images = sum(name in unknown for name in names)
    shown = ", ".join(repr(name) for name in sorted(lost)[:_SHOWN])
    more = ", ..." if len(lost) > _SHOWN else ""
    said = (
        f"{len(lost)} of {count} class names of the data ({shown}{more}) fit no class of the "
        f"model: {images} image{' has' if images == 1 else 's have'} no label; label_map can "
        "say which classes they are"
    )
    return (said,)


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _read(path: Path) -> dict[str, str]:
    """The names and classes of a CSV file of two columns."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"label_map {path} can't be read: {error}") from error
    if rows and [cell.strip().casefold() for cell in rows[0]] == ["name", "class"]:
        rows = rows[1:]
    wrong = [row for row in rows if len(row) != 2]
    if wrong:
        raise DataError(
            f"label_map {path} has a row {wrong[0]}; needed are two columns: the name in the "
            "data and the class of the model"
        )
    found = dict(rows)
    if len(found) < len(rows):
        raise DataError(f"label_map {path} gives a name twice; each name has one class")
    return found
