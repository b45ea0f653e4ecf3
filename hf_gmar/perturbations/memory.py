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
from hf_gmar.perturbations.base import Perturbation, Perturbed
from hf_gmar.perturbations.pixels import MeanColour


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


def max_batch_size(
    adapter: ModelAdapter,
    pixels: Tensor,
    budget_bytes: int,
    *,
    perturbation: Perturbation | None = None,
    autocast: torch.dtype | None = None,
    forward_kwargs: Mapping[str, Any] | None = None,
) -> int:
    """How many copies of an image may run together within so much memory: the ``batch`` of begin.

    What a copy needs is measured: bytes of tensors are counted in a forward of one copy and in one
    of two, once for each model, size of image and way to run it.

    Args:
        subject: the model.
        pixels: pixel values of an image, (1, channels, height, width).
        budget_bytes: memory that a forward may take beside the model's weights.
        perturbation: whose forwards are measured; :class:`MeanColour` if none is said.
        autocast: see :meth:`~hf_gmar.perturbations.base.Perturbation.bind`.
        forward_kwargs: see :meth:`~hf_gmar.perturbations.base.Perturbation.bind`.

    Returns:
        At least 1, also where one copy needs more than the budget.

    Raises:
        OptionError: the budget is no whole number >= 1.

    Example:
        >>> from hf_gmar import load_model
        >>> adapter = ModelAdapter.of(load_model("bundled").model)
        >>> max_batch_size(adapter, torch.zeros(1, 3, 96, 96), 1)
        1
    """
    check_option("budget_bytes", budget_bytes, range(1, 2**63))
    wanted = perturbation or MeanColour()
    begun = wanted.bind(adapter, pixels, batch=2, autocast=autocast, forward_kwargs=forward_kwargs)
    vision_model = adapter.vision_model
    model = adapter.model if isinstance(adapter.model, nn.Module) else adapter.backbone
    way = (wanted, autocast, repr(forward_kwargs), pixels.dtype, tuple(pixels.shape))
    key = (*way, implementations_of(vision_model), vision_model.dtype, vision_model.device)
    known = _NEEDS.setdefault(model, {})
    if key not in known:
        known[key] = _needs(_history(begun, 1), _history(begun, 2))
    fit = [(budget_bytes - shared) // each for shared, each in known[key] if each]
    return max(1, min(fit))


_NEEDS: WeakKeyDictionary[nn.Module, dict[Any, set[tuple[int, int]]]] = WeakKeyDictionary()
"""Bytes that all copies share, and those of each, for each model and way to run it."""


def _needs(one: list[int], two: list[int]) -> set[tuple[int, int]]:
    """What a forward needs at its steps, as bytes that copies share and bytes of each.

    More copies may have their peak at another step than one has, so every step counts.
    """
    if len(one) != len(two):  # other steps: nothing is taken for shared, which is on the safe side
        return {(0, max(one))}
    return {(2 * first - second, second - first) for first, second in zip(one, two, strict=True)}


def _history(begun: Perturbed, copies: int) -> list[int]:
    live = LiveBytes()
    with live:
        begun.scores(torch.ones(copies, *begun.grid, dtype=torch.bool))
    return live.history
