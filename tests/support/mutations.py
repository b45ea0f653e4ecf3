"""Random changes of files: of bytes, and of JSON by its structure."""

from __future__ import annotations

import copy
import json
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hypothesis import strategies as st

_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")

NUMBERS = [0, 1, -1, 2, 3, 7, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**63, 2**64, 10**400]
TEXTS = ["", "0", "vit", "auto", "float16", "../x", "/etc/passwd", "a/b", "\0", "\ud800", "\x1b[2J",
         "x" * 5000, "__class__", "ViTModel", "torch.float8_e4m3fn"]  # fmt: skip
WORDS = st.sampled_from(TEXTS) | st.text(max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.sampled_from(NUMBERS) | st.integers(-300, 300)
    | st.floats() | WORDS,
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(WORDS, parts, max_size=3),
    max_leaves=6,
)  # fmt: skip
"""Values of JSON, among them extremes, halves of characters, NaN and infinity."""


@st.composite
def changed_bytes(draw: st.DrawFn, sources: list[bytes]) -> bytes:
    """Draw one of the files with up to five changes."""
    content = bytearray(draw(st.sampled_from(sources)))
    for _ in range(draw(st.integers(1, 5))):
        # The head of a file says its sizes.
        most = draw(st.sampled_from([64, max(len(content), 1)]))
        place = draw(st.integers(0, most))
        kind = draw(
            st.sampled_from(["bit", "bytes", "number", "cut", "insert", "remove", "repeat"])
        )
        size = draw(st.integers(1, 16))
        if kind == "bit" and place < len(content):
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "bytes":
            content[place : place + size] = draw(st.binary(min_size=size, max_size=size))
        elif kind == "number":
            number = draw(st.sampled_from([0, 1, 2**15 - 1, 2**16 - 1, 2**31 - 1, 2**32 - 1]))
            width, order = (2 if number < 2**16 else 4), draw(st.sampled_from(["big", "little"]))
            content[place : place + width] = number.to_bytes(width, order)  # type: ignore[arg-type]
        elif kind == "cut":
            del content[place:]
        elif kind == "insert":
            content[place:place] = draw(st.binary(max_size=size))
        elif kind == "remove":
            del content[place : place + size]
        elif kind == "repeat":
            content[place:place] = content[place : place + size] * draw(st.integers(1, 50))
    return bytes(content)


@st.composite
def changed_json(draw: st.DrawFn, source: Any, names: tuple[str, ...] = ()) -> bytes:
    """Draw a text of JSON whose values were changed, left out, added, doubled or nested.

    Args:
        draw: of hypothesis.
        source: the values to change.
        names: names of values that may be added.
    """
    values = copy.deepcopy(source)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(values))
        if not places:
            break
        parent, key = draw(st.sampled_from(places))
        kind = draw(st.sampled_from(["value", "value", "remove", "add", "move", "deep"]))
        if kind == "remove":
            del parent[key]
        elif kind == "add" and isinstance(parent, dict):
            parent[draw(st.sampled_from(names) | WORDS if names else WORDS)] = draw(VALUES)
        elif kind == "move":
            other, place = draw(st.sampled_from(places))
            parent[key] = copy.deepcopy(other[place])
        elif kind == "deep":
            for _ in range(draw(st.sampled_from([1, 49, 60, 500, 900]))):
                parent[key] = draw(st.sampled_from([[parent[key]], {"a": parent[key]}]))
        else:
            parent[key] = draw(VALUES)
    text = json.dumps(values)
    if draw(st.integers(0, 9)) == 0:  # a name twice
        name = draw(st.sampled_from(list(source) or [""])) if isinstance(source, dict) else ""
        text = text[:-1] + f", {json.dumps(name)}: {json.dumps(draw(VALUES))}" + text[-1:]
    content = text.encode("utf-8")
    return draw(changed_bytes([content])) if draw(st.integers(0, 9)) == 0 else content


def _places(values: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each value of JSON by its parent and its name there."""
    stack = [values]
    while stack:
        parent = stack.pop()
        for key in list(parent) if isinstance(parent, dict) else range(len(parent)):
            yield parent, key
            if isinstance(parent[key], dict | list):
                stack.append(parent[key])


@contextmanager
def bounded(megabytes: int) -> Iterator[None]:
    """Fail if the peak of this process's memory grows by more inside the context; on Linux."""
    if not _RESET.exists():
        yield
        return
    _RESET.write_text("5")
    before = _peak()
    yield
    grown = (_peak() - before) / 1e3
    assert grown <= megabytes, f"{grown:.0f} MB"


def _peak() -> int:
    """Return the peak of the memory in KB since it was reset."""
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


@contextmanager
def no_network() -> Iterator[None]:
    """Fail if a connection is tried inside the context."""
    tried: list[Any] = []

    def refuse(_: socket.socket, address: Any) -> None:
        tried.append(address)
        raise OSError("no network")

    def unknown(host: Any, *_: Any, **__: Any) -> None:
        tried.append(host)
        raise socket.gaierror("no network")

    with (
        patch.object(socket.socket, "connect", refuse),
        patch.object(socket, "getaddrinfo", unknown),
    ):
        yield
    assert tried == []


@contextmanager
def as_a_user() -> Iterator[None]:
    """Let warnings be warnings, which are errors in tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
