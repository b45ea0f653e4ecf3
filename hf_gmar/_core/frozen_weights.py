"""Run a forward with constant weights, for the calling thread alone.

A :class:`torch.overrides.TorchFunctionMode` intercepts each call of a PyTorch function in its
thread. The model is not changed, and nothing is saved for gradients of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from hf_gmar._core.threads import explanation_depth

# Moves and attribute reads must get the weight itself: accelerate loads weights from another device
# or from disk.
_MOVES = (Tensor.to, Tensor.cpu, Tensor.cuda)

# In evaluation on the CPU, PyTorch 2.13 gives a wrong gradient to the input of a batch of one image
# if the gradient of the output has the strides of a transposed one, as before tokens.
_BATCH_NORMS = (functional.batch_norm, torch.batch_norm)


_NO_WEIGHTS = {Tensor, int, float, bool, type(None), torch.dtype, torch.Size}


class FrozenWeightsMode(TorchFunctionMode):
    """Give this thread's PyTorch calls weights without gradients.

    A subclass overrides ``call`` to change calls further.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # the signature is PyTorch's
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Forward a call with constant weights."""
        kwargs = kwargs or {}
        if not self.acts:
            return func(*args, **kwargs)
        is_move = func in _MOVES or getattr(func, "__name__", None) in ("__get__", "__set__")
        if is_move and args and isinstance(args[0], nn.Parameter):
            result = func(*args, **kwargs)
            # A tensor derived from a weight, such as its transpose, is a constant.
            derived = isinstance(result, Tensor) and result is not args[0] and result.requires_grad
            return result.detach() if derived else result
        constants = {name: _constant(value) for name, value in kwargs.items()}
        result = self.call(func, tuple(map(_constant, args)), constants)
        if func in _BATCH_NORMS and result.requires_grad:
            result.register_hook(Tensor.contiguous)
        return result

    def call(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Call the function with constant weights."""
        return func(*args, **kwargs)

    @property
    def acts(self) -> bool:
        """Whether the mode's own explanation runs, and no nested one started by a hook."""
        return explanation_depth() == self._depth

    def __enter__(self) -> Self:
        self._depth = explanation_depth()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self


def _constant(value: Any) -> Any:
    """Detach weights; other values stay as they are."""
    if type(value) in _NO_WEIGHTS:  # quicker than the check of PyTorch
        return value
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(map(_constant, value))
    is_weight = isinstance(value, nn.Parameter) and value.requires_grad
    return value.detach() if is_weight else value
