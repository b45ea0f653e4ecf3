"""AttnLRP on a small ResNet, against the formula of the rules on plain matrices.

Each layer is written as a matrix, found by running it on one unit after the other. Nothing here
takes a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification

from hf_gmar import AttnLRP, InputXGradient

Layer: TypeAlias = Callable[[Tensor], Tensor]


def _resnet(activation: str) -> ResNetForImageClassification:
    """A ResNet of one block, with a projection in its shortcut and statistics of random images."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "embedding_size": 3, "hidden_sizes": [4], "depths": [1], "layer_type": "basic",
        "downsample_in_first_stage": True, "hidden_act": activation, "num_labels": 3,
    }  # fmt: skip
    config = ResNetConfig(**settings)
    model = ResNetForImageClassification(config).double()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
                module.momentum = None  # the statistics of the next images
        model.train()(torch.randn(8, 3, 12, 12, dtype=torch.float64))
    model.eval()
    return model


def _below(layer: Layer, x: Tensor, relevance: Tensor, gamma: float) -> Tensor:
    """The rule of an affine layer on x: R_j = sum over k of x_j w_jk / z_k R_k.

    With gamma, terms and biases with the sign of z_k count 1 + gamma times, also in the sum.
    """
    with torch.no_grad():
        bias = layer(torch.zeros_like(x)[None]).flatten()
        units = torch.eye(x.numel(), dtype=x.dtype).reshape(-1, *x.shape)
        weights = layer(units).flatten(1) - bias
    terms = torch.cat([x.reshape(-1, 1) * weights, bias[None]])
    counted = terms * (1 + gamma * (terms * terms.sum(0) > 0))
    shares = counted / counted.sum(0)
    return (shares * relevance.flatten()).sum(1)[:-1].reshape(x.shape)


def _below_maximum(x: Tensor, relevance: Tensor) -> Tensor:
    """Of a maximum over 3 x 3 with stride 2 and a border of 1: all to the largest value."""
    result = torch.zeros_like(x)
    for channel, row, column in torch.cartesian_prod(*map(torch.arange, relevance.shape)).tolist():
        top, left = max(2 * row - 1, 0), max(2 * column - 1, 0)
        window = x[channel, top : 2 * row + 2, left : 2 * column + 2]
        down, right = divmod(int(window.argmax()), window.shape[1])
        result[channel, top + down, left + right] += relevance[channel, row, column]
    return result


def _up(layers: Sequence[Layer], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x[None])[0].detach()
    return x


def _by_hand(
    model: ResNetForImageClassification, image: Tensor, target: int, gamma: float
) -> Tensor:
    """The relevance of each pixel and channel. Activations pass relevance on as it is."""

    def down(layers: Sequence[Layer], x: Tensor, relevance: Tensor) -> Tensor:
        """Through a convolution and its batch norm, which are one affine layer."""
        return _below(lambda maps: layers[1](layers[0](maps)), x, relevance, gamma)

    body: Any = model.resnet
    stem, block = body.embedder.embedder, body.encoder.stages[0].layers[0]
    parts: list[tuple[Layer, Layer]] = [
        (part.convolution, part.normalization)
        for part in (stem, block.layer[0], block.layer[1], block.shortcut)
    ]
    classifier: Any = model.classifier
    wide = stem.activation(_up(parts[0], image))
    narrow = nn.functional.max_pool2d(wide[None], 3, 2, 1)[0]
    middle = block.layer[0].activation(_up(parts[1], narrow))
    branch, skipped = _up(parts[2], middle), _up(parts[3], narrow)
    top = block.activation(branch + skipped)
    pooled = top.mean((1, 2))
    scores = classifier[1](pooled).detach()
    assert torch.allclose(scores, model(image[None]).logits[0])
    relevance = torch.zeros_like(scores)
    relevance[target] = scores[target]
    of_pooled = _below(classifier[1], pooled, relevance, gamma)
    of_top = _below(lambda maps: maps.mean((2, 3)), top, of_pooled, 0.0)
    shares = of_top / (branch + skipped)
    of_branch = down(parts[1], narrow, down(parts[2], middle, shares * branch))
    of_shortcut = down(parts[3], narrow, shares * skipped)
    return down(parts[0], image, _below_maximum(wide, of_branch + of_shortcut))


@pytest.mark.parametrize("gamma", [0.0, 0.25])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_a_resnet_by_hand(activation: str, gamma: float) -> None:
    model, target = _resnet(activation), 2
    image = torch.randn(3, 12, 12, dtype=torch.float64)
    expected = _by_hand(model, image, target, gamma)
    relevance = AttnLRP(model, gamma, resolution="pixel").attribute(image[None], target)[0]
    assert expected.abs().max() > 1e-3
    assert torch.allclose(relevance, expected, rtol=1e-9, atol=1e-12)
    # With a ReLU and without gamma, and there alone, it is input x gradient.
    plain = InputXGradient(model, resolution="pixel").attribute(image[None], target)[0]
    assert torch.allclose(plain, expected, rtol=1e-9) == (activation == "relu" and not gamma)
