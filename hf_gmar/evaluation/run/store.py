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

from hf_gmar._utils.files import whole_file
from hf_gmar.errors import EvaluationError
from hf_gmar.evaluation.run.fingerprint import differences, run_digest, without_name

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
    """

    folder: Path
    process: int = 0
    run: str = ""

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
            EvaluationError: existing rows are of other settings, or are not of a run.
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
        with whole_file(self.folder / SETTINGS) as part:
            text = json.dumps({"digest": run_digest(settings), **settings}, indent=1)
            part.write_text(text + "\n", encoding="utf-8")

    def is_of(self, settings: Mapping[str, Any]) -> bool:
        """Return whether the folder on this machine is of a run with these settings."""
        old = self._settings()
        return old is not None and old.get("digest") == run_digest(settings)

    def _settings(self) -> dict[str, Any] | None:
        """Read the settings on disk; raise an error if the file is not of a run."""
        path = self.folder / SETTINGS
        if not path.exists():
            return None
        try:
            settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(settings, dict) and isinstance(settings.get("digest"), str):
                return settings
        except (OSError, ValueError):
            pass
        raise EvaluationError(
            f"{path} is not of a run, and nothing of it is touched; name another folder"
        )

    def _check(self, old: dict[str, Any], settings: Mapping[str, Any]) -> None:
        if old.pop("digest") == run_digest(settings):
            return
        # JSON turns tuples into lists, so both sides are compared as JSON data.
        lines = differences(without_name(old), without_name(json.loads(json.dumps(settings))))
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
        """Read all rows of all processes in the folder, without incomplete lines."""
        rows = (row for file in self._files() for row in _lines(file))
        return [row for row in rows if row.pop("run", None) == self.run]

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


def _lines(file: Path) -> Iterator[Row]:
    """Yield the rows of a file, without an incomplete last line."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield json.loads(line)
            except ValueError as error:
                raise EvaluationError(
                    f"line {number} of {file} is no row ({error}); take the line out, and its "
                    "image is measured again"
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
