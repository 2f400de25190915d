"""A lock that no fork finds held by another thread."""

import os
import threading
import weakref
from collections.abc import Callable
from typing import Self


class ForkLock:
    """A lock for what must not be copied by a fork while it changes.

    A fork waits until the lock is free. In the child the lock is free too, once `in_child` has
    put away what belongs to the parent. Make it before there are threads that may fork.
    """

    def __init__(self, in_child: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._forks = False
        self._in_child = in_child
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=_while_alive(self._before_fork),
                after_in_parent=_while_alive(self._after_fork_in_parent),
                after_in_child=_while_alive(self._after_fork_in_child),
            )

    def __enter__(self) -> Self:
        self._lock.acquire()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._lock.release()

    def _before_fork(self) -> None:
        self._lock.acquire()
        self._forks = True

    def _after_fork_in_parent(self) -> None:
        if self._forks:  # not where it was made while a fork was under way
            self._forks = False
            self._lock.release()

    def _after_fork_in_child(self) -> None:
        if self._forks:
            self._in_child()
        self._after_fork_in_parent()


def _while_alive(method: Callable[[], None]) -> Callable[[], None]:
    """Calls a method until its object is gone: what is registered for forks stays for good."""
    weak = weakref.WeakMethod(method)

    def call() -> None:
        if (alive := weak()) is not None:
            alive()

    return call
