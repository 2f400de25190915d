"""One run for all requests that wait for the same answer."""

import math
import threading
import time
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future
from dataclasses import dataclass, field

from prefetch_kit.cache.entry import Entry
from prefetch_kit.cache.key import Request, answer_key
from prefetch_kit.cache.read_sets import ReadSet
from prefetch_kit.concurrency.executor import Busy, Executor


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run: a body or an error, and what the run read.

    `key` is None where the answer is for its own request alone, `entry` where it is not kept.
    `outdated` are the keys of answers that must not be served after it: there is no data any
    more, or the pull was refused on purpose.
    """

    body: bytes = b""
    error: BaseException | None = None
    names: ReadSet = ()
    key: bytes | None = None
    entry: Entry | None = None
    began_at: float = 0.0
    outdated: frozenset[bytes] = frozenset()

    def replaces(self, key: bytes) -> bool:
        """Whether what is kept under `key` would now be found under another key, or not at all."""
        return self.error is None and self.key != key and bool(self.key or self.names)

    def answers(self, request: Request, scope: bytes) -> bool:
        """Whether this is the answer to another request too: all that was read is the same."""
        return self.key is not None and self.key == answer_key(request, scope, self.names)

    def result(self) -> bytes:
        """The body; raises the error of the run."""
        if self.error is not None:
            raise self.error
        return self.body


@dataclass(slots=True, eq=False)
class Attempt:
    """One run of a flight. At `late_at` (monotonic seconds) the next request may add another."""

    late_at: float
    share: str
    outcome: Outcome = field(default_factory=Outcome)
    future: "Future[None]" = field(init=False)

    def wait(self, until: float) -> bool:
        """Wait until the run has ended; False where it has not by then."""
        return not futures.wait([self.future], timeout=_timeout(until)).not_done


class Flight:
    """Requests that wait for one answer, and the attempts to make it.

    The first attempt that succeeds ends it, and the failure of the newest one. It may also end
    without an answer.
    """

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.newest: Attempt | None = None
        self.answered_by: Attempt | None = None
        # Held until the flight has ended: a Future would do, for a tenth more a miss.
        self._under_way = threading.Lock()
        self._under_way.acquire()

    @property
    def late_at(self) -> float:
        """When the newest attempt is late, in monotonic seconds."""
        return math.inf if self.newest is None else self.newest.late_at

    def wait(self, until: float) -> bool:
        """Wait until the flight has ended; False where it has not by then."""
        has_ended = self._under_way.acquire(timeout=_timeout(until))
        if has_ended:
            self._under_way.release()
        return has_ended

    def end(self, attempt: Attempt | None) -> None:
        self.answered_by = attempt
        self._under_way.release()


class SingleFlight:
    """The flights of one process.

    Attempts that are late, and those that nobody waits for, get no more than a quarter of the
    threads, for each share: they may hang, and a share is at most half.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._lock = threading.Lock()
        self._flights: dict[bytes, Flight] = {}
        self._attempts: set[Attempt] = set()

    def enter(self, name: bytes) -> tuple[Flight, bool]:
        """The flight of this name, and whether it is new: then the caller starts or ends it."""
        with self._lock:
            flight = self._flights.get(name)
            if flight is not None:
                return flight, False
            flight = self._flights[name] = Flight(name)
            return flight, True

    def start(
        self, flight: Flight, run: Callable[[], Outcome], *, late_at: float, share: str
    ) -> Attempt:
        """Start the first attempt. Raises `Busy`."""
        with self._lock:
            return self._start(flight, run, Attempt(late_at, share))

    def start_another(
        self, flight: Flight, run: Callable[[], Outcome], *, late_at: float, share: str
    ) -> Attempt | None:
        """Start one more attempt, if all are late and there is room for one that may hang."""
        with self._lock:
            if flight.late_at > time.monotonic() or self._flights.get(flight.name) is not flight:
                return None
            return self._start_with_room(flight, run, Attempt(late_at, share))

    def start_unawaited(
        self, name: bytes, run: Callable[[], Outcome], *, share: str
    ) -> Attempt | None:
        """Start a run that nobody waits for, unless it is under way or there is no room."""
        with self._lock:
            if name in self._flights:
                return None
            flight = Flight(name)
            attempt = self._start_with_room(flight, run, Attempt(-math.inf, share))
            if attempt is not None:
                self._flights[name] = flight
            return attempt

    def report_error_of(self, attempt: Attempt) -> None:
        """Report the error of an attempt that nobody waits for any more."""
        # Its outcome has the error, and not its future: those who wait raise it.
        attempt.future.add_done_callback(lambda _: self._executor.report(attempt.outcome.error))

    def end(self, flight: Flight) -> None:
        """End a flight without an answer: those who wait go on for themselves."""
        with self._lock:
            self._end(flight, None)

    def _start_with_room(
        self, flight: Flight, run: Callable[[], Outcome], attempt: Attempt
    ) -> Attempt | None:
        now = time.monotonic()
        hanging = sum(
            other.late_at <= now for other in self._attempts if other.share == attempt.share
        )
        if hanging >= (self._executor.max_threads + 3) // 4:
            return None
        try:
            return self._start(flight, run, attempt)
        except Busy:
            return None

    def _start(self, flight: Flight, run: Callable[[], Outcome], attempt: Attempt) -> Attempt:
        def work() -> None:
            try:
                attempt.outcome = run()
            except BaseException as error:  # noqa: BLE001 (the one who waits gets it)
                attempt.outcome = Outcome(error=error)
            with self._lock:
                self._attempts.discard(attempt)
                if flight.newest is attempt or attempt.outcome.entry is not None:
                    self._end(flight, attempt)

        attempt.future = self._executor.submit(work, share=attempt.share)
        self._attempts.add(attempt)
        flight.newest = attempt
        return attempt

    def _end(self, flight: Flight, attempt: Attempt | None) -> None:
        if self._flights.get(flight.name) is flight:
            del self._flights[flight.name]
            flight.end(attempt)


def _timeout(until: float) -> float:
    return min(max(0.0, until - time.monotonic()), threading.TIMEOUT_MAX)
