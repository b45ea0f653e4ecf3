"""A run over a data set, by one process or several, that goes on where an earlier one stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from hf_gmar.data.base import ImageDataset
from hf_gmar.errors import EvaluationError
from hf_gmar.evaluation.run.distributed import Processes
from hf_gmar.evaluation.run.examples import save_example
from hf_gmar.evaluation.run.fingerprint import digest
from hf_gmar.evaluation.run.per_image import ImageEvaluator
from hf_gmar.evaluation.run.plan import Plan, spread
from hf_gmar.evaluation.run.store import Row, Store, finished, last_of_each

Progress: TypeAlias = Callable[[int, int, list[Row]], None]
"""Called with the images that this process is done with, those that it has to do, and the rows of
the last one; first with none."""


@dataclass(frozen=True)
class Runner:
    """A run.

    Attributes:
        plan: what is measured.
        data: of which images.
        settings: all of it as plain data.
        processes: who takes part.
        folder: where rows are written; ``None`` keeps them in memory alone.
        resume: keep what is in the folder.
        progress: is told of each image.
    """

    plan: Plan
    data: ImageDataset
    settings: Mapping[str, Any]
    processes: Processes
    folder: Path | None = None
    resume: bool = True
    progress: Progress | None = None

    def rows(self) -> list[Row]:
        """Measure what is missing, and give the rows of all images to all processes.

        Raises:
            EvaluationError: the folder is of another run or in use, or a process is gone.
        """
        methods = self.plan.explainers.labels
        if self.folder is None:
            rows = self._measured(list(range(len(self.data))), None)
            return last_of_each(self.processes.gathered(rows), methods)
        store = Store(self.folder, self.processes.number, digest(self.settings))
        with ExitStack() as stack:
            self.processes.agreed(lambda: self._begin(store, stack))
            if not store.is_of(self.settings):  # a folder that the processes do not share
                store.folder.mkdir(parents=True, exist_ok=True)
                store.open(self.settings, self.resume)
            done = self._done(store)
            missing = [index for index in range(len(self.data)) if index not in done]
            self._measured(missing, store)
            return self._all_rows(store)

    def _begin(self, store: Store, stack: ExitStack) -> None:
        try:
            store.folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(store.lock())
            store.open(self.settings, self.resume)
        except OSError as error:
            raise EvaluationError(
                f"nothing can be written to {store.folder}: {error.strerror}; name another folder"
            ) from error

    def _all_rows(self, store: Store) -> list[Row]:
        """Those that the main process sees, and what others see beside them."""
        seen = self.processes.agreed(lambda: {_place(row) for row in store.rows()})
        beside = [row for row in store.rows() if _place(row) not in seen]
        beside = self.processes.gathered([] if self.processes.is_main else beside)
        methods = self.plan.explainers.labels
        rows = self.processes.agreed(lambda: last_of_each([*store.rows(), *beside], methods))
        lost = set(range(len(self.data))) - {row["index"] for row in rows}
        if lost:
            raise EvaluationError(
                f"{len(lost)} images have no rows any more, such as {self.data.key(min(lost))}: a "
                "file of the run is gone; run the same command again"
            )
        return rows

    def _done(self, store: Store) -> set[int]:
        store.mend()
        rows = store.rows()
        keys = {row["index"]: row["key"] for row in rows}
        known = finished(rows, self.plan.explainers.labels)
        own = [index for index in known if keys[index] == self.data.key(index)]
        return set(self.processes.gathered(own))

    def _measured(self, missing: list[int], store: Store | None) -> list[Row]:
        share, found = self.processes.share(missing), []
        self._say(0, len(share), [])
        kept = spread(len(self.data), self.plan.how.examples)
        measuring = ImageEvaluator(self.plan, self.data)
        for count, index in enumerate(share, 1):
            try:
                rows, case = measuring.image(index)
            except torch.OutOfMemoryError as error:
                raise EvaluationError(
                    f"the memory was not enough for {self.data.key(index)}; use a smaller --memory "
                    "(memory=...), and the run goes on from there"
                ) from error
            if store is None:
                found += rows
            else:
                if case is not None and index in kept:
                    save_example(store.folder, case, self.plan)
                store.append(rows)
            self._say(count, len(share), rows)
        return found

    def _say(self, count: int, total: int, rows: list[Row]) -> None:
        if self.progress is not None:
            self.progress(count, total, rows)


def _place(row: Row) -> tuple[int, str | None]:
    return row["index"], row["method"]
