"""The folder of a run: its settings, and the rows of each image as soon as they are measured.

Rows are lines of JSON. The rows of an image are written at once and handed to the disk before the
next image begins, so that a process that is killed loses the image that it was at and no more.
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
from hf_gmar.evaluation.run.fingerprint import differences, digest

Row: TypeAlias = dict[str, Any]
"""What was measured of one image by one method; or, without a method, why there is nothing."""

SETTINGS = "settings.json"
EXAMPLES = "examples"
REPORT = ("summary.json", "report.md", "report.html", "examples.png")
_ROWS = re.compile(r"rows(\.\d+)?\.jsonl")


@dataclass(frozen=True)
class Store:
    """The folder of a run.

    Attributes:
        folder: where it is.
        process: number of the process that writes; each has a file of its own.
        run: digest of the settings, which each row bears: rows of another run are not seen.
    """

    folder: Path
    process: int = 0
    run: str = ""

    @property
    def file(self) -> Path:
        """Where this process writes its rows."""
        return self.folder / ("rows.jsonl" if not self.process else f"rows.{self.process}.jsonl")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Inside, no other run writes to the folder.

        Raises:
            EvaluationError: another one does.
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
        """Make the folder that of a run with these settings.

        Args:
            settings: what is measured.
            resume: keep the rows that are there; otherwise they are removed.

        Raises:
            EvaluationError: the rows that are there are of other settings, or not of a run.
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
            text = json.dumps({"digest": digest(settings), **settings}, indent=1)
            part.write_text(text + "\n", encoding="utf-8")

    def is_of(self, settings: Mapping[str, Any]) -> bool:
        """Whether the folder, as this machine sees it, is that of a run with these settings."""
        old = self._settings()
        return old is not None and old.get("digest") == digest(settings)

    def _settings(self) -> dict[str, Any] | None:
        """The settings on disk; an error if the file is not of a run."""
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
        if old.pop("digest") == digest(settings):
            return
        # What JSON does not keep apart, such as tuples and lists, makes no difference.
        lines = differences(old, json.loads(json.dumps(settings)))
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
        """All rows in the folder, of whichever process, without a line that was cut off."""
        rows = (row for file in self._files() for row in _lines(file))
        return [row for row in rows if row.pop("run", None) == self.run]

    def append(self, rows: Iterable[Row]) -> None:
        """Write the rows of one image, and return when they are on disk."""
        named = ({"run": self.run, **row} for row in rows)
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in named)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def mend(self) -> None:
        """Take off a line that was cut off when this process was killed."""
        if self.file.exists():
            content = self.file.read_bytes()
            size = content.rfind(b"\n") + 1
            if size < len(content):
                os.truncate(self.file, size)

    def _files(self) -> list[Path]:
        paths = self.folder.glob("rows*.jsonl")
        return sorted(path for path in paths if _ROWS.fullmatch(path.name))


def _lines(file: Path) -> Iterator[Row]:
    """The rows of a file; what is behind its last line break was cut off."""
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
    """The images of which every method has its row.

    Images that could not be read are not among them: the next run tries them again.
    """
    seen: dict[int, set[str]] = {}
    for row in rows:
        seen.setdefault(row["index"], set()).add(row["method"])
    return {index for index, labels in seen.items() if labels.issuperset(methods)}


def last_of_each(rows: Iterable[Row], methods: Collection[str]) -> list[Row]:
    """One row for each image and method, ordered by them; the last where there are several.

    An image that could not be read in one run and could in another has been read.
    """
    places = {method: place for place, method in enumerate((None, *methods))}
    last = {(row["index"], places[row["method"]]): row for row in rows}
    read = {index for index, place in last if place}
    return [last[key] for key in sorted(last) if key[1] or key[0] not in read]
