"""Change a model for one thread while other threads use it as well.

A context manager whose name ends in ``_here`` changes the model's behaviour in the calling thread
alone; other threads run the unchanged model.

A process that is forked meanwhile by another thread has the changes, but not the thread that would
undo them. Its copy of the model is restored at once, and its locks are new.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn

from hf_gmar._core.interrupts import deferred_signals, deliver_signals

_STATE = threading.local()

# A lock lives as long as a thread holds it or waits for it.
_LOCKS: WeakValueDictionary[int, Any] = WeakValueDictionary()
_LOCKS_GUARD = threading.Lock()
_POLL = 0.1  # seconds
_CHANGES: dict[int, list[Callable[[], object]]] = {}
"""What undoes the changes of each thread, latest last."""
_MISSING = object()


def current_thread_id() -> int:
    """Return the calling thread, or the thread for which it works."""
    return getattr(_STATE, "acts_for", None) or threading.get_ident()


@contextmanager
def acting_for_thread(thread: int) -> Iterator[None]:
    """Let this thread count as another one: autograd runs backwards in threads of its own."""
    before = getattr(_STATE, "acts_for", None)
    _STATE.acts_for = thread
    try:
        yield
    finally:
        _STATE.acts_for = before


def explanation_depth() -> int:
    """Count the running explanations of this thread: a hook may start a nested explanation."""
    depth: int = getattr(_STATE, "depth", 0)
    return depth


@contextmanager
def nested() -> Iterator[None]:
    """Count one more explanation in this thread."""
    _STATE.depth = explanation_depth() + 1
    try:
        yield
    finally:
        _STATE.depth -= 1


@contextmanager
def lock_models(objects: Iterable[object]) -> Iterator[None]:
    """Hold the locks of these modules or configs, once no other thread holds them.

    The locks are reentrant: a hook inside a model may explain the same model. Signals are deferred
    meanwhile, so this context must be the outermost around changes.
    """
    # A fixed order prevents deadlocks.
    keys = sorted({id(item) for item in objects})
    with deferred_signals():
        with _LOCKS_GUARD:
            locks = [_LOCKS.setdefault(key, threading.RLock()) for key in keys]
        held = []
        try:
            for lock in locks:
                while not lock.acquire(timeout=_POLL):
                    deliver_signals()
                held.append(lock)
            yield
        finally:
            for lock in held:
                lock.release()


@contextmanager
def undoing(undo: Callable[[], object]) -> Iterator[None]:
    """Undo a change at the end, and at once in a process that another thread forks meanwhile.

    ``undo`` must do nothing where the change is not made yet.
    """
    thread = threading.get_ident()
    _CHANGES.setdefault(thread, []).append(undo)
    try:
        yield
    finally:
        undo()
        _CHANGES[thread].remove(undo)
        if not _CHANGES[thread]:
            del _CHANGES[thread]


def _in_child() -> None:
    """Undo what other threads have changed, and forget their locks."""
    global _LOCKS, _LOCKS_GUARD  # a lock that another thread holds is lost
    _LOCKS, _LOCKS_GUARD = WeakValueDictionary(), threading.Lock()
    for thread in set(_CHANGES) - {threading.get_ident()}:
        for undo in reversed(_CHANGES.pop(thread)):
            undo()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def hook_here(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a hook: it does nothing in other threads and in nested explanations."""
    caller = current_thread_id(), explanation_depth()

    def guarded(*args: Any) -> Any:
        return hook(*args) if (current_thread_id(), explanation_depth()) == caller else None

    # Another thread may compile the model meanwhile, and thread ids can't be traced.
    untraced: Callable[..., Any] = torch.compiler.disable(guarded)
    return untraced


@contextmanager
def thread_hook(
    module: nn.Module, hook: Callable[..., Any], *, before: bool = False, first: bool = False
) -> Iterator[None]:
    """Hook the module's forwards in this thread's explanation.

    ``before`` makes a pre-forward hook, which gets the keywords too. ``first`` calls a forward hook
    before the user's hooks, which may replace the output.
    """
    if before:
        handle = module.register_forward_pre_hook(hook_here(hook), with_kwargs=True)
    else:
        handle = module.register_forward_hook(hook_here(hook), prepend=first)
    with undoing(handle.remove):
        yield


@contextmanager
def replaced_here(module: nn.Module, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Replace a method of the module by a function."""
    thread = current_thread_id()
    original = getattr(module, name)
    before = module.__dict__.get(name, _MISSING)

    @functools.partial(torch.compiler.disable, recursive=False)  # threads can't be traced
    def choose(*args: Any, **kwargs: Any) -> Any:
        implementation = function if current_thread_id() == thread else original
        return implementation(*args, **kwargs)

    def restore() -> None:
        if before is _MISSING:
            module.__dict__.pop(name, None)
        else:
            module.__dict__[name] = before

    with undoing(restore):
        module.__dict__[name] = choose
        yield


@contextmanager
def uncompiled_here(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Run compiled modules uncompiled: compiled code bypasses the hooks that record attention."""
    with ExitStack() as stack:
        for module in modules:
            if module._compiled_call_impl is not None:  # by module.compile()
                stack.enter_context(replaced_here(module, "_compiled_call_impl", module._call_impl))
            original = module.__dict__.get("_modules", {}).get("_orig_mod")
            if original is not None and hasattr(module, "dynamo_ctx"):  # by torch.compile(module)
                stack.enter_context(replaced_here(module, "forward", original))
        yield
