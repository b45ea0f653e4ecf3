"""What a thread may change on a model that other threads use as well."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn

_here = threading.local()

# A lock lives as long as a thread holds it or waits for it.
_LOCKS: WeakValueDictionary[int, Any] = WeakValueDictionary()
_TABLE = threading.Lock()
_MISSING = object()


def this_thread() -> int:
    """The thread that is asking, or the one for which it works."""
    return getattr(_here, "works_for", None) or threading.get_ident()


@contextmanager
def acting_for_thread(thread: int) -> Iterator[None]:
    """Inside, this thread is taken for another: autograd runs parts of a call in its own."""
    before = getattr(_here, "works_for", None)
    _here.works_for = thread
    try:
        yield
    finally:
        _here.works_for = before


def level() -> int:
    """How many explanations of this thread go on, one inside another by a hook."""
    found: int = getattr(_here, "level", 0)
    return found


@contextmanager
def nested() -> Iterator[None]:
    """Inside, one more explanation of this thread goes on."""
    _here.level = level() + 1
    try:
        yield
    finally:
        _here.level -= 1


@contextmanager
def lock_models(things: Iterable[object]) -> Iterator[None]:
    """Wait until no other thread is inside a turn with one of these objects.

    The locks are reentrant: a hook inside a model may explain the same one.
    """
    # In one order, so that two threads never wait for each other.
    keys = sorted({id(thing) for thing in things})
    with _TABLE:
        locks = [_LOCKS.setdefault(key, threading.RLock()) for key in keys]
    with ExitStack() as stack:
        for lock in locks:
            stack.enter_context(lock)
        yield


@contextmanager
def replaced_here(module: nn.Module, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Inside, a method of the module is another function for this thread, and for it alone."""
    thread = this_thread()
    original = getattr(module, name)
    before = module.__dict__.get(name, _MISSING)

    @functools.partial(torch.compiler.disable, recursive=False)  # threads can't be traced
    def choose(*args: Any, **kwargs: Any) -> Any:
        chosen = function if this_thread() == thread else original
        return chosen(*args, **kwargs)

    module.__dict__[name] = choose
    try:
        yield
    finally:
        if before is _MISSING:
            del module.__dict__[name]
        else:
            module.__dict__[name] = before


@contextmanager
def uncompiled_here(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, this thread runs modules that torch.compile made fast as they were written.

    Compiled code passes by the hooks and functions by which attention is seen.
    """
    with ExitStack() as stack:
        for module in modules:
            if module._compiled_call_impl is not None:  # by module.compile()
                stack.enter_context(replaced_here(module, "_compiled_call_impl", module._call_impl))
            inside = module.__dict__.get("_modules", {}).get("_orig_mod")
            if inside is not None and hasattr(module, "dynamo_ctx"):  # by torch.compile(module)
                stack.enter_context(replaced_here(module, "forward", inside))
        yield
