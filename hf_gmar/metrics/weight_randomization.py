"""A model that loses its weights, from the head down, for the test of Adebayo et al."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_gmar._core.attention import configs_of
from hf_gmar._core.execution import exclusive_eval, graph_enabled
from hf_gmar._core.inputs import checked_request, size_errors
from hf_gmar._core.layers import layer_modules
from hf_gmar._core.model_adapter import ModelAdapter, unwrapped
from hf_gmar._core.request import ForwardRequest
from hf_gmar._core.threads import lock_models
from hf_gmar._core.token_layout import ReadoutSpec
from hf_gmar._utils.validation import check_option
from hf_gmar.errors import UnsupportedModelError


class Cascade:
    """A copy of a model whose topmost parts can have new weights.

    The parts are what is above the layers (norm, pooling, class head), then each layer from the top
    down, then what is below them in the vision tower. New weights are normal numbers with the mean
    and the standard deviation that each tensor had: a tensor whose values are all the same stays.
    They are drawn once, on the CPU, by NumPy, and so are the same on every machine.

    The user's model is neither changed nor run. The copy shares its weights' memory with it and
    has memory of its own for new weights alone.

    Source: Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018 (arXiv 1810.03292),
    cascading randomization. They draw from each layer's initialiser, which a trained model does not
    tell.

    Args:
        model: see :class:`~hf_gmar.methods.base.AttributionMethod`.
        pixels: pixel values (B, channels, height, width): the copy runs once, to see which weights
            are above the layers.
        seed: of the new weights.
        readout: which tokens a class head of your own reads.
        **forward_kwargs: further keyword arguments that the model's forward names.

    Raises:
        UnsupportedModelError: a model that can't be explained or copied, or whose layers can't be
            told.
        InputError, OptionError: inputs, a keyword or a seed that do not fit.

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
        model: Callable[..., Any],
        pixels: Tensor,
        seed: int = 0,
        readout: ReadoutSpec = None,
        **forward_kwargs: Any,
    ) -> None:
        check_option("seed", seed, range(2**32))
        self.seed = int(seed)
        with torch.inference_mode(False):
            self.model: Any = _copied(model, readout)
        adapter = ModelAdapter.of(self.model, readout)
        request = checked_request(adapter, pixels, None, forward_kwargs)
        with size_errors(adapter, request.inputs):
            self._parts = _parts(adapter, request)
        self._old = [{name: w.data for name, w in part.items()} for part in self._parts]
        self._new: list[dict[str, Tensor]] = []

    @property
    def parts(self) -> list[list[str]]:
        """Names of the weights of each part, topmost first."""
        return [list(part) for part in self._parts]

    def stages(self, count: int) -> list[int]:
        """How many parts have lost their weights after each of so many even stages."""
        check_option("stages", count, range(1, 1001))
        parts = len(self._parts)
        return sorted({max(1, round(parts * stage / count)) for stage in range(1, count + 1)})

    def randomize(self, parts: int) -> None:
        """Give the topmost parts new weights and all others their old ones.

        Raises:
            OptionError: there are not so many parts.
        """
        check_option("parts", parts, range(len(self._parts) + 1))
        for number in range(len(self._new), parts):
            random = np.random.default_rng([self.seed, number])
            with torch.inference_mode(False), torch.no_grad():
                new = {name: _drawn_like(w, random) for name, w in self._old[number].items()}
            self._new.append(new)
        for number, part in enumerate(self._parts):
            values = self._new[number] if number < parts else self._old[number]
            for name, parameter in part.items():
                parameter.data = values[name]


def randomized_models(
    model: Callable[..., Any],
    pixels: Tensor,
    stages: int = 4,
    seed: int = 0,
    readout: ReadoutSpec = None,
    **forward_kwargs: Any,
) -> Iterator[Any]:
    """The copy of a model after each stage in which it loses weights, from the head down.

    It is one copy that goes on from stage to stage, so ask it before the next. See
    :class:`Cascade`.

    Args:
        model: as all arguments but ``stages``, see :class:`Cascade`.
        pixels: see there.
        stages: in how many stages the whole model is randomized.
        seed: see there.
        readout: see there.
        **forward_kwargs: see there.

    Example:
        >>> from hf_gmar import load_model
        >>> model, pixels = load_model("bundled").model, torch.zeros(1, 3, 96, 96)
        >>> for lost in randomized_models(model, pixels, stages=2):
        ...     print(torch.equal(lost(pixels).logits, model(pixels).logits))
        False
        False
    """
    cascade = Cascade(model, pixels, seed, readout, **forward_kwargs)
    for parts in cascade.stages(stages):
        cascade.randomize(parts)
        yield cascade.model


def _copied(model: Any, readout: ReadoutSpec) -> Any:
    adapter = ModelAdapter.of(model, readout)
    modules = adapter.modules()
    # Locked: no other thread is changing its settings.
    with lock_models([*configs_of(adapter.vision_model), *modules]):
        # Parameters of their own, on the same memory: deepcopy takes what its memo has.
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
    """The weights by part, each once, by the name that they have in the model."""
    root, layers = adapter.modules()[0], layer_modules(adapter)
    weights = {name: w for name, w in root.named_parameters() if w.is_floating_point()}
    of_layers = [set(map(id, layer.parameters())) for layer in reversed(layers)]
    above = set(map(id, _above_layers(adapter, request, layers, list(weights.values()))))
    below = set(map(id, adapter.vision_model.parameters()))
    parts: list[dict[str, nn.Parameter]] = []
    for ids in (above, *of_layers, below):  # each takes what those before it have left
        parts.append({name: w for name, w in weights.items() if id(w) in ids})
        weights = {name: w for name, w in weights.items() if id(w) not in ids}
    return [part for part in parts if part]


def _above_layers(
    adapter: ModelAdapter,
    request: ForwardRequest,
    layers: list[nn.Module],
    weights: list[nn.Parameter],
) -> list[nn.Parameter]:
    """Those weights that reach the scores by another way than through a layer."""
    with exclusive_eval(adapter), graph_enabled(), _cut_after(layers):
        scores = request.call(adapter)
        if not weights or not scores.requires_grad:
            return []
        gradients = torch.autograd.grad(scores.sum(), weights, allow_unused=True)
    return [w for w, gradient in zip(weights, gradients, strict=True) if gradient is not None]


@contextmanager
def _cut_after(layers: list[nn.Module]) -> Iterator[None]:
    """Inside, no gradient goes through a layer's output."""
    with ExitStack() as stack:
        for layer in layers:
            handle = layer.register_forward_hook(lambda _module, _inputs, output: _cut(output))
            stack.callback(handle.remove)
        yield


def _cut(output: Any) -> Any:
    if isinstance(output, tuple):
        return tuple(map(_cut, output))
    return output.detach() if isinstance(output, Tensor) else output


def _drawn_like(weight: Tensor, random: np.random.Generator) -> Tensor:
    """Normal numbers with the weight's mean and standard deviation."""
    numbers = torch.from_numpy(random.standard_normal(tuple(weight.shape), dtype=np.float32))
    exact = weight.detach().cpu().double()
    drawn = exact.mean() + exact.std(correction=0) * numbers.double()
    return drawn.to(weight.device, weight.dtype)
