"""Records kept in a Redis that many machines share.

The lock is a lease, because nobody sees a process on another machine die. It is fenced: each holder
gets a higher number than all before, and a holder that lost its lease cannot overwrite what a later
one has saved.
"""

import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Final, Generic, TypeVar
from urllib.parse import quote

from prefetch_kit.concurrency.redis_client import Budget, Commands, RedisClient, RedisUnavailable
from prefetch_kit.errors import TokenSourceError
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.token_stores.records import LOCK_WAIT_S, Codec, Store

# Outlives a call to WeChat, 5 s at most, with room for those around one that was refused. A chain
# of calls that takes longer still is what the fence is for.
LEASE_S: Final = 20.0
_ANSWER_S: Final = 5.0
_SILENCE_S: Final = 2.0
_POLL_S: Final = 0.02
_LONGEST_POLL_S: Final = 0.2

# By the clock, numbers rise even where Redis lost the last one with all its data; by the last one,
# they rise even where its clock was set back.
_ACQUIRE: Final = """
if not redis.call('set', KEYS[2], ARGV[1], 'nx', 'px', ARGV[2]) then return 0 end
local now = redis.call('time')
local number = now[1] * 1000 + math.floor(now[2] / 1000)
local last = tonumber(redis.call('hget', KEYS[1], 'issued') or '0')
if number <= last then number = last + 1 end
redis.call('hset', KEYS[1], 'issued', string.format('%.0f', number))
return number
"""
_SAVE: Final = """
local saved = tonumber(redis.call('hget', KEYS[1], 'saved_by') or '0')
if saved > tonumber(ARGV[1]) then return redis.call('hget', KEYS[1], 'record') end
redis.call('hset', KEYS[1], 'saved_by', ARGV[1], 'record', ARGV[2])
return false
"""
_RELEASE: Final = "if redis.call('get',KEYS[1])==ARGV[1] then redis.call('del',KEYS[1]) end"

# The numbers of the leases that the running code holds, by key. Not on the store: a thread that
# lost its lease must not save under the number of the present holder.
_NUMBERS: ContextVar[Mapping[str, int]] = ContextVar(
    "prefetch_kit_leases", default=MappingProxyType({})
)

_T = TypeVar("_T")


class RedisStores:
    """Keys under a prefix, which hold appids and never a secret. Connects on first use."""

    def __init__(
        self,
        url: Secret,
        *,
        prefix: str,
        lease_s: float = LEASE_S,
        lock_wait_s: float = LOCK_WAIT_S,
    ) -> None:
        self.client = RedisClient(url, silence_s=_SILENCE_S)
        self.lease_s = lease_s
        self.lock_wait_s = lock_wait_s
        self._prefix = prefix

    def open(self, account: str, name: str, codec: Codec[_T]) -> Store[_T]:
        return RedisStore(self, f"{self._prefix}:{{{quote(account, safe='')}:{name}}}", codec)


class RedisStore(Generic[_T]):
    """One record under one key. All methods raise TokenSourceError where Redis does not answer.

    Once `save` returned, the record is as durable as that Redis is: it needs an append-only file.
    """

    def __init__(self, stores: RedisStores, key: str, codec: Codec[_T]) -> None:
        self._stores = stores
        self._key = key
        self._lease = f"{key}:lease"
        self._codec = codec

    @contextmanager
    def lock(self) -> Iterator[None]:
        holder = secrets.token_hex(16)
        number = self._acquired(holder)
        reset = _NUMBERS.set({**_NUMBERS.get(), self._key: number})
        try:
            yield
        finally:
            _NUMBERS.reset(reset)
            # The lease ends by itself, so a failure to give it back must not hide another error.
            with suppress(TokenSourceError):
                self._ask(lambda redis: redis.eval(_RELEASE, 1, self._lease, holder))

    def load(self) -> _T | None:
        return self._decoded(self._ask(lambda redis: redis.hget(self._key, "record")))

    def save(self, record: _T) -> _T:
        number = _NUMBERS.get()[self._key]
        newer = self._ask(
            lambda redis: redis.eval(_SAVE, 1, self._key, number, self._codec.encode(record))
        )
        return self._decoded(newer) or record

    def reserve(self, record: _T) -> None:
        self.save(record)  # refused where Redis is full, or cannot save what it has

    def _acquired(self, holder: str) -> int:
        lease_ms = int(self._stores.lease_s * 1000)
        began = time.monotonic()
        # A holder that died has it for the rest of its lease.
        while (waited_s := time.monotonic() - began) < self._stores.lock_wait_s:
            number = self._ask(
                lambda redis: redis.eval(_ACQUIRE, 2, self._key, self._lease, holder, lease_ms)
            )
            if isinstance(number, int) and number > 0:
                return number
            time.sleep(min(_POLL_S + waited_s / 8, _LONGEST_POLL_S))
        raise _unusable(f"another renewal holds the lease for {waited_s:.1f} s already")

    def _decoded(self, content: object) -> _T | None:
        if content is None:
            return None
        if not isinstance(content, bytes):  # taken for no record, it would be replaced
            raise _unusable(f"a record came as {type(content).__name__}")
        return self._codec.read(content)

    def _ask(self, command: Commands) -> Any:
        """The reply to one command. Raises TokenSourceError, from no frame that saw a record."""
        replies, failure = [], ""
        try:
            replies = self._stores.client.call(command, Budget(_ANSWER_S))
        except RedisUnavailable as error:
            failure = str(error)
        if replies and isinstance(replies[0], Exception):
            failure = type(replies.pop()).__name__  # its text may hold the address
        if failure:
            raise _unusable(failure)
        return replies[0]


def _unusable(problem: str) -> TokenSourceError:
    return TokenSourceError(
        "the Redis of PREFETCH_TOKEN_STORE_URL",
        problem,
        remedy="Check that it runs, and that its address and password are right",
    )
