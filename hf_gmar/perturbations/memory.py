"""How many perturbed copies of an image fit into memory."""

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
from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar._utils.validation import check_option
from hf_gmar.perturbations.base import BoundPerturbation, Perturbation
from hf_gmar.perturbations.pixels import MeanColour


class LiveBytes(TorchDispatchMode):
    """Count bytes of the tensors that this thread makes inside, as long as they live.

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
        result = func(*args, **kwargs)
        # A view, or what was changed in place, is in memory that a tensor had before.
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
    model: Callable[..., Any],
    pixels: Tensor,
    budget_bytes: int,
    *,
    perturbation: Perturbation | None = None,
    autocast: torch.dtype | None = None,
    forward_kwargs: Mapping[str, Any] | None = None,
) -> int:
    """The ``batch`` for ``bind``: how many copies of an image fit into so much memory.

    Bytes of tensors are counted in a forward of one copy and in one of two, once for each model,
    size of image and way to run it.

    Args:
        model: a model as every method takes it, or the adapter of one.
        pixels: pixel values of an image, (1, channels, height, width).
        budget_bytes: memory that a forward may take beside the model's weights.
        perturbation: whose forwards are measured; ``None`` for :class:`MeanColour`.
        autocast: see :meth:`~hf_gmar.perturbations.base.Perturbation.bind`.
        forward_kwargs: see :meth:`~hf_gmar.perturbations.base.Perturbation.bind`.

    Returns:
        At least 1, also where one copy needs more than the budget.

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
    way = (perturbation, autocast, repr(forward_kwargs), pixels.dtype, tuple(pixels.shape))
    key = (*way, implementations_of(vision_model), vision_model.dtype, vision_model.device)
    requirements = _REQUIREMENTS.setdefault(module, {})
    if key not in requirements:
        requirements[key] = _measure(bound)
    return max(1, min((budget_bytes - shared) // per for shared, per in requirements[key] if per))


_REQUIREMENTS: WeakKeyDictionary[nn.Module, dict[Any, set[tuple[int, int]]]] = WeakKeyDictionary()
"""Bytes that all copies share, and those of each copy, for each model and way to run it."""


def _measure(bound: BoundPerturbation) -> set[tuple[int, int]]:
    """Bytes that copies share and bytes of each copy, at every step of a forward.

    More copies may have their peak at another step than one copy has.
    """
    histories = []
    for copies in (1, 2):
        with LiveBytes() as live:
            bound.scores(torch.ones(copies, *bound.grid, dtype=torch.bool))
        histories.append(live.history)
    single, double = histories
    if len(single) != len(double):  # other steps: nothing counts as shared, to be safe
        return {(0, max(single))}
    return {(2 * one - two, two - one) for one, two in zip(single, double, strict=True)}
