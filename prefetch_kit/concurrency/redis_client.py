"""The one client of a Redis: it is asked within a time budget and follows a failover."""

import os
import re
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from prefetch_kit.concurrency.executor import Busy, Executor, Late
from prefetch_kit.secret import Secret

_CALLS_AT_ONCE: Final = 64
# Load balancers forget a connection that is silent for longer.
_KEEPALIVE_S: Final = 60
_SENTINEL_PORT: Final = "26379"
_CLUSTER: Final = (
    "it is a Redis Cluster, which spreads keys over servers; name a single primary, or Sentinels"
)
# What a server says that is no primary any more, or not yet. Its name may lead elsewhere by now.
_NOT_PRIMARY: Final = {
    "ReadOnlyError": "READONLY",
    "MovedError": "MOVED",
    "BusyLoadingError": "LOADING",
    "MasterDownError": "MASTERDOWN",
    "ClusterDownError": "CLUSTERDOWN",
}
# It ends what waits there with UNBLOCKED, which has no class of its own.
_NOT_PRIMARY_TEXT: Final = re.compile(rf"\b({'|'.join(_NOT_PRIMARY.values())}|UNBLOCKED)\b")

# Puts commands into a pipeline of redis-py.
Commands = Callable[[Any], object]


class RedisUnavailable(Exception):
    """Redis did not answer properly. The text holds neither its address nor any data."""


class Budget:
    """How many seconds all calls that share it may still spend on Redis."""

    __slots__ = ("left_s",)

    def __init__(self, left_s: float) -> None:
        self.left_s = left_s


class RedisClient:
    """Sends pipelines of commands to one Redis.

    Calls run in threads of their own, because name resolution, a handshake or a reply that drips
    has no other bound. `silence_s` bounds one silence of the server. Everything live is made on
    first use in each process. `on_refusal` hears of each command that Redis refused.
    """

    def __init__(
        self,
        url: Secret,
        *,
        silence_s: float,
        on_refusal: Callable[[Exception], None] = lambda _: None,
    ) -> None:
        self._url = url
        self._silence_s = silence_s
        self._on_refusal = on_refusal
        self._lock = threading.Lock()
        self._connections: dict[int, _Connections] = {}

    def call(self, commands: Commands, budget: Budget) -> list[Any]:
        """Return the replies; a command that Redis refused has its error among them.

        Raises `RedisUnavailable` where there is no proper answer within the budget.
        """
        if budget.left_s <= 0:
            raise RedisUnavailable("the time for it is spent")
        here = self._connections_here()
        started = time.monotonic()  # not before: importing redis may take long
        failure = ""
        try:
            return here.executor.call(partial(here.send, commands), ends_at=started + budget.left_s)
        except Busy:
            failure = "too many calls are under way"
        except Late:
            failure = "no answer in time"
        finally:
            budget.left_s -= time.monotonic() - started
        raise RedisUnavailable(failure)

    def call_in_this_thread(self, commands: Commands, *, waits_s: float = 0.0) -> list[Any]:
        """`call` without a budget, for a thread that may wait: each silence is still bounded.

        `waits_s` is how long a blocking command among them waits in Redis; at most one thread
        may do so at a time.
        """
        return self._connections_here().send(commands, waits_s)

    def connect(self, budget: Budget) -> None:
        """Connect ahead of the first call, which then needs less of its budget."""
        self.call(lambda _: None, budget)

    def _connections_here(self) -> "_Connections":
        """Those of this process; neither sockets nor threads survive a fork."""
        pid = os.getpid()
        if pid not in self._connections:
            with self._lock:
                if pid not in self._connections:  # else another thread was first
                    made = _Connections(self._url, self._silence_s, self._on_refusal)
                    self._connections[pid] = made
        return self._connections[pid]


