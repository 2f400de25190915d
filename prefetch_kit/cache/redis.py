"""Answers shared by all processes of a deployment through Redis. A failure there is a miss."""

import secrets
import threading
import time
import traceback
import weakref
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from prefetch_kit.cache.entry import Entry
from prefetch_kit.cache.invalidation import Invalidations, Mark
from prefetch_kit.cache.key import Request, answer_key
from prefetch_kit.cache.read_sets import USER_ID, ReadSet
from prefetch_kit.cache.redis_breaker import RedisBreaker, run_budget
from prefetch_kit.cache.redis_format import (
    KEEP_OR_DROP,
    read_entry,
    read_read_sets,
    write_entry,
    write_read_set,
)
from prefetch_kit.cache.redis_invalidation import RedisInvalidations
from prefetch_kit.cache.scope import Scope
from prefetch_kit.concurrency.redis_client import Budget, Commands
from prefetch_kit.logs import SafeLogger
from prefetch_kit.secret import Secret

# How soon a waiting process asks again; later the longer it waited.
_POLL_S: Final = 0.02
_LONGEST_POLL_S: Final = 0.2
_READ_SETS: Final = 8
_READ_SETS_KEPT_S: Final = 86_400
_RELEASE: Final = "if redis.call('get',KEYS[1])==ARGV[1] then redis.call('del',KEYS[1]) end"


class SharedAnswer(NamedTuple):
    """An answer that some process made, with what its run read."""

    names: ReadSet
    key: bytes
    entry: Entry


