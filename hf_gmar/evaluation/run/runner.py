"""Runs an evaluation in one or several processes, and resumes an interrupted run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from hf_gmar._utils.files import reason_of_system
from hf_gmar.data.base import ImageDataset
from hf_gmar.errors import EvaluationError
from hf_gmar.evaluation.run.distributed import Processes
from hf_gmar.evaluation.run.examples import damaged_examples, save_example
from hf_gmar.evaluation.run.fingerprint import run_digest
from hf_gmar.evaluation.run.per_image import ImageEvaluator
from hf_gmar.evaluation.run.plan import Plan, evenly_spaced
from hf_gmar.evaluation.run.store import Row, Store, finished, last_of_each, writing

Progress: TypeAlias = Callable[[int, int, list[Row]], None]
"""Called with the number of finished images of this process, their total number, and the rows of
the last image; the first call is before any image."""


@dataclass(frozen=True)
class Runner:
    """A run; without a folder, its rows are only kept in memory."""

    plan: Plan
    data: ImageDataset
    settings: Mapping[str, Any]
    processes: Processes
    folder: Path | None = None
    resume: bool = True
    progress: Progress | None = None

    def rows(self) -> list[Row]:
        """Measure the missing images, and return the rows of all images to all processes.

        Raises:
            EvaluationError: the folder is of another run or in use, or a process has ended.
        """
        if self.folder is None:
            rows = self._measure(list(range(len(self.data))), None)
            return last_of_each(self.processes.gathered(rows), self._labels)
        store = Store(
            self.folder,
            self.processes.number,
            run_digest(self.settings),
            images=len(self.data),
            methods=self._labels,
            measures=self.plan.removal_measures,
        )
        with ExitStack() as stack:
            self.processes.agreed(lambda: self._open(store, stack))
            if not store.is_of(self.settings):  # the processes do not share the folder
                store.folder.mkdir(parents=True, exist_ok=True)
                store.open(self.settings, self.resume)
            done = self._finished(store)
            self._measure([index for index in range(len(self.data)) if index not in done], store)
            return self._all_rows(store)

    @property
    def _labels(self) -> list[str]:
        return self.plan.model.method_set.labels

    @functools.cached_property
    def _examples(self) -> set[int]:
        """The images whose maps are drawn in the report."""
        return evenly_spaced(len(self.data), self.plan.model.config.examples)

    def _open(self, store: Store, stack: ExitStack) -> None:
        try:
            store.folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(store.lock())
            store.open(self.settings, self.resume)
        except OSError as error:
            raise EvaluationError(
                f"nothing can be written to {store.folder}: {reason_of_system(error)}; name "
                "another folder"
            ) from error

    def _all_rows(self, store: Store) -> list[Row]:
        """Combine the rows in the main process's folder and rows that only other processes see."""
        on_main = self.processes.agreed(lambda: {_place(row) for row in store.rows()})
        others = [row for row in store.rows() if _place(row) not in on_main]
        others = self.processes.gathered([] if self.processes.is_main else others)
        rows = self.processes.agreed(lambda: last_of_each([*store.rows(), *others], self._labels))
        missing = set(range(len(self.data))) - {row["index"] for row in rows}
        if missing:
            raise EvaluationError(
                f"{len(missing)} images have no rows any more, such as "
                f"{self.data.key(min(missing))}: a file of the run is gone; run the same command "
                "again"
            )
        return rows

    def _finished(self, store: Store) -> set[int]:
        rows = store.rows()
        with writing(store.folder):
            store.mend()
        keys = {row["index"]: row["key"] for row in rows}
        indices = finished(rows, self._labels)
        same = [index for index in indices if keys[index] == self.data.key(index)]
        # An example that can't be read is made again, from the maps of its image.
        again = self.processes.gathered(damaged_examples(store.folder, self._examples))
        return set(self.processes.gathered(same)) - set(again)

    def _measure(self, missing: list[int], store: Store | None) -> list[Row]:
        """Measure this process's share of the images; return the rows if there is no store."""
        share, all_rows = self.processes.share(missing), []
        report: Progress = self.progress or (lambda *_: None)
        report(0, len(share), [])
        evaluator = ImageEvaluator(self.plan, self.data)
        for count, index in enumerate(share, 1):
            try:
                rows, sample = evaluator.image(index)
            except torch.OutOfMemoryError as error:
                raise EvaluationError(
                    f"the memory was not enough for {self.data.key(index)}; use a smaller --memory "
                    "(memory=...), and the run goes on from there"
                ) from error
            if store is None:
                all_rows += rows
            else:
                with writing(store.folder):
                    if sample is not None and index in self._examples:
                        save_example(store.folder, sample, self.plan)
                    store.append(rows)
            report(count, len(share), rows)
        return all_rows


def _place(row: Row) -> tuple[int, str | None]:
    return row["index"], row["method"]
