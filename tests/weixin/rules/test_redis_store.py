"""Tokens kept in a real Redis: leases, fences, and what is never in a key or an error."""

import os
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from subprocess import Popen
from threading import Event
from typing import Any

import pytest

from prefetch_kit.errors import TokenSourceError
from prefetch_kit.sandbox import Fault, Sandbox
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.token_stores import redis as redis_store
from prefetch_kit.weixin.token_stores.records import TOKEN_CODEC, StoredToken, TokenStore
from prefetch_kit.weixin.token_stores.redis import RedisStores
from prefetch_kit.weixin.tokens import StableToken

CANARY = "canary-access-token"
TOKEN = StoredToken(Secret(CANARY), 1_900_000_000.5)
NEWER = StoredToken(Secret("a-newer-token"), 1_900_000_001.0)
HOLD_THE_LEASE = """
import sys
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.token_stores.redis import RedisStores
from prefetch_kit.weixin.token_stores.records import TOKEN_CODEC

stores = RedisStores(Secret(sys.argv[1]), prefix="kit:tokens", lease_s=0.5)
with stores.open("wx01", "access_token", TOKEN_CODEC).lock():
    print("held", flush=True)
    sys.stdin.readline()
"""
KEY = "kit:tokens:{wx01:access_token}"

Stable = Callable[[TokenStore], StableToken]
Elsewhere = Callable[[Callable[[], object]], object]


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, Redis is not too slow."""
    for limit in ("_SILENCE_S", "_ANSWER_S"):
        monkeypatch.setattr(redis_store, limit, 30.0)


@pytest.fixture
def machine(redis_server: Any) -> Callable[..., TokenStore]:
    """`machine()`: the app's store as one more machine has it."""

    def machine(*, lease_s: float = 30.0) -> TokenStore:
        stores = RedisStores(Secret(redis_server.url), prefix="kit:tokens", lease_s=lease_s)
        return stores.open("wx01", "access_token", TOKEN_CODEC)

    return machine


def test_what_one_machine_saves_another_loads(machine: Callable[..., TokenStore]) -> None:
    """Nothing is there before the first save; then the token and its end."""
    assert machine().load() is None
    one = machine()
    with one.lock():
        assert one.save(TOKEN) == TOKEN
    assert machine().load() == TOKEN


def test_machines_with_an_ended_token_ask_once(
    wx: Sandbox,
    stable: Stable,
    machine: Callable[..., TokenStore],
    token_calls: Callable[[], int],
) -> None:
    """16 at once: one asks WeChat, the others wait for the lease and find its token."""
    wx.inject(Fault(kind="delay", path="/cgi-bin/stable_token", delay_s=0.3))
    with ThreadPoolExecutor(16) as pool:
        tokens = set(pool.map(lambda _: stable(machine()).get(), range(16)))
    assert (len(tokens), token_calls()) == (1, 1)


def test_the_lease_of_a_killed_holder_ends(
    redis_server: Any, machine: Callable[..., TokenStore], start: Callable[..., Popen[str]]
) -> None:
    """Nobody gives it back, and the next one gets it all the same."""
    holder = start(HOLD_THE_LEASE, redis_server.url)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    holder.kill()
    with machine().lock():
        pass


@pytest.fixture
def elsewhere() -> Iterator[Callable[[Callable[[], object]], object]]:
    """`elsewhere(work)`: what comes of it in another thread, as on another machine."""
    with ThreadPoolExecutor(1) as pool:
        yield lambda work: pool.submit(work).result(60)


def saves(store: TokenStore, token: StoredToken) -> Callable[[], object]:
    def work() -> object:
        with store.lock():
            return store.save(token)

    return work


def test_who_lost_the_lease_cannot_overwrite_a_newer_token(
    machine: Callable[..., TokenStore], elsewhere: Elsewhere
) -> None:
    """Its save returns the token that is stored, which is used instead."""
    late = machine(lease_s=0.05)
    with late.lock():
        time.sleep(0.1)
        elsewhere(saves(machine(), NEWER))
        assert late.save(TOKEN) == NEWER
    assert machine().load() == NEWER


def test_two_threads_of_one_store_have_a_number_each(
    machine: Callable[..., TokenStore], elsewhere: Elsewhere
) -> None:
    """The one that lost the lease does not save under the number of the other."""
    store = machine(lease_s=0.05)
    with store.lock():
        time.sleep(0.1)
        elsewhere(saves(store, NEWER))
        assert store.save(TOKEN) == NEWER


def test_who_lost_the_lease_may_save_where_nobody_has(machine: Callable[..., TokenStore]) -> None:
    """A rotated refresh token that came late is still worth keeping."""
    late = machine(lease_s=0.05)
    with late.lock():
        time.sleep(0.1)
        assert late.save(TOKEN) == TOKEN
    assert machine().load() == TOKEN


