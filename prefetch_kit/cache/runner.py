"""Runs handlers, and keeps what they answer under exactly what they read."""

import time
from collections.abc import Callable

from prefetch_kit.cache.entry import new_entry
from prefetch_kit.cache.invalidation import Invalidations
from prefetch_kit.cache.key import Request, answer_key
from prefetch_kit.cache.memory import MemoryStore
from prefetch_kit.cache.read_sets import TIMESTAMP, USER_ID, Reads, ReadSet
from prefetch_kit.cache.scope import Scope
from prefetch_kit.cache.single_flight import Outcome
from prefetch_kit.errors import Aborted
from prefetch_kit.logs import SafeLogger

# Runs the handler, which notes in the argument what it reads.
Handle = Callable[[Reads], bytes]


class Runner:
    """Runs the handlers of one app in one process."""

    def __init__(
        self, store: MemoryStore, *, invalidations: Invalidations, logger: SafeLogger
    ) -> None:
        self._store = store
        self._invalidations = invalidations
        self._logger = logger

    def run(self, scope: Scope, request: Request, handle: Handle) -> Outcome:
        """Run the handler, and keep its answer under what it read."""
        reads, position, began_at = Reads(), self._invalidations.last, time.monotonic()
        body, error = b"", None
        try:
            body = handle(reads)
        except BaseException as raised:  # noqa: BLE001 (raised again for the one who waits)
            error = raised
        names, now = reads.names(), time.monotonic()
        scope.read_sets.saw(names)
        scope.run_times.add(now - began_at, now=now)
        outdated: frozenset[bytes] = frozenset()
        if not body and (error is None or isinstance(error, Aborted)):
            outdated = self._drop_outdated(scope, request, names, began_at=began_at)
        if TIMESTAMP in names:
            self._warn_of_timestamp(scope)
            return Outcome(body, error, names, began_at=began_at, outdated=outdated)
        try:
            key, entry = answer_key(request, scope.name, names), None
        except Exception:  # noqa: BLE001 (nobody can say who the user is, as the handler saw)
            return Outcome(body, error, names)
        if body:
            entry = new_entry(
                body,
                scope,
                appid=request.asked.appid,
                user_id=request.user_id() if USER_ID in names else None,
                position=position,
                began_at=began_at,
            )
            scope.read_sets.add(names)
            if not self._store.put(key, entry):
                entry = None
        return Outcome(body, error, names, key, entry, began_at, outdated)

    def _drop_outdated(
        self, scope: Scope, request: Request, names: ReadSet, *, began_at: float
    ) -> frozenset[bytes]:
        """Drop all that would be served to a request which has no answer any more; the keys.

        Not only what is kept under the `names` that its last run read: it may have ended before
        it read all that an answer depends on.
        """
        sets = {names, *scope.read_sets.for_lookup}
        try:
            keys = frozenset(answer_key(request, scope.name, each) for each in sets)
        except Exception:  # noqa: BLE001 (nobody can say who the user is)
            return frozenset()
        for key in keys:
            self._store.drop(key, began_at=began_at)
        return keys

    def _warn_of_timestamp(self, scope: Scope) -> None:
        if not scope.warned_of_timestamp:
            scope.warned_of_timestamp = True
            self._logger.warning(
                "%s reads pull.timestamp, which no two pulls share: its answers are not cached",
                scope.handler_name,
            )
