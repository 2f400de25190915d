"""A process's line to Redis: asked within a budget, and left alone while Redis is away."""

import math
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from prefetch_kit.endpoint.logs import SteadyLogger
from prefetch_kit.endpoint.runs import Pool, due
from prefetch_kit.errors import PullRefused
from prefetch_kit.secret import Secret

# What all questions of one run may cost it, and those of one that nobody waits for: a busy process
# may not come to hear an answer sooner, and would make what another is making.
BUDGET_S: Final = 0.05
REFRESH_BUDGET_S: Final = 1.0
# What the first connection may cost the first run, since processes often start together: over TLS
# it takes longer than all questions after it.
_CONNECT_S: Final = 0.25
# How long one silence of Redis may be. A reply that drips has many, and only the budget ends it.
_SILENCE_S: Final = 0.025
# Redis is away where questions fail and none was answered for so long.
_PATIENCE_S: Final = 0.2
# How soon other processes hear of a `forget`.
_LISTEN_S: Final = 0.2
# How soon a Redis that is away is tried again; the longer the more often it goes away at once.
_REST_S: Final = 0.2
_LONGEST_REST_S: Final = 5.0
_QUESTIONS_AT_ONCE: Final = 64

# Puts commands into a pipeline.
Ask = Callable[[Any], None]


class Visit:
    """What one run may still spend on Redis."""

    __slots__ = ("left_s",)

    def __init__(self, *, is_refresh: bool = False) -> None:
        self.left_s = REFRESH_BUDGET_S if is_refresh else BUDGET_S


class Line:
    """Nothing here raises for what Redis does: slow, frozen, gone, or answering garbage.

    Questions are asked in threads of their own, which a run leaves behind when its budget is
    spent: name resolution, a handshake or a reply that drips have no other bound.
    """

    def __init__(self, url: Secret, logger: SteadyLogger) -> None:
        self._logger = logger
        self._threads = Pool(_QUESTIONS_AT_ONCE, lost=_leave)
        self._lock = threading.Lock()
        self._is_away = False
        self._answered_at = time.monotonic()
        self._back_at = -math.inf
        self._refusals: set[str] = set()
        self._rest_s = _REST_S
        self._client: Any = None
        try:
            self._client = _client(url)
            self._threads.call(self._connect, ends_at=due(_CONNECT_S))
        except Exception as error:  # noqa: BLE001 (a run goes on without Redis)
            self._answered_at = -math.inf
            self._lose(_kind(error))

    def _connect(self) -> bytes:
        pool = self._client.connection_pool
        pool.release(pool.get_connection())
        return b""

    def ask(self, ask: Ask, visit: Visit) -> list[Any] | None:
        """The replies, a refusal among them as an exception; None where there are none in time."""
        if self._is_away or visit.left_s <= 0:
            return None
        replies: list[list[Any]] = []

        def exchange() -> bytes:
            replies.append(self._exchange(ask))
            return b""

        started = time.monotonic()
        failure = None
        try:
            self._threads.call(exchange, ends_at=due(visit.left_s))
        except Exception as error:  # noqa: BLE001 (garbage on the line raises anything)
            failure = _kind(error)
        now = time.monotonic()
        visit.left_s -= now - started
        if failure is not None:
            self._lose(failure)
            return None
        self._answered_at = now
        return replies[0]

    def check(self, ask: Ask) -> list[Any] | None:
        """The replies to a question apart from all runs, which may find Redis back."""
        started = time.monotonic()
        try:
            replies = self._exchange(ask)
        except Exception as error:  # noqa: BLE001 (garbage on the line raises anything)
            self._lose(_kind(error))
            return None
        now = time.monotonic()
        if not self._is_away:
            self._answered_at = now
        elif now - started < BUDGET_S:
            self._answered_at = self._back_at = now
            self._is_away = False
            self._logger.info("Redis is back")
        return replies

    def rest(self) -> None:
        """Let the time pass until the next `check`."""
        time.sleep(self._rest_s if self._is_away else _LISTEN_S)

    def _exchange(self, ask: Ask) -> list[Any]:
        with self._client.pipeline(transaction=False) as pipe:
            ask(pipe)
            replies: list[Any] = pipe.execute(raise_on_error=False)
        for reply in replies:
            if isinstance(reply, Exception):
                self._note_refusal(type(reply).__name__)
        return replies

    def _note_refusal(self, kind: str) -> None:
        """Say once of what kind it is; its text may hold what was to be kept."""
        if kind not in self._refusals:
            self._refusals.add(kind)
            self._logger.warning(
                "Redis refuses some of what it is asked (%s): answers may not be shared", kind
            )

    def _lose(self, failure: str) -> None:
        with self._lock:
            now = time.monotonic()
            if self._is_away or now - self._answered_at < _PATIENCE_S:
                return
            self._is_away = True
            was_back_for_s = now - self._back_at
            longer_s = min(self._rest_s * 2, _LONGEST_REST_S)
            self._rest_s = longer_s if was_back_for_s < _LONGEST_REST_S else _REST_S
        self._logger.warning("Redis does not answer properly (%s); going on without it", failure)


def _client(url: Secret) -> Any:
    # Imported on first use: most apps have no Redis.
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    return Redis.from_url(
        url.reveal(),
        socket_timeout=_SILENCE_S,
        socket_connect_timeout=_SILENCE_S,
        retry=Retry(NoBackoff(), 0),  # by default a frozen server costs a minute
        protocol=2,
    )


def _kind(error: Exception) -> str:
    """What may be said of a failure: its text, like its frames, may hold the address."""
    return error.reason if isinstance(error, PullRefused) else type(error).__name__


def _leave(_error: BaseException) -> None:
    """What fails after its run went on without it is told by the next question."""
