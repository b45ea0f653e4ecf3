"""The processes of a run: those that ``accelerate launch`` starts, or else one."""

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

from hf_gmar.errors import EvaluationError, HfGmarError, reason_of

Value = TypeVar("Value")

_POLL_SECONDS = 0.02
# A process may wait for the slowest process longer than PyTorch's default of half an hour.
_TIMEOUT = timedelta(days=30)

_LAUNCHED = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Processes:
    """The processes of a run, which share items and exchange values.

    Attributes:
        number: number of this process, from 0.
        count: number of processes.
        device: device for the model of this process; ``None`` without a launcher.
    """

    number: int = 0
    count: int = 1
    device: str | None = None

    @classmethod
    def launched(cls, cpu: bool = True) -> Processes:
        """Join the processes of accelerate's launcher, if any; ``cpu`` keeps models on the CPU.

        Raises:
            EvaluationError: the environment names other processes, but not how to join them.
        """
        try:
            launched = int(os.environ.get("WORLD_SIZE", "1")) > 1 or (
                distributed.is_available() and distributed.is_initialized()
            )
            if not launched:
                return cls()
            with warnings.catch_warnings():
                # accelerate sets the number of threads unless the user did, and warns about it.
                warnings.filterwarnings("ignore", message="OMP_NUM_THREADS")
                state = PartialState(cpu=cpu, timeout=_TIMEOUT)
        except (ValueError, RuntimeError) as error:
            given = {name: os.environ[name] for name in _LAUNCHED if name in os.environ}
            raise EvaluationError(
                f"the processes that the environment names can't be joined ({given}): "
                f"{reason_of(error)}; start them with 'accelerate launch', or unset WORLD_SIZE"
            ) from error
        device = "cpu" if state.device.type == "cpu" else str(state.device)
        return cls(state.process_index, state.num_processes, device)

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files that all processes share."""
        return self.number == 0

    def agreed(self, make: Callable[[], Value]) -> Value:
        """Return a value of the main process to all; its HfGmarError is raised in all processes."""
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
        """Return the values of all processes to each process, in the order of the processes."""
        if self.count == 1:
            return list(values)
        return cast("list[Value]", _or_lost(gather_object, list(values)))

    def share(self, items: Sequence[Value]) -> list[Value]:
        """Return this process's share of the items; each item is in exactly one share.

        Example:
            >>> [Processes(number, 2).share(range(5)) for number in range(2)]
            [[0, 2, 4], [1, 3]]
        """
        return list(items[self.number :: self.count])


def _or_lost(call: Callable[[Any], Any], value: Any) -> Any:
    try:
        # Polling can be interrupted while waiting for the slowest process; blocking could not.
        barrier = distributed.barrier(async_op=True)
        while not barrier.is_completed():
            time.sleep(_POLL_SECONDS)
        barrier.wait()
        return call(value)
    except RuntimeError as error:  # another process can't be reached
        reason = str(error).splitlines()[0][:200]
        raise EvaluationError(
            f"another process of the run is gone ({reason}); what was measured is on disk: run the "
            "same command again, and it goes on from there"
        ) from error
