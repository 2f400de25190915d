"""The answer cache: every answer is kept under exactly what its own run read.

Nothing about a handler is declared. Its Pull notes what it reads, and the answer is found again
only by a pull that is alike in all of that. A lookup tries the sets of names that earlier runs
read; one that is lost or old costs a miss, never a wrong answer.
"""

import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, Literal, NamedTuple

from cachetools import TTLCache

from prefetch_kit.endpoint.line import Visit
from prefetch_kit.endpoint.logs import SteadyLogger
from prefetch_kit.endpoint.pages import Registered
from prefetch_kit.endpoint.pull import (
    TIMESTAMP,
    USER_ID,
    Pull,
    Reads,
    ReadSet,
    key,
    likeness,
    noting,
    written,
)
from prefetch_kit.endpoint.runs import Outcome, Pool, Run, due
from prefetch_kit.endpoint.shared import SharedTier
from prefetch_kit.endpoint.store import Entry, Forgotten, Mark, MemoryStore, Position
from prefetch_kit.errors import PullRefused

Freshness = Literal["hit", "stale", "miss"]
Work = Callable[[Pull], bytes]

# A refresh that failed is not tried again sooner.
_RETRY_S: Final = 1.0
_FAILURES_KEPT: Final = 10_000
# A process that dies with the right to make an answer keeps the others waiting so long at most.
_LONGEST_LEASE_S: Final = 30.0
# The system's, because workers that are forked alike would draw alike.
_jitter: Final = random.SystemRandom()


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
        pool: Pool,
        logger: SteadyLogger,
        forgotten: Forgotten,
        shared: SharedTier | None,
        deadline_s: float,
    ) -> None:
        self._store = MemoryStore(max_bytes)
        self._forgotten = forgotten
        self._shared = shared
        self._deadline_s = deadline_s
        self._pool = pool
        self._logger = logger
        self._lock = threading.Lock()
        self._flights: dict[bytes, Run] = {}
        self._given_up: set[Run] = set()
        self._refreshing: set[bytes] = set()
        self._failed: TTLCache[bytes, None] = TTLCache(_FAILURES_KEPT, _RETRY_S)

    def fetch(
        self, place: Registered, pull: Pull, work: Callable[[], Work], *, ends_at: float
    ) -> Served:
        """The answer to a pull: fresh, or stale and being refreshed, or from a run.

        `work` is asked for what runs the handler only where it has to run. Raises what the run
        raised, and `PullRefused` (503) where it is late (`ends_at`) or cannot start.
        """
        # Wait first for a run that will probably answer this pull too, then for that of a pull
        # just like it. If those are for themselves alone, so is this one.
        for is_alike in (False, True):
            outcome = None
            while outcome is None:
                joined = self._found_or_run(place, pull, work, is_alike=is_alike)
                if isinstance(joined, Found):
                    if not joined.is_fresh:
                        self._refresh(joined.key, place, pull, work)
                    return Served(joined.entry.body, "hit" if joined.is_fresh else "stale")
                run, is_ours = joined
                outcome = run.wait(ends_at) if is_ours else run.join(ends_at)
            is_ours = is_ours and not run.is_lent
            if is_ours or outcome.is_for(pull, place.name):
                return Served(run.body(outcome, is_ours=is_ours), "miss")
        handle = work()
        run = self._pool.start(lambda: self._run(place, pull, handle))
        return Served(run.body(run.wait(ends_at)), "miss")

    def look(self, place: Registered, pull: Pull) -> Found | None:
        """A kept answer to a pull."""
        now, stale, sets = time.monotonic(), None, place.read_sets
        forgotten = self._forgotten
        for names in sets.for_lookup:
            name = key(pull, place.name, names)
            entry = self._store.get(name)
            if entry is None or (entry.begun != forgotten.at and forgotten.has(entry)):
                continue
            is_fresh = now - entry.made_at < entry.fresh_s  # entry.is_fresh, without a call a hit
            if not is_fresh and entry.is_over(now):
                continue
            if names is not sets.useful:
                sets.proved_useful(names)
            if is_fresh:
                return Found(name, entry, is_fresh=True)
            # An older one may read less only because a handler reads more since.
            if stale is None or entry.began_at > stale.entry.began_at:
                stale = Found(name, entry, is_fresh=False)
        return stale

    def forget(self, marks: Sequence[Mark]) -> None:
        """Make answers unreachable at once, here and wherever answers are shared."""
        if self._shared is None:
            self._forgotten.add(marks)
        else:
            self._shared.forget(marks)

    def read_sets(self, place: Registered) -> Sequence[ReadSet]:
        """What runs of a handler were seen to read, in this process or any that shares."""
        return self._shared.read_sets(place) if self._shared else place.read_sets.for_lookup

    def _found_or_run(
        self, place: Registered, pull: Pull, work: Callable[[], Work], *, is_alike: bool
    ) -> Found | tuple[Run, bool]:
        """A kept answer, or the run under way for such pulls, and whether it is a new one."""
        while True:
            landed = place.landed
            if found := self.look(place, pull):
                return found
            name = self._flight_name(place, pull, is_alike=is_alike)
            with self._lock:
                run = self._flights.get(name)
                if run is not None and not (self._is_late(run) and self._has_room()):
                    return run, False
                # Where a run ended since we looked, its answer may be ours: look again.
                if landed == place.landed:
                    return self._fly(name, place, pull, work()), True

    def _flight_name(self, place: Registered, pull: Pull, *, is_alike: bool) -> bytes:
        names = place.read_sets.likeliest
        if is_alike:
            name = likeness(pull, place.name)
        elif names is not None:
            name = key(pull, place.name, names)
        else:
            name = place.name + written(pull.appid)
        # A run that began before the last forget may carry what was forgotten.
        return b"%d %d %b" % (*self._forgotten.at, name)

    def _fly(self, name: bytes, place: Registered, pull: Pull, handle: Work) -> Run:
        """A new run, in the place of one that is late. Called with the lock held."""

        def fly() -> Outcome:
            outcome = Outcome()
            try:
                outcome = self._made(name, place, pull, handle, is_refresh=False)
            finally:
                with self._lock:
                    place.landed += 1
                    self._given_up.discard(run)
                    if (current := self._flights.get(name)) is run:
                        del self._flights[name]
                    elif current is not None and outcome.entry is not None:
                        current.end(outcome, is_lent=True)
            return outcome

        late, ends_at = self._flights.get(name), due(self._deadline_of(place))
        run = self._flights[name] = self._pool.start(fly, ends_at=ends_at)
        if late is not None:
            self._given_up.add(late)
        return run

    def _is_late(self, run: Run) -> bool:
        return run.ends_at <= time.monotonic()

    def _has_room(self) -> bool:
        """Whether one more run may hang: half of the threads are kept for what does not."""
        late = sum(map(self._is_late, self._flights.values()))
        hanging = late + len(self._given_up) + len(self._refreshing)
        return hanging < (self._pool.max_threads + 1) // 2

    def _deadline_of(self, place: Registered) -> float:
        return place.handler.deadline_s or self._deadline_s

    def _refresh(
        self, name: bytes, place: Registered, pull: Pull, work: Callable[[], Work]
    ) -> None:
        def refresh() -> Outcome:
            outcome, began_at = Outcome(), time.monotonic()
            try:
                outcome = self._made(name, place, pull, handle, is_refresh=True)
                if outcome.replaces(name):
                    self._drop(name, began_at)
                    if self._shared is not None:
                        self._shared.drop(name)
            finally:
                with self._lock:
                    self._refreshing.discard(name)
                    if outcome.key is None or outcome.error is not None:
                        self._failed[name] = None
            return outcome

        with self._lock:
            is_under_way = name in self._refreshing
            if is_under_way or name in self._failed or not self._has_room():
                return
            handle = work()
            with suppress(PullRefused):  # the pool is full; a later pull will try again
                self._pool.start(refresh, is_awaited=False)
                self._refreshing.add(name)

    def _made(
        self, name: bytes, place: Registered, pull: Pull, handle: Work, *, is_refresh: bool
    ) -> Outcome:
        """The outcome of a run, here or in another process."""
        if (shared := self._shared) is None:
            return self._run(place, pull, handle)
        outcome, token = self._made_by_others(
            shared, name, place, pull, handle, is_refresh=is_refresh
        )
        if outcome is None:
            outcome = self._run(place, pull, handle)

        def share() -> Outcome:
            if outcome.entry is not None and outcome.key is not None:
                shared.keep(place, outcome.names, outcome.entry, outcome.key)
            elif outcome.is_no_data and outcome.key is not None:
                shared.drop(outcome.key)
            if token is not None:
                shared.release(name, token)
            return Outcome()  # its error is told of by the run itself

        if token is not None or outcome.entry is not None or outcome.is_no_data:
            try:
                # Whoever waits need not wait for this.
                self._pool.start(share, is_awaited=False)
            except PullRefused:
                share()
        return outcome

    def _made_by_others(
        self,
        shared: SharedTier,
        name: bytes,
        place: Registered,
        pull: Pull,
        handle: Work,
        *,
        is_refresh: bool,
    ) -> tuple[Outcome | None, bytes | None]:
        """What another process made, or a token for the right to make it (None without Redis)."""

        def taken(found: tuple[ReadSet, bytes, Entry] | None) -> Outcome | None:
            if found is None:
                return None
            names, kept_as, entry = found
            is_fresh = entry.is_fresh(time.monotonic())
            if (is_refresh and not is_fresh) or not self._keep(kept_as, entry):
                return None
            place.read_sets.add(names)
            if not is_fresh:  # here it may be too large to be kept, and be seen by no later pull
                self._refresh(kept_as, place, pull, lambda: handle)
            return Outcome(entry.body, names=names, key=kept_as)

        visit = Visit(is_refresh=is_refresh)
        lease_s = min(self._deadline_of(place), _LONGEST_LEASE_S)
        if outcome := taken(shared.look(place, pull, visit)):
            return outcome, None
        token = shared.lease(name, lease_s, visit)
        if token is not None:
            # Another process may have ended its run since we looked.
            return taken(shared.look(place, pull, visit)), token
        if is_refresh:
            return Outcome(), None  # another process is at it
        until = time.monotonic() + lease_s
        return taken(shared.wait_for_other(place, pull, name, until)), None

    def _run(self, place: Registered, pull: Pull, handle: Work) -> Outcome:
        reads, begun, began_at = Reads(), self._forgotten.at, time.monotonic()
        body, error = b"", None
        try:
            body = handle(noting(pull, reads))
        except BaseException as raised:  # noqa: BLE001 (raised on in whoever waits)
            error = raised
        names = reads.names()
        place.read_sets.saw(names)
        if TIMESTAMP in names:
            self._warn_of_timestamp(place)
            return Outcome(body, error, names)
        name, entry = key(pull, place.name, names), None
        if body:
            user_id = pull.user_id if USER_ID in names else None
            entry = _entry(place, pull.appid, user_id, body, begun, began_at)
            place.read_sets.add(names)
            if not self._keep(name, entry):
                entry = None
        elif error is None:
            self._drop(name, began_at)
        return Outcome(body, error, names, name, entry)

    def _keep(self, name: bytes, entry: Entry) -> bool:
        """Keep an answer; False where there is one of a run that began later."""
        with self._lock:
            there = self._store.get(name)
            if there is not None and there.began_at > entry.began_at:
                return False
            self._store.put(name, entry)
        return True

    def _drop(self, name: bytes, began_at: float) -> None:
        """There is no data any more: what an earlier run found must not be served as stale."""
        with self._lock:
            there = self._store.get(name)
            if there is not None and there.began_at <= began_at:
                self._store.drop(name)

    def _warn_of_timestamp(self, place: Registered) -> None:
        if not place.warned:
            place.warned = True
            self._logger.warning(
                "%s reads pull.timestamp, which no two pulls share: its answers are not cached",
                place.handler.name,
            )


def _entry(
    place: Registered,
    appid: str,
    user_id: str | None,
    body: bytes,
    begun: Position,
    began_at: float,
) -> Entry:
    policy, now = place.handler.cache, time.monotonic()
    assert policy is not None  # noqa: S101 (only cached handlers come here)
    return Entry(
        # A copy, because what orjson gives holds many times the memory that it fills.
        body=bytes(memoryview(body)),
        made_at=now,
        took_s=now - began_at,
        # Answers made at the same time must not all end at the same time.
        fresh_s=policy.fresh * _jitter.uniform(0.9, 1.1),
        stale_s=policy.stale,
        begun=begun,
        instance=place.instance,
        page=place.handler.page,
        appid=appid,
        user_id=user_id,
    )
