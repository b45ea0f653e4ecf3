"""Classes by name or number."""

from __future__ import annotations

import difflib
import numbers
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedConfig

from hf_gmar._core.execution import predict
from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar._core.request import ForwardRequest
from hf_gmar.errors import TargetError


def config_of(adapter: ModelAdapter) -> PreTrainedConfig:
    """Return the outermost config of a model; a ZeroShotModel's config names its prompts."""
    configs = (getattr(part, "config", None) for part in adapter.modules())
    return next(config for config in configs if isinstance(config, PreTrainedConfig))


def label_of(config: PreTrainedConfig, index: int) -> str:
    """Return the name of a class, or ``class 7`` if the config has no name."""
    return labels_of(config).get(index, f"class {index}")


def find_class(config: PreTrainedConfig, name: int | str, count: int | None = None) -> int:
    """Return the index of a class from its index, its label or a comma-separated part of it.

    Args:
        config: the model's config, which names the classes.
        name: the index as a number or text, or the label. ``"index:1"`` is the class with index 1
            and ``"label:1"`` the class called "1", for labels that are numbers.
        count: number of the model's scores for an image; ``None`` if it is the number of names.

    Raises:
        TargetError: no class or several classes have this name or number.

    Example:
        >>> from transformers import ViTConfig
        >>> config = ViTConfig(id2label={0: "tabby, tabby cat", 1: "Egyptian cat"})
        >>> find_class(config, "egyptian cat"), find_class(config, "tabby"), find_class(config, 1)
        (1, 0, 1)
    """
    labels = labels_of(config, count)
    text = str(name).strip()
    kind = "index" if isinstance(name, numbers.Integral) and not isinstance(name, bool) else ""
    prefix, colon, rest = text.partition(":")
    if colon and prefix in ("index", "label") and not classes_called(labels, text):
        kind, text = prefix, rest.strip()
    named = [] if kind == "index" else classes_called(labels, text)
    # Python can't read very long numbers.
    is_number = kind != "label" and re.fullmatch(r"[-+]?\d{1,9}", text)
    number = int(text) if is_number else -1
    if number in labels and named not in ([], [number]):
        others = ", ".join(f"{index} ({labels[index]})" for index in named)
        raise TargetError(
            f"{text!r} is the index of the class {labels[number]!r} and the name of the class "
            f"{others}; say which one: index:{text} or label:{text}"
        )
    if number in labels:
        return number
    if len(named) == 1:
        return named[0]
    if named:
        choices = ", ".join(f"{index} ({labels[index]})" for index in named)
        raise TargetError(f"the label {text!r} fits several classes: {choices}; use the number")
    raise _no_class(labels, text, kind)


def _no_class(labels: Mapping[int, str], text: str, kind: str) -> TargetError:
    if not labels:
        return TargetError(f"no class is called {text!r}: the model's config names no classes")
    if kind == "index" or (kind != "label" and re.fullmatch(r"[-+]?\d+", text)):
        return TargetError(
            f"target {text[:20]} is out of range: the model has {len(labels)} classes, 0 to "
            f"{max(labels)}"
        )
    similar = difflib.get_close_matches(text, labels.values(), n=3, cutoff=0.5)
    examples = ", ".join(similar or list(labels.values())[:3])
    return TargetError(
        f"no class is called {text!r}; {'similar' if similar else 'for example'}: {examples} "
        f"({len(labels)} classes)"
    )


def find_classes(
    config: PreTrainedConfig, names: Sequence[int | str], count: int | None = None
) -> list[int]:
    """Return the index of each class, see :func:`find_class`, in order.

    Raises:
        TargetError: a class does not exist, or two names are of the same class.
    """
    indices = [find_class(config, name, count) for name in names]
    for place, index in enumerate(indices):
        if (first := indices.index(index)) < place:
            raise TargetError(
                f"{names[first]!r} and {names[place]!r} are the same class, {index} "
                f"({label_of(config, index)}); name it once"
            )
    return indices


def classes_called(labels: Mapping[int, str], name: str) -> list[int]:
    """Find all classes with this label or, without any, this comma-separated part of a label.

    Example:
        >>> classes_called({0: "crane, bird", 1: "crane, machine", 2: "Machine"}, "machine")
        [2]
    """
    text, folded = name.strip().casefold(), {n: label.casefold() for n, label in labels.items()}
    whole = [index for index, label in folded.items() if label == text]
    return whole or [
        index
        for index, label in folded.items()
        if text in (part.strip() for part in label.split(","))
    ]


def labels_of(config: PreTrainedConfig, count: int | None = None) -> dict[int, str]:
    """Return the config's class names by index.

    With the number of scores, ``count``, each score has a name: the config's, or ``class 7``.

    Example:
        >>> from transformers import ViTConfig
        >>> labels_of(ViTConfig(id2label={0: "cat", 1: "dog"}), 3)
        {0: 'cat', 1: 'dog', 2: 'class 2'}
    """
    labels = {int(index): str(label) for index, label in (config.id2label or {}).items()}
    if count is None:
        return labels
    return {index: labels.get(index, f"class {index}") for index in range(count)}


def classes_of_model(model: Any, names: Sequence[int | str]) -> list[int]:
    """Return the index of each class of a model, see :func:`find_classes`.

    A model may give more scores than its config names: these classes have indices.
    """
    adapter = ModelAdapter.of(model)
    try:
        return find_classes(config_of(adapter), names)
    except TargetError:
        return find_classes(config_of(adapter), names, class_count(model))


def class_count(model: Any) -> int:
    """Return the number of a model's scores, by one forward of a blank image.

    A class head that was replaced may give more or fewer scores than the config names.
    """
    adapter = ModelAdapter.of(model)
    tower = adapter.vision_model
    size = getattr(tower.config, "image_size", None) or _USUAL_SIZE
    sides = (size, size) if isinstance(size, int) else tuple(size)
    channels = getattr(tower.config, "num_channels", 3)
    blank = torch.zeros(1, channels, *sides, device=tower.device, dtype=tower.dtype)
    return predict(adapter, ForwardRequest(blank)).shape[1]


_USUAL_SIZE = 224
