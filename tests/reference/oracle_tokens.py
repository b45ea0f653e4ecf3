"""What the methods on tokens are, a second time: plain loops, one image at a time.

Nothing here imports hf_gmar. Relevance is propagated as relevance, from the weights of a ViT: each
step takes what the step above gave and says what each of its inputs gets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.reference.oracles import vision_part

Array = NDArray[np.float64]


def layers(model: Any) -> list[nn.Module]:
    """The layers of the vision part, by their names."""
    named = vision_part(model).named_modules()
    return [part for name, part in named if re.search(r"(^|\.)layers?\.\d+$", name)]


def entering(
    model: Any, image: Tensor, target: int, layer: int, kwargs: Mapping[str, Any]
) -> tuple[Array, Array]:
    """The tokens (N, C) of an image that enter a layer, and the gradient of a score by them."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, args: Any) -> None:
        args[0].retain_grad()
        seen.append(args[0])

    handle = layers(model)[layer].register_forward_pre_hook(keep)
    output = model(image[None], **kwargs)
    handle.remove()
    scores = output if isinstance(output, Tensor) else output.logits
    scores[0, target].backward()
    (tokens,) = seen
    assert tokens.grad is not None
    return _array(tokens[0]), _array(tokens.grad[0])


def grad_cam(tokens: Array, gradient: Array) -> Array:
    """Grad-CAM of patch tokens (P, C): a value for each patch."""
    patches, channels = tokens.shape
    found = np.zeros(patches)
    for channel in range(channels):
        weight = sum(gradient[patch, channel] for patch in range(patches)) / patches
        for patch in range(patches):
            found[patch] += weight * tokens[patch, channel]
    return np.array([value if value > 0 else 0.0 for value in found])


def input_x_gradient(tokens: Array, gradient: Array) -> Array:
    """Gradient x input of patch tokens (P, C): a value for each patch."""
    found = np.zeros(len(tokens))
    for patch, (values, slopes) in enumerate(zip(tokens, gradient, strict=True)):
        for value, slope in zip(values, slopes, strict=True):
            found[patch] += value * slope
    return found


class Relevance(NamedTuple):
    """Where the relevance of a logit went.

    Attributes:
        tokens: of each token that enters the lowest layer, (N,).
        layers: of each token that enters each layer, lowest first, (N,) each.
        biases: what biases took.
        softmax: what the constant parts of the softmaxes took.
        logit: all that there was.
    """

    tokens: Array
    layers: list[Array]
    biases: float
    softmax: float
    logit: float


