"""The processes of a run, as ``accelerate launch`` starts them; without it there is one."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import distributed

from hf_gmar.errors import EvaluationError, HfGmarError

Found = TypeVar("Found")

_A_MOMENT = 0.02  # seconds
# A process may wait for the slowest one much longer than the half hour of PyTorch's default.
_PATIENCE = timedelta(days=30)


@dataclass(frozen=True)
class Processes:
    """What the processes of a run say to each other.

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
        """Those that accelerate's launcher started; this one alone if none was at work.

        Args:
            cpu: whether the models are on CPUs.
        """
        if not _launched():
            return cls()
        with warnings.catch_warnings():
            # accelerate sets the number of threads where nobody did, and says so.
            warnings.filterwarnings("ignore", message="OMP_NUM_THREADS")
            state = PartialState(cpu=cpu, timeout=_PATIENCE)
        device = "cpu" if state.device.type == "cpu" else str(state.device)
        return cls(state.process_index, state.num_processes, device)

    @property
    def is_main(self) -> bool:
        """Whether this process writes what there is once for all."""
        return self.number == 0

    def agreed(self, make: Callable[[], Found]) -> Found:
        """What the main process makes, for all; an error of ours is raised in all of them."""
        found: list[Any] = [None, None]
        if self.is_main:
            try:
                found[0] = make()
            except HfGmarError as error:
                found[1] = error
        if self.count > 1:
            _or_lost(broadcast_object_list, found)
        if found[1] is not None:
            raise found[1]
        result: Found = found[0]
        return result

    def gathered(self, own: Sequence[Found]) -> list[Found]:
        """What all processes have, for each of them, in the order of the processes."""
        if self.count == 1:
            return list(own)
        found: list[Found] = _or_lost(gather_object, list(own))
        return found

    def share(self, things: Sequence[Found]) -> list[Found]:
        """This process's part of things that all processes have; every thing is in one part.

        Example:
            >>> [Processes(number, 2).share(range(5)) for number in range(2)]
            [[0, 2, 4], [1, 3]]
        """
        return list(things[self.number :: self.count])


def _launched() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 or (
        distributed.is_available() and distributed.is_initialized()
    )


def _wait_for_all() -> None:
    """Until every process is here; unlike a barrier that blocks, it can be interrupted."""
    barrier = distributed.barrier(async_op=True)
    while not barrier.is_completed():
        time.sleep(_A_MOMENT)
    barrier.wait()


def _or_lost(call: Callable[[Any], Any], value: Any) -> Any:
    try:
        _wait_for_all()
        return call(value)
    except RuntimeError as error:  # the others can't be reached any more
        reason = str(error).splitlines()[0][:200]
        raise EvaluationError(
            f"another process of the run is gone ({reason}); what was measured is on disk: run the "
            "same command again, and it goes on from there"
        ) from error
