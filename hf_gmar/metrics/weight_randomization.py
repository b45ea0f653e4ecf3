"""Cascading randomization of a model's weights, from the head down (Adebayo et al.)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_gmar._core.attention import configs_of
from hf_gmar._core.execution import exclusive_eval, graph_enabled
from hf_gmar._core.inputs import checked_request, size_errors
from hf_gmar._core.interrupts import deferred_signals
from hf_gmar._core.layers import layer_modules
from hf_gmar._core.model_adapter import ModelAdapter, ModelLike, unwrapped
from hf_gmar._core.request import ForwardRequest
from hf_gmar._core.threads import lock_models
from hf_gmar._core.token_layout import ReadoutSpec
from hf_gmar._utils.validation import check_option
from hf_gmar.errors import UnsupportedModelError


class Cascade:
    """A copy of a model whose topmost parts can get random weights.

    The parts are the modules above the layers (norm, pooling, class head), each layer from the top
    down, and the vision tower below the layers. New weights are normal, with the mean and standard
    deviation of the old tensor, so a constant tensor stays. NumPy draws them once on the CPU, so
    they are the same on every machine.

    The user's model is neither changed nor run. The copy shares the memory of its weights and
    allocates memory for the new weights only.

    Source: Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018 (arXiv 1810.03292),
    cascading randomization. They draw from each layer's initializer, which a trained model lacks.

    Args:
        model: see :class:`~hf_gmar.methods.base.AttributionMethod`.
        pixels: pixel values (B, channels, height, width); the copy runs once to find the weights
            above the layers.
        seed: seed of the new weights.
        readout: which tokens a class head of your own reads.
        **forward_kwargs: further keyword arguments that the model's forward names.

    Raises:
        UnsupportedModelError: the model can't be explained or copied, or its layers can't be
            found.
        InputError, OptionError: the inputs, a keyword or the seed do not fit.

    Attributes:
        model: the copy.

    Example:
        >>> from hf_gmar import load_model
        >>> cascade = Cascade(load_model("bundled").model, torch.zeros(1, 3, 96, 96))
        >>> len(cascade.parts), cascade.stages(4)
        (8, [2, 4, 6, 8])
    """

    def __init__(
        self,
        model: ModelLike,
        pixels: Tensor,
        seed: int = 0,
        readout: ReadoutSpec = None,
        **forward_kwargs: Any,
    ) -> None:
        check_option("seed", seed, range(2**32))
        self.seed = int(seed)
        with deferred_signals(), torch.inference_mode(False):
            self.model: Any = _copy(model, readout)
        adapter = ModelAdapter.of(self.model, readout)
        request = checked_request(adapter, pixels, None, forward_kwargs)
        with size_errors(adapter, request.inputs):
            self._parts = _parts(adapter, request)
        self._old = [{name: w.data for name, w in part.items()} for part in self._parts]
        self._new: list[dict[str, Tensor]] = []

    @property
    def parts(self) -> list[list[str]]:
        """The names of the weights of each part, topmost part first."""
        return [list(part) for part in self._parts]

    def stages(self, count: int) -> list[int]:
        """Return how many parts are randomized after each of ``count`` even stages."""
        check_option("stages", count, range(1, 1001))
        parts = len(self._parts)
        return sorted({max(1, round(parts * stage / count)) for stage in range(1, count + 1)})

    def randomize(self, parts: int) -> None:
        """Give the topmost parts their new weights, and all other parts their old weights.

        Raises:
            OptionError: the model has fewer parts.
        """
        check_option("parts", parts, range(len(self._parts) + 1))
        for number in range(len(self._new), parts):
            random = np.random.default_rng([self.seed, number])
            with deferred_signals(), torch.inference_mode(False), torch.no_grad():
                new = {name: _draw_like(w, random) for name, w in self._old[number].items()}
            self._new.append(new)
        for number, part in enumerate(self._parts):
            values = self._new[number] if number < parts else self._old[number]
            for name, parameter in part.items():
                parameter.data = values[name]


def randomized_models(
    model: ModelLike,
    pixels: Tensor,
    stages: int = 4,
    seed: int = 0,
    readout: ReadoutSpec = None,
    **forward_kwargs: Any,
) -> Iterator[Any]:
    """Yield the copy of a model after each stage of randomization, from the head down.

    All stages change the same copy, so use it before taking the next item.

    Args:
        model: see :class:`Cascade`.
        pixels: see :class:`Cascade`.
        stages: number of stages in which the whole model is randomized.
        seed: see :class:`Cascade`.
        readout: see :class:`Cascade`.
        **forward_kwargs: see :class:`Cascade`.

    Example:
        >>> from hf_gmar import load_model
        >>> model, pixels = load_model("bundled").model, torch.zeros(1, 3, 96, 96)
        >>> for randomized in randomized_models(model, pixels, stages=2):
        ...     print(torch.equal(randomized(pixels).logits, model(pixels).logits))
        False
        False
    """
    cascade = Cascade(model, pixels, seed, readout, **forward_kwargs)
    for parts in cascade.stages(stages):
        cascade.randomize(parts)
        yield cascade.model


def _copy(model: Any, readout: ReadoutSpec) -> Any:
    adapter = ModelAdapter.of(model, readout)
    modules = adapter.modules()
    # The lock keeps other threads from changing the model's settings.
    with lock_models([*configs_of(adapter.vision_model), *modules]):
        # New parameters on the same memory; deepcopy reuses the objects in its memo.
        memo: dict[int, Any] = {
            id(weight): nn.Parameter(weight.detach(), requires_grad=weight.is_floating_point())
            for module in modules
            for weight in module.parameters(recurse=False)
        }
        try:
            return copy.deepcopy(unwrapped(model), memo)
        except (RuntimeError, TypeError) as error:
            raise UnsupportedModelError(
                f"{type(adapter.backbone).__name__} can't be copied, which the loss of its weights "
                f"needs: {error}"
            ) from error


def _parts(adapter: ModelAdapter, request: ForwardRequest) -> list[dict[str, nn.Parameter]]:
    """Assign each weight to one part, by its name in the model."""
    root, layers = adapter.modules()[0], layer_modules(adapter)
    weights = {name: w for name, w in root.named_parameters() if w.is_floating_point()}
    of_layers = [set(map(id, layer.parameters())) for layer in reversed(layers)]
    above = set(map(id, _above_layers(adapter, request, layers, list(weights.values()))))
    below = set(map(id, adapter.vision_model.parameters()))
    parts: list[dict[str, nn.Parameter]] = []
    for ids in (above, *of_layers, below):  # a weight belongs to the first part that has it
        parts.append({name: w for name, w in weights.items() if id(w) in ids})
        weights = {name: w for name, w in weights.items() if id(w) not in ids}
    return [part for part in parts if part]


def _above_layers(
    adapter: ModelAdapter,
    request: ForwardRequest,
    layers: list[nn.Module],
    weights: list[nn.Parameter],
) -> list[nn.Parameter]:
    """Return the weights that influence the scores without passing through a layer."""
    with exclusive_eval(adapter), graph_enabled(), _cut_after(layers):
        scores = request.call(adapter)
        if not weights or not scores.requires_grad:
            return []
        gradients = torch.autograd.grad(scores.sum(), weights, allow_unused=True)
    return [w for w, gradient in zip(weights, gradients, strict=True) if gradient is not None]


@contextmanager
def _cut_after(layers: list[nn.Module]) -> Iterator[None]:
    """Stop the gradient at each layer's output inside the context."""
    with ExitStack() as stack:
        for layer in layers:
            handle = layer.register_forward_hook(lambda _module, _inputs, output: _cut(output))
            stack.callback(handle.remove)
        yield


def _cut(output: Any) -> Any:
    if isinstance(output, tuple):
        return tuple(map(_cut, output))
    return output.detach() if isinstance(output, Tensor) else output


def _draw_like(weight: Tensor, random: np.random.Generator) -> Tensor:
    """Draw normal numbers with the weight's mean and standard deviation."""
    numbers = torch.from_numpy(random.standard_normal(tuple(weight.shape), dtype=np.float32))
    exact = weight.detach().cpu().double()
    new_weight = exact.mean() + exact.std(correction=0) * numbers.double()
    return new_weight.to(weight.device, weight.dtype)