class VitRelevance:
    """AttnLRP of a ``ViTForImageClassification``, step by step from its weights."""

    def __init__(
        self, model: Any, gamma: float = 0.0, activation: Callable[[Array], Array] | None = None
    ) -> None:
        """Take the weights; gamma is of the gamma rule for linear layers.

        The activation of the MLPs is a GELU, if it is not another one.
        """
        self.gamma, self.activation = gamma, activation or _gelu
        self.weights = {name: _array(value) for name, value in model.state_dict().items()}
        self.heads = model.config.num_attention_heads
        self.depth = model.config.num_hidden_layers
        self.eps = model.config.layer_norm_eps
        self.biases = self.softmax = 0.0

    def of(self, tokens: Array, target: int) -> Relevance:
        """Propagate a logit down to the tokens (N, C) that enter the lowest layer."""
        self.biases = self.softmax = 0.0
        entered = [tokens]
        for index in range(self.depth):
            entered.append(self._layer(entered[-1], f"vit.layers.{index}"))
        top = self._norm("vit.layernorm", entered[-1])
        logits = self._linear("classifier", top[:1])
        relevance = np.zeros_like(logits)
        relevance[0, target] = logits[0, target]
        of_cls = self._linear_down("classifier", top[:1], relevance)
        below = np.zeros_like(top)
        below[:1] = of_cls
        below = self._norm_down("vit.layernorm", entered[-1], below)
        by_layer: list[Array] = []
        for index in reversed(range(self.depth)):
            below = self._layer_down(entered[index], f"vit.layers.{index}", below)
            by_layer.insert(0, below.sum(-1))
        return Relevance(by_layer[0], by_layer, self.biases, self.softmax, float(logits[0, target]))

    def _layer(self, x: Array, name: str) -> Array:
        middle = x + self._attention(self._norm(f"{name}.layernorm_before", x), name)
        return middle + self._mlp(self._norm(f"{name}.layernorm_after", middle), name)

    def _layer_down(self, x: Array, name: str, relevance: Array) -> Array:
        first = self._norm(f"{name}.layernorm_before", x)
        attended = self._attention(first, name)
        middle = x + attended
        second = self._norm(f"{name}.layernorm_after", middle)
        thought = self._mlp(second, name)
        kept, of_mlp = _shares([middle, thought], relevance)
        of_second = self._mlp_down(second, name, of_mlp)
        kept = kept + self._norm_down(f"{name}.layernorm_after", middle, of_second)
        kept, of_attention = _shares([x, attended], kept)
        of_first = self._attention_down(first, name, of_attention)
        return kept + self._norm_down(f"{name}.layernorm_before", x, of_first)

    def _linear(self, name: str, x: Array) -> Array:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def _linear_down(self, name: str, x: Array, relevance: Array) -> Array:
        """The share of x[i] w[o, i] in the sum over i and the bias.

        What has the sign of the sum counts 1 + gamma times.
        """
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        found = np.zeros_like(x)
        for token, output in enumerate(self._linear(name, x)):
            terms = np.column_stack([weight * x[token], bias])  # (out, in + 1)
            agrees = np.sign(terms) == np.sign(output)[:, None]
            terms = np.where(agrees, (1 + self.gamma) * terms, terms)
            shares = terms / terms.sum(1)[:, None] * relevance[token][:, None]
            found[token] = shares[:, :-1].sum(0)
            self.biases += float(shares[:, -1].sum())
        return found

    def _norm(self, name: str, x: Array) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + self.eps)
        found: Array = scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]
        return found

    def _norm_down(self, name: str, x: Array, relevance: Array) -> Array:
        """Bias by its share; length and weight pass relevance on; centring is a linear layer."""
        output, bias = self._norm(name, x), self.weights[f"{name}.bias"]
        self.biases += float((bias / output * relevance).sum())
        relevance = (output - bias) / output * relevance
        size = x.shape[-1]
        centring = np.eye(size) - np.full((size, size), 1 / size)
        return _linear_shares(x, centring, x @ centring.T, relevance)

    def _mlp(self, x: Array, name: str) -> Array:
        inside = self._linear(f"{name}.mlp.fc1", x)
        return self._linear(f"{name}.mlp.fc2", self.activation(inside))

    def _mlp_down(self, x: Array, name: str, relevance: Array) -> Array:
        inside = self._linear(f"{name}.mlp.fc1", x)
        active = self.activation(inside)
        relevance = self._linear_down(f"{name}.mlp.fc2", active, relevance)
        at_zero = self.activation(np.zeros_like(inside))  # like a bias; the rest is passed on
        of_zero = np.where(at_zero == 0, 0, at_zero / active * relevance)
        self.biases += float(of_zero.sum())
        return self._linear_down(f"{name}.mlp.fc1", x, relevance - of_zero)

    def _split(self, x: Array) -> list[Array]:
        return np.split(x, self.heads, axis=1)

    def _of_heads(self, x: Array, name: str) -> list[tuple[Array, Array, Array]]:
        parts = [self._split(self._linear(f"{name}.attention.{part}_proj", x)) for part in "qkv"]
        return list(zip(*parts, strict=True))

    def _attention(self, x: Array, name: str) -> Array:
        mixed = [_softmax(_products(q, k)) @ v for q, k, v in self._of_heads(x, name)]
        return self._linear(f"{name}.attention.o_proj", np.concatenate(mixed, axis=1))

    def _attention_down(self, x: Array, name: str, relevance: Array) -> Array:
        heads = self._of_heads(x, name)
        mixed = np.concatenate([_softmax(_products(q, k)) @ v for q, k, v in heads], axis=1)
        of_mixed = self._linear_down(f"{name}.attention.o_proj", mixed, relevance)
        down = [
            self._head_down(*head, part)
            for head, part in zip(heads, self._split(of_mixed), strict=True)
        ]
        below = np.zeros_like(x)
        for letter, parts in zip("qkv", zip(*down, strict=True), strict=True):
            whole = np.concatenate(parts, axis=1)
            below += self._linear_down(f"{name}.attention.{letter}_proj", x, whole)
        return below

    def _head_down(
        self, query: Array, key: Array, value: Array, relevance: Array
    ) -> tuple[Array, Array, Array]:
        scores = _products(query, key)
        attention = _softmax(scores)
        of_attention, of_value = _matmul_shares(attention, value, relevance)
        of_scores = np.zeros_like(scores)
        for row in range(len(scores)):
            total = of_attention[row].sum()
            for column in range(len(scores)):
                rest = of_attention[row, column] - attention[row, column] * total
                of_scores[row, column] = scores[row, column] * rest
        self.softmax += float(of_attention.sum() - of_scores.sum())
        scaled = key.T / np.sqrt(key.shape[1])
        of_query, of_key = _matmul_shares(query, scaled, of_scores)
        return of_query, of_key.T, of_value


def _products(query: Array, key: Array) -> Array:
    found: Array = query @ key.T / np.sqrt(key.shape[1])
    return found


def _softmax(scores: Array) -> Array:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    found: Array = powers / powers.sum(-1, keepdims=True)
    return found


def _gelu(x: Array) -> Array:
    return _array(torch.nn.functional.gelu(torch.from_numpy(x)))


def _shares(parts: list[Array], relevance: Array) -> list[Array]:
    """What the parts of a sum get of its relevance."""
    whole = np.sum(parts, axis=0)
    return [part / whole * relevance for part in parts]


def _linear_shares(x: Array, weight: Array, output: Array, relevance: Array) -> Array:
    found = np.zeros_like(x)
    for token in range(len(x)):
        contributions = weight * x[token]  # (out, in)
        found[token] = (contributions / output[token][:, None] * relevance[token][:, None]).sum(0)
    return found


def _matmul_shares(left: Array, right: Array, relevance: Array) -> tuple[Array, Array]:
    """Each term left[i, k] right[k, j] gives half of its relevance to either factor."""
    terms = left[:, :, None] * right[None]
    output = left @ right
    shared = terms / (2 * output[:, None]) * relevance[:, None]
    return shared.sum(2), shared.sum(0)


def _array(tensor: Tensor) -> Array:
    return tensor.detach().to(torch.float64).numpy()
