"""A forward in which weights are constants, for the calling thread alone.

A :class:`torch.overrides.TorchFunctionMode` sees each call of a PyTorch function that its thread
makes. The model itself is not changed, and nothing is kept for gradients of weights.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Self

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# Whoever moves a weight or asks for an attribute of it may mean the weight itself, as accelerate
# does where weights come from another device or from disk.
_MOVES = (Tensor.to, Tensor.cpu, Tensor.cuda)


class _Active(threading.local):
    """The modes that this thread is in; the last one acts."""

    def __init__(self) -> None:
        self.modes: list[FrozenWeightsMode] = []


_ACTIVE = _Active()


class FrozenWeightsMode(TorchFunctionMode):
    """Inside, this thread's calls see weights without gradients.

    A subclass does more with each call in ``call``.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # the signature is PyTorch's
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Pass a call on with constant weights."""
        kwargs = kwargs or {}
        if not self.acts:
            return func(*args, **kwargs)
        if _may_mean_the_weight(func) and args and isinstance(args[0], nn.Parameter):
            return _part_of_weight(func(*args, **kwargs), args[0])
        constants = {name: _constant(value) for name, value in kwargs.items()}
        return self.call(func, tuple(map(_constant, args)), constants)

    def call(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """What becomes of a call whose weights are constants."""
        return func(*args, **kwargs)

    @property
    def acts(self) -> bool:
        """This thread is in it, and in no explanation inside this one, by a hook."""
        return bool(_ACTIVE.modes) and _ACTIVE.modes[-1] is self

    def __enter__(self) -> Self:
        """Take over from the mode of an explanation outside, if there is one."""
        _ACTIVE.modes.append(self)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:  # noqa: PYI036  # passed on as they are
        """Hand back."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        _ACTIVE.modes.pop()


def _may_mean_the_weight(func: Callable[..., Any]) -> bool:
    return func in _MOVES or getattr(func, "__name__", None) in ("__get__", "__set__")


def _part_of_weight(found: Any, weight: nn.Parameter) -> Any:
    """What was made of a weight, such as its transpose, as a constant; else what was found."""
    is_made = isinstance(found, Tensor) and found is not weight and found.requires_grad
    return found.detach() if is_made else found


def _constant(value: Any) -> Any:
    """A weight without its gradient; nothing is kept for it then."""
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(map(_constant, value))
    is_weight = isinstance(value, nn.Parameter) and value.requires_grad
    return value.detach() if is_weight else value
