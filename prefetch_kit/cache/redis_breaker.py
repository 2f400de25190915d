"""Redis as the cache calls it: within a budget, and not at all while it is away."""

import math
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from prefetch_kit.concurrency.redis_client import Budget, Commands, RedisClient, RedisUnavailable
from prefetch_kit.logs import SafeLogger
from prefetch_kit.secret import Secret

# What all calls of one run may cost it, and those of a refresh, which nobody waits for: a busy
# process may be slow to notice an answer, and would make what another process makes.
BUDGET_S: Final = 0.05
REFRESH_BUDGET_S: Final = 1.0
# What the first connection may cost the first run: processes often start together, and over TLS
# it takes longer than all later calls.
CONNECT_S: Final = 0.25
# How long one silence of Redis may be. A reply that drips has many; the budget ends that one.
SILENCE_S: Final = 0.025
# Redis is away where calls have failed for this long, and none was answered meanwhile.
_PATIENCE_S: Final = 0.2
# How long a process waits in Redis for the next invalidation, which it hears of at once.
LISTEN_S: Final = 1.0
# How soon a Redis that is away is tried again; later the more often it goes away again at once.
_REST_S: Final = 0.2
_LONGEST_REST_S: Final = 5.0


def run_budget() -> Budget:
    return Budget(BUDGET_S)


def refresh_budget() -> Budget:
    return Budget(REFRESH_BUDGET_S)


class RedisBreaker:
    """Raises nothing for what Redis does: slow, frozen, gone, or answering garbage."""

    def __init__(self, url: Secret, logger: SafeLogger) -> None:
        self._logger = logger
        self._lock = threading.Lock()
        self._is_away = False
        self._failing_since: float | None = None
        self._back_at = -math.inf
        self._refusals: set[type[Exception]] = set()
        self._rest_s = _REST_S
        self._client = RedisClient(url, silence_s=SILENCE_S, on_refusal=self._note_refusal)
        try:
            self._client.connect(Budget(CONNECT_S))
        except RedisUnavailable as error:  # a run goes on without Redis
            self._failing_since = -math.inf
            self._note_failure(error)

    def call(self, commands: Commands, budget: Budget) -> list[Any] | None:
        """The replies, a refusal among them as an exception; None where there are none in time."""
        if self._is_away or budget.left_s <= 0:
            return None
        try:
            replies = self._client.call(commands, budget)
        except RedisUnavailable as error:
            self._note_failure(error)
            return None
        self._failing_since = None
        return replies

    def probe(self, commands: Commands) -> list[Any] | None:
        """The replies to a call apart from all runs, which may find Redis back."""
        started = time.monotonic()
        try:
            replies = self._client.call_in_this_thread(commands)
        except RedisUnavailable as error:
            self._note_failure(error)
            return None
        now = time.monotonic()
        if not self._is_away:
            self._failing_since = None
        elif now - started < BUDGET_S:
            self._failing_since, self._back_at = None, now
            self._is_away = False
            self._logger.info("Redis is back")
        return replies

    def wait(self, request_news: Callable[[Any, int], object]) -> bool:
        """Wait until the next `probe`, in Redis if it can; whether there is news by then.

        `request_news` adds a command that waits for so many milliseconds.
        """
        block_ms = max(1, int(LISTEN_S * 1000))
        if not self._is_away:
            try:
                news = self._client.call_in_this_thread(
                    lambda pipe: request_news(pipe, block_ms), waits_s=LISTEN_S
                )[0]
            except RedisUnavailable as error:
                self._note_failure(error)
            else:
                self._failing_since = None
                if not isinstance(news, Exception):
                    return bool(news)
        self.rest()
        return False

    def rest(self) -> None:
        time.sleep(self._rest_s if self._is_away else _REST_S)

    def _note_refusal(self, error: Exception) -> None:
        """Log each kind of refusal once; its text may hold what was to be kept."""
        if type(error) not in self._refusals:
            self._refusals.add(type(error))
            self._logger.warning(
                "Redis refuses some of what it is asked (%s): answers may not be shared",
                type(error).__name__,
            )

    def _note_failure(self, failure: RedisUnavailable) -> None:
        with self._lock:
            now = time.monotonic()
            if self._failing_since is None:
                self._failing_since = now
            if self._is_away or now - self._failing_since < _PATIENCE_S:
                return
            self._is_away = True
            was_back_for_s = now - self._back_at
            longer_s = min(self._rest_s * 2, _LONGEST_REST_S)
            self._rest_s = longer_s if was_back_for_s < _LONGEST_REST_S else _REST_S
        self._logger.warning("Redis does not answer properly (%s); going on without it", failure)
