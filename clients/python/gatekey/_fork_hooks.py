"""What must be put right when the process forks. The only place that registers anything with `os.register_at_fork`.

What is registered with the interpreter stays registered for ever, so that is one set of functions. The objects that
they act on are referred to weakly: a client that was closed leaves nothing behind.
"""

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Lock(Protocol):
    """A lock of `threading`."""

    def acquire(self) -> bool:
        """Wait for the lock and take it."""
        ...

    def release(self) -> None:
        """Give it back."""
        ...


_METHODS: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()
_LOCKS: weakref.WeakKeyDictionary[Any, Callable[[Any], Lock]] = weakref.WeakKeyDictionary()

# One fork at a time: `_HELD` are the locks of the one that is under way.
_FORKING = threading.Lock()
_HELD: list[Lock] = []


def in_forked_child(owner: T, method: Callable[[T], None]) -> None:
    """Have a method of an object called in every process that is forked, for as long as the object lives.

    There is one such method an object, the last.
    """
    _METHODS[owner] = method


def hold_while_forking(owner: T, lock_of: Callable[[T], Lock]) -> None:
    """Have forks wait for a lock of an object, and hold it meanwhile, for as long as the object lives.

    The lock stays locked in the child, where the object's method for `in_forked_child` makes a new one. It must be
    reentrant if a thread that holds it may fork.
    """
    _LOCKS[owner] = lock_of


def _before() -> None:
    _FORKING.acquire()
    # By references: other threads may register objects meanwhile.
    for reference in _LOCKS.keyrefs():
        owner = reference()
        if owner is not None:
            lock = _LOCKS[owner](owner)
            lock.acquire()
            _HELD.append(lock)


def _after_in_parent() -> None:
    while _HELD:
        _HELD.pop().release()
    _FORKING.release()


def _after_in_child() -> None:
    _HELD.clear()
    for owner, method in list(_METHODS.items()):
        method(owner)
    _FORKING.release()


os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
