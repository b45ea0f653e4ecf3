"""GMAR and its baselines a second time: plain loops and whole matrices, without the package.

Nothing here imports hf_gmar, takes a short cut or handles more than one image at a time, so that
an error in the package and the same error here would be two independent mistakes.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[np.float64]


class Trace(NamedTuple):
    """What one eager forward and backward for each image gave, in float64.

    Attributes:
        attention: (B, L, H, N, N), row = query.
        gradient: of the target's logit by that attention, of the same shape.
        readout: share of the class head's input that comes from each token, (B, N).
        prefix: tokens before the patches.
        grid: rows and columns of patches.
    """

    attention: Array
    gradient: Array
    readout: Array
    prefix: int
    grid: tuple[int, int]


class Reference(NamedTuple):
    """Patch map (B, rows, columns) and, of methods that have it, head importance (B, layers, H)."""

    patches: Array
    heads: Array | None


def trace(
    model: Any,
    images: Tensor,
    targets: Sequence[int] | None = None,
    forward_kwargs: Mapping[str, Any] | None = None,
    reads: str | None = None,
) -> Trace:
    """Run an eager copy of the model, image by image; ``None`` explains the top class.

    ``reads`` says what a head of the tests' own reads.
    """
    dense = _eager_copy(model)
    vision_model = vision_part(dense)
    attention, gradient, readouts = [], [], []
    for index, image in enumerate(images):
        output, seen = _seen(vision_model, dense, image[None], forward_kwargs or {})
        for layer in seen.attentions:
            layer.retain_grad()
        scores = output if isinstance(output, Tensor) else output.logits
        scores[0, int(scores.argmax()) if targets is None else targets[index]].backward()
        attention.append(np.stack([_array(layer[0]) for layer in seen.attentions]))
        gradient.append(np.stack([_array(layer.grad[0]) for layer in seen.attentions]))
        size = vision_model.config.patch_size
        height, width = (size, size) if isinstance(size, int) else size
        grid = images.shape[2] // height, images.shape[3] // width
        prefix, readout = read_out(dense, seen, grid[0] * grid[1], reads)
        readouts.append(readout)
    return Trace(np.stack(attention), np.stack(gradient), np.stack(readouts), prefix, grid)


def trace_of_cut_models(
    model: Any,
    images: Tensor,
    targets: Sequence[int] | None = None,
    forward_kwargs: Mapping[str, Any] | None = None,
    reads: str | None = None,
) -> Trace:
    """As ``trace``, but a layer's gradient is of the score of the model cut off above that layer.

    The explained class is that of the whole model.
    """
    whole = trace(model, images, targets, forward_kwargs, reads)
    if targets is None:
        output = _eager_copy(model)(images, **(forward_kwargs or {}))
        scores = output if isinstance(output, Tensor) else output.logits
        targets = scores.argmax(dim=1).tolist()
    layers = whole.attention.shape[1]
    gradients = []
    for kept in range(1, layers + 1):
        cut = copy.deepcopy(model)
        vision_model = vision_part(cut)
        (stack,) = [
            part
            for part in vision_model.modules()
            if isinstance(part, nn.ModuleList) and len(part) == layers and _are_layers(part)
        ]
        del stack[kept:]
        gradients.append(trace(cut, images, targets, forward_kwargs, reads).gradient[:, -1])
    return whole._replace(gradient=np.stack(gradients, axis=1))


def _are_layers(parts: nn.ModuleList) -> bool:
    return all("attention" in str(part).lower() for part in parts)


def _eager_copy(model: Any) -> Any:
    dense = copy.deepcopy(model).eval()
    vision_model = vision_part(dense)
    if vision_model.config._attn_implementation != "eager":
        vision_model.set_attn_implementation("eager")
    return dense.requires_grad_(True)


def vision_part(model: Any) -> Any:
    """The part of a model that turns pixels into tokens: in the tests' wrappers, and in CLIP's."""
    inside = getattr(model, "model", model)
    return getattr(inside, "vision_model", inside)


def _seen(
    vision_model: Any, model: Any, image: Tensor, kwargs: Mapping[str, Any]
) -> tuple[Any, Any]:
    """What the model gives for an image, and what its tower gave meanwhile, with attention."""
    plain, outputs = vision_model.forward, []

    def forward(*args: Any, **given: Any) -> Any:
        outputs.append(plain(*args, **{**given, "output_attentions": True}))
        return outputs[-1]

    with patch.object(vision_model, "forward", forward):
        output = model(image, **kwargs)
    return output, outputs[0]


def read_out(model: Any, seen: Any, patches: int, reads: str | None) -> tuple[int, Array]:
    """Tokens before the patches, and the readout over all tokens, written out by class."""
    inside = getattr(model, "model", model)
    name = type(inside).__name__
    if name == "SiglipModel":
        return 0, pooling_attention(inside.vision_model.head, seen.last_hidden_state[0])
    others = [0.0] * getattr(inside.config, "num_register_tokens", 0)
    others += [0.0] if name.startswith("DeiT") else []
    several = getattr(inside.config, "n_cls_tokens", 1)
    cls, both = ([1 / several] * several + others, 0.0), ([0.5, *others], 0.5)
    patches_alone = [0.0, *others], 1.0
    read: dict[str | None, tuple[list[float], float]] = {
        "ViTForImageClassification": cls,
        "ViTMSNForImageClassification": cls,
        "DeiTForImageClassification": cls,
        "DeiTForImageClassificationWithTeacher": ([0.5, 0.5], 0.0),
        "Dinov2ForImageClassification": both,
        "Dinov2WithRegistersForImageClassification": both,
        "CLIPForImageClassification": patches_alone,
        "MetaClip2ForImageClassification": patches_alone,
        "SiglipForImageClassification": ([], 1.0),
        "IJepaForImageClassification": ([], 1.0),
        "CLIPModel": cls,
        "MetaClip2Model": cls,
        "AltCLIPModel": cls,
        "ChineseCLIPModel": cls,
        "CLIPSegModel": cls,
        "cls": cls,
        "patches": patches_alone,
        "cls+patches": both,
        "tokens": ([1 / (1 + patches)], patches / (1 + patches)),
    }
    for pooled in ("BeitForImageClassification", "Data2VecVisionForImageClassification"):
        read[pooled] = patches_alone if getattr(inside.config, "use_mean_pooling", 0) else cls
    shares, rest = read[reads or name]
    return len(shares), np.array(shares + [rest / patches] * patches)


def pooling_attention(head: Any, tokens: Tensor) -> Array:
    """How SigLIP's pooling head looks at its tokens (N, hidden), as a mean over its heads."""
    inside = head.attention
    weight, bias = inside.in_proj_weight, inside.in_proj_bias
    hidden = tokens.shape[1]
    query = head.probe[0, 0] @ weight[:hidden].T + bias[:hidden]
    keys = tokens @ weight[hidden : 2 * hidden].T + bias[hidden : 2 * hidden]
    rows = []
    for part in range(inside.num_heads):
        size = hidden // inside.num_heads
        numbers = slice(part * size, (part + 1) * size)
        scores = keys[:, numbers] @ query[numbers] / size**0.5
        rows.append(torch.softmax(scores, dim=0))
    return _array(torch.stack(rows).mean(0))


