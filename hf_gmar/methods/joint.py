"""Several methods on the same images: what they have in common is done once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from torch import Tensor

from hf_gmar._core.inputs import size_errors
from hf_gmar._core.request import ForwardRequest
from hf_gmar._core.targets import Target, TargetSpec
from hf_gmar._engines.run import RuleSpan, capture_each
from hf_gmar.errors import HfGmarError
from hf_gmar.methods.attention_base import AttentionMethod
from hf_gmar.methods.base import AttributionMethod

Found: TypeAlias = Tensor | HfGmarError
"""A method's map (B, rows, columns), or why it has none."""


def attribute_jointly(
    methods: Sequence[AttributionMethod],
    inputs: Tensor | tuple[Tensor, ...],
    target: Target = None,
    additional_forward_args: Any = None,
    contrast: Target = None,
    **forward_kwargs: Any,
) -> list[Found]:
    """The map of each method, with one pass for all that can share it.

    Methods that read attention share a pass if they are for the same model and readout, with the
    same ``engine``, ``chunk_size`` and ``checkpoint``: one forward, one backward, and attention
    recomputed once for all of them. Those that need no gradient ride along with those that do, and
    every method takes part in its own layers. LeGrad, whose gradients are of another score in
    each layer, shares with LeGrad and with those that need no gradient. All other methods run by
    themselves: they start their gradient at the tokens of a layer, or change how it flows.

    Args:
        methods: of any kind, on the same model or on several.
        inputs: pixel values (B, channels, height, width), or a tuple with that one tensor.
        target: see :meth:`hf_gmar.methods.base.AttributionMethod.attribute`.
        additional_forward_args: see there.
        contrast: see there.
        **forward_kwargs: see there.

    Returns:
        For each method, in order, what its ``attribute_patches`` gives, up to the rounding of
        sums; or the error that it raises there. If a shared pass fails, its methods run one by
        one, so that those that can give a map do. Errors of other libraries are raised.

    Example:
        >>> import torch
        >>> from hf_gmar import GMAR, AttentionRollout, GradSAM, load_model
        >>> model = load_model("bundled").model
        >>> methods = [GMAR(model), GMAR(model, norm="l2"), GradSAM(model), AttentionRollout(model)]
        >>> maps = attribute_jointly(methods, torch.rand(2, 3, 96, 96), target=3)
        >>> [tuple(found.shape) for found in maps]
        [(2, 8, 8), (2, 8, 8), (2, 8, 8), (2, 8, 8)]
    """
    call = _Call(inputs, target, additional_forward_args, contrast, forward_kwargs)
    found: dict[int, Found] = {}
    asked = list(_asked(methods, call, found))
    for group in _groups(asked):
        if len(group) > 1:
            found.update(_shared(group, call))
    for place, method in enumerate(methods):
        if place not in found:
            found[place] = _alone(method, call)
    return [found[place] for place in range(len(methods))]


@dataclass(frozen=True)
class _Call:
    """What all methods are asked."""

    inputs: Tensor | tuple[Tensor, ...]
    target: Target
    args: Any
    contrast: Target
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class _Asked:
    """A method that may share a pass.

    Attributes:
        place: of the method among those given.
        method: the method.
        request: the call to the model that it would make by itself.
    """

    place: int
    method: AttentionMethod
    request: ForwardRequest

    def shares(self, other: _Asked) -> bool:
        """Whether one pass serves both; the other's gradient may be none."""
        mine, theirs = self.method, other.method
        same = mine.adapter == theirs.adapter or (
            mine.model is theirs.model and mine.adapter.layout == theirs.adapter.layout
        )
        gradients = other.request.gradient in (self.request.gradient, "none")
        alike = _without_span(self.request) == _without_span(other.request)
        return same and gradients and alike and mine.engine == theirs.engine


def _without_span(request: ForwardRequest) -> tuple[Any, ...]:
    """What two requests must have in common, compared by what they are and not by value."""
    named = {name: id(value) for name, value in request.kwargs.items()}
    given = id(request.inputs), [id(value) for value in request.args], named
    return *given, request.chunk_size, request.checkpoint


def _asked(
    methods: Sequence[AttributionMethod], call: _Call, found: dict[int, Found]
) -> Iterator[_Asked]:
    """Those that may share; what can't even be asked is found to be an error."""
    for place, method in enumerate(methods):
        try:
            method.check_contrast(call.contrast)
            if isinstance(method, AttentionMethod) and _is_plain(method):
                request = method._request(call.inputs, call.args, call.kwargs)
                yield _Asked(place, method, request)
        except HfGmarError as error:
            found[place] = error


def _is_plain(method: AttentionMethod) -> bool:
    """Its map is what its rule makes: no subclass does something around it."""
    own = type(method)
    names = "attribute_patches", "_maps", "_target_spec", "_explain", "_captured"
    return all(getattr(own, name) is getattr(AttentionMethod, name) for name in names)


def _groups(asked: Sequence[_Asked]) -> list[list[_Asked]]:
    """Who shares a pass; the first of each group says whose gradient is taken."""
    order = ["score", "layers", "none"]
    groups: list[list[_Asked]] = []
    for one in sorted(asked, key=lambda one: order.index(one.request.gradient)):
        group = next((group for group in groups if group[0].shares(one)), None)
        if group is None:
            groups.append([one])
        else:
            group.append(one)
    return groups


def _shared(group: Sequence[_Asked], call: _Call) -> dict[int, Found]:
    """The maps of a group by their places; none if its pass failed."""
    adapter, engine = group[0].method.adapter, group[0].method.engine
    parts = [RuleSpan(one.method.rule, one.request.layers(adapter)) for one in group]
    request = _joined([one.request for one in group], parts)
    target_spec = TargetSpec(call.target, call.contrast)
    try:
        with size_errors(adapter, request.inputs):
            (captures,) = capture_each(adapter, request, [target_spec], parts, engine)
    except HfGmarError:
        return {}
    return {one.place: had.patches for one, had in zip(group, captures, strict=True)}


def _joined(requests: Sequence[ForwardRequest], parts: Sequence[RuleSpan]) -> ForwardRequest:
    """One request with all layers and gradients."""
    graded = [
        part.layers.start
        for request, part in zip(requests, parts, strict=True)
        if request.gradient != "none"
    ]
    return replace(
        requests[0],
        start_layer=min(part.layers.start for part in parts),
        stop_layer=max(part.layers.stop for part in parts),
        gradient_start=min(graded, default=0),
    )


def _alone(method: AttributionMethod, call: _Call) -> Found:
    try:
        return method.attribute_patches(
            call.inputs, call.target, call.args, call.contrast, **call.kwargs
        )
    except HfGmarError as error:
        return error
