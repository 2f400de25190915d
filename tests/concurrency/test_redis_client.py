"""One client for a Redis: budgets, a failover, Sentinels, and a cluster that is refused."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefetch_kit.addresses import redis_url_problem
from prefetch_kit.concurrency import redis_client
from prefetch_kit.concurrency.redis_client import Budget, RedisClient, RedisUnavailable
from prefetch_kit.secret import Secret

if TYPE_CHECKING:
    from tests.conftest import RedisServer

MakeRedis = Callable[..., "RedisServer"]


def client_of(url: str) -> RedisClient:
    return RedisClient(Secret(url), silence_s=5.0)


def ask(client: RedisClient, *command: object) -> Any:
    [reply] = client.call(lambda pipe: pipe.execute_command(*command), Budget(10.0))
    return reply


def eventually(client: RedisClient, *command: object) -> Any:
    """The reply, as soon as the server behind the address is a primary."""
    ends_at = time.monotonic() + 60
    while True:
        try:
            return ask(client, *command)
        except RedisUnavailable:
            assert time.monotonic() < ends_at
            time.sleep(0.05)


def test_replies_and_refusals_come_together(redis_server: "RedisServer") -> None:
    """A command that Redis refuses does not hide the answers to the others."""

    def commands(pipe: Any) -> None:
        pipe.set("text", "x")
        pipe.incr("text")
        pipe.get("text")

    replies = client_of(redis_server.url).call(commands, Budget(10.0))
    assert [type(reply).__name__ for reply in replies] == ["bool", "ResponseError", "bytes"]


def test_calls_share_a_budget(redis_server: "RedisServer") -> None:
    """What one call spends is missing to the next one."""
    client, budget = client_of(redis_server.url), Budget(10.0)
    client.call(lambda pipe: pipe.ping(), budget)
    assert 0 < budget.left_s < 10
    budget.left_s = 0.0
    with pytest.raises(RedisUnavailable):
        client.call(lambda pipe: pipe.ping(), budget)


def test_a_frozen_server_costs_the_budget_alone(redis_server: "RedisServer") -> None:
    """The caller goes on; the call is left to its thread."""
    client, budget = client_of(redis_server.url), Budget(0.05)
    client.connect(Budget(10.0))
    os.kill(redis_server.process.pid, signal.SIGSTOP)
    with pytest.raises(RedisUnavailable, match="no answer in time"):
        client.call(lambda pipe: pipe.ping(), budget)
    assert budget.left_s <= 0


def test_a_late_reply_is_not_taken_for_that_of_the_next_call(redis_server: "RedisServer") -> None:
    """Its connection is left to the thread that waits for it."""
    client = client_of(redis_server.url)
    client.connect(Budget(10.0))
    os.kill(redis_server.process.pid, signal.SIGSTOP)
    with pytest.raises(RedisUnavailable):
        client.call(lambda pipe: pipe.echo("late"), Budget(0.05))
    os.kill(redis_server.process.pid, signal.SIGCONT)
    assert [ask(client, "ECHO", f"{n}") for n in range(3)] == [b"0", b"1", b"2"]


def test_calls_that_hang_are_bounded(
    redis_server: "RedisServer", monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those beyond the bound are refused at once, and cost none of their budget's time."""
    monkeypatch.setattr(redis_client, "_CALLS_AT_ONCE", 2)
    client = client_of(redis_server.url)
    client.connect(Budget(10.0))
    os.kill(redis_server.process.pid, signal.SIGSTOP)
    for said in ("no answer in time", "no answer in time", "too many calls are under way"):
        with pytest.raises(RedisUnavailable, match=said):
            client.call(lambda pipe: pipe.ping(), Budget(0.05))


def test_each_refused_command_is_reported(redis_server: "RedisServer") -> None:
    """So that it can be logged once; the other commands are answered."""
    refused: list[str] = []
    client = RedisClient(
        Secret(redis_server.url),
        silence_s=5.0,
        on_refusal=lambda error: refused.append(type(error).__name__),
    )
    client.call(lambda pipe: pipe.set("text", "x").incr("text").lpush("text", "y"), Budget(10.0))
    assert refused == ["ResponseError", "ResponseError"]