def gmar(found: Trace, norm: str = "l1", alpha: float = 1.0, start_layer: int = 0) -> Reference:
    """GMAR by whole matrices: R = M[L] M[L-1] ... M[1], then the readout's row of R."""
    maps, importance = [], []
    for attention, gradient, readout in zip(*found[:3], strict=True):
        weights = [head_weights(layer, norm) for layer in gradient[start_layer:]]
        relevance = readout @ rollout(attention[start_layer:], weights, alpha)
        maps.append(relevance[found.prefix :].reshape(found.grid))
        importance.append(np.stack(weights))
    return Reference(np.stack(maps), np.stack(importance))


def attention_rollout(
    found: Trace,
    head_fusion: str = "mean",
    discard_ratio: float = 0.0,
    alpha: float = 1.0,
    start_layer: int = 0,
) -> Reference:
    """Rollout by whole matrices, each row of the fused attention with its largest entries alone."""
    fuse: Any = {"mean": np.mean, "max": np.max, "min": np.min}[head_fusion]
    maps = []
    for attention, readout in zip(found.attention, found.readout, strict=True):
        identity = np.eye(attention.shape[-1])
        product = identity
        for layer in attention[start_layer:]:
            fused = np.array(fuse(layer, axis=0))
            for query in range(len(fused)):
                smallest = sorted(range(len(fused)), key=list(fused[query]).__getitem__)
                fused[query, smallest[: int(discard_ratio * len(fused))]] = 0
                fused[query] /= fused[query].sum()
            product = (fused + alpha * identity) / (1 + alpha) @ product
        maps.append((readout @ product)[found.prefix :].reshape(found.grid))
    return Reference(np.stack(maps), None)


