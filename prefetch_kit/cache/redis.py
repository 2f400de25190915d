"""Answers shared by all processes of a deployment through Redis. A failure there is a miss."""

import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
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
    LEASE,
    LEASE_BYTES,
    PREFIX_BYTES,
    READ_SETS_BYTES,
    RELEASE,
    RedisFormat,
)
from prefetch_kit.cache.redis_invalidation import RedisInvalidations
from prefetch_kit.cache.scope import Scope
from prefetch_kit.concurrency.redis_client import Budget, Commands
from prefetch_kit.logs import SafeLogger
from prefetch_kit.secret import Secret

# How soon a waiting process asks again; later the longer it waited.
_POLL_S: Final = 0.02
_LONGEST_POLL_S: Final = 0.2
_READ_SETS_KEPT_S: Final = 86_400
# How often an answer is tried to be kept that others keep replacing at the same time.
_TRIES: Final = 3
# The beginning of no lease.
_NO_LEASE: Final = b"-"


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
        format: RedisFormat,  # noqa: A002 (it is one)
        invalidations: Invalidations,
        logger: SafeLogger,
    ) -> None:
        self._url = url
        # With a colon in one of them, two deployments could have the same keys.
        namespace, release = _quoted(namespace), _quoted(release)
        self._prefix = f"{namespace}:{release}:".encode()
        self.format = format
        self.invalidations = invalidations
        self.stream = RedisInvalidations(
            f"{namespace}:forgotten".encode(), format=format, log=invalidations, logger=logger
        )
        self._logger = logger
        self._lock = threading.Lock()
        self._redis: RedisBreaker | None = None

    def drop(self, keys: Iterable[bytes], *, began_at: float) -> None:
        """Drop shared answers that must not be served any more, unless a later run made them."""
        for key in keys:
            self.replace(self.key(b"answer", key), key, b"", left_ms=0, began_at=began_at)

    def read_sets(self, scope: Scope) -> list[ReadSet]:
        """What runs of a handler were seen to read, in any process, the latest first."""
        at = self.key(b"reads", scope.name)
        reply = self.redis.call(lambda pipe: _request_read_sets(pipe, at), run_budget())
        return self.format.read_read_sets(at, reply and reply[0])

    def replace(
        self,
        at: bytes,
        key: bytes,
        value: bytes,
        *,
        left_ms: int,
        began_at: float,
        ask: Commands = lambda _: None,
        then: Callable[[Any, list[Any]], object] = lambda *_: None,
    ) -> bool:
        """Keep an answer, or drop the present one for an empty value; False where Redis is away.

        One of a run that began later than `began_at` (monotonic seconds) stays. `ask` adds
        commands to the look at the present one, and `then`, given their replies, to the change.
        """

        def look(pipe: Any) -> None:
            pipe.pttl(at)
            pipe.getrange(at, 0, PREFIX_BYTES - 1)
            ask(pipe)

        def change(pipe: Any, present: list[Any], is_later: bool) -> None:  # noqa: FBT001
            if not is_later:
                prefix = present[1] if isinstance(present[1], bytes) else b""
                pipe.eval(KEEP_OR_DROP, 1, at, value, left_ms, PREFIX_BYTES, prefix)
            then(pipe, present[2:])

        for _ in range(_TRIES):
            if (present := self.redis.call(look, run_budget())) is None:
                return False
            other_began_at = self.format.began_at(at, key, present[1], present[0])
            is_later = other_began_at is not None and other_began_at > began_at
            commands = partial(change, present=present, is_later=is_later)
            if (done := self.redis.call(commands, run_budget())) is None:
                return False
            if is_later or done[0] != 0:  # else somebody replaced it meanwhile
                break
        return True

    def invalidate(self, marks: Sequence[Mark]) -> None:
        """Invalidate here at once, and in every process as soon as it hears of it."""
        self.stream.add(marks, self.redis)

    def listen(self) -> bool:
        """Hear once of what other processes invalidated; False where that was everything."""
        return self.stream.listen(self.redis)

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
        self._lease: bytes | None = None
        self._read_sets: list[ReadSet] = []
        # For each read set the key of its answer, and the key in Redis.
        self._keys: list[tuple[bytes, bytes]] = []
        self._add(scope.read_sets.for_lookup)

    @property
    def keys(self) -> frozenset[bytes]:
        """The keys under which an answer was looked for."""
        return frozenset(key for key, _ in self._keys)

    def find(self) -> SharedAnswer | None:
        """An answer that some process made for a request like this."""
        redis, stream = self._redis, self._store.stream
        since, tried = stream.read_to, len(self._keys)

        def commands(pipe: Any) -> None:
            stream.request_news(pipe, since)
            _request_read_sets(pipe, self._reads_key)
            self._request_answers(pipe, 0)

        replies = redis.call(commands, self._budget)
        if replies is None or not stream.take_news(replies[0], since):
            return None
        if found := self._first_valid(0, replies[2:]):
            return found
        shared = self._store.format.read_read_sets(self._reads_key, replies[1])
        self._add([names for names in shared if names not in self._read_sets])
        if len(self._keys) > tried:
            more = redis.call(lambda pipe: self._request_answers(pipe, tried), self._budget)
            found = self._first_valid(tried, more or ())
        return found

    def lease(self, seconds: float) -> tuple[bool, SharedAnswer | None]:
        """Take the right to make the answer, then look whether it was made a moment before.

        False while another process has the right. Everybody has it without Redis, and where Redis
        does not let us give it back. It ends by itself if its process does.
        """
        stream = self._store.stream
        lease = self._store.format.write_lease(self._lease_key, seconds)
        since = stream.read_to

        def take(pipe: Any, instead_of: bytes) -> None:
            pipe.eval(LEASE, 1, self._lease_key, lease, _ms(seconds), instead_of)

        def commands(pipe: Any) -> None:
            take(pipe, _NO_LEASE)
            stream.request_news(pipe, since)
            self._request_answers(pipe, 0)

        replies = self._redis.call(commands, self._budget)
        if replies is None:
            return True, None
        found = self._first_valid(0, replies[2:]) if stream.take_news(replies[1], since) else None
        taken = replies[0]
        if isinstance(taken, bytes):
            if self._store.format.is_lease(self._lease_key, taken):
                return False, found
            # It has ended, or is a stranger's.
            again = self._redis.call(lambda pipe: take(pipe, taken), self._budget)
            taken = again and again[0]
        if taken == 1:
            self._lease = lease
        return True, found

    def wait(self, until: float) -> SharedAnswer | None:
        """What the process with the right makes; None where it ends without an answer."""
        began = time.monotonic()
        while (now := time.monotonic()) < until:
            time.sleep(min(_POLL_S + (now - began) / 8, _LONGEST_POLL_S, until - now))
            held = self._redis.call(
                lambda pipe: pipe.getrange(self._lease_key, 0, LEASE_BYTES - 1), run_budget()
            )
            if held is None or not self._store.format.is_lease(self._lease_key, held[0]):
                break
        self._budget = run_budget()
        return self.find()

    def publish(self, answer: SharedAnswer | None) -> None:
        """Share an answer, unless there is one of a run that began later, and end the lease.

        The lease stays if it ended by itself and another process has it by now.
        """
        if answer is not None:
            self._keep(answer)
        elif self._lease is not None:
            self._redis.call(self._release, run_budget())

    def _release(self, pipe: Any) -> None:
        if self._lease is not None:
            pipe.eval(RELEASE, 1, self._lease_key, self._lease)

    def _keep(self, answer: SharedAnswer) -> None:
        names, key, entry = answer
        format, reads_key = self._store.format, self._reads_key  # noqa: A001
        at = self._store.key(b"answer", key)

        def then(pipe: Any, replies: list[Any]) -> None:
            known = format.read_read_sets(reads_key, replies[0])
            read_sets = [names, *(other for other in known if other != names)]
            value = format.write_read_sets(reads_key, read_sets)
            pipe.set(reads_key, value, ex=_READ_SETS_KEPT_S)
            self._release(pipe)

        is_done = self._store.replace(
            at,
            key,
            format.write_entry(at, key, entry),
            left_ms=_ms(entry.fresh_s + entry.stale_s - (time.monotonic() - entry.made_at)),
            began_at=entry.began_at,
            ask=lambda pipe: _request_read_sets(pipe, reads_key),
            then=then,
        )
        if not is_done:
            self._redis.call(self._release, run_budget())

    def _add(self, read_sets: Sequence[ReadSet]) -> None:
        for names in read_sets:
            key = answer_key(self._request, self._scope.name, names)
            self._read_sets.append(names)
            self._keys.append((key, self._store.key(b"answer", key)))

    def _request_answers(self, pipe: Any, first: int) -> None:
        for _, at in self._keys[first:]:
            # The time first: of an answer that is replaced in between, it may be too little.
            pipe.pttl(at)
            pipe.getrange(at, 0, self._store.format.entry_bytes - 1)

    def _first_valid(self, first: int, values: Sequence[Any]) -> SharedAnswer | None:
        """The first answer that may be used, of those asked for from this one on."""
        for n, (left_ms, value) in enumerate(zip(values[::2], values[1::2], strict=False), first):
            if not value:
                continue
            names, (key, at) = self._read_sets[n], self._keys[n]
            user_id = self._request.user_id() if USER_ID in names else None
            appid = self._request.asked.appid
            entry = self._store.format.read_entry(
                at, key, value, left_ms, self._scope, appid=appid, user_id=user_id
            )
            if entry is not None and not self._store.invalidations.has_invalidated(entry):
                return SharedAnswer(names, key, entry)
        return None


def _request_read_sets(pipe: Any, at: bytes) -> None:
    pipe.getrange(at, 0, READ_SETS_BYTES - 1)


def _listen(store: "weakref.ref[RedisStore]", redis: RedisBreaker) -> None:
    has_news, before = False, None
    while (found := store()) is not None:
        is_calm = False
        try:
            is_calm = found.listen()
        except Exception:  # noqa: BLE001 (without this thread nobody hears of an invalidation)
            traceback.print_exc(chain=False)
        read_to = found.stream.read_to
        wait_for_news = found.stream.news_after(read_to)
        del found  # the thread ends with its store
        if not is_calm or (has_news and read_to == before):
            redis.rest()  # it may be that strangers write there, and do so again at once
        has_news, before = redis.wait(wait_for_news), read_to


def _quoted(name: str) -> str:
    return quote(name, safe="/", errors="surrogatepass")


def _ms(seconds: float) -> int:
    return max(1, int(seconds * 1000))
