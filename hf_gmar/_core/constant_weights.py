"""A forward in which weights are constants, for the calling thread alone.

A :class:`torch.overrides.TorchFunctionMode` sees each call of a PyTorch function that its thread
makes. The model itself is not changed, and nothing is kept for gradients of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hf_gmar._core.threads import explanation_depth

# Moves and reads of attributes must get the weight itself: accelerate moves weights that come from
# another device or from disk.
_MOVES = (Tensor.to, Tensor.cpu, Tensor.cuda)


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
        is_move = func in _MOVES or getattr(func, "__name__", None) in ("__get__", "__set__")
        if is_move and args and isinstance(args[0], nn.Parameter):
            result = func(*args, **kwargs)
            # What is made of a weight, such as its transpose, is a constant; the weight is not.
            is_made = isinstance(result, Tensor) and result is not args[0] and result.requires_grad
            return result.detach() if is_made else result
        constants = {name: _constant(value) for name, value in kwargs.items()}
        return self.call(func, tuple(map(_constant, args)), constants)

    def call(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Make a call whose weights are constants."""
        return func(*args, **kwargs)

    @property
    def acts(self) -> bool:
        """Whether no explanation runs inside the one that entered the mode, by a hook."""
        return explanation_depth() == self._depth

    def __enter__(self) -> Self:
        self._depth = explanation_depth()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self


def _constant(value: Any) -> Any:
    """A weight without its gradient; nothing is kept for it then."""
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(map(_constant, value))
    is_weight = isinstance(value, nn.Parameter) and value.requires_grad
    return value.detach() if is_weight else value
