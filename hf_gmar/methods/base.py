"""What all methods share: Captum's contract around a layer rule."""

from __future__ import annotations

import functools
import inspect
import numbers
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from captum.attr import GradientAttribution
from captum.log import log_usage
from torch import Tensor

from hf_gmar.capture import ENGINES, Capture, Request, capture, predict
from hf_gmar.errors import HfGmarError, InputError, OptionError
from hf_gmar.propagation import LayerRule
from hf_gmar.subject import Subject, check_inputs
from hf_gmar.targets import Target

Inputs = TypeVar("Inputs", Tensor, tuple[Tensor, ...])


class AttentionMethod(GradientAttribution):  # type: ignore[misc]  # Captum's base is untyped
    """Base of the methods that roll attention down to a patch map.

    A subclass sets ``rule``, a :class:`~hf_gmar.propagation.LayerRule`. One call is one forward
    and one backward of the model, whatever the batch. The model may be in any mode and under any
    attention implementation; dropout is off while it is explained, no weight gets a gradient, and
    it comes back as it was.

    Args:
        model: a Transformers vision model with a class head, or any module or callable that
            returns class scores (B, C) and holds exactly one such model.
        start_layer: the lowest layer that takes part, 0 for all of them.
        engine: how the layers are fed; ``"dense"`` keeps all attention maps.

    Raises:
        UnsupportedModelError: unknown or hierarchical family, no model or several.
        OptionError: a start layer or an engine that does not exist.
    """

    rule: LayerRule
    """What the method does at each layer; each subclass sets its own."""

    def __init__(
        self, model: Callable[..., Any], start_layer: int = 0, engine: str = "dense"
    ) -> None:
        """Find the backbone in the model and check the options."""
        self.subject = Subject.of(model)
        super().__init__(self.subject)  # Captum calls the scores its forward function
        check_option("start_layer", start_layer, range(self.subject.layers))
        check_option("engine", engine, ENGINES)
        self.model = model
        self.start_layer = start_layer
        self.engine = engine

    @log_usage()  # type: ignore[untyped-decorator]  # Captum's NoiseTunnel needs __wrapped__
    def attribute(
        self,
        inputs: Inputs,
        target: Target = None,
        additional_forward_args: Any = None,
        **forward_kwargs: Any,
    ) -> Inputs:
        """Relevance of each pixel: the value of its patch.

        Args:
            inputs: pixel values (B, channels, height, width), or a tuple with that one tensor.
            target: the explained class. An int (all images), a list or 1-D tensor of B class
                indices, a tuple (or a list of B tuples) where each image has scores of more than
                one dimension, or ``None`` for the top class of each image.
            additional_forward_args: further positional arguments of the model: one value or a
                tuple, as in Captum. ``(None, True)`` interpolates a ViT's positions.
            **forward_kwargs: further keyword arguments that the model's forward names, such as
                ``interpolate_pos_encoding=True``.

        Returns:
            Tensor of the inputs' shape, dtype and device, contiguous and detached: each pixel in
            each channel has the relevance of its patch, >= 0; over the patches they sum to at
            most 1. A tuple if the inputs are one.

        Raises:
            InputError: inputs of a wrong type, shape, size, device or with NaN or infinity.
            TargetError: a class index out of range, or not one for each image.
            ModelOutputError: no scores, no attention maps or no finite gradient.
            OptionError: a keyword that the model's forward does not name.
        """
        pixels = single_tensor(inputs)
        patches = self._capture(pixels, target, additional_forward_args, forward_kwargs).patches
        rows, columns = patches.shape[1:]
        height, width = pixels.shape[2] // rows, pixels.shape[3] // columns
        spread = patches.repeat_interleave(height, 1).repeat_interleave(width, 2)
        attribution = spread.unsqueeze(1).expand_as(pixels).to(pixels.dtype).contiguous()
        return (attribution,) if isinstance(inputs, tuple) else attribution

    def attribute_patches(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Target = None,
        additional_forward_args: Any = None,
        **forward_kwargs: Any,
    ) -> Tensor:
        """Relevance of each patch, (B, rows, columns): >= 0, sums to at most 1.

        What is missing to 1 stayed on prefix tokens such as CLS. Takes and raises what
        :meth:`attribute` does. The dtype is float32, or float64 for a float64 model.
        """
        pixels = single_tensor(inputs)
        return self._capture(pixels, target, additional_forward_args, forward_kwargs).patches

    def scores(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        additional_forward_args: Any = None,
        **forward_kwargs: Any,
    ) -> Tensor:
        """Class scores (B, C) that an explanation of these inputs is about, without gradients.

        Takes and raises what :meth:`attribute` does, but for the target.
        """
        request = self._request(
            single_tensor(inputs), None, additional_forward_args, forward_kwargs
        )
        with self._size_errors(request.inputs):
            return predict(self.subject, request)

    def _capture(
        self, pixels: Tensor, target: Target, args: Any, kwargs: dict[str, Any]
    ) -> Capture:
        request = self._request(pixels, target, args, kwargs)
        with self._size_errors(pixels):
            return capture(self.subject, request, self.rule, self.engine)

    def _request(
        self, pixels: Tensor, target: Target, args: Any, kwargs: dict[str, Any]
    ) -> Request:
        check_inputs(pixels, self.subject.backbone)
        check_keywords(self.subject, kwargs)
        self.subject.layout.grid(*pixels.shape[-2:])
        extra = args if isinstance(args, tuple) else () if args is None else (args,)
        return Request(pixels, target, extra, kwargs, self.start_layer)

    @contextmanager
    def _size_errors(self, pixels: Tensor) -> Iterator[None]:
        """Models refuse sizes other than their own with a plain ValueError: say what to do."""
        try:
            yield
        except HfGmarError:
            raise
        except ValueError as error:
            if _is_own_size(self.subject, pixels):
                raise
            raise InputError(_size_advice(error, pixels)) from error


