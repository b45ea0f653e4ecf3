"""Refuse models whose config asks for absurd sizes, before they take time or memory.

A config is a small file that anybody can write. It says how many layers are built and how large
they are; the weights' files say how large they can be.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from hf_gmar._core.interrupts import deferred_signals, deliver_signals
from hf_gmar._core.threads import undoing
from hf_gmar.errors import ModelLoadError

_DEEPEST = 50
"""Levels of lists and objects in a JSON file; Transformers' own have fewer than ten."""
_LARGEST = {
    re.compile(r"(\w+_)?(layers?|depths?|blocks|stages)"): 1_000,
    re.compile(r"num_(labels|classes)"): 500_000,
}
"""Numbers of objects that are made one by one. The deepest vision transformers have less than a
hundred layers, and the largest class heads some hundred thousand classes, of faces."""
_MOST_WEIGHTS = 1_000_000
_ALWAYS_READ = 100_000_000
"""Numbers that a model may have in any case: 400 MB."""
_NUMBERS_IN_A_BYTE = 4
"""Quantised weights have at most two."""
_FILES = (".safetensors", ".bin")


def check_nesting(values: Any, file: str, model: str) -> None:
    """Raise a ModelLoadError for values of a JSON file that are nested too deeply."""
    level = [values]
    for _ in range(_DEEPEST):
        parts = [value.values() if isinstance(value, dict) else value for value in level]
        level = [item for part in parts for item in part if isinstance(item, dict | list | tuple)]
        if not level:
            return
    raise ModelLoadError(
        f"the {file} of {model!r} has more than {_DEEPEST} levels of lists and objects, and no "
        "file of Transformers has; get it anew from where the model comes from"
    )


def check_sizes(config: dict[str, Any], model: str) -> None:
    """Raise a ModelLoadError for absurd numbers in a model's config.json, or too deep nesting."""
    check_nesting(config, "config.json", model)
    for name, value in _integers(config):
        for pattern, largest in _LARGEST.items():
            if pattern.fullmatch(name) and value > largest:
                raise ModelLoadError(
                    f"the config.json of {model!r} asks for {name}={_written(value)}, and at most "
                    f"{largest:,} are built; no such model is known: correct the file, or get it "
                    "anew from where the model comes from"
                )


def _integers(config: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield the whole numbers in a config and its parts, with their names."""
    for name, value in config.items():
        items = value if isinstance(value, list) else [value]
        for item in items:
            if isinstance(item, dict):
                yield from _integers(item)
            elif isinstance(item, int):
                yield name, item


def _written(value: int) -> str:
    return f"{value:,}" if value < 10**30 else f"{value:.0e}" if value < 10**300 else "over 1e300"


@contextmanager
def limited_sizes(folder: Path, config: str, model: str) -> Iterator[None]:
    """Let this thread build modules that are no larger than a folder's files of weights.

    Transformers and PEFT build a module, which takes no memory before it is filled, and then read
    the files. Weights that are not in the files would be filled with random numbers.

    Args:
        folder: the folder of the files.
        config: the file that sets the sizes.
        model: the user's name of the model.

    Raises:
        ModelLoadError: a module has more weights than the files can hold.
    """
    thread, known, total = threading.get_ident(), set[tuple[int, str]](), 0

    def count(module: nn.Module, name: str, weight: Tensor | None) -> None:
        nonlocal total
        deliver_signals()
        key = id(module), name
        if threading.get_ident() != thread or weight is None or key in known:
            return
        known.add(key)
        total += weight.numel()
        if len(known) > _MOST_WEIGHTS or total > _ALWAYS_READ:
            _check(total, len(known))

    def _check(numbers: int, weights: int) -> None:
        stored = sum(file.stat().st_size for file in folder.iterdir() if file.suffix in _FILES)
        if stored and numbers > max(_ALWAYS_READ, _NUMBERS_IN_A_BYTE * stored):
            raise ModelLoadError(
                f"the {config} of {model!r} asks for a model of {numbers:,} numbers or more, and "
                f"its files of weights have {stored:,} bytes; its sizes are not those of the "
                f"weights: give it the {config} that it was trained with"
            )
        if weights > _MOST_WEIGHTS:
            raise ModelLoadError(
                f"the {config} of {model!r} asks for more than {_MOST_WEIGHTS:,} weights, and no "
                f"such model is known; give it the {config} that it was trained with"
            )

    handle = register_module_parameter_registration_hook(count)
    with deferred_signals(), undoing(handle.remove):
        yield