def raw_attention(found: Trace, layer: int = -1) -> Reference:
    """The readout's rows of one layer's attention, averaged over the heads."""
    maps = []
    for attention, readout in zip(found.attention, found.readout, strict=True):
        row = readout @ attention[layer].mean(axis=0)
        maps.append(row[found.prefix :].reshape(found.grid))
    return Reference(np.stack(maps), None)


def gradient_rollout(found: Trace, start_layer: int = 0) -> Reference:
    """R <- R + mean_h relu(A * G) R by whole matrices, from R = I; the readout's row of R - I."""
    maps = []
    for attention, gradient, readout in zip(*found[:3], strict=True):
        identity = np.eye(attention.shape[-1])
        relevance = identity
        for layer, slopes in zip(attention[start_layer:], gradient[start_layer:], strict=True):
            helpful = np.maximum(layer * slopes, 0).mean(axis=0)
            relevance = relevance + helpful @ relevance
        row = readout @ (relevance - identity)
        maps.append(row[found.prefix :].reshape(found.grid))
    return Reference(np.stack(maps), None)


def grad_sam(found: Trace, start_layer: int = 0) -> Reference:
    """The mean over layers and heads of A * relu(G), and over the queries of each token."""
    whole = found.attention[:, start_layer:] * np.maximum(found.gradient[:, start_layer:], 0)
    return _columns(found, whole)


def legrad(found: Trace, start_layer: int = 0) -> Reference:
    """The mean over layers, heads and queries of relu(G)."""
    return _columns(found, np.maximum(found.gradient[:, start_layer:], 0))


def _columns(found: Trace, whole: Array) -> Reference:
    """What (B, L, H, N, N) gives to each token, as a mean over all else."""
    maps = whole.mean(axis=(1, 2, 3))[:, found.prefix :]
    return Reference(maps.reshape(len(maps), *found.grid), None)


def head_effects(found: Trace) -> Array:
    """The sum of A * G of each head, (B, L, H)."""
    batch, layers, heads = found.attention.shape[:3]
    effects = np.zeros((batch, layers, heads))
    for place in np.ndindex(batch, layers, heads):
        effects[place] = np.trace(found.attention[place].T @ found.gradient[place])
    return effects


def head_weights(gradient: Array, norm: str) -> Array:
    """Importance of each head of one layer, from its gradient (H, N, N)."""
    scores = []
    for head in gradient:
        entries = head.flatten()
        if norm == "l1":
            scores.append(np.abs(entries).sum())
        else:
            scores.append(np.sqrt((entries * entries).sum()))
    total = sum(scores)
    return np.array([1 / len(scores) if total == 0 else score / total for score in scores])


def rollout(attention: Array, weights: Sequence[Array], alpha: float) -> Array:
    """The product of all layers' fused attention (L, H, N, N), with residuals."""
    identity = np.eye(attention.shape[-1])
    product = identity
    for heads, shares in zip(attention, weights, strict=True):
        fused = np.zeros_like(identity)
        for head, share in zip(heads, shares, strict=True):
            fused = fused + share * head
        product = ((fused + alpha * identity) / (1 + alpha)) @ product
    return product


