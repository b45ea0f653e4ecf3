"""One call of a model, and the gradient that a method needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from torch import Tensor

from hf_gmar._core.model_adapter import ModelAdapter


@dataclass(frozen=True)
class ForwardRequest:
    """One call to the model.

    Attributes:
        inputs: pixel values, (B, channels, height, width).
        args: positional arguments of the model after the inputs.
        kwargs: keyword arguments of the model.
        start_layer: the lowest explained layer.
        stop_layer: one more than the highest explained layer, ``None`` for the top.
        gradient: the score whose gradient with respect to the attention is needed.
        gradient_start: the lowest layer whose gradient is needed; explained layers below it give
            attention alone.
        chunk_size: query rows in a block of the streaming engine, ``None`` to choose.
        checkpoint: let the streaming engine recompute activations instead of storing them.
    """

    inputs: Tensor
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    start_layer: int = 0
    stop_layer: int | None = None
    gradient: GradientOf = "score"
    gradient_start: int = 0
    chunk_size: int | None = None
    checkpoint: bool = False

    def layers(self, adapter: ModelAdapter) -> range:
        """The explained layers."""
        return range(adapter.layers)[self.start_layer : self.stop_layer]

    def gradient_layers(self, adapter: ModelAdapter) -> range:
        """The explained layers whose gradient is needed: the top ones, or none."""
        layers = self.layers(adapter)
        if self.gradient == "none":
            return layers[:0]
        return range(max(layers.start, self.gradient_start), layers.stop)

    def leaf(self) -> Tensor:
        """Return a copy of the inputs at which a graph starts."""
        copy: Tensor = _plain(self.inputs).clone().requires_grad_()
        return copy

    def call(self, adapter: ModelAdapter, inputs: Tensor | None = None) -> Tensor:
        """Run the model without the caller's graph; ``inputs`` replaces the request's inputs."""
        inputs = _plain(self.inputs) if inputs is None else inputs
        args = tuple(_plain(value) for value in self.args)
        kwargs = {name: _plain(value) for name, value in self.kwargs.items()}
        return adapter(inputs, *args, **kwargs)


GradientOf: TypeAlias = Literal["score", "layers", "none"]
"""The gradient that a method needs: of the model's score, of each layer's own score, or none."""


def _plain(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    # Autograd can't save tensors made in inference mode; a copy made outside is ordinary.
    return value.clone() if value.is_inference() else value.detach()
