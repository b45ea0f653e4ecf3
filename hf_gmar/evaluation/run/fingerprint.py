"""The settings of a run as plain data and as a digest, so that runs are not mixed."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

_IRRELEVANT = ("_name_or_path", "transformers_version", "architectures")


def digest(settings: Mapping[str, Any]) -> str:
    """Hash settings to sixteen hexadecimal digits."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_digest(settings: Mapping[str, Any]) -> str:
    """Hash the settings of a run that affect its rows."""
    return digest(without_notes(settings))


def without_notes(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Remove what does not affect the rows: the model's name, and which methods were left out.

    Other paths may lead to the same weights, which are hashed.
    """
    affecting = {key: value for key, value in settings.items() if key != "left_out"}
    model = settings.get("model", {})
    if not isinstance(model, Mapping):  # a file may hold anything
        return affecting
    return {**affecting, "model": {key: model[key] for key in model if key != "name"}}


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Describe each difference of two settings in one line."""
    lines: list[str] = []
    for key in sorted({*old, *new}):
        left, right = old.get(key), new.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            lines += differences(left, right, f"{prefix}{key}.")
        elif left != right:
            name, before, now = _cut(f"{prefix}{key}"), _written(left), _written(right)
            lines.append(f"{name}: {before} there, {now} now")
    return lines


def _written(value: Any) -> str:
    try:
        return "nothing" if value is None else _cut(json.dumps(value))
    except RecursionError:  # it was read with a few levels less below it
        return "too many levels to be written"


def _cut(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def tensor_digest(values: Tensor) -> str:
    """Hash a tensor's values and shape, on any device."""
    values = values.detach().cpu().contiguous()
    # NumPy has no bfloat16; float32 represents all of its numbers.
    array = (values.float() if values.element_size() < 4 else values).numpy()
    return hashlib.sha256(array.data).hexdigest() + str(tuple(values.shape))


def digest_of_weights(model: nn.Module) -> str:
    """Hash a model's weights, on any device, to sixteen hexadecimal digits."""
    result = hashlib.sha256()
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            result.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
            raw = value.detach().cpu().contiguous().flatten().view(torch.uint8)
            result.update(raw.numpy().data)
    return result.hexdigest()[:16]


def described(item: object) -> dict[str, Any]:
    """Describe a method, metric or perturbation by its class and its plain attributes."""
    attributes = getattr(item, "__dict__", {})  # a class with slots has no dict
    return {"class": kind_of(item)} | {
        name: value
        for name, value in attributes.items()
        if _is_plain(value) and not name.startswith("_")
    }


def kind_of(item: object) -> str:
    """Return the module and name of an object's class."""
    return f"{type(item).__module__}.{type(item).__qualname__}"


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return isinstance(value, str | int | float | bool | type(None))


def plain(value: Any) -> Any:
    """Convert a value to JSON data, and a tensor to its digest.

    Example:
        >>> plain((1, "a")), plain(torch.zeros(2)) == plain(torch.ones(2))
        ([1, 'a'], False)
    """
    if isinstance(value, Tensor):
        return tensor_digest(value)
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value if _is_plain(value) else repr(value)


def description_of_model(model: Callable[..., Any], root: nn.Module) -> dict[str, Any]:
    """Describe everything that influences a model's scores; ``root`` is its outermost module."""
    config = getattr(root, "config", None)
    settings = config.to_dict() if isinstance(config, PreTrainedConfig) else {}
    settings = {name: value for name, value in settings.items() if name not in _IRRELEVANT}
    keywords: dict[str, Any] = {}
    while isinstance(model, functools.partial):
        keywords |= {"positional": plain(model.args), **model.keywords}
        model = model.func
    keywords |= getattr(root, "forward_kwargs", {})
    return {
        "class": kind_of(root),
        "weights": digest_of_weights(root),
        "config": digest(json.loads(json.dumps(settings, default=str))),
        **{f"keyword {name}": plain(value) for name, value in keywords.items()},
    }