def single_tensor(inputs: Any) -> Any:
    """The image tensor of Captum's tensor-or-tuple form.

    Raises:
        InputError: a tuple with other than one tensor.
    """
    if not isinstance(inputs, tuple):
        return inputs
    if len(inputs) != 1:
        raise InputError(
            f"one tensor of pixel values is needed, got a tuple of {len(inputs)}; pass what else "
            "the model takes as additional_forward_args"
        )
    return inputs[0]


def check_option(name: str, value: Any, allowed: Any) -> None:
    """Raise an OptionError unless the value is among the allowed ones."""
    kind = numbers.Integral if isinstance(allowed, range) else str
    if isinstance(value, kind) and not isinstance(value, bool) and value in allowed:
        return
    shown = (
        f"a whole number from {allowed.start} to {allowed.stop - 1}"
        if isinstance(allowed, range)
        else "one of " + ", ".join(repr(choice) for choice in allowed)
    )
    raise OptionError(f"{name} must be {shown}, got {value!r}")


def check_keywords(subject: Subject, kwargs: dict[str, Any]) -> None:
    """Raise an OptionError for keywords that the model's forward does not name.

    Transformers' models swallow unknown keywords, which would hide a misspelt option. A module
    around one that takes any keyword is held to those of the Transformers model.
    """
    named, takes_any = _keywords(subject.model)
    if takes_any:
        named += [name for name in _keywords(subject.backbone)[0] if name not in named]
    unknown = sorted(set(kwargs) - set(named))
    if unknown:
        raise OptionError(
            f"unknown keyword {', '.join(unknown)}; the model's forward takes "
            f"{', '.join(named) or 'none'}"
        )


def _keywords(model: Any) -> tuple[list[str], bool]:
    """What a model takes by name after the inputs, and whether it takes other keywords as well."""
    while isinstance(model, functools.partial):
        model = model.func
    parameters = inspect.signature(getattr(model, "forward", model)).parameters.values()
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = [p.name for p in list(parameters)[1:] if p.kind in by_name]
    return named, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _is_own_size(subject: Subject, pixels: Tensor) -> bool:
    size = getattr(subject.backbone.config, "image_size", None)
    own = (size, size) if isinstance(size, int) else tuple(size or ())
    return own == tuple(pixels.shape[-2:])


def _size_advice(error: ValueError, pixels: Tensor) -> str:
    return (
        f"the model refused images of {pixels.shape[2]} x {pixels.shape[3]} pixels: {error} Pass "
        "interpolate_pos_encoding=True to interpolate its positions, or resize the images"
    )
