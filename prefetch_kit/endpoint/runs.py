"""Handlers run in threads of their own: bounded in number, and left at a deadline."""

import math
import queue
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from prefetch_kit.endpoint.pull import Pull, ReadSet, key
from prefetch_kit.endpoint.store import Entry
from prefetch_kit.errors import PullRefused

# A thread without work for so long ends; the next burst makes new ones.
_IDLE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a handler's run: a body or an error, and for a cached one what it read.

    `key` is None where the answer is for its own pull only, `entry` where it is not kept.
    """

    body: bytes = b""
    error: BaseException | None = None
    names: ReadSet = ()
    key: bytes | None = None
    entry: Entry | None = None

    def replaces(self, name: bytes) -> bool:
        """Whether what is kept under a name would be found under another one now, or nowhere."""
        return self.error is None and self.key != name and bool(self.key or self.names)

    @property
    def is_no_data(self) -> bool:
        return self.key is not None and self.error is None and not self.body

    def is_for(self, pull: Pull, place: bytes) -> bool:
        """Whether this is the answer to another pull too: it is alike in all that was read."""
        return self.key is not None and self.key == key(pull, place, self.names)


class Run:
    """A run under way. Any number of threads may wait for it, each until its own deadline.

    It belongs to the thread that started it, which alone tells of its error. At `ends_at` (seconds
    of the monotonic clock) it is late, and another may take its place.
    """

    __slots__ = ("_done", "_is_awaited", "_lock", "_outcome", "ends_at", "is_lent")

    def __init__(self, *, is_awaited: bool, ends_at: float) -> None:
        self._lock = threading.Lock()
        self._done = threading.Lock()
        self._done.acquire()
        self._is_awaited = is_awaited
        self._outcome: Outcome | None = None
        self.ends_at = ends_at
        self.is_lent = False

    def wait(self, ends_at: float, *, is_ours: bool = True) -> Outcome:
        """The outcome. Raises `PullRefused` (503) where there is none by `ends_at`.

        That is in seconds of the monotonic clock. A late run goes on.
        """
        left_s = ends_at - time.monotonic()
        if self._done.acquire(timeout=min(max(0.0, left_s), threading.TIMEOUT_MAX)):
            self._done.release()
        with self._lock:
            outcome = self._outcome
            if is_ours:
                self._is_awaited = False
        if outcome is None:
            raise PullRefused(503, "late", "the handler did not answer within its deadline")
        return outcome

    def join(self, ends_at: float) -> Outcome | None:
        """The outcome of another's run; None where it is late before `ends_at` comes.

        Whoever joins one that is late already waits until `ends_at`. Raises as `wait` does.
        """
        if not time.monotonic() < self.ends_at < ends_at:
            return self.wait(ends_at, is_ours=False)
        with suppress(PullRefused):
            return self.wait(self.ends_at, is_ours=False)
        return None

    def body(self, outcome: Outcome, *, is_ours: bool = True) -> bytes:
        """The body; or raises the run's error, or what stands for it where it is not ours."""
        if outcome.error is None:
            return outcome.body
        if is_ours or isinstance(outcome.error, PullRefused):
            raise outcome.error
        raise PullRefused(500, "failed", "a run that several pulls waited for; one tells of it")

    def end(self, outcome: Outcome, *, is_lent: bool = False) -> bool:
        """Give the outcome to all who wait; False where the run's own thread does not.

        A lent one is that of the run whose place this one took, and came first.
        """
        with self._lock:
            is_awaited = self._is_awaited
            if self._outcome is not None:
                return is_awaited
            self._outcome, self.is_lent = outcome, is_lent
        self._done.release()
        return is_awaited


_Job = tuple[Run, Callable[[], Outcome]]


class Pool:
    """At most `max_threads` threads, made as they are needed.

    They are daemons, because a handler that hangs must not keep its process from ending. `lost`
    is told of an error that nobody waits for.
    """

    def __init__(self, max_threads: int, *, lost: Callable[[BaseException], None]) -> None:
        self.max_threads = max_threads
        self._lost = lost
        # By their modules' names: gevent exchanges them there, maybe after we were imported.
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._threads = self._free = 0

    def call(self, work: Callable[[], bytes], *, ends_at: float) -> bytes:
        """What `work` returns or raises. Raises `PullRefused` (503) where it is late or none runs.

        Without an end (infinity) it runs in the caller's own thread.
        """
        if ends_at == math.inf:
            return work()
        run = self.start(lambda: Outcome(work()))
        return run.body(run.wait(ends_at))

    def start(
        self,
        work: Callable[[], Outcome],
        *,
        is_awaited: bool = True,
        ends_at: float = math.inf,
    ) -> Run:
        """Run `work`, and wait for it unless `is_awaited` is false.

        Raises `PullRefused` (503) where no thread is free: nothing is queued.
        """
        run = Run(is_awaited=is_awaited, ends_at=ends_at)
        with self._lock:
            if self._free:
                self._free -= 1
            elif self._threads == self.max_threads or not self._hire():
                raise PullRefused(503, "busy", "every thread for handlers is busy")
        self._jobs.put((run, work))
        return run

    def _hire(self) -> bool:
        try:
            threading.Thread(target=self._serve, name="prefetch_kit", daemon=True).start()
        except RuntimeError:  # the system gives no more threads
            return False
        self._threads += 1
        return True

    def _serve(self) -> None:
        while True:
            try:
                run, work = self._jobs.get(timeout=_IDLE_S)
            except queue.Empty:
                if self._may_end():
                    return
                continue
            outcome = _outcome(work)
            with self._lock:  # before anybody hears of it, and comes again
                self._free += 1
            error = outcome.error
            if not (run.end(outcome) or error is None or isinstance(error, PullRefused)):
                self._tell(error)
            del run, work, outcome, error  # they hold a pull, which nobody needs while we wait

    def _tell(self, error: BaseException) -> None:
        try:
            self._lost(error)
        except BaseException:  # noqa: BLE001 (this thread has to go on; it is counted on)
            traceback.print_exc(chain=False)

    def _may_end(self) -> bool:
        with self._lock:
            if self._free == 0:  # somebody has counted on us; the work is on its way
                return False
            self._free -= 1
            self._threads -= 1
        return True


def due(deadline_s: float) -> float:
    """When so many seconds from now are over, in seconds of the monotonic clock."""
    return time.monotonic() + deadline_s


def _outcome(work: Callable[[], Outcome]) -> Outcome:
    try:
        return work()
    except BaseException as error:  # noqa: BLE001 (raised on in whoever waits)
        return Outcome(error=error)
