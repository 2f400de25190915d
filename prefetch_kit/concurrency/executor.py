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
# Takes what the work returned, or its error.
_Deliver = Callable[[Any, BaseException | None], None]
_Job = tuple[Callable[[], Any], _Deliver, str | None]


class Busy(Exception):
    """No thread is free for this work, and nothing is queued. The text says why."""


class Late(Exception):
    """The work did not end by its deadline. It goes on without its caller."""


class Executor:
    """Runs work in at most `max_threads` threads, started as they are needed.

    A `ThreadPoolExecutor` queues without bound, and a handler that hangs keeps its process from
    ending. These threads are daemons, and work that finds none free is refused. Work of a named
    share gets at most half of the threads that other work leaves, at least one. `on_lost_error`
    is called with each error that no caller waits for.
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
        waiting = _Call(self.report)
        self._start((work, waiting.deliver, share))
        if not waiting.wait(ends_at - time.monotonic()):
            raise Late
        try:
            if waiting.error is not None:
                raise waiting.error
            result: _T = waiting.result
            return result
        finally:
            del waiting  # its error refers to this frame

    def submit(self, work: Callable[[], _T], *, share: str | None = None) -> "Future[_T]":
        """Start work and return at once. Raises `Busy`."""
        future: Future[_T] = Future()

        def deliver(result: _T, error: BaseException | None) -> None:
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        self._start((work, deliver, share))
        return future

    def report(self, error: BaseException | None) -> None:
        """Tell `on_lost_error` of an error, if there is one."""
        if error is None:
            return
        try:
            self._on_lost_error(error)
        except BaseException:  # noqa: BLE001 (the thread must go on)
            traceback.print_exc(chain=False)

    def _start(self, job: _Job) -> None:
        share = job[2]
        with self._lock:
            if share is not None and not self._may_take(share):
                raise Busy(
                    f"it has {self._taken[share]} of the {self.max_threads} threads, "
                    "half of what others leave"
                )
            if self._free:
                self._free -= 1
            elif self._threads == self.max_threads or not self._start_thread():
                raise Busy(f"all {self.max_threads} threads are taken")
            if share is not None:
                self._taken[share] += 1
        self._jobs.put(job)

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
                work, deliver, share = self._jobs.get(timeout=_IDLE_S)
            except queue.Empty:
                with self._lock:
                    if self._free == 0:  # work for this thread is on its way
                        continue
                    self._free -= 1
                    self._threads -= 1
                return
            result = error = None
            try:
                result = work()
            except BaseException as raised:  # noqa: BLE001 (the caller gets it)
                error = raised
            with self._lock:  # before the caller hears of it and comes back
                self._free += 1
                if share is not None:
                    self._taken[share] -= 1
            deliver(result, error)
            del work, deliver, result, error  # they hold a pull, which an idle thread must not keep


class _Call:
    """Waits for one piece of work. A Future does the same for some 10 µs a call more."""

    __slots__ = ("_claim", "_done", "_report", "error", "result")

    def __init__(self, report: Callable[[BaseException | None], None]) -> None:
        self._report = report
        self._done = threading.Lock()
        self._done.acquire()
        # Taken by the work when it ends or by the caller when it leaves, whichever comes first.
        self._claim = threading.Lock()
        self.result: Any = None
        self.error: BaseException | None = None

    def wait(self, seconds: float) -> bool:
        """Whether the work has ended in this time; after False its error is reported."""
        timeout = min(max(0.0, seconds), threading.TIMEOUT_MAX)
        if self._done.acquire(timeout=timeout):
            return True
        if self._claim.acquire(blocking=False):
            return False
        return self._done.acquire()  # it ends just now

    def deliver(self, result: Any, error: BaseException | None) -> None:
        if self._claim.acquire(blocking=False):
            self.result, self.error = result, error
            self._done.release()
        else:
            self._report(error)


def deadline_in(seconds: float) -> float:
    """The time `seconds` from now on the monotonic clock."""
    return time.monotonic() + seconds