class RedisStore:
    """One deployment's answers under a namespace, for one release of the app.

    Everything live is made on first use.
    """

    def __init__(
        self,
        url: Secret,
        *,
        namespace: str,
        release: str,
        invalidations: Invalidations,
        logger: SafeLogger,
    ) -> None:
        self._url = url
        # With a colon in one of them, two deployments could have the same keys.
        namespace, release = _quoted(namespace), _quoted(release)
        self._prefix = f"{namespace}:{release}:".encode()
        self._log = invalidations
        self._stream = RedisInvalidations(
            f"{namespace}:forgotten".encode(), log=invalidations, logger=logger
        )
        self._logger = logger
        self._lock = threading.Lock()
        self._made_redis: RedisBreaker | None = None

    def find(self, scope: Scope, request: Request, budget: Budget) -> SharedAnswer | None:
        """An answer that some process made for a request like this."""
        return self._look_up(scope, request, budget)[1]

    def lease(
        self, name: bytes, seconds: float, scope: Scope, request: Request, budget: Budget
    ) -> tuple[bytes | None, SharedAnswer | None]:
        """Take the right to make an answer, then look whether one was made a moment before.

        Returns a token, or None while another process has the right. Without Redis everybody
        has it. It ends by itself if its process does.
        """
        token = secrets.token_bytes(8)
        at, lease_ms = self._lease_key(name), _ms(seconds)
        is_taken, found = self._look_up(
            scope, request, budget, lambda pipe: pipe.set(at, token, nx=True, px=lease_ms)
        )
        return (token if is_taken else None), found

    def release(self, name: bytes, token: bytes) -> None:
        """Give the right back, unless it ended and another process has it by now."""
        at = self._lease_key(name)
        self._call(lambda pipe: pipe.eval(_RELEASE, 1, at, token))

    def wait_for_other(
        self, name: bytes, scope: Scope, request: Request, *, until: float
    ) -> SharedAnswer | None:
        """What the process with the lease makes; None where it ends without an answer."""
        at, began = self._lease_key(name), time.monotonic()
        while (now := time.monotonic()) < until:
            time.sleep(min(_POLL_S + (now - began) / 8, _LONGEST_POLL_S, until - now))
            held = self._call(lambda pipe: pipe.exists(at))
            if held is None or held[0] != 1:
                break
        return self.find(scope, request, run_budget())

    def keep(self, scope: Scope, answer: SharedAnswer) -> None:
        """Share an answer, unless there is one of a run that began later."""
        entry, now, reads_key = answer.entry, time.monotonic(), self._reads_key(scope)
        value = write_entry(answer.key, entry)
        left_ms = _ms(entry.fresh_s + entry.stale_s - (now - entry.made_at))

        def commands(pipe: Any) -> None:
            at = self._answer_key(answer.key)
            pipe.eval(KEEP_OR_DROP, 1, at, value, left_ms, now - entry.began_at)
            pipe.zadd(reads_key, {write_read_set(answer.names): time.time()})
            pipe.zremrangebyrank(reads_key, 0, -_READ_SETS - 1)
            pipe.expire(reads_key, _READ_SETS_KEPT_S)

        self._call(commands)

    def drop(self, key: bytes, *, began_at: float) -> None:
        """Drop a shared answer for which there is no data any more, unless a later run made it."""
        at, began_ago_s = self._answer_key(key), time.monotonic() - began_at
        self._call(lambda pipe: pipe.eval(KEEP_OR_DROP, 1, at, b"", 0, began_ago_s))

    def read_sets(self, scope: Scope) -> list[ReadSet]:
        """What runs of a handler were seen to read, in any process, the latest first."""
        at = self._reads_key(scope)
        reply = self._call(lambda pipe: pipe.zrevrange(at, 0, _READ_SETS - 1))
        return read_read_sets(reply and reply[0])

    def invalidate(self, marks: Sequence[Mark]) -> None:
        """Invalidate here at once, and in every process as soon as it hears of it."""
        self._stream.add(marks, self._redis)

    def listen(self) -> None:
        """Hear once of what other processes invalidated."""
        self._stream.listen(self._redis)

    def _look_up(
        self, scope: Scope, request: Request, budget: Budget, take: Commands | None = None
    ) -> tuple[bool, SharedAnswer | None]:
        """Whether `take` was not denied, and an answer as it is after that."""
        tried, since = scope.read_sets.for_lookup, self._stream.read_to
        keys = [answer_key(request, scope.name, names) for names in tried]

        def commands(pipe: Any) -> None:
            if take is not None:
                take(pipe)
            self._stream.request_news(pipe, since)
            pipe.zrevrange(self._reads_key(scope), 0, _READ_SETS - 1)
            self._request_answers(pipe, keys)

        replies = self._redis.call(commands, budget)
        if replies is None:
            return True, None
        is_taken = take is None or replies.pop(0) is not None
        news, read_sets, *values = replies
        if not self._stream.take_news(news, since):
            return is_taken, None
        found = self._first_valid(scope, request, tried, keys, values)
        others = [names for names in read_read_sets(read_sets) if names not in tried]
        if found is None and others:
            found = self._find_under(others, scope, request, budget)
        return is_taken, found

    def _find_under(
        self, read_sets: Sequence[ReadSet], scope: Scope, request: Request, budget: Budget
    ) -> SharedAnswer | None:
        keys = [answer_key(request, scope.name, names) for names in read_sets]
        values = self._redis.call(lambda pipe: self._request_answers(pipe, keys), budget)
        return self._first_valid(scope, request, read_sets, keys, values or ())

    def _request_answers(self, pipe: Any, keys: Iterable[bytes]) -> None:
        for key in keys:
            # The time first: of an answer that is replaced in between, it may be too little.
            pipe.pttl(self._answer_key(key))
            pipe.get(self._answer_key(key))

    def _first_valid(
        self,
        scope: Scope,
        request: Request,
        read_sets: Iterable[ReadSet],
        keys: Iterable[bytes],
        values: Sequence[Any],
    ) -> SharedAnswer | None:
        for names, key, left_ms, value in zip(
            read_sets, keys, values[::2], values[1::2], strict=False
        ):
            user_id = request.user_id() if USER_ID in names else None
            appid = request.asked.appid
            entry = read_entry(key, value, left_ms, scope, appid=appid, user_id=user_id)
            if entry is not None and not self._log.cover(entry):
                return SharedAnswer(names, key, entry)
        return None

    def _call(self, commands: Commands) -> list[Any] | None:
        return self._redis.call(commands, run_budget())

    @property
    def _redis(self) -> RedisBreaker:
        if self._made_redis is None:
            with self._lock:
                if self._made_redis is None:
                    redis = RedisBreaker(self._url, self._logger)
                    threading.Thread(
                        target=_listen,
                        args=[weakref.ref(self), redis],
                        name="prefetch_kit",
                        daemon=True,
                    ).start()
                    self._made_redis = redis
        return self._made_redis

    def _answer_key(self, key: bytes) -> bytes:
        return self._prefix + b"answer:" + _short(key)

    def _lease_key(self, name: bytes) -> bytes:
        return self._prefix + b"run:" + _short(name)

    def _reads_key(self, scope: Scope) -> bytes:
        return self._prefix + b"reads:" + _short(scope.name)


def _listen(store: "weakref.ref[RedisStore]", redis: RedisBreaker) -> None:
    while (found := store()) is not None:
        try:
            found.listen()
        except Exception:  # noqa: BLE001 (without this thread nobody hears of an invalidation)
            traceback.print_exc(chain=False)
        del found
        redis.sleep()


def _quoted(name: str) -> str:
    return quote(name, safe="/", errors="surrogatepass")


def _short(key: bytes) -> bytes:
    return blake2b(key, digest_size=16).digest()


def _ms(seconds: float) -> int:
    return max(1, int(seconds * 1000))