def test_numbers_rise_when_redis_lost_everything(
    machine: Callable[..., TokenStore], elsewhere: Elsewhere, redis: Any
) -> None:
    """A holder from before cannot overwrite what is saved after."""
    old = machine()
    with old.lock():
        time.sleep(0.005)  # numbers are milliseconds
        redis.flushall()
        elsewhere(saves(machine(), NEWER))
        assert old.save(TOKEN) == NEWER


def test_numbers_rise_when_the_clock_of_redis_goes_back(
    machine: Callable[..., TokenStore], elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A holder with a number of the clock that was ahead does not overwrite a newer token."""
    late, ahead = machine(lease_s=0.05), f"{{'{time.time() + 3600:.0f}', '0'}}"
    with monkeypatch.context() as while_ahead:
        script = redis_store._ACQUIRE.replace("redis.call('time')", ahead)
        while_ahead.setattr(redis_store, "_ACQUIRE", script)
        lock = late.lock()
        lock.__enter__()
    time.sleep(0.1)
    elsewhere(saves(machine(), NEWER))
    assert late.save(TOKEN) == NEWER
    lock.__exit__(None, None, None)
    assert machine().load() == NEWER


def test_giving_back_ends_only_the_own_lease(
    machine: Callable[..., TokenStore], redis: Any
) -> None:
    """A holder that is late leaves the lease of the next one alone."""
    late, held, over = machine(lease_s=0.05), Event(), Event()

    def hold() -> None:
        with machine().lock():
            held.set()
            over.wait(60)

    with ThreadPoolExecutor(1) as pool:
        with late.lock():
            pool.submit(hold)
            assert held.wait(60)
        assert redis.exists(f"{KEY}:lease")
        over.set()


def test_nothing_secret_is_in_the_names_of_keys(
    machine: Callable[..., TokenStore], redis: Any
) -> None:
    """Names show in SCAN, MONITOR and dashboards; they hold the appid only."""
    one = machine()
    with one.lock():
        one.save(TOKEN)
        assert sorted(redis.keys()) == [KEY.encode(), f"{KEY}:lease".encode()]
    assert redis.keys() == [KEY.encode()]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"access_token": 7}'])
def test_garbage_is_no_token_and_is_replaced(
    stable: Stable, machine: Callable[..., TokenStore], redis: Any, content: bytes
) -> None:
    """Asking WeChat again costs nothing."""
    redis.hset(KEY, "record", content)
    store = machine()
    assert store.load() is None
    fresh = stable(store).get()
    assert (machine().load() or TOKEN).value == fresh


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://:{}@127.0.0.1:1", "ConnectionError"),
        ("redis://{}.invalid:1", "ConnectionError|TimeoutError|no answer"),
    ],
)
def test_a_redis_that_is_not_there(url: str, said: str) -> None:
    """The error names the setting and the kind of failure, never the address."""
    store = RedisStores(Secret(url.format(CANARY)), prefix="kit").open("a", "b", TOKEN_CODEC)
    for attempt in (store.load, lambda: store.lock().__enter__()):
        with pytest.raises(TokenSourceError, match=f"PREFETCH_TOKEN_STORE_URL: ({said})") as caught:
            attempt()
        whole = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
        assert CANARY not in "".join(whole.format())


def test_a_frozen_redis_is_given_up(
    redis_server: Any, machine: Callable[..., TokenStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that takes the connection and says nothing holds nobody up."""
    monkeypatch.setattr(redis_store, "_SILENCE_S", 0.1)
    os.kill(redis_server.process.pid, 19)  # SIGSTOP
    with pytest.raises(TokenSourceError, match="TimeoutError"):
        machine().load()


def test_a_full_redis_keeps_the_old_token(machine: Callable[..., TokenStore], redis: Any) -> None:
    """The failure says its kind, and nothing of what was to be kept."""
    store = machine()
    with store.lock():
        store.save(NEWER)
        redis.config_set("maxmemory", 1)
        with pytest.raises(TokenSourceError) as caught:
            store.save(TOKEN)
        redis.config_set("maxmemory", 0)
    whole = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    assert CANARY not in "".join(whole.format())
    assert machine().load() == NEWER


def test_an_address_that_no_client_takes_is_not_repeated() -> None:
    """A client quotes it, and the password is in it."""
    store = RedisStores(Secret("redis://:canary/pw@host:1/0"), prefix="kit").open(
        "wx01", "access_token", TOKEN_CODEC
    )
    with pytest.raises(TokenSourceError, match="ValueError") as caught:
        store.load()
    assert "canary" not in "".join(traceback.format_exception(caught.value))


def test_a_record_that_is_no_bytes_is_not_taken_for_none(
    redis_server: Any, machine: Callable[..., TokenStore]
) -> None:
    """A client that took it for no record would replace it."""
    one = machine()
    with one.lock():
        one.save(TOKEN)
    url = Secret(f"{redis_server.url}/0?decode_responses=true")
    other = RedisStores(url, prefix="kit:tokens").open("wx01", "access_token", TOKEN_CODEC)
    with pytest.raises(TokenSourceError, match="came as str"):
        other.load()