def test_an_error_tells_nothing_of_the_address() -> None:
    """Neither the password nor the host, which errors of the library hold."""
    client = client_of("redis://:hunter2@127.0.0.1:1/0")
    with pytest.raises(RedisUnavailable) as caught:
        client.connect(Budget(10.0))
    assert str(caught.value) == "ConnectionError"
    assert caught.value.__cause__ is caught.value.__context__ is None


@pytest.mark.parametrize("write", [["SET", "key", "2"], ["EVAL", "redis.call('set','key',2)", 0]])
def test_a_demoted_primary_is_left(make_redis: MakeRedis, write: list[object]) -> None:
    """A name leads to another server now; connections to the old one are closed."""
    old, new = make_redis(), make_redis()
    client = client_of(old.url)
    assert ask(client, "SET", "key", "1")
    ask(client_of(old.url), "REPLICAOF", "127.0.0.1", str(new.port))
    before = len(clients_of(old))
    with pytest.raises(RedisUnavailable, match="READONLY"):
        ask(client, *write)
    assert len(clients_of(old)) < before


def clients_of(server: "RedisServer") -> list[bytes]:
    [reply] = client_of(server.url).call(lambda pipe: pipe.client_list(), Budget(10.0))
    return list(reply)


def test_a_cluster_is_named(make_redis: MakeRedis) -> None:
    """Its first connection tells; nothing is written to a part of it."""
    cluster = make_redis("--cluster-enabled", "yes")
    with pytest.raises(RedisUnavailable, match="it is a Redis Cluster"):
        client_of(cluster.url).connect(Budget(10.0))


def test_a_cluster_is_named_by_moved(make_redis: MakeRedis) -> None:
    """Where INFO is forbidden, the first key of another server tells."""
    cluster = make_redis("--cluster-enabled", "yes", "--rename-command", "INFO", "")
    with pytest.raises(RedisUnavailable, match=r"CLUSTERDOWN|it is a Redis Cluster"):
        ask(client_of(cluster.url), "GET", "key")


@pytest.fixture
def sentinel_of(tmp_path: Path) -> Iterator[Callable[[int], int]]:
    """`sentinel_of(port)`: the port of a Sentinel that watches this primary."""
    with ExitStack() as ending:

        def sentinel_of(primary: int) -> int:
            with socket.create_server(("127.0.0.1", 0)) as free:
                port: int = free.getsockname()[1]
            conf = tmp_path / "sentinel.conf"
            conf.write_text(
                f"bind 127.0.0.1\nport {port}\nrequirepass sesame\n"
                f"sentinel monitor mymaster 127.0.0.1 {primary} 1\n"
                "sentinel auth-pass mymaster hunter2\n"
                "sentinel down-after-milliseconds mymaster 300\n"
            )
            command = ["redis-server", str(conf), "--sentinel"]
            process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
            ending.callback(process.wait)
            ending.callback(process.kill)
            return port

        yield sentinel_of


def test_sentinels_name_the_primary(
    make_redis: MakeRedis, sentinel_of: Callable[[int], int]
) -> None:
    """Before and after a failover, with the password of Redis and that of the Sentinels."""
    secret = ["--requirepass", "hunter2", "--masterauth", "hunter2"]
    one = make_redis(*secret)
    make_redis(*secret, "--replicaof", "127.0.0.1", str(one.port))
    hosts = f"127.0.0.1:1,127.0.0.1:{sentinel_of(one.port)}"
    url = f"redis+sentinel://:hunter2@{hosts}/mymaster/0?sentinel_password=sesame"
    assert redis_url_problem(url) is None
    client = client_of(url)
    assert eventually(client, "SET", "key", "1")
    one.end()
    assert eventually(client, "SET", "key", "2")


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://host/name",
        "redis+sentinel://user:p%40ss@host:26379,[::1]:26380/name/3",
        "rediss+sentinel://:x@host,host2/name/0?ssl_cert_reqs=none&sentinel_password=y",
    ],
)
def test_addresses_of_sentinels(url: str) -> None:
    """What `PREFETCH_CACHE_URL` and `PREFETCH_TOKEN_STORE_URL` take."""
    assert redis_url_problem(url) is None


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://host",
        "redis+sentinel://host/",
        "redis+sentinel://host,,other/name",
        "redis+sentinel://host:port/name",
        "redis+sentinel://host/name/db",
        "redis+sentinel://host/name?socket_timeout=9",
    ],
)
def test_addresses_that_name_no_primary(url: str) -> None:
    """They are refused at start-up and not with the first pull."""
    assert redis_url_problem(url) is not None
