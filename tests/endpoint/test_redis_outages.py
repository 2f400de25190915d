"""Redis slow, frozen, gone, emptied or garbled: pulls go on, and it comes back by itself."""

import logging
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count, pairwise
from statistics import median, quantiles
from typing import Any, Self
from unittest.mock import Mock

import pytest
from flask import Flask
from werkzeug.wrappers import Response

from prefetch_kit import Prefetch, Pull
from prefetch_kit.cache import answers, redis_breaker, redis_invalidation
from prefetch_kit.cache import redis as redis_store
from prefetch_kit.concurrency.redis_client import Budget
from prefetch_kit.endpoint.app_state import process_of

App = Callable[..., Flask]
Ask = Callable[..., Response]
Until = Callable[[Callable[[], bool]], None]
Logged = Callable[[], list[str]]

PAGE = "pages/index/index"
_PAUSES_S = {"drip": 0.015, "trickle": 0.001}  # after each byte
_RESET = struct.pack("ii", 1, 0)  # closing says RST


class Proxy:
    """The network between an app and its Redis; `fault` says what is wrong with it."""

    def __init__(self, port: int) -> None:
        self.fault = ""
        self._to = ("127.0.0.1", port)
        self._lock = threading.Lock()
        self._open: list[socket.socket] | None = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listening.getsockname()[1]}"
        self._start(self._take)

    def _start(self, work: Callable[..., None], *args: socket.socket) -> None:
        threading.Thread(target=work, args=args, daemon=True).start()

    def _take(self) -> None:
        with suppress(OSError):
            while True:
                inside = self._listening.accept()[0]
                inside.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # each byte at once
                self._keep(inside)
                self._start(self._join, inside)

    def _keep(self, connection: socket.socket) -> None:
        """Have it closed with the others, or now where these are closed already."""
        with self._lock:
            if self._open is None:
                connection.close()
            else:
                self._open.append(connection)

    def _join(self, inside: socket.socket) -> None:
        try:
            outside = socket.create_connection(self._to)
        except ConnectionError:
            self._reset(inside)
            return
        self._keep(outside)
        self._start(self._ask, inside, outside)
        self._answer(outside, inside)

    def _ask(self, inside: socket.socket, outside: socket.socket) -> None:
        with suppress(OSError):
            while said := inside.recv(65536):
                if self.fault == "reset":
                    self._reset(inside)
                    break
                outside.sendall(said)
        with suppress(OSError):
            outside.shutdown(socket.SHUT_RDWR)

    def _answer(self, outside: socket.socket, inside: socket.socket) -> None:
        with suppress(OSError):
            while said := outside.recv(65536):
                self._hand_on(said, inside)
        with suppress(OSError):
            inside.shutdown(socket.SHUT_RDWR)

    def _hand_on(self, said: bytes, inside: socket.socket) -> None:
        while self.fault == "freeze":
            time.sleep(0.01)
        while self.fault == "large" and len(said) > 32_768:
            time.sleep(0.01)
        if self.fault == "latency":
            time.sleep(0.2)
        if self.fault == "reset":
            self._reset(inside)
        if self.fault == "garbage":
            said = os.urandom(8) + said[::-1]
        while said and self.fault in _PAUSES_S:
            time.sleep(_PAUSES_S[self.fault])
            inside.sendall(said[:1])
            said = said[1:]
        inside.sendall(said)

    def _reset(self, inside: socket.socket) -> None:
        with suppress(OSError):  # the other end, or `close`, was first
            inside.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        inside.close()

    def close(self) -> None:
        self.fault = ""
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        with self._lock:
            kept, self._open = self._open or [], None
        for each in (self._listening, *kept):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@pytest.fixture
def proxy(redis_server: Any) -> Iterator[Proxy]:
    proxy = Proxy(redis_server.port)
    yield proxy
    proxy.close()


@pytest.fixture
def shop(prefetch: Prefetch) -> Prefetch:
    @prefetch.pre_fetch(PAGE, cache=600)
    def page(pull: Pull) -> str:
        return f"{pull.query.get('id')} of {threading.get_ident()} {time.monotonic_ns()}"

    return prefetch


