"""The number of perturbed copies of an image that fit into memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, UntypedStorage, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_gmar._core.attention import implementations_of
from hf_gmar._core.model_adapter import ModelAdapter, ModelLike
from hf_gmar._utils.validation import check_option
from hf_gmar.perturbations.base import BoundPerturbation, Perturbation
from hf_gmar.perturbations.pixels import MeanColour


class LiveBytes(TorchDispatchMode):
    """Count the bytes of live tensors that this thread allocates inside the context.

    The count is the same on every device. Tensors from before and workspace inside PyTorch
    functions do not count.

    Attributes:
        now: live bytes.
        history: live bytes after each allocation and each release.

    Example:
        >>> import torch
        >>> with LiveBytes() as live:
        ...     sums = [torch.ones(10).sum() for _ in range(3)]
        >>> live.now, live.peak
        (12, 52)
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.history: list[int] = []

    @property
    def peak(self) -> int:
        """The maximum of live bytes."""
        return max(self.history, default=0)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,  # the signature is PyTorch's
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Count the tensors that a function allocates."""
        kwargs = kwargs or {}
        before = {id(storage) for storage in _storages((args, kwargs))}
        result = func(*args, **kwargs)
        # A view or an in-place result shares the memory of an argument.
        for storage in _storages(result):
            if id(storage) not in before:
                before.add(id(storage))
                self._add(storage.nbytes())
                weakref.finalize(storage, self._add, -storage.nbytes())
        return result

    def _add(self, count: int) -> None:
        self.now += count
        self.history.append(self.now)


def _storages(values: Any) -> Iterator[UntypedStorage]:
    return (leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def max_batch_size(
    model: ModelLike,
    pixels: Tensor,
    budget_bytes: int,
    *,
    perturbation: Perturbation | None = None,
    autocast: torch.dtype | None = None,
    forward_kwargs: Mapping[str, Any] | None = None,
) -> int:
    """Return the largest ``batch`` for ``bind`` within a memory budget.

    Tensor bytes are counted in a forward of one copy and a forward of two copies, once for each
    model, image size and set of options.

    Args:
        model: a model in any form that methods take, or its adapter.
        pixels: pixel values of an image, (1, channels, height, width).
        budget_bytes: memory for a forward, without the model's weights.
        perturbation: the measured perturbation; ``None`` for :class:`MeanColour`.
        autocast: see :meth:`~hf_gmar.perturbations.base.Perturbation.bind`.
        forward_kwargs: see :meth:`~hf_gmar.perturbations.base.Perturbation.bind`.

    Returns:
        At least 1, even if one copy needs more than the budget.

    Raises:
        OptionError: the budget is no whole number >= 1.

    Example:
        >>> from hf_gmar import load_model
        >>> max_batch_size(load_model("bundled").model, torch.zeros(1, 3, 96, 96), 1)
        1
    """
    check_option("budget_bytes", budget_bytes, range(1, 2**63))
    adapter, perturbation = ModelAdapter.of(model), perturbation or MeanColour()
    bound = perturbation.bind(
        adapter, pixels, batch=2, autocast=autocast, forward_kwargs=forward_kwargs
    )
    vision_model = adapter.vision_model
    module = adapter.model if isinstance(adapter.model, nn.Module) else adapter.backbone
    settings = (perturbation, autocast, repr(forward_kwargs), pixels.dtype, tuple(pixels.shape))
    key = (*settings, implementations_of(vision_model), vision_model.dtype, vision_model.device)
    requirements = _REQUIREMENTS.setdefault(module, {})
    if key not in requirements:
        requirements[key] = _measure(bound)
    return max(1, min((budget_bytes - shared) // per for shared, per in requirements[key] if per))


_REQUIREMENTS: WeakKeyDictionary[nn.Module, dict[Any, set[tuple[int, int]]]] = WeakKeyDictionary()
"""Bytes shared by all copies, and bytes of each copy, for each model and set of options."""


def _measure(bound: BoundPerturbation) -> set[tuple[int, int]]:
    """Measure shared bytes and bytes of each copy at every step of a forward.

    The step with the peak may depend on the number of copies.
    """
    histories = []
    for copies in (1, 1, 2):  # the first forward makes tensors that later ones reuse
        with LiveBytes() as live:
            bound.scores(torch.ones(copies, *bound.grid, dtype=torch.bool))
        histories.append(live.history)
    _, single, double = histories
    if len(single) != len(double):  # different steps: assume that nothing is shared
        return {(0, max(single))}
    return {(2 * x1 - x2, x2 - x1) for x1, x2 in zip(single, double, strict=True)}
