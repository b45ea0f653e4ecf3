"""How much memory tensors take while some code runs, counted and not guessed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Inside, bytes of tensors that this thread makes are counted as long as they live.

    The count is the same on every device. Tensors that were there before do not count, nor does
    what a PyTorch function uses within itself.

    Attributes:
        now: bytes that are alive.
        history: bytes that were alive after each tensor that came or went.

    Example:
        >>> import torch
        >>> with LiveBytes() as live:
        ...     sums = [torch.ones(10).sum() for _ in range(3)]
        >>> live.now, live.peak
        (12, 52)
    """

    def __init__(self) -> None:
        """Nothing is counted yet."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.history: list[int] = []

    @property
    def peak(self) -> int:
        """The most bytes that were alive at a time."""
        return max(self.history, default=0)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,  # the signature is PyTorch's
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Count what a function makes."""
        kwargs = kwargs or {}
        before = {id(storage) for storage in _storages((args, kwargs))}
        found = func(*args, **kwargs)
        # A view, or what was changed in place, is in memory that a tensor had before.
        for storage in _storages(found):
            if id(storage) not in before:
                before.add(id(storage))
                self._add(storage.nbytes())
                weakref.finalize(storage, self._add, -storage.nbytes())
        return found

    def _add(self, count: int) -> None:
        self.now += count
        self.history.append(self.now)


def _storages(values: Any) -> Iterator[UntypedStorage]:
    return (leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
