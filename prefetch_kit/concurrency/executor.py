"""Work in threads that are bounded in number and left behind at a deadline."""

import math
import queue
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, TypeVar

# A thread without work ends after this time; the next burst starts new ones.
_IDLE_S: Final = 60.0

_T = TypeVar("_T")
_Job = tuple["Future[Any]", Callable[[], Any], str | None]


class Busy(Exception):
    """No thread is free for this work, and nothing is queued."""


class Late(Exception):
    """The work did not end by its deadline. It goes on without its caller."""


class Executor:
    """Runs work in at most `max_threads` threads, started as they are needed.

    A `ThreadPoolExecutor` queues without bound, and its threads keep a process from ending while
    a handler hangs. These threads are daemons, and work that finds no thread is refused. Work of
    a named share gets at most half of the threads that all other work leaves, at least one.
    `on_lost_error` hears of each error that no caller waits for.
    """

    def __init__(self, max_threads: int, *, on_lost_error: Callable[[BaseException], None]) -> None:
        self.max_threads = max_threads
        self._on_lost_error = on_lost_error
        # Looked up in their modules here: gevent may exchange them after our import.
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._threads = self._free = 0
        self._taken: Counter[str] = Counter()

    def call(self, work: Callable[[], _T], *, ends_at: float, share: str | None = None) -> _T:
        """Return what `work` returns, or raise what it raises.

        `ends_at` is in seconds of the monotonic clock; at infinity the work runs in the caller's
        own thread. Raises `Busy`, and `Late` where the work has not ended by then.
        """
        if ends_at == math.inf:
            return work()
        future = self.submit(work, share=share)
        try:
            # Asked for the error and not for the result, since the work may raise TimeoutError.
            future.exception(min(max(0.0, ends_at - time.monotonic()), threading.TIMEOUT_MAX))
        except TimeoutError:
            future.add_done_callback(lambda done: self.report(done.exception()))
            raise Late from None
        try:
            return future.result()
        finally:
            del future  # its error refers to this frame

    def submit(self, work: Callable[[], _T], *, share: str | None = None) -> "Future[_T]":
        """Start work and return at once. Raises `Busy`."""
        future: Future[_T] = Future()
        with self._lock:
            if share is not None and not self._may_take(share):
                raise Busy(f"{share} has its share of the threads")
            if self._free:
                self._free -= 1
            elif self._threads == self.max_threads or not self._start_thread():
                raise Busy("every thread is taken")
            if share is not None:
                self._taken[share] += 1
        self._jobs.put((future, work, share))
        return future

    def report(self, error: BaseException | None) -> None:
        """Tell `on_lost_error` of an error, if there is one."""
        if error is None:
            return
        try:
            self._on_lost_error(error)
        except BaseException:  # noqa: BLE001 (the thread must go on)
            traceback.print_exc(chain=False)

    def _may_take(self, share: str) -> bool:
        busy = self._threads - self._free
        left_by_others = self.max_threads - (busy - self._taken[share])
        return self._taken[share] < (left_by_others + 1) // 2

    def _start_thread(self) -> bool:
        try:
            threading.Thread(target=self._work, name="prefetch_kit", daemon=True).start()
        except RuntimeError:  # the system has no thread left
            return False
        self._threads += 1
        return True

    def _work(self) -> None:
        while True:
            try:
                future, work, share = self._jobs.get(timeout=_IDLE_S)
            except queue.Empty:
                if self._may_end():
                    return
                continue
            result = error = None
            try:
                result = work()
            except BaseException as raised:  # noqa: BLE001 (the caller gets it)
                error = raised
            with self._lock:  # before the caller hears of it and comes back
                self._free += 1
                if share is not None:
                    self._taken[share] -= 1
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
            del future, work, result, error  # they hold a pull, which an idle thread must not keep

    def _may_end(self) -> bool:
        with self._lock:
            if self._free == 0:  # work for this thread is on its way
                return False
            self._free -= 1
            self._threads -= 1
        return True


def due(seconds: float) -> float:
    """The time `seconds` from now on the monotonic clock."""
    return time.monotonic() + seconds