class Traffic:
    """Pulls from 8 threads, half of them for one answer that is kept, until it is left."""

    def __init__(self, app: Flask) -> None:
        self._app = app
        self._is_over = False
        self._ids = count()
        self.took_s: list[float] = []
        self.failed: list[object] = []
        self.kept: set[str] = set()

    def __enter__(self) -> Self:
        self._threads = [threading.Thread(target=self._pull) for _ in range(8)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        for thread in self._threads:
            thread.join()

    def until_more(self, until: Until, pulls: int = 400) -> None:
        """Wait until this many more pulls were answered."""
        before = len(self.took_s)
        until(lambda: len(self.took_s) >= before + pulls)

    def _pull(self) -> None:
        client = self._app.test_client()
        at = f"/prefetch/pre_fetch?appid=wx1&timestamp=1700000000&path={PAGE}&query=id%3D"
        while not self._is_over:
            for one in ("kept", f"{id(self)}-{next(self._ids)}"):
                started = time.perf_counter()
                answer = client.get(at + one)
                self.took_s.append(time.perf_counter() - started)
                if answer.status_code != 200 or not answer.text.startswith(f"{one} of"):
                    self.failed.append(answer.status)
                self.kept |= {answer.text} if one == "kept" else set()


def outages(app: Flask, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Each time the app said that Redis is away, or back."""
    told = {"going on without it": "away", "Redis is back": "back"}
    said = [record.getMessage() for record in caplog.records if record.name == app.name]
    return [word for each in said for text, word in told.items() if text in each]


@pytest.fixture
def outage(
    process: App,
    shop: Prefetch,
    redis_server: Any,
    until: Until,
    until_shared: Callable[[Flask, Flask], str],
    caplog: pytest.LogCaptureFixture,
) -> Callable[..., tuple[Traffic, Traffic]]:
    """`outage(url, begin, end)`: traffic while all is well and while not, which is said once."""

    def outage(
        url: str, begin: Callable[[], None], end: Callable[[], None]
    ) -> tuple[Traffic, Traffic]:
        caplog.set_level(logging.INFO)
        app, other = (
            process(shop, PREFETCH_CACHE_URL=at, PREFETCH_DEADLINE=2)
            for at in (url, redis_server.url)
        )
        until_shared(app, other)
        with Traffic(app) as before:
            before.until_more(until)
        begin()
        with Traffic(app) as meanwhile:
            until(lambda: outages(app, caplog)[-1:] == ["away"])
            told = outages(app, caplog)
            meanwhile.until_more(until)
            assert outages(app, caplog) == told
        end()
        until_shared(app, other)
        told = outages(app, caplog)
        assert told[-1] == "back"
        assert all(one != next_one for one, next_one in pairwise(told))
        return before, meanwhile

    return outage


def report(fault: str, **traffics: Traffic) -> None:
    for when, traffic in traffics.items():
        ms = [1000 * took for took in traffic.took_s]
        print(
            f"{fault}, {when}: {1 - len(traffic.failed) / len(ms):.2%} of {len(ms)} pulls good, "
            f"p50 {median(ms):.1f} ms, "
            f"p99 {quantiles(ms, n=100)[98]:.1f} ms, worst {max(ms):.1f} ms"
        )


@pytest.mark.parametrize("fault", ["latency", "reset", "garbage", "drip", "freeze"])
def test_pulls_go_on_whatever_the_network_does(
    proxy: Proxy, outage: Callable[..., tuple[Traffic, Traffic]], fault: str
) -> None:
    """None fails, and sharing goes on when all is well again."""
    before, meanwhile = outage(
        proxy.url, lambda: setattr(proxy, "fault", fault), lambda: setattr(proxy, "fault", "")
    )
    report(fault, before=before, meanwhile=meanwhile)
    assert before.failed == meanwhile.failed == []


def test_pulls_go_on_while_redis_is_frozen(
    redis_server: Any, outage: Callable[..., tuple[Traffic, Traffic]]
) -> None:
    """Its connections are accepted, and nothing answers."""
    send = redis_server.process.send_signal
    before, meanwhile = outage(
        redis_server.url, lambda: send(signal.SIGSTOP), lambda: send(signal.SIGCONT)
    )
    report("frozen", before=before, meanwhile=meanwhile)
    assert before.failed == meanwhile.failed == []


def test_pulls_go_on_after_redis_is_killed(
    redis_server: Any, outage: Callable[..., tuple[Traffic, Traffic]]
) -> None:
    """It comes back with nothing in it."""
    before, meanwhile = outage(redis_server.url, redis_server.end, redis_server.start)
    report("killed", before=before, meanwhile=meanwhile)
    assert before.failed == meanwhile.failed == []


def test_pulls_go_on_while_redis_is_emptied(
    process: App,
    shop: Prefetch,
    redis: Any,
    until: Until,
    until_shared: Callable[[Flask, Flask], str],
) -> None:
    """What was kept is made anew, since nobody can know what was to be forgotten meanwhile."""
    app, other = process(shop), process(shop)
    with Traffic(app) as traffic:
        for _ in range(10):
            traffic.until_more(until, 50)
            redis.flushall()
        until(lambda: len(traffic.kept) > 1)
    report("emptied", meanwhile=traffic)
    until_shared(app, other)
    assert traffic.failed == []
    assert 1 < len(traffic.kept) < 100


def test_a_reply_that_trickles_holds_no_pull_up(
    process: App, prefetch: Prefetch, proxy: Proxy, ask: Ask, until: Until, redis: Any
) -> None:
    """A large answer that comes byte by byte, none of them late, is as good as none."""
    prefetch.pre_fetch(PAGE, cache=600)(lambda pull: pull.query["id"] * 100_000)
    app = process(prefetch, PREFETCH_CACHE_URL=proxy.url, PREFETCH_DEADLINE=2)
    ask(app, query="id=1")
    ask(process(prefetch), query="id=2")
    until(lambda: len(redis.keys("*:answer:*")) == 2)
    proxy.fault = "trickle"
    assert ask(app, query="id=2").status_code == 200


def test_marks_that_cannot_be_read_are_passed_over(
    process: App,
    shop: Prefetch,
    proxy: Proxy,
    until_shared: Callable[[Flask, Flask], str],
    redis: Any,
) -> None:
    """They are too large for the time that Redis has; all is forgotten, and sharing goes on."""
    app, other = process(shop, PREFETCH_CACHE_URL=proxy.url), process(shop)
    until_shared(other, app)
    proxy.fault = "large"
    for _ in range(20):
        redis.xadd("prefetch_kit:forgotten", {"m": b"x" * 1_000_000})
    until_shared(other, app)


@pytest.fixture
def budgets(monkeypatch: pytest.MonkeyPatch) -> list[Budget]:
    """The budgets of runs, in the order in which they were given out."""
    budgets: list[Budget] = []

    def run_budget() -> Budget:
        budgets.append(redis_breaker.run_budget())
        return budgets[-1]

    for module in (answers, redis_store, redis_invalidation):
        monkeypatch.setattr(module, "run_budget", run_budget)
    return budgets


def test_a_pull_waits_for_redis_no_longer_than_its_budget(
    process: App,
    prefetch: Prefetch,
    proxy: Proxy,
    ask: Ask,
    budgets: list[Budget],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One budget is used up before the handler runs; nothing else would end the wait."""
    left_s: list[float] = []

    @prefetch.pre_fetch(PAGE, cache=600)
    def page(_: Pull) -> str:
        left_s.extend(budget.left_s for budget in budgets)
        return "data"

    monkeypatch.setattr(redis_store, "_listen", lambda *_: None)
    for limit in ("CONNECT_S", "SILENCE_S", "_PATIENCE_S"):
        monkeypatch.setattr(redis_breaker, limit, 3600.0)
    app = process(prefetch, PREFETCH_CACHE_URL=proxy.url)
    store = process_of(app).cache._redis
    assert store is not None
    assert store.redis is not None  # connected by now
    proxy.fault = "freeze"
    assert ask(app).data == b"data"
    [left] = left_s
    assert left <= 0


def test_an_invalidation_is_sent_when_redis_is_back(
    process: App,
    shop: Prefetch,
    proxy: Proxy,
    ask: Ask,
    until: Until,
    until_shared: Callable[[Flask, Flask], str],
    logged: Logged,
) -> None:
    """At once in its own process, with an error in the log; in the others when Redis is back."""
    app, other = process(shop, PREFETCH_CACHE_URL=proxy.url), process(shop)
    query = until_shared(app, other)
    made = ask(app, query=query).data
    proxy.fault = "reset"
    with app.app_context():
        shop.forget(PAGE)
    assert ask(app, query=query).data != made
    assert any(said.startswith("ERROR Redis did not take") for said in logged())
    assert ask(other, query=query).data == made
    proxy.fault = ""
    until(lambda: ask(other, query=query).data != made)


def test_invalidations_are_read_though_the_log_fails(
    process: App,
    shop: Prefetch,
    proxy: Proxy,
    ask: Ask,
    until: Until,
    until_shared: Callable[[Flask, Flask], str],
) -> None:
    """That Redis went away and came back could not be logged; invalidations arrive all the same."""
    app, other = process(shop, PREFETCH_CACHE_URL=proxy.url), process(shop)
    query = until_shared(other, app)
    filtering = app.logger.filter = Mock(side_effect=RuntimeError)  # type: ignore[method-assign]
    proxy.fault = "reset"
    until(lambda: filtering.call_count > 0)
    proxy.fault = ""
    made = ask(app, query=query).data
    with other.app_context():
        shop.forget(PAGE)
    until(lambda: ask(app, query=query).data != made)


def test_too_many_invalidations_to_keep_invalidate_everything(
    process: App,
    shop: Prefetch,
    proxy: Proxy,
    ask: Ask,
    until: Until,
    until_shared: Callable[[Flask, Flask], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So it is in the other processes, when Redis is back."""
    monkeypatch.setattr(redis_invalidation, "_UNSENT", 2)
    app, other = process(shop, PREFETCH_CACHE_URL=proxy.url), process(shop)
    query = until_shared(app, other)
    made = ask(other, query=query).data
    proxy.fault = "reset"
    with app.app_context():
        shop.forget(PAGE)
        for number in range(3):
            shop.forget(user_id=f"nobody {number}")
    proxy.fault = ""
    until(lambda: ask(other, query=query).data != made)
