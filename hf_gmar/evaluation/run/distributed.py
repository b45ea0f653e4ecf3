"""The processes of a run, as ``accelerate launch`` starts them; without it there is one."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import distributed

from hf_gmar.errors import EvaluationError, HfGmarError

Value = TypeVar("Value")

_POLL_SECONDS = 0.02
# A process may wait for the slowest one much longer than the half hour of PyTorch's default.
_TIMEOUT = timedelta(days=30)


@dataclass(frozen=True)
class Processes:
    """The processes of a run, and how they share values.

    Attributes:
        number: of this process, from 0.
        count: how many there are.
        device: where this one's model belongs; ``None`` where nothing was launched.
    """

    number: int = 0
    count: int = 1
    device: str | None = None

    @classmethod
    def launched(cls, cpu: bool = True) -> Processes:
        """The processes of accelerate's launcher, with models on CPUs or not; or this one alone."""
        launched = int(os.environ.get("WORLD_SIZE", "1")) > 1 or (
            distributed.is_available() and distributed.is_initialized()
        )
        if not launched:
            return cls()
        with warnings.catch_warnings():
            # accelerate sets the number of threads where nobody did, and says so.
            warnings.filterwarnings("ignore", message="OMP_NUM_THREADS")
            state = PartialState(cpu=cpu, timeout=_TIMEOUT)
        device = "cpu" if state.device.type == "cpu" else str(state.device)
        return cls(state.process_index, state.num_processes, device)

    @property
    def is_main(self) -> bool:
        """Whether this process writes what there is once for all."""
        return self.number == 0

    def agreed(self, make: Callable[[], Value]) -> Value:
        """A value made by the main process, for all; an error of ours is raised in all of them."""
        result: list[Any] = [None, None]
        if self.is_main:
            try:
                result[0] = make()
            except HfGmarError as error:
                result[1] = error
        if self.count > 1:
            _or_lost(broadcast_object_list, result)
        if result[1] is not None:
            raise result[1]
        return cast("Value", result[0])

    def gathered(self, values: Sequence[Value]) -> list[Value]:
        """The values of all processes, for each of them, in the order of the processes."""
        if self.count == 1:
            return list(values)
        return cast("list[Value]", _or_lost(gather_object, list(values)))

    def share(self, items: Sequence[Value]) -> list[Value]:
        """This process's part of items that all processes have; every item is in one part.

        Example:
            >>> [Processes(number, 2).share(range(5)) for number in range(2)]
            [[0, 2, 4], [1, 3]]
        """
        return list(items[self.number :: self.count])


def _or_lost(call: Callable[[Any], Any], value: Any) -> Any:
    try:
        # All wait for the slowest one; unlike a barrier that blocks, this can be interrupted.
        barrier = distributed.barrier(async_op=True)
        while not barrier.is_completed():
            time.sleep(_POLL_SECONDS)
        barrier.wait()
        return call(value)
    except RuntimeError as error:  # the others can't be reached any more
        reason = str(error).splitlines()[0][:200]
        raise EvaluationError(
            f"another process of the run is gone ({reason}); what was measured is on disk: run the "
            "same command again, and it goes on from there"
        ) from error