class _Connections:
    """A redis-py client and the threads that use it."""

    def __init__(
        self, url: Secret, silence_s: float, on_refusal: Callable[[Exception], None]
    ) -> None:
        self._on_refusal = on_refusal
        # A call that fails after its caller went on is told by the next one.
        self.executor = Executor(_CALLS_AT_ONCE, on_lost_error=lambda _: None)
        self._is_checked = False
        self._url = url
        self._silence_s = silence_s
        # For blocking commands, with the time for which they wait.
        self._waiting: tuple[Any, float] | None = None
        self._has_moved = False
        try:
            self._redis = _redis(url.reveal(), silence_s)
        except Exception as error:  # noqa: BLE001 (its text may hold the address)
            failure = type(error).__name__
        else:
            return
        raise RedisUnavailable(failure)

    def send(self, commands: Commands, waits_s: float = 0.0) -> list[Any]:
        replies: list[Any] = []
        failure = ""
        try:
            if not self._is_checked:
                self._refuse_cluster()
            redis = self._waiting_redis(waits_s) if waits_s else self._redis
            with redis.pipeline(transaction=False) as pipe:
                commands(pipe)
                replies = pipe.execute(raise_on_error=False)
        except RedisUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 (a garbled answer raises anything)
            failure = type(error).__name__
            replies = [error]
        for reply in replies:
            if not isinstance(reply, Exception):
                continue
            if code := _not_primary(reply):
                # Idle connections alone: the others are in the hands of other threads.
                self._redis.connection_pool.disconnect(inuse_connections=False)
                self._has_moved = True
                failure = _CLUSTER if code == "MOVED" else code
            elif not failure:
                self._on_refusal(reply)
        if failure:
            replies.clear()  # the texts of errors may hold the address
            raise RedisUnavailable(failure)
        return replies

    def _waiting_redis(self, waits_s: float) -> Any:
        """A client whose replies may take so much longer; what it was connected to may move."""
        if self._waiting is None or self._waiting[1] != waits_s:
            self._waiting = _redis(self._url.reveal(), self._silence_s, waits_s), waits_s
        if self._has_moved:
            self._has_moved = False
            self._waiting[0].connection_pool.disconnect(inuse_connections=False)
        return self._waiting[0]

    def _refuse_cluster(self) -> None:
        from redis.exceptions import ResponseError

        try:
            is_cluster = self._redis.info("cluster").get("cluster_enabled") == 1
        except ResponseError as error:
            if _not_primary(error):
                raise
            is_cluster = False  # the user of the URL may not ask; MOVED will tell
        if is_cluster:
            raise RedisUnavailable(_CLUSTER)
        self._is_checked = True


def _not_primary(error: Exception) -> str | None:
    """The code of an error that only another server can help with."""
    if code := _NOT_PRIMARY.get(type(error).__name__):
        return code
    found = _NOT_PRIMARY_TEXT.search(str(error))  # inside a script it has no class of its own
    return found[1] if found else None


def _redis(url: str, silence_s: float, waits_s: float = 0.0) -> Any:
    # Imported on first use: most apps have no Redis.
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    options: dict[str, Any] = {
        "socket_timeout": silence_s + waits_s,
        "socket_connect_timeout": silence_s,
        "retry": Retry(NoBackoff(), 0),  # by default a frozen server costs a minute
        "protocol": 2,
    }
    if not url.startswith("unix:"):
        idle = getattr(socket, "TCP_KEEPIDLE", None)
        options["socket_keepalive"] = True
        options["socket_keepalive_options"] = {} if idle is None else {idle: _KEEPALIVE_S}
    if "+sentinel://" in url:
        return _by_sentinels(url, options)
    return Redis.from_url(url, **options)


def _by_sentinels(url: str, options: dict[str, Any]) -> Any:
    """A client of the primary that Sentinels name.

    `redis+sentinel://user:password@host:26379,host2:26379/name/db?sentinel_password=…`: user and
    password are those of Redis; `rediss+sentinel` speaks TLS with all of them.
    """
    from redis import sentinel

    parts = urlsplit(url)
    login, _, hosts = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    name, _, db = parts.path.strip("/").partition("/")
    given = dict(parse_qsl(parts.query))
    of_sentinels = {
        key: given.pop(f"sentinel_{key}")
        for key in ("username", "password")
        if f"sentinel_{key}" in given
    }
    if parts.scheme.startswith("rediss"):
        options = {**options, "ssl": True, **given}
        if "ssl_check_hostname" in given:
            options["ssl_check_hostname"] = given["ssl_check_hostname"] == "true"
    sentinels: Any = sentinel.Sentinel(  # type: ignore[no-untyped-call]
        [_host_and_port(each) for each in hosts.split(",")],
        sentinel_kwargs={**options, **of_sentinels},
    )
    return sentinels.master_for(
        unquote(name),
        db=int(db or 0),
        username=unquote(user) or None,
        password=unquote(password) or None,
        **options,
    )


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or address.endswith("]"):
        host, port = address, _SENTINEL_PORT
    return host.strip("[]"), int(port)
