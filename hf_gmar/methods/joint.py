"""Several methods on the same images, with one forward and one backward where possible."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, TypeAlias

from torch import Tensor

from hf_gmar._core.inputs import PixelInputs, pixels_of, size_errors
from hf_gmar._core.request import ForwardRequest
from hf_gmar._core.targets import Target, TargetSpec
from hf_gmar._engines.run import run_rules
from hf_gmar.errors import HfGmarError
from hf_gmar.methods.attention_base import AttentionMethod
from hf_gmar.methods.base import AttributionMethod

_Member: TypeAlias = tuple[int, AttentionMethod, ForwardRequest]
"""The index of a method, the method, and its own request."""


def attribute_jointly(
    methods: Sequence[AttributionMethod],
    inputs: PixelInputs = None,
    target: Target = None,
    additional_forward_args: Any = None,
    contrast: Target = None,
    *,
    return_errors: bool = False,
    **forward_kwargs: Any,
) -> list[Any]:
    """Return the map of each method; attention methods share one pass.

    Attention methods share a pass if model, readout, ``engine``, ``chunk_size`` and ``checkpoint``
    are the same: one forward, one backward, and attention recomputed once. Each method reads its
    own layers. LeGrad takes the gradient of another score in each layer, so it shares only with
    LeGrad and with methods without gradients. Methods that do not read attention run one by one.

    Args:
        methods: any methods, on one model or on several.
        inputs: pixel values (B, channels, height, width), or a tuple with that one tensor.
        target: see :meth:`hf_gmar.methods.base.AttributionMethod.attribute`.
        additional_forward_args: see there.
        contrast: see there.
        return_errors: return the error of a method in place of its map, and continue.
        **forward_kwargs: see there.

    Returns:
        For each method, in order, the map (B, rows, columns) of its ``attribute_patches``, up to
        rounding. If a shared pass fails, its methods run one by one: an error of one method does
        not affect the maps of others.

    Raises:
        HfGmarError: the first error of a method, unless ``return_errors``. Errors of other
            libraries are always raised.

    Example:
        >>> import torch
        >>> from hf_gmar import GMAR, AttentionRollout, GradSAM, load_model
        >>> model = load_model("bundled").model
        >>> methods = [GMAR(model), GMAR(model, norm="l2"), GradSAM(model), AttentionRollout(model)]
        >>> maps = attribute_jointly(methods, torch.rand(2, 3, 96, 96), target=3)
        >>> [tuple(patches.shape) for patches in maps]
        [(2, 8, 8), (2, 8, 8), (2, 8, 8), (2, 8, 8)]
    """
    inputs, forward_kwargs = pixels_of(inputs, forward_kwargs)
    results: dict[int, Tensor | HfGmarError] = {}

    @contextmanager
    def errors_of(index: int) -> Iterator[None]:
        try:
            yield
        except HfGmarError as error:
            if not return_errors:
                raise
            results[index] = error

    members: list[_Member] = []
    for index, method in enumerate(methods):
        with errors_of(index):
            method.check_contrast(contrast)
            if isinstance(method, AttentionMethod) and method.shares_pass:
                request = method._request(inputs, additional_forward_args, forward_kwargs)
                members.append((index, method, request))
    for group in _groups(members):
        if len(group) > 1:
            with suppress(HfGmarError):
                needs_scores = any(method.needs_scores for _, method, _ in group)
                results |= _one_pass(group, TargetSpec(target, contrast, needs_scores))
    for index, method in enumerate(methods):
        if index not in results:
            with errors_of(index):
                results[index] = method.attribute_patches(
                    inputs, target, additional_forward_args, contrast, **forward_kwargs
                )
    return [results[index] for index in range(len(methods))]


def _groups(members: Sequence[_Member]) -> list[list[_Member]]:
    """Group the methods that share a pass; the first of a group sets its gradient."""
    order = ["score", "layers", "none"]
    groups: list[list[_Member]] = []
    for member in sorted(members, key=lambda member: order.index(member[2].gradient)):
        group = next((group for group in groups if _share_pass(group[0], member)), None)
        if group is None:
            groups.append([member])
        else:
            group.append(member)
    return groups


def _share_pass(first: _Member, other: _Member) -> bool:
    """Whether the other method can run in the pass of the first."""
    (_, method, request), (_, other_method, other_request) = first, other
    adapter, other_adapter = method.adapter, other_method.adapter
    same_start = adapter.layout == other_adapter.layout and adapter.place == other_adapter.place
    same_model = adapter == other_adapter or (method.model is other_method.model and same_start)
    same_gradient = other_request.gradient in (request.gradient, "none")
    return same_model and same_gradient and _call_of(first) == _call_of(other)


def _call_of(member: _Member) -> tuple[Any, ...]:
    """The key of calls that can be shared; tensors are compared by identity."""
    _, method, request = member
    kwargs = {name: id(value) for name, value in request.kwargs.items()}
    values = id(request.inputs), [id(value) for value in request.args], kwargs
    return *values, request.chunk_size, request.checkpoint, method.engine


def _one_pass(members: Sequence[_Member], target_spec: TargetSpec) -> dict[int, Tensor]:
    """Run one pass for all methods; return their maps by index."""
    _, method, request = members[0]
    spans = [(member.rule, call.layers(method.adapter)) for _, member, call in members]
    graded = [call.layers(method.adapter).start for *_, call in members if call.gradient != "none"]
    request = replace(
        request,
        start_layer=min(layers.start for _, layers in spans),
        stop_layer=max(layers.stop for _, layers in spans),
        gradient_start=min(graded, default=0),
    )
    with size_errors(method.adapter, request.inputs):
        (results,) = run_rules(method.adapter, request, [target_spec], spans, method.engine)
    return {member[0]: result.patches for member, result in zip(members, results, strict=True)}
