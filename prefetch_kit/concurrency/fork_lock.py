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
            _register(weakref.ref(self))

    def __enter__(self) -> Self:
        self._lock.acquire()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._lock.release()

    def before_fork(self) -> None:
        self._lock.acquire()
        self._forks = True

    def after_fork(self, *, in_child: bool) -> None:
        if self._forks:  # not where it was made while a fork was under way
            self._forks = False
            try:
                if in_child:
                    self._in_child()
            finally:
                self._lock.release()


def _register(lock: "weakref.ref[ForkLock]") -> None:
    def before() -> None:
        if (alive := lock()) is not None:
            alive.before_fork()

    def after(*, in_child: bool) -> None:
        if (alive := lock()) is not None:
            alive.after_fork(in_child=in_child)

    os.register_at_fork(
        before=before,
        after_in_parent=lambda: after(in_child=False),
        after_in_child=lambda: after(in_child=True),
    )
