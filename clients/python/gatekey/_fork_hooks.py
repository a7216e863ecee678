"""What has to be put right in a process that was forked."""

import os
import weakref
from collections.abc import Callable

# What is registered with the interpreter stays registered, so that is one function. Whatever it calls can be freed.
_METHODS: set["weakref.WeakMethod[Callable[[], None]]"] = set()


def in_forked_child(method: Callable[[], None]) -> None:
    """Have a bound method called in every process that is forked, for as long as its object lives."""
    _METHODS.add(weakref.WeakMethod(method, _METHODS.discard))


def _call_all() -> None:
    for reference in tuple(_METHODS):
        method = reference()
        if method is not None:
            method()


os.register_at_fork(after_in_child=_call_all)
