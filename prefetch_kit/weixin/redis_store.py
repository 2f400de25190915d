"""Records kept in a Redis that many machines share.

The lock is a lease, since a process elsewhere cannot be seen to die. It is fenced: each holder
gets a number higher than all before, and what a later holder has saved is not overwritten by an
earlier one that went on without its lease.
"""

import queue
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Final, Generic, TypeVar
from urllib.parse import quote

from prefetch_kit.errors import TokenSourceError
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.token_store import LOCK_WAIT_S, Codec, Store, decoded

# Outlives a call to WeChat, 5 s at most, with room for those around one that was refused. A chain
# of calls that takes longer still is what the fence is for.
LEASE_S: Final = 20.0
_ANSWER_S: Final = 5.0
_SILENCE_S: Final = 2.0
_KEEPALIVE_S: Final = 60
_POLL_S: Final = 0.02
_LONGEST_POLL_S: Final = 0.2

# The clock lets numbers rise even where Redis has lost the last one with all its data.
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

# The numbers of the leases that the code under way holds, by key. Not on the store: a thread
# that lost its lease must not save under the number of the one that has it now.
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
        self._line = _Line(url)
        self._prefix = prefix
        self._lease_s = lease_s
        self._lock_wait_s = lock_wait_s

    def open(self, account: str, name: str, codec: Codec[_T]) -> Store[_T]:
        key = f"{self._prefix}:{{{quote(account, safe='')}:{name}}}"
        return RedisStore(
            self._line, key, codec, lease_s=self._lease_s, lock_wait_s=self._lock_wait_s
        )


class RedisStore(Generic[_T]):
    """One record under one key. All methods raise TokenSourceError where Redis does not answer.

    Once `save` returned, the record is as durable as that Redis is: it needs an append-only file.
    """

    def __init__(
        self, line: "_Line", key: str, codec: Codec[_T], *, lease_s: float, lock_wait_s: float
    ) -> None:
        self._line = line
        self._key = key
        self._lease = f"{key}:lease"
        self._codec = codec
        self._lease_s = lease_s
        self._lock_wait_s = lock_wait_s

    @contextmanager
    def lock(self) -> Iterator[None]:
        holder = secrets.token_hex(16)
        number = self._acquired(holder)
        reset = _NUMBERS.set({**_NUMBERS.get(), self._key: number})
        try:
            yield
        finally:
            _NUMBERS.reset(reset)
            # The lease ends by itself; that it could not be given back must hide nothing.
            with suppress(TokenSourceError):
                self._line.ask(lambda redis: redis.eval(_RELEASE, 1, self._lease, holder))

    def load(self) -> _T | None:
        return self._decoded(self._line.ask(lambda redis: redis.hget(self._key, "record")))

    def save(self, record: _T) -> _T:
        number = _NUMBERS.get()[self._key]
        newer = self._line.ask(
            lambda redis: redis.eval(_SAVE, 1, self._key, number, self._codec.encode(record))
        )
        return self._decoded(newer) or record

    def _acquired(self, holder: str) -> int:
        lease_ms = int(self._lease_s * 1000)
        began = time.monotonic()
        # A holder that died keeps it for the rest of its lease.
        while (waited_s := time.monotonic() - began) < self._lock_wait_s:
            number = self._line.ask(
                lambda redis: redis.eval(_ACQUIRE, 2, self._key, self._lease, holder, lease_ms)
            )
            if isinstance(number, int) and number > 0:
                return number
            time.sleep(min(_POLL_S + waited_s / 8, _LONGEST_POLL_S))
        raise _unusable(f"another renewal holds the lease for {waited_s:.1f} s already")

    def _decoded(self, content: object) -> _T | None:
        if content is None:
            return None
        if not isinstance(content, bytes):  # taken for nothing, it would be written over
            raise _unusable(f"a record came as {type(content).__name__}")
        return decoded(content, self._codec)


class _Line:
    """Asks within a deadline: name lookup, handshake and a reply that drips have no other."""

    def __init__(self, url: Secret) -> None:
        self._url = url
        self._client: Any = None

    def ask(self, question: Callable[[Any], Any]) -> Any:
        answers: queue.SimpleQueue[tuple[Any, str]] = queue.SimpleQueue()
        try:
            self._made()  # apart from the time for an answer: importing it may take long
        except Exception as error:  # noqa: BLE001 - its text may hold the address
            failure = type(error).__name__
        else:
            failure = ""
        if failure:
            raise _unusable(failure)

        def exchange() -> None:
            try:
                answers.put((question(self._made()), ""))
            except Exception as error:  # noqa: BLE001 - garbage on the line raises anything
                # Not the error: its text may hold the address, its frames the record.
                answers.put((None, type(error).__name__))

        threading.Thread(target=exchange, name="prefetch-kit-redis", daemon=True).start()
        try:
            answer, failure = answers.get(timeout=_ANSWER_S)
        except queue.Empty:
            failure = f"no answer within {_ANSWER_S:g} s"
        if failure:
            raise _unusable(failure)
        return answer

    def _made(self) -> Any:
        """The client, which connects with its first question, and again after a fork."""
        if self._client is None:
            # Imported on first use: most apps have no Redis.
            from redis import Redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry

            self._client = Redis.from_url(
                self._url.reveal(),
                socket_timeout=_SILENCE_S,
                socket_connect_timeout=_SILENCE_S,
                retry=Retry(NoBackoff(), 0),  # by default a frozen server costs a minute
                protocol=2,
                **_keepalive(self._url),
            )
        return self._client


def _keepalive(url: Secret) -> dict[str, Any]:
    """Tickets come each ten minutes, and balancers forget a line that is silent for less."""
    if url.reveal().startswith("unix:"):
        return {}
    idle = getattr(socket, "TCP_KEEPIDLE", None)
    options = {} if idle is None else {idle: _KEEPALIVE_S}
    return {"socket_keepalive": True, "socket_keepalive_options": options}


def _unusable(problem: str) -> TokenSourceError:
    return TokenSourceError(
        "the Redis of PREFETCH_TOKEN_STORE_URL",
        problem,
        remedy="Check that it runs, and that its address and password are right",
    )
