"""What all methods share: Captum's contract around a layer rule."""

from __future__ import annotations

import functools
import inspect
import numbers
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from captum.attr import GradientAttribution
from captum.log import log_usage
from torch import Tensor

from hf_gmar.capture import ENGINES, Capture, capture, predict
from hf_gmar.engine import Request
from hf_gmar.errors import (
    HfGmarError,
    InputError,
    OptionError,
    TargetError,
    UnsupportedModelError,
)
from hf_gmar.propagation import LayerRule
from hf_gmar.subject import Subject, check_inputs
from hf_gmar.targets import Target
from hf_gmar.tokens import Reads, engines_of

Inputs = TypeVar("Inputs", Tensor, tuple[Tensor, ...])


class AttentionMethod(GradientAttribution):  # type: ignore[misc]  # Captum's base is untyped
    """Base of the methods that roll attention down to a patch map.

    A subclass sets ``rule``, a :class:`~hf_gmar.propagation.LayerRule`. One call is one forward
    and one backward of the model, whatever the batch. The model may be in any mode and under any
    attention implementation; dropout is off while it is explained, no weight gets a gradient, and
    it comes back as it was. Threads that explain one model take turns; threads that only run it
    are not disturbed.

    Args:
        model: a Transformers vision model with a class head, or any module or callable that
            returns class scores (B, C) and holds exactly one such model.
        start_layer: the lowest layer that takes part, 0 for all of them.
        engine: ``"streaming"`` recomputes attention in blocks and keeps none of it; ``"dense"``,
            the plain reference, keeps all attention maps and their gradients. Both give the same
            numbers.
        chunk_size: query rows that the streaming engine holds at a time; ``None`` chooses.
        checkpoint: let the streaming engine keep only each layer's input and run the layers again
            in the backward: one more forward, a fraction of the memory. For the largest images.
        readout: which tokens a class head of your own reads: ``"cls"``, ``"patches"`` (their
            mean), ``"cls+patches"`` (half each), ``"tokens"`` (the mean of all), ``"pooling"`` (an
            attention-pooling head) or a share for each prefix token; ``None`` is for the class
            heads of Transformers, which are known.

    Raises:
        UnsupportedModelError: unknown or hierarchical family, no model or several, or a head of
            your own without a readout.
        OptionError: an option that does not exist or is outside its range.
    """

    rule: LayerRule
    """What the method does at each layer; each subclass sets its own."""

    def __init__(
        self,
        model: Callable[..., Any],
        start_layer: int = 0,
        engine: str = "streaming",
        chunk_size: int | None = None,
        checkpoint: bool = False,
        readout: Reads = None,
    ) -> None:
        """Find the Transformers model in the model and check the options."""
        self.subject = Subject.of(model, readout)
        super().__init__(self.subject)  # Captum calls the scores its forward function
        check_option("start_layer", start_layer, range(self.subject.layers))
        check_option("engine", engine, ENGINES)
        _check_engine(engine, self.subject)
        _check_streaming(engine, chunk_size, checkpoint)
        self.model = model
        self.start_layer = start_layer
        self.engine = engine
        self.chunk_size = None if chunk_size is None else int(chunk_size)
        self.checkpoint = checkpoint

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
        patches = self.attribute_patches(pixels, target, additional_forward_args, **forward_kwargs)
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
        return self._capture(inputs, [target], additional_forward_args, forward_kwargs)[0].patches

    def attribute_targets(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        targets: Iterable[Target],
        additional_forward_args: Any = None,
        **forward_kwargs: Any,
    ) -> Tensor:
        """Relevance of each patch for several targets, with one forward for all of them.

        Takes and raises what :meth:`attribute` does, but for the targets.

        Args:
            inputs: pixel values (B, channels, height, width), or a tuple with that one tensor.
            targets: T targets, each in any form that :meth:`attribute` takes: ``[281, 207]``
                explains two classes of every image. A tensor has its targets along the first
                dimension.
            additional_forward_args: see :meth:`attribute`.
            **forward_kwargs: see :meth:`attribute`.

        Returns:
            Tensor (T, B, rows, columns); row t is ``attribute_patches(inputs, targets[t])``.
        """
        wanted = _several(targets)
        found = self._capture(inputs, wanted, additional_forward_args, forward_kwargs)
        return torch.stack([one.patches for one in found])

    def scores(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        additional_forward_args: Any = None,
        **forward_kwargs: Any,
    ) -> Tensor:
        """Class scores (B, C) that an explanation of these inputs is about, without gradients.

        Takes and raises what :meth:`attribute` does, but for the target.
        """
        request = self._request(inputs, additional_forward_args, forward_kwargs)
        with self._size_errors(request.inputs):
            return predict(self.subject, request)

    def _capture(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        targets: Sequence[Target],
        args: Any,
        kwargs: dict[str, Any],
    ) -> list[Capture]:
        request = self._request(inputs, args, kwargs)
        with self._size_errors(request.inputs):
            return capture(self.subject, request, targets, self.rule, self.engine)

    def _request(
        self, inputs: Tensor | tuple[Tensor, ...], args: Any, kwargs: dict[str, Any]
    ) -> Request:
        pixels = single_tensor(inputs)
        check_inputs(pixels, self.subject)
        check_keywords(self.subject, kwargs)
        self.subject.layout.grid(*pixels.shape[-2:])
        extra = args if isinstance(args, tuple) else () if args is None else (args,)
        return Request(pixels, extra, kwargs, self.start_layer, self.chunk_size, self.checkpoint)

    @contextmanager
    def _size_errors(self, pixels: Tensor) -> Iterator[None]:
        """Models refuse sizes other than their own with plain errors: say what to do."""
        try:
            yield
        except HfGmarError:
            raise
        except (ValueError, AssertionError, RuntimeError) as error:
            if _is_own_size(self.subject, pixels) or not _is_of_size(error):
                raise
            raise InputError(_size_advice(error, pixels, _all_keywords(self.subject))) from error


