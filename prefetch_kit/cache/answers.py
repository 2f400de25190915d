"""The answer cache: each answer is kept under exactly what its own run read.

Nothing about a handler is declared. Its run notes what it reads, and only a request that is alike
in all of that finds the answer. A lookup tries the read sets of earlier runs; a read set that is
lost or outdated costs a miss, never a wrong answer.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal, NamedTuple

from cachetools import TTLCache

from prefetch_kit.cache.entry import Entry
from prefetch_kit.cache.invalidation import Invalidations, Mark
from prefetch_kit.cache.key import Request, answer_key, encoded, exact_key
from prefetch_kit.cache.memory import MemoryStore
from prefetch_kit.cache.read_sets import TIMESTAMP, ReadSet
from prefetch_kit.cache.redis import RedisStore, SharedAnswer, SharedRun
from prefetch_kit.cache.redis_breaker import refresh_budget, run_budget
from prefetch_kit.cache.runner import Handle, Runner
from prefetch_kit.cache.scope import Scope
from prefetch_kit.cache.single_flight import Attempt, Flight, Outcome, SingleFlight
from prefetch_kit.concurrency.executor import Busy, Executor, Late, deadline_in
from prefetch_kit.errors import PullRefused
from prefetch_kit.logs import SafeLogger

Freshness = Literal["hit", "stale", "miss"]
# Called in the thread of the request, whose context a run may need.
Prepare = Callable[[], Handle]

# A refresh that failed is not tried again sooner.
_RETRY_S: Final = 1.0
_FAILURES_KEPT: Final = 10_000
# How long other processes wait at most for one that died with the right to make an answer.
_LONGEST_LEASE_S: Final = 30.0
# How much longer than the slowest recent run one more may take.
_SLOWER: Final = 1.25


class RunFailed(Exception):
    """The run that this request waited for failed; the request that started it has the error."""


class Served(NamedTuple):
    """A body and where it comes from; None where the handler is not cached."""

    body: bytes
    freshness: Freshness | None = None


class Found(NamedTuple):
    """A kept answer, its key, and whether it is fresh."""

    key: bytes
    entry: Entry
    is_fresh: bool


class AnswerCache:
    """The answers of one app in one process."""

    def __init__(
        self,
        *,
        max_bytes: int,
        executor: Executor,
        logger: SafeLogger,
        invalidations: Invalidations,
        redis: RedisStore | None,
        awaits_refresh: bool = False,
    ) -> None:
        self._awaits_refresh = awaits_refresh
        self._store = MemoryStore(max_bytes)
        self._invalidations = invalidations
        self._redis = redis
        self._executor = executor
        self._runner = Runner(self._store, invalidations=invalidations, logger=logger)
        self._flights = SingleFlight(executor)
        self._lock = threading.Lock()
        self._failed: TTLCache[bytes, None] = TTLCache(_FAILURES_KEPT, _RETRY_S)

    def fetch(self, scope: Scope, request: Request, prepare: Prepare, *, ends_at: float) -> Served:
        """The answer to a request: fresh, or stale and being refreshed, or from a run.

        `prepare` is called where the handler has to run. `ends_at` is in seconds of the
        monotonic clock. Raises what the request's own run raised, `RunFailed` where another
        one failed, `Late` and `Busy`.
        """
        if found := self.find(scope, request):
            return self._serve(found, scope, request, prepare, ends_at)
        miss = _Miss(scope, request, prepare, ends_at)
        for key, is_sure in self._runs_to_join(miss):
            if served := self._join_run(key, miss, is_sure=is_sure):
                return served
        return self._look_up(miss) or self._run_alone(miss)

    def find(self, scope: Scope, request: Request) -> Found | None:
        """The answer kept in this process."""
        now, stale, sets = time.monotonic(), None, scope.read_sets
        invalidations = self._invalidations
        for names in sets.for_lookup:
            key = answer_key(request, scope.name, names)
            entry = self._store.get(key)
            if entry is None:
                continue
            if entry.position != invalidations.last and invalidations.has_invalidated(entry):
                continue
            is_fresh = now - entry.made_at < entry.fresh_s  # entry.is_fresh without the call
            if not is_fresh and entry.is_expired(now):
                continue
            if names is not sets.last_useful:
                sets.proved_useful(names)
            if is_fresh:
                return Found(key, entry, is_fresh=True)
            # An older one may read less only because the handler reads more since.
            if stale is None or entry.began_at > stale.entry.began_at:
                stale = Found(key, entry, is_fresh=False)
        return stale

    def invalidate(self, marks: Sequence[Mark]) -> None:
        """Put answers out of reach at once, here and wherever answers are shared."""
        if self._redis is None:
            self._invalidations.add(marks)
        else:
            self._redis.invalidate(marks)

    def read_sets(self, scope: Scope) -> Sequence[ReadSet]:
        """What runs of a handler were seen to read, in this process or any that shares."""
        return self._redis.read_sets(scope) if self._redis else scope.read_sets.for_lookup

    def _serve(
        self, found: Found, scope: Scope, request: Request, prepare: Prepare, ends_at: float
    ) -> Served:
        if found.is_fresh:
            return Served(found.entry.body, "hit")
        attempt = self._refresh(found.key, scope, request, prepare)
        if attempt is not None and self._awaits_refresh:
            attempt.wait(ends_at)
            made = attempt.outcome
            has_failed = made.error is not None and not isinstance(made.error, PullRefused)
            if not has_failed and made.answers(request, scope.name):
                return Served(made.result(), "miss")
        return Served(found.entry.body, "stale")

    def _look_up(self, miss: "_Miss") -> Served | None:
        found = self.find(miss.scope, miss.request)
        return found and self._serve(found, miss.scope, miss.request, miss.prepare, miss.ends_at)

    def _runs_to_join(self, miss: "_Miss") -> Iterator[tuple[bytes, bool]]:
        """The keys of runs that may answer a request, and whether each does for all that is known.

        First a run that will probably do, if there is time to wait for it in vain; then one for a
        request that is alike in all that any run was seen to read; then one for a request just
        like it.
        """
        scope, request, sets = miss.scope, miss.request, miss.scope.read_sets
        guess = sets.likeliest
        if guess is None:
            yield scope.name + encoded(request.asked.appid), False
        elif (is_sure := sets.are_in(guess)) or time.monotonic() < miss.last_start_at:
            yield answer_key(request, scope.name, guess), is_sure
        ever_read = sets.ever_read  # by now, for a run that was waited for may have read more
        if ever_read != guess and sets.are_in(ever_read):
            yield answer_key(request, scope.name, ever_read), True
        yield exact_key(request, scope.name), TIMESTAMP not in sets.ever_read

    def _join_run(self, key: bytes, miss: "_Miss", *, is_sure: bool) -> Served | None:
        """The answer of the run under way for such requests, or of a new one.

        None where that answer is not for this request, or was not made; where it is not sure to
        be for this request, also once a run for this one alone has to begin.
        """
        name = self._flight_name(key)
        flight, is_new = self._flights.enter(name)
        attempt = None
        if is_new:
            try:
                # A run that ended a moment before kept its answer first.
                if served := self._look_up(miss):
                    self._flights.end(flight)
                    return served
                run, late_at = self._run_for(name, miss), deadline_in(miss.scope.deadline_s)
                attempt = self._flights.start(flight, run, late_at=late_at, share=miss.scope.share)
            except BaseException:
                self._flights.end(flight)
                raise
        return self._wait(flight, attempt, miss, is_sure=is_sure)

    def _flight_name(self, key: bytes) -> bytes:
        # A run that began before the last invalidation may carry what was invalidated.
        return b"%d %d %b" % (*self._invalidations.last, key)

    def _wait(
        self, flight: Flight, ours: Attempt | None, miss: "_Miss", *, is_sure: bool
    ) -> Served | None:
        if ours is None:
            until = miss.ends_at if is_sure else miss.last_start_at
            if not flight.wait(min(flight.late_at, until)):
                ours = self._start_another(flight, miss)
            if ours is None and not flight.wait(until):
                if time.monotonic() >= miss.ends_at:
                    raise Late
                return None  # there is time for one of its own
        answered_by = flight.answered_by if flight.wait(miss.ends_at) else None
        if answered_by is not None:
            outcome = answered_by.outcome
            if answered_by is ours:
                return Served(outcome.result(), "miss")
            if outcome.answers(miss.request, miss.scope.name):
                if ours is not None:
                    self._flights.report_error_of(ours)
                if outcome.error is not None and not isinstance(outcome.error, PullRefused):
                    raise RunFailed
                return Served(outcome.result(), "miss")
        if ours is None:
            return None
        # What another attempt made is for others. This one has gone on all the time.
        if not ours.wait(miss.ends_at):
            self._flights.report_error_of(ours)
            raise Late
        return Served(ours.outcome.result(), "miss")

    def _start_another(self, flight: Flight, miss: "_Miss") -> Attempt | None:
        """One more attempt, if all are late and there is room."""
        return self._flights.start_another(
            flight,
            self._run_for(flight.name, miss),
            late_at=deadline_in(miss.scope.deadline_s),
            share=miss.scope.share,
        )

    def _run_alone(self, miss: "_Miss") -> Served:
        handle = miss.prepare()
        body = self._executor.call(
            lambda: self._runner.run(miss.scope, miss.request, handle).result(),
            ends_at=miss.ends_at,
            share=miss.scope.share,
        )
        return Served(body, "miss")

    def _run_for(self, name: bytes, miss: "_Miss") -> Callable[[], Outcome]:
        handle, last_start_at = miss.prepare(), miss.last_start_at
        return lambda: self._make(name, miss.scope, miss.request, handle, last_start_at)

    def _refresh(
        self, key: bytes, scope: Scope, request: Request, prepare: Prepare
    ) -> Attempt | None:
        """Make a stale answer anew in the background, unless that failed a moment ago."""
        name, handle = b"refresh " + key, prepare()

        def refresh() -> Outcome:
            outcome, began_at = Outcome(), time.monotonic()
            try:
                outcome = self._make(name, scope, request, handle)
                if outcome.replaces(key):
                    self._store.drop(key, began_at=began_at)
                    if self._redis is not None:
                        self._redis.drop([key], began_at=began_at)
            finally:
                if outcome.key is None or outcome.error is not None:
                    with self._lock:
                        self._failed[key] = None
            return outcome

        with self._lock:
            if key in self._failed:
                return None
        attempt = self._flights.start_unawaited(name, refresh, share=scope.share)
        if attempt is not None:
            self._flights.report_error_of(attempt)
        return attempt

    def _make(
        self,
        name: bytes,
        scope: Scope,
        request: Request,
        handle: Handle,
        last_start_at: float | None = None,
    ) -> Outcome:
        """Take the answer of another process, or run the handler here.

        The handler starts by `last_start_at`, in monotonic seconds, whatever another process
        does; None for a refresh, which leaves it to the other process.
        """
        redis = self._redis
        if redis is None:
            return self._runner.run(scope, request, handle)
        is_refresh = last_start_at is None

        def adopt(found: SharedAnswer | None) -> Outcome | None:
            return found and self._adopt(found, scope, request, handle, is_refresh=is_refresh)

        budget = refresh_budget() if is_refresh else run_budget()
        run = SharedRun(redis, name, scope, request, budget)
        if outcome := adopt(run.find()):
            return outcome
        lease_s = min(scope.deadline_s, _LONGEST_LEASE_S)
        is_ours, found = run.lease(lease_s)
        if not is_ours:
            if last_start_at is None:
                return Outcome()  # another process is making it
            found = run.wait(min(deadline_in(lease_s), last_start_at))
        outcome = adopt(found) or self._runner.run(scope, request, handle)
        self._share(redis, run, outcome)
        return outcome

    def _adopt(
        self,
        found: SharedAnswer,
        scope: Scope,
        request: Request,
        handle: Handle,
        *,
        is_refresh: bool,
    ) -> Outcome | None:
        """Keep the answer of another process here; None where that is no use."""
        names, key, entry = found
        is_fresh = entry.is_fresh(time.monotonic())
        if (is_refresh and not is_fresh) or not self._store.put(key, entry):
            return None
        scope.read_sets.add(names)
        if not is_fresh:  # it may be too large to be kept here, and no later request sees it
            self._refresh(key, scope, request, lambda: handle)
        return Outcome(entry.body, names=names, key=key)

    def _share(self, redis: RedisStore, run: SharedRun, outcome: Outcome) -> None:
        """Give other processes the answer, and the right to make it; nobody waits for that."""
        names, key, entry = outcome.names, outcome.key, outcome.entry

        def share() -> None:
            if outcome.outdated:
                redis.drop(outcome.outdated | run.keys, began_at=outcome.began_at)
            run.publish(None if key is None or entry is None else SharedAnswer(names, key, entry))

        if self._awaits_refresh:  # nothing may run after the pull
            share()
            return
        try:
            self._executor.submit(share)
        except Busy:
            share()


class _Miss(NamedTuple):
    """A request for which nothing is kept."""

    scope: Scope
    request: Request
    prepare: Prepare
    ends_at: float

    @property
    def last_start_at(self) -> float:
        """When a run for this request alone has to start, to end in time."""
        return self.ends_at - _SLOWER * self.scope.run_times.slowest_s
