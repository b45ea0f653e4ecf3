"""The base of perturbations: class scores of an image without some of its patches.

A perturbation is bound to one image; the replacement of patches is computed once. The bound
perturbation scores any number of copies, each with other missing patches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hf_gmar._core.execution import check_finite, exclusive_eval
from hf_gmar._core.inputs import checked_request, size_errors
from hf_gmar._core.model_adapter import ModelAdapter, ModelLike
from hf_gmar._utils.validation import check_option
from hf_gmar.errors import InputError, ModelOutputError, OptionError
from hf_gmar.perturbations.token_removal import fewest_patches


@dataclass(frozen=True)
class PerturbationInput:
    """One image for a model.

    Attributes:
        adapter: the model.
        pixels: pixel values, (1, channels, height, width).
        key: a name that identifies the image, or ``None``.
    """

    adapter: ModelAdapter
    pixels: Tensor
    key: str | None

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.adapter.layout.grid(*self.pixels.shape[-2:])


@dataclass(frozen=True)
class CopyPlan:
    """How copies of an image are made and run, for a ``keep_mask`` (K, rows, columns).

    Attributes:
        pixels: maps the mask to pixel values, (K, channels, height, width).
        inside: maps the mask to the context of the forward.
        same_count: copies in one forward must have equally many patches.
        one_by_one: each copy needs its own forward.
    """

    pixels: Callable[[Tensor], Tensor]
    inside: Callable[[Tensor], AbstractContextManager[None]] = lambda _: nullcontext()
    same_count: bool = False
    one_by_one: bool = False

    def batches(self, keep_mask: Tensor, max_size: int) -> Iterator[Tensor]:
        """Yield the indices of the copies in each forward, at most ``max_size``."""
        groups = [torch.arange(len(keep_mask))]
        if self.same_count:
            counts = keep_mask.flatten(1).sum(1)
            groups = [(counts == count).nonzero()[:, 0] for count in counts.unique()]
        for group in groups:
            yield from group.split(1 if self.one_by_one else max_size)


@dataclass(frozen=True)
class Perturbation(ABC):
    """A way to remove patches from an image.

    Attributes:
        name: its name in settings and results.
        soft: whether a patch may be partly missing.
        summary: the replacement of a missing patch, for tables.
        source: the paper that defines it.
    """

    name: ClassVar[str]
    soft: ClassVar[bool]
    summary: ClassVar[str]
    source: ClassVar[str]

    def fewest(self, adapter: ModelAdapter) -> int:
        """Minimum number of kept patches: 1 if attention or pooling would else have no token."""
        return 0 if self.soft else fewest_patches(adapter)

    def bind(
        self,
        model: ModelLike,
        pixels: Tensor,
        *,
        batch: int = 8,
        autocast: torch.dtype | None = None,
        key: str | None = None,
        forward_kwargs: Mapping[str, Any] | None = None,
    ) -> BoundPerturbation:
        """Bind the perturbation to one image.

        Args:
            model: a model in any form that methods take, or its adapter.
            pixels: pixel values of the image, (1, channels, height, width).
            batch: maximum number of copies in one forward.
            autocast: dtype of PyTorch's autocast for the forwards, ``torch.bfloat16`` or
                ``torch.float16``.
            key: a name of the image, which seeds random numbers; ``None`` seeds them by its pixels.
            forward_kwargs: further keyword arguments of the model's forward.

        Raises:
            InputError: not exactly one image, or pixels that the model does not take.
            OptionError: a batch below 1, another autocast dtype, or an unknown keyword.
            UnsupportedModelError: this perturbation does not apply to the model.
        """
        adapter = ModelAdapter.of(model)
        adapter.check_images("a perturbation")
        request = checked_request(adapter, pixels, None, dict(forward_kwargs or {}))
        images = len(request.inputs)
        if images != 1:
            raise InputError(
                f"one image is perturbed at a time, got {images}; call bind for each image"
            )
        check_option("batch", batch, range(1, 1_000_001))
        if autocast not in (None, torch.bfloat16, torch.float16):
            raise OptionError(
                f"autocast must be None, torch.bfloat16 or torch.float16, got {autocast!r}"
            )
        image = PerturbationInput(adapter, request.inputs.detach(), key)
        return BoundPerturbation(self, image, self.copies(image), batch, autocast, request.kwargs)

    @abstractmethod
    def copies(self, image: PerturbationInput) -> CopyPlan:
        """Return how copies of this image are made and run."""


@dataclass(frozen=True)
class BoundPerturbation:
    """A perturbation of one image, see :meth:`Perturbation.bind`.

    Attributes:
        perturbation: the perturbation.
        image: the image, with its model.
        copies: how copies of the image are made.
        batch: maximum number of copies in one forward.
        autocast: dtype of autocast, or ``None``.
        forward_kwargs: keywords of the model's forward.
    """

    perturbation: Perturbation
    image: PerturbationInput
    copies: CopyPlan
    batch: int
    autocast: torch.dtype | None
    forward_kwargs: Mapping[str, Any]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image.grid

    def scores(self, keep_mask: Tensor) -> Tensor:
        """Compute class scores of copies of the image, each with other missing patches.

        Batching changes scores only by rounding.

        Args:
            keep_mask: bool (K, rows, columns), True for a kept patch of each of K copies; or floats
                from 0 (missing) to 1 (kept) if the perturbation is soft.

        Returns:
            Scores (K, C) before any softmax, without gradients, in float32 or in float64 for a
            float64 model, on the model's device.

        Raises:
            InputError: another shape or type, or too few kept patches.
            UnsupportedModelError: this perturbation does not apply to the model.
            ModelOutputError: the model returns no scores (K, C), or scores that are not finite.
        """
        keep_mask = self._checked(keep_mask)
        with exclusive_eval(self.image.adapter), torch.no_grad(), self._precision():
            batches = [
                (indices, self._batch_scores(keep_mask[indices]))
                for indices in self.copies.batches(keep_mask, self.batch)
            ]
        scores = torch.cat([scores for _, scores in batches])
        check_finite(scores, (), "attention")
        order = torch.cat([indices for indices, _ in batches]).argsort()
        return scores[order.to(scores.device)]

    def _precision(self) -> AbstractContextManager[Any]:
        """Return the autocast context of the forwards."""
        if self.autocast is None:
            return nullcontext()
        kind = self.image.pixels.device.type
        # Weights cast here have no graph, so a caller's autocast must not cache them.
        cache = not torch.is_autocast_enabled(kind)
        return torch.autocast(kind, dtype=self.autocast, cache_enabled=cache)

    def _batch_scores(self, keep_mask: Tensor) -> Tensor:
        """Compute scores (K, C) of the copies in one forward."""
        adapter, pixels = self.image.adapter, self.copies.pixels(keep_mask)
        with size_errors(adapter, pixels), self.copies.inside(keep_mask):
            scores = adapter(pixels, **self.forward_kwargs)
            if scores.dim() != 2 or len(scores) != len(pixels):
                raise ModelOutputError(
                    f"one row of class scores is needed for each of {len(pixels)} copies of an "
                    f"image, but the model gave {tuple(scores.shape)}"
                )
        return scores if scores.dtype == torch.float64 else scores.float()

    def _checked(self, keep_mask: Any) -> Tensor:
        is_tensor = isinstance(keep_mask, Tensor)
        fits = is_tensor and keep_mask.dim() == 3 and keep_mask.shape[1:] == self.grid
        if not fits or not len(keep_mask):
            got = tuple(keep_mask.shape) if is_tensor else type(keep_mask).__name__
            raise InputError(
                f"a tensor (copies, {self.grid[0]}, {self.grid[1]}) says which patches of each "
                f"copy are kept, got {got}"
            )
        checked: Tensor = keep_mask.detach().cpu()
        name, fewest = self.perturbation.name, self.perturbation.fewest(self.image.adapter)
        if checked.dtype != torch.bool:
            self._check_soft(name, checked)
        elif (count := int(checked.flatten(1).sum(1).min())) < fewest:
            raise InputError(
                f"{name} needs at least {fewest} patch of this model's, as there is nothing else "
                f"to attend to or to pool; one of the copies has {count}"
            )
        return checked

    def _check_soft(self, name: str, keep_mask: Tensor) -> None:
        if not self.perturbation.soft:
            raise InputError(
                f"with {name} a patch is there or missing, so a bool tensor is needed; got "
                f"{keep_mask.dtype}"
            )
        if not keep_mask.is_floating_point() or not ((keep_mask >= 0) & (keep_mask <= 1)).all():
            raise InputError(
                f"{name} takes a bool tensor, or floats from 0 (missing) to 1 (there); got "
                f"{keep_mask.dtype}{' with other values' if keep_mask.is_floating_point() else ''}"
            )