def _is_of_size(error: Exception) -> bool:
    # Some models add their positions without a look at the size.
    words = "must match the size" if isinstance(error, RuntimeError) else r"\bsizes?\b|height|width"
    return re.search(words, str(error), re.IGNORECASE) is not None


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


def _check_engine(engine: str, subject: Subject) -> None:
    engines = engines_of(subject.tower)
    if engine not in engines:
        raise UnsupportedModelError(
            f"{type(subject.tower).__name__} gives no attention maps, which engine={engine!r} "
            f"needs; use engine={engines[0]!r}"
        )


def _check_streaming(engine: str, chunk_size: Any, checkpoint: Any) -> None:
    if not isinstance(checkpoint, bool):
        raise OptionError(f"checkpoint must be True or False, got {checkpoint!r}")
    if chunk_size is not None and not _is_count(chunk_size):
        raise OptionError(f"chunk_size must be a whole number >= 1 or None, got {chunk_size!r}")
    if engine != "streaming" and (checkpoint or chunk_size is not None):
        raise OptionError(
            f'chunk_size and checkpoint belong to engine="streaming", got engine={engine!r}'
        )


def _is_count(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 1


def _several(targets: Any) -> list[Target]:
    try:
        found = list(targets)
    except TypeError:
        found = []
    if not found:
        raise TargetError(
            f"a list of one or more targets is needed, got {targets!r}; one target goes to "
            "attribute_patches"
        )
    return found


def check_keywords(subject: Subject, kwargs: dict[str, Any]) -> None:
    """Raise an OptionError for keywords that the model's forward does not name.

    Transformers' models swallow unknown keywords, which would hide a misspelt option. What takes
    any keyword is held to those of the Transformers model in it, and of its vision tower.
    """
    named = _all_keywords(subject)
    unknown = sorted(set(kwargs) - set(named))
    if unknown:
        raise OptionError(
            f"unknown keyword {', '.join(unknown)}; the model's forward takes "
            f"{', '.join(named) or 'none'}"
        )


def _all_keywords(subject: Subject) -> list[str]:
    named, takes_any = _keywords(subject.model)
    for inner in (subject.backbone, subject.tower):
        if takes_any:
            more, takes_any = _keywords(inner)
            named += [name for name in more if name not in named]
    return named


def _keywords(model: Any) -> tuple[list[str], bool]:
    """What a model takes by name after the inputs, and whether it takes other keywords as well."""
    while isinstance(model, functools.partial):
        model = model.func
    parameters = inspect.signature(getattr(model, "forward", model)).parameters.values()
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = [p.name for p in list(parameters)[1:] if p.kind in by_name]
    return named, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _is_own_size(subject: Subject, pixels: Tensor) -> bool:
    size = getattr(subject.tower.config, "image_size", None)
    own = (size, size) if isinstance(size, int) else tuple(size or ())
    return own == tuple(pixels.shape[-2:])


def _size_advice(error: Exception, pixels: Tensor, keywords: list[str]) -> str:
    height, width = pixels.shape[2:]
    reason = str(error).rstrip(". ")
    advice = (
        "pass interpolate_pos_encoding=True to interpolate its positions, or resize the images"
        if "interpolate_pos_encoding" in keywords
        else "resize the images to the model's own size"
    )
    return f"the model refused images of {height} x {width} pixels: {reason}; {advice}"