def spread(patches: Array, height: int, width: int) -> Array:
    """The patch map (B, rows, columns) as pixels (B, height, width), pixel by pixel."""
    rows, columns = patches.shape[1:]
    pixels = np.empty((len(patches), height, width))
    for y in range(height):
        for x in range(width):
            pixels[:, y, x] = patches[:, y * rows // height, x * columns // width]
    return pixels


@contextmanager
def unrounded_softmax() -> Iterator[None]:
    """Let eager attention of a float64 model be float64 throughout.

    Transformers asks for its softmax in float32, whatever the model's precision. Rounded so, an
    attention of float64 carries errors of 1e-8 that have nothing to do with what is compared.
    """
    plain = nn.functional.softmax

    def softmax(scores: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if scores.dtype == torch.float64:
            kwargs.pop("dtype", None)
        return plain(scores, *args, **kwargs)

    with patch.object(nn.functional, "softmax", softmax):
        yield


def vit_logits(
    model: Any, image: Tensor, override: Mapping[int, Tensor] | None = None
) -> tuple[Tensor, list[Tensor]]:
    """The forward pass of a ViT for one image, from its weights alone.

    Args:
        model: a ``ViTForImageClassification``; only its ``state_dict`` and sizes are used.
        image: (channels, height, width).
        override: attention (H, N, N) that takes the place of what a layer computes.

    Returns:
        Logits (C,), and the attention of each layer.
    """
    weights: dict[str, Tensor] = model.state_dict()
    config = model.config

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + config.layer_norm_eps).sqrt()
        scaled: Tensor = centred / scale
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def heads(x: Tensor) -> Tensor:
        return x.reshape(len(x), config.num_attention_heads, -1).transpose(0, 1)

    size, kernel = config.patch_size, weights["vit.embeddings.patch_embeddings.projection.weight"]
    cells = image.unfold(1, size, size).unfold(2, size, size)  # channel, row, column, y, x
    cells = cells.permute(1, 2, 0, 3, 4).flatten(2).flatten(0, 1)
    tokens = cells @ kernel.flatten(1).T
    tokens = tokens + weights["vit.embeddings.patch_embeddings.projection.bias"]
    tokens = torch.cat([weights["vit.embeddings.cls_token"][0], tokens])
    tokens = tokens + weights["vit.embeddings.position_embeddings"][0]
    attentions = []
    for index in range(config.num_hidden_layers):
        layer = f"vit.layers.{index}"
        x = norm(f"{layer}.layernorm_before", tokens)
        query, key, value = (heads(linear(f"{layer}.attention.{n}_proj", x)) for n in "qkv")
        products = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
        attention = (override or {}).get(index, torch.softmax(products, dim=-1))
        attentions.append(attention)
        mixed = (attention @ value).transpose(0, 1).flatten(1)
        tokens = tokens + linear(f"{layer}.attention.o_proj", mixed)
        x = linear(f"{layer}.mlp.fc1", norm(f"{layer}.layernorm_after", tokens))
        x = x * (1 + torch.erf(x / 2**0.5)) / 2
        tokens = tokens + linear(f"{layer}.mlp.fc2", x)
    return linear("classifier", norm("vit.layernorm", tokens)[0]), attentions


def finite_difference(
    model: Any, image: Tensor, target: int, entry: tuple[int, int, int, int], step: float = 1e-5
) -> float:
    """How the target's logit changes with one entry (layer, head, query, key) of the attention."""
    layer, *place = entry
    _, attentions = vit_logits(model, image)
    sides = []
    for shift in (step, -step):
        changed = attentions[layer].clone()
        changed[tuple(place)] += shift
        sides.append(float(vit_logits(model, image, {layer: changed})[0][target]))
    return (sides[0] - sides[1]) / (2 * step)


def _array(tensor: Tensor) -> Array:
    return tensor.detach().to(torch.float64).numpy()


def head_maps(found: Trace) -> Array:
    """The readout's row of each head's attention without the prefix, (B, L, H, rows, columns)."""
    maps = []
    for attention, readout in zip(found.attention, found.readout, strict=True):
        rows = [[readout @ head for head in layer] for layer in attention]
        maps.append(np.array(rows)[..., found.prefix :].reshape(*attention.shape[:2], *found.grid))
    return np.stack(maps)


def scores_without_heads(
    model: Any,
    images: Tensor,
    masked: Sequence[Sequence[Sequence[bool]]],
    forward_kwargs: Mapping[str, Any] | None = None,
) -> Array:
    """Scores (B, C) when hooks zero the part of each masked head before the output projection.

    ``masked`` is (B, layers, H) as lists; the images run one by one.
    """
    scores = []
    for image, layers in zip(images, masked, strict=True):
        changed = copy.deepcopy(model).eval()
        projections = [
            module
            for name, module in vision_part(changed).named_modules()
            if name.endswith(("o_proj", "out_proj")) and type(module) is nn.Linear
        ]
        for module, heads in zip(projections, layers, strict=True):
            module.register_forward_pre_hook(functools.partial(_without, heads))
        with torch.no_grad():
            output = changed(image[None], **(forward_kwargs or {}))
        scores.append(_array(output if isinstance(output, Tensor) else output.logits)[0])
    return np.stack(scores)


def _without(heads: Sequence[bool], _module: Any, inputs: tuple[Tensor]) -> tuple[Tensor]:
    tokens = inputs[0].clone()
    size = tokens.shape[-1] // len(heads)
    for head, masked in enumerate(heads):
        if masked:
            tokens[..., head * size : (head + 1) * size] = 0
    return (tokens,)


def vit_logits_without_heads(model: Any, image: Tensor, masked: Sequence[Sequence[bool]]) -> Tensor:
    """Logits (C,) of a ViT from its weights alone, with an attention of zeros in masked heads."""
    override: dict[int, Tensor] = {}
    for layer, heads in enumerate(masked):  # what a layer sees depends on those below it
        attention = vit_logits(model, image, override)[1][layer].clone()
        attention[torch.tensor(heads)] = 0
        override[layer] = attention
    return vit_logits(model, image, override)[0]
