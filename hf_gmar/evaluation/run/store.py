"""The folder of a run, with its settings and rows.

Rows are lines of JSON. The rows of an image are written and flushed to disk before the next image
begins, so a killed process loses only its current image.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from filelock import FileLock, Timeout

from hf_gmar._utils.files import reason_of_system, save_json
from hf_gmar.errors import EvaluationError, InputError, reason_of
from hf_gmar.evaluation.report.columns import check_row
from hf_gmar.evaluation.run.fingerprint import differences, run_digest, without_notes

Row: TypeAlias = dict[str, Any]
"""The measurements of one image by one method; without a method, the error of the image."""

SETTINGS = "settings.json"
EXAMPLES = "examples"
REPORT = ("summary.json", "report.md", "report.html", "examples.png")
_ROWS = re.compile(r"rows(\.\d+)?\.jsonl")


@dataclass(frozen=True)
class Store:
    """The folder of a run.

    Attributes:
        folder: the path of the folder.
        process: number of the writing process; each process has its own file.
        run: digest of the settings, stored in each row; rows of other runs are ignored.
        images: number of images of the run; a row of another image is refused.
        methods: labels of the methods; a row of another method is refused.
        measures: the measures that each row with values has, unless it says why not.
    """

    folder: Path
    process: int = 0
    run: str = ""
    images: int | None = None
    methods: Collection[str] = ()
    measures: Collection[str] = ()

    @property
    def file(self) -> Path:
        """The file to which this process writes its rows."""
        return self.folder / ("rows.jsonl" if not self.process else f"rows.{self.process}.jsonl")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder against other runs inside the context.

        Raises:
            EvaluationError: another run holds the lock.
        """
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise EvaluationError(
                f"another run is writing to {self.folder}; wait for it or name another folder"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def open(self, settings: Mapping[str, Any], resume: bool) -> None:
        """Prepare the folder for a run with these settings.

        Args:
            settings: the settings of the run.
            resume: keep existing rows; otherwise remove them.

        Raises:
            EvaluationError: existing rows are of other settings, or are not of a run. Then
                nothing is changed.
        """
        old = self._settings()
        if old is None and self._files():
            raise EvaluationError(
                f"{self.folder} holds rows, but no {SETTINGS} that says of what; name another "
                "folder"
            )
        if old is not None and not resume:
            self._remove()
        elif old is not None and self._files():
            self._check(old, settings)
            self.rows()
        save_json(self.folder / SETTINGS, {"digest": run_digest(settings), **settings})

    def is_of(self, settings: Mapping[str, Any]) -> bool:
        """Return whether the folder on this machine is of a run with these settings."""
        old = self._settings()
        return old is not None and old.get("digest") == run_digest(settings)

    def _settings(self) -> dict[str, Any] | None:
        """Read the settings on disk; raise an error if the file is not of a run."""
        path = self.folder / SETTINGS
        try:
            settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise EvaluationError(
                f"{path} can't be read, and nothing of it is touched: {reason_of(error)}; mend it, "
                "or name another folder"
            ) from error
        if isinstance(settings, dict) and isinstance(settings.get("digest"), str):
            return settings
        raise EvaluationError(
            f"{path} is not of a run, and nothing of it is touched; name another folder"
        )

    def _check(self, old: dict[str, Any], settings: Mapping[str, Any]) -> None:
        there, now = old.pop("digest"), run_digest(settings)
        if there == now:
            return
        # JSON turns tuples into lists, so both sides are compared as JSON data.
        lines = differences(without_notes(old), without_notes(json.loads(json.dumps(settings))))
        if not lines:
            raise EvaluationError(
                f"{self.folder / SETTINGS} was changed: it has the digest {_shortened(there)}, and "
                f"its settings have {_shortened(now)}; put that back, or start again with "
                "--no-resume (resume=False), which removes the rows"
            )
        raise EvaluationError(
            f"{self.folder} holds a run with other settings ({'; '.join(lines[:6])}"
            f"{'; ...' if len(lines) > 6 else ''}); name another folder, or start again with "
            "--no-resume (resume=False), which removes its rows"
        )

    def _remove(self) -> None:
        """Remove the files of an earlier run."""
        report = [*self.folder.glob("curves-*.png"), *self.folder.glob("differences-*.png")]
        report += [self.folder / name for name in REPORT]
        for path in [*self._files(), *report, *(self.folder / EXAMPLES).glob("*.npz")]:
            path.unlink(missing_ok=True)

    def rows(self) -> list[Row]:
        """Read the rows of this run by all processes in the folder, without incomplete lines.

        Raises:
            EvaluationError: a line is no row of a run, or no row of this one.
        """
        rows = (self._checked(*line) for file in self._files() for line in _lines(file))
        return [row for row in rows if row.pop("run") == self.run]

    def _checked(self, line: bytes, place: str) -> Row:
        """Read a line of a file."""
        try:
            row: Row = json.loads(line)
            json.dumps(row, allow_nan=False)  # ``loads`` reads NaN and infinity
            check_row(row)
            if not isinstance(row.get("run"), str) or not isinstance(row.get("key"), str):
                raise InputError("a row must have the name of its image and the digest of its run")
            if row["run"] == self.run:
                self._check_place(row)
        except (ValueError, RecursionError) as error:
            raise EvaluationError(
                f"{place} is no row ({reason_of(error)}); take the line out, and its image is "
                "measured again"
            ) from error
        return row

    def _check_place(self, row: Row) -> None:
        """Check that the run has the image, the method and the measures of a row."""
        index, method = row["index"], row["method"]
        if self.images is not None and index >= self.images:
            raise InputError(f"it is of image {index}, and the data have {self.images} images")
        if self.methods and method is not None and method not in self.methods:
            raise InputError(f"it is of {method!r}, which is none of the methods of the run")
        values = row.get("values") or {}
        if wrong := [name for name, value in values.items() if isinstance(value, bool)]:
            raise InputError(f"its value of {wrong[0]} is no number")
        missing = [measure for measure in self.measures if measure not in values]
        if missing and row.get("error") is None and not row.get("undefined"):
            raise InputError(f"it has no value of {missing[0]}")

    def append(self, rows: Iterable[Row]) -> None:
        """Write the rows of one image, and return when they are on disk."""
        marked = ({"run": self.run, **row} for row in rows)
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in marked)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def mend(self) -> None:
        """Remove an incomplete last line, which a killed process leaves."""
        if self.file.exists():
            content = self.file.read_bytes()
            size = content.rfind(b"\n") + 1
            if size < len(content):
                os.truncate(self.file, size)

    def _files(self) -> list[Path]:
        paths = self.folder.glob("rows*.jsonl")
        return sorted(path for path in paths if _ROWS.fullmatch(path.name))


