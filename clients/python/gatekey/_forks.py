"""What has to be put right in a process that was forked."""

import os
import weakref
from collections.abc import Callable


def in_forked_child(method: Callable[[], None]) -> None:
    """Have a bound method called in every process that is forked, for as long as its object lives."""
    reference = weakref.WeakMethod(method)

    def call() -> None:
        alive = reference()
        if alive is not None:
            alive()

    os.register_at_fork(after_in_child=call)
