"""Change a model for one thread while other threads use it as well.

A context manager whose name ends in ``_here`` changes what a model does for the calling thread
alone: other threads run the model as ever.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn

_STATE = threading.local()

# A lock lives as long as a thread holds it or waits for it.
_LOCKS: WeakValueDictionary[int, Any] = WeakValueDictionary()
_LOCKS_GUARD = threading.Lock()
_MISSING = object()


def current_thread_id() -> int:
    """The calling thread, or the one for which it works."""
    return getattr(_STATE, "acts_for", None) or threading.get_ident()


@contextmanager
def acting_for_thread(thread: int) -> Iterator[None]:
    """Inside, this thread is taken for another: autograd runs parts of a call in its own."""
    before = getattr(_STATE, "acts_for", None)
    _STATE.acts_for = thread
    try:
        yield
    finally:
        _STATE.acts_for = before


def explanation_depth() -> int:
    """How many explanations run in this thread; a hook may start one inside another."""
    depth: int = getattr(_STATE, "depth", 0)
    return depth


@contextmanager
def nested() -> Iterator[None]:
    """Inside, one more explanation runs in this thread."""
    _STATE.depth = explanation_depth() + 1
    try:
        yield
    finally:
        _STATE.depth -= 1


@contextmanager
def lock_models(objects: Iterable[object]) -> Iterator[None]:
    """Wait until no other thread holds the lock of one of these modules or configs.

    The locks are reentrant: a hook inside a model may explain the same one.
    """
    # In one order, so that two threads never wait for each other.
    keys = sorted({id(item) for item in objects})
    with _LOCKS_GUARD:
        locks = [_LOCKS.setdefault(key, threading.RLock()) for key in keys]
    with ExitStack() as stack:
        for lock in locks:
            stack.enter_context(lock)
        yield


def hook_here(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook that does nothing in other threads, nor in an explanation inside this one."""
    place = current_thread_id(), explanation_depth()

    def here(*args: Any) -> Any:
        return hook(*args) if (current_thread_id(), explanation_depth()) == place else None

    # A thread that compiles the model meanwhile could not trace what asks for threads.
    untraced: Callable[..., Any] = torch.compiler.disable(here)
    return untraced


@contextmanager
def thread_hook(
    module: nn.Module, hook: Callable[..., Any], *, before: bool = False, first: bool = False
) -> Iterator[None]:
    """Inside, a hook acts on the module's forwards in this thread's explanation.

    ``before`` makes it a pre-forward hook, which gets the keywords too. ``first`` calls a forward
    hook before those of the user, which may replace the output.
    """
    if before:
        handle = module.register_forward_pre_hook(hook_here(hook), with_kwargs=True)
    else:
        handle = module.register_forward_hook(hook_here(hook), prepend=first)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def replaced_here(module: nn.Module, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Inside, a method of the module is another function."""
    thread = current_thread_id()
    original = getattr(module, name)
    before = module.__dict__.get(name, _MISSING)

    @functools.partial(torch.compiler.disable, recursive=False)  # threads can't be traced
    def choose(*args: Any, **kwargs: Any) -> Any:
        chosen = function if current_thread_id() == thread else original
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
    """Inside, modules that torch.compile compiled run as they were written.

    Compiled code bypasses the hooks and functions that record attention.
    """
    with ExitStack() as stack:
        for module in modules:
            if module._compiled_call_impl is not None:  # by module.compile()
                stack.enter_context(replaced_here(module, "_compiled_call_impl", module._call_impl))
            inside = module.__dict__.get("_modules", {}).get("_orig_mod")
            if inside is not None and hasattr(module, "dynamo_ctx"):  # by torch.compile(module)
                stack.enter_context(replaced_here(module, "forward", inside))
        yield