def _lines(file: Path) -> Iterator[tuple[bytes, str]]:
    """Yield the lines of a file with their places, without an incomplete last line."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.endswith(b"\n"):
                yield line, f"line {number} of {file}"


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say what is kept and what to do if a file of the run can't be written.

    Raises:
        EvaluationError: the file system raised an error, for example as the disk is full.
    """
    try:
        yield
    except OSError as error:
        raise EvaluationError(
            f"{folder} can't be written: {reason_of_system(error)}; what was measured is kept: "
            "make room, then run the same command again, and it goes on from there"
        ) from error


def finished(rows: Iterable[Row], methods: Sequence[str]) -> set[int]:
    """Return the images for which every method has a row.

    Images that could not be read are not included, so the next run tries them again.
    """
    seen: dict[int, set[str]] = {}
    for row in rows:
        seen.setdefault(row["index"], set()).add(row["method"])
    return {index for index, labels in seen.items() if labels.issuperset(methods)}


def last_of_each(rows: Iterable[Row], methods: Collection[str]) -> list[Row]:
    """Return the last row of each image and method, sorted by image and method.

    If an image could be read in any run, its rows without a method are dropped.
    """
    places = {method: place for place, method in enumerate((None, *methods))}
    last = {(row["index"], places[row["method"]]): row for row in rows}
    read = {index for index, place in last if place}
    return [last[key] for key in sorted(last) if key[1] or key[0] not in read]
