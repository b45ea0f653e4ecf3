"""Linear layers under the gamma rule of relevance, which favours what agrees with the output.

Of an output z = sum of c over the inputs and the bias, with contributions c = x w, each
contribution of the sign of z counts 1 + gamma times: its share of the relevance is c' / z', with
z' the sum of those. A gamma of zero is the epsilon rule.

Source: Montavon et al., "Layer-Wise Relevance Propagation: An Overview", 2019, for activations
that are >= 0; Achtibat et al., ICML 2024 (arXiv 2402.05602), for those of either sign.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


def gamma_linear(value: Tensor, weight: Tensor, bias: Tensor | None, gamma: float) -> Tensor:
    """A linear layer with constant weights; the gradient of its input is relevance / input."""
    found: Tensor = _GammaLinear.apply(value, weight, bias, gamma)  # type: ignore[no-untyped-call]
    return found


class _GammaLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value: Tensor, weight: Tensor, bias: Tensor | None, gamma: float
    ) -> Tensor:
        output = functional.linear(value, weight, bias)
        favoured = output + gamma * _agreeing(value, weight, bias, output)
        factor = torch.where(favoured == 0, 0, output / favoured)
        ctx.save_for_backward(factor, output > 0, value > 0)
        ctx.weight, ctx.gamma = weight, gamma
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        factor, output_above, value_above = ctx.saved_tensors
        weight: Tensor = ctx.weight
        gradient = (gradient * factor).to(weight.dtype)
        above = gradient * output_above
        whole = gradient @ weight
        # Weights by which a value above zero agrees with the output; one below does by the others.
        agrees = above @ weight.clamp(min=0) + (gradient - above) @ weight.clamp(max=0)
        more = torch.where(value_above, agrees, whole - agrees)
        return whole + ctx.gamma * more, None, None, None


def _agreeing(value: Tensor, weight: Tensor, bias: Tensor | None, output: Tensor) -> Tensor:
    """The sum of the contributions that have the sign of the output."""
    above = functional.linear(
        value.clamp(min=0), weight.clamp(min=0), None if bias is None else bias.clamp(min=0)
    ) + functional.linear(value.clamp(max=0), weight.clamp(max=0))
    return torch.where(output > 0, above, output - above)
