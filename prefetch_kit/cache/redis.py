"""Answers shared by all processes of a deployment through Redis. A failure there is a miss."""

import secrets
import threading
import time
import traceback
import weakref
from collections.abc import Sequence
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
from prefetch_kit.concurrency.redis_client import Budget
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
        self.invalidations = invalidations
        self.stream = RedisInvalidations(
            f"{namespace}:forgotten".encode(), log=invalidations, logger=logger
        )
        self._logger = logger
        self._lock = threading.Lock()
        self._redis: RedisBreaker | None = None

    def drop(self, key: bytes, *, began_at: float) -> None:
        """Drop a shared answer for which there is no data any more, unless a later run made it."""
        at, began_ago_s = self.key(b"answer", key), time.monotonic() - began_at
        self.redis.call(
            lambda pipe: pipe.eval(KEEP_OR_DROP, 1, at, b"", 0, began_ago_s), run_budget()
        )

    def read_sets(self, scope: Scope) -> list[ReadSet]:
        """What runs of a handler were seen to read, in any process, the latest first."""
        at = self.key(b"reads", scope.name)
        reply = self.redis.call(lambda pipe: pipe.zrevrange(at, 0, _READ_SETS - 1), run_budget())
        return read_read_sets(reply and reply[0])

    def invalidate(self, marks: Sequence[Mark]) -> None:
        """Invalidate here at once, and in every process as soon as it hears of it."""
        self.stream.add(marks, self.redis)

    def listen(self) -> None:
        """Hear once of what other processes invalidated."""
        self.stream.listen(self.redis)

    @property
    def redis(self) -> RedisBreaker:
        if self._redis is None:
            with self._lock:
                if self._redis is None:
                    redis = RedisBreaker(self._url, self._logger)
                    threading.Thread(
                        target=_listen,
                        args=[weakref.ref(self), redis],
                        name="prefetch_kit",
                        daemon=True,
                    ).start()
                    self._redis = redis
        return self._redis

    def key(self, kind: bytes, name: bytes) -> bytes:
        """Where an "answer" is, the lease of a "run", or what runs of a scope read ("reads")."""
        return b"%b%b:%b" % (self._prefix, kind, blake2b(name, digest_size=16).digest())


class SharedRun:
    """One run for a request: what other processes made, and the right to make it here.

    Its keys are worked out once. All that comes before the handler shares one budget.
    """

    def __init__(
        self, store: RedisStore, name: bytes, scope: Scope, request: Request, budget: Budget
    ) -> None:
        self._store = store
        self._redis = store.redis
        self._scope = scope
        self._request = request
        self._budget = budget
        self._lease_key = store.key(b"run", name)
        self._reads_key = store.key(b"reads", scope.name)
        self._token: bytes | None = None
        self._read_sets: list[ReadSet] = []
        # For each read set the key of its answer, and the key in Redis.
        self._keys: list[tuple[bytes, bytes]] = []
        self._add(scope.read_sets.for_lookup)

    def find(self) -> SharedAnswer | None:
        """An answer that some process made for a request like this."""
        redis, stream = self._redis, self._store.stream
        since, tried = stream.read_to, len(self._keys)

        def commands(pipe: Any) -> None:
            stream.request_news(pipe, since)
            pipe.zrevrange(self._reads_key, 0, _READ_SETS - 1)
            self._request_answers(pipe, 0)

        replies = redis.call(commands, self._budget)
        if replies is None or not stream.take_news(replies[0], since):
            return None
        if found := self._first_valid(0, replies[2:]):
            return found
        self._add([names for names in read_read_sets(replies[1]) if names not in self._read_sets])
        if len(self._keys) > tried:
            more = redis.call(lambda pipe: self._request_answers(pipe, tried), self._budget)
            found = self._first_valid(tried, more or ())
        return found

    def lease(self, seconds: float) -> tuple[bool, SharedAnswer | None]:
        """Take the right to make the answer, then look whether it was made a moment before.

        False while another process has the right. Without Redis everybody has it. It ends by
        itself if its process does.
        """
        stream, token = self._store.stream, secrets.token_bytes(8)
        since = stream.read_to

        def commands(pipe: Any) -> None:
            pipe.set(self._lease_key, token, nx=True, px=_ms(seconds))
            stream.request_news(pipe, since)
            self._request_answers(pipe, 0)

        replies = self._redis.call(commands, self._budget)
        if replies is None:
            return True, None
        found = self._first_valid(0, replies[2:]) if stream.take_news(replies[1], since) else None
        if replies[0] is None:
            return False, found
        self._token = token
        return True, found

    def wait(self, until: float) -> SharedAnswer | None:
        """What the process with the right makes; None where it ends without an answer."""
        began = time.monotonic()
        while (now := time.monotonic()) < until:
            time.sleep(min(_POLL_S + (now - began) / 8, _LONGEST_POLL_S, until - now))
            held = self._redis.call(lambda pipe: pipe.exists(self._lease_key), run_budget())
            if held is None or held[0] != 1:
                break
        self._budget = run_budget()
        return self.find()

    def publish(self, answer: SharedAnswer | None) -> None:
        """Share an answer, unless there is one of a run that began later, and end the lease.

        The lease stays if it ended by itself and another process has it by now.
        """
        if answer is None and self._token is None:
            return

        def commands(pipe: Any) -> None:
            if answer is not None:
                self._keep(pipe, answer)
            if self._token is not None:
                pipe.eval(_RELEASE, 1, self._lease_key, self._token)

        self._redis.call(commands, run_budget())

    def _keep(self, pipe: Any, answer: SharedAnswer) -> None:
        entry, now, at = answer.entry, time.monotonic(), self._store.key(b"answer", answer.key)
        left_ms = _ms(entry.fresh_s + entry.stale_s - (now - entry.made_at))
        value = write_entry(answer.key, entry)
        pipe.eval(KEEP_OR_DROP, 1, at, value, left_ms, now - entry.began_at)
        pipe.zadd(self._reads_key, {write_read_set(answer.names): time.time()})
        pipe.zremrangebyrank(self._reads_key, 0, -_READ_SETS - 1)
        pipe.expire(self._reads_key, _READ_SETS_KEPT_S)

    def _add(self, read_sets: Sequence[ReadSet]) -> None:
        for names in read_sets:
            key = answer_key(self._request, self._scope.name, names)
            self._read_sets.append(names)
            self._keys.append((key, self._store.key(b"answer", key)))

    def _request_answers(self, pipe: Any, first: int) -> None:
        for _, at in self._keys[first:]:
            # The time first: of an answer that is replaced in between, it may be too little.
            pipe.pttl(at)
            pipe.get(at)

    def _first_valid(self, first: int, values: Sequence[Any]) -> SharedAnswer | None:
        """The first answer that may be used, of those asked for from this one on."""
        for n, (left_ms, value) in enumerate(zip(values[::2], values[1::2], strict=False), first):
            if value is None:
                continue
            names, key = self._read_sets[n], self._keys[n][0]
            user_id = self._request.user_id() if USER_ID in names else None
            appid = self._request.asked.appid
            entry = read_entry(key, value, left_ms, self._scope, appid=appid, user_id=user_id)
            if entry is not None and not self._store.invalidations.has_invalidated(entry):
                return SharedAnswer(names, key, entry)
        return None


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


def _ms(seconds: float) -> int:
    return max(1, int(seconds * 1000))
