"""An app behind a real server on loopback, and a client that speaks plain HTTP to it."""

import gc
import itertools
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPResponse
from itertools import count
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import pytest
from flask import Flask
from werkzeug.wrappers import Response

from prefetch_kit import Prefetch
from prefetch_kit.concurrency import executor

if TYPE_CHECKING:
    from tests.conftest import RedisServer


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the parent's name)
        """Nothing: the tests read the app's own log."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = False
    request_queue_size = 256


@contextmanager
def _serving(app: Flask) -> Iterator[int]:
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.set_app(app)
        thread = threading.Thread(target=server.serve_forever, args=(0.005,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def port_of() -> Iterator[Callable[[Flask], int]]:
    """`port_of(app)`: where an app is served, from its first use to the end of the test."""
    ports: dict[int, int] = {}
    with ExitStack() as servers:

        def port_of(app: Flask) -> int:
            if id(app) not in ports:
                ports[id(app)] = servers.enter_context(_serving(app))
            return ports[id(app)]

        yield port_of


@pytest.fixture
def send(port_of: Callable[[Flask], int]) -> Callable[..., Response]:
    """`send(app, target, method=…, host=…, body=…)`: one request to a served app."""

    def send(
        app: Flask,
        target: str | bytes,
        *,
        method: str = "GET",
        host: str = "localhost",
        body: bytes = b"",
    ) -> Response:
        raw = target if isinstance(target, bytes) else target.encode()
        head = f" HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", port_of(app)), timeout=30) as connection:
            connection.sendall(method.encode() + b" " + raw + head + body)
            with HTTPResponse(connection, method=method) as reply:
                reply.begin()
                # In a list, or Response would add a Content-Length.
                return Response([reply.read()], reply.status, reply.getheaders())

    return send


@pytest.fixture
def ask(send: Callable[..., Response]) -> Callable[..., Response]:
    """`ask(app, at="/prefetch/pre_fetch", **parameters)`: a pull; None leaves a parameter out."""

    def ask(app: Flask, at: str = "/prefetch/pre_fetch", **parameters: str | None) -> Response:
        given: dict[str, str | None] = {"appid": "wx1", "timestamp": "1700000000"}
        given |= {"path": "pages/index/index"} | parameters
        query = urlencode({name: value for name, value in given.items() if value is not None})
        return send(app, f"{at}?{query}")

    return ask


@pytest.fixture
def prefetch() -> Prefetch:
    return Prefetch("prefetch", __name__, url_prefix="/prefetch")


@pytest.fixture
def make_app() -> Callable[..., Flask]:
    """`make_app(*blueprints, name="shop", **config)`: an app of the mini program wx1."""

    def make_app(*blueprints: Prefetch, name: str = "shop", **config: object) -> Flask:
        app = Flask(name)
        app.config.update({"SECRET_KEY": "a key of the shop", "PREFETCH_APPIDS": ["wx1"]} | config)
        for blueprint in blueprints:
            app.register_blueprint(blueprint)
        return app

    return make_app


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Everything logged so far, each record formatted with its traceback."""
    caplog.set_level(logging.DEBUG)
    # It tells of connections that end, also of those that an earlier test had.
    caplog.set_level(logging.INFO, "redis")
    format_record = logging.Formatter("%(levelname)s %(message)s").format
    return lambda: [format_record(record) for record in caplog.records]


@pytest.fixture(autouse=True, scope="session")
def restless() -> Iterator[None]:
    """Threads without work end soon, and let go of the apps of tests that are over."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executor, "_IDLE_S", 0.5)
        yield


_NUMBERS = itertools.count()


@pytest.fixture
def process(
    make_app: Callable[..., Flask], redis_server: "RedisServer"
) -> Iterator[Callable[..., Flask]]:
    """`process(blueprint, **config)`: an app that shares its answers, as another process would."""
    apps: list[Flask] = []

    def process(blueprint: Prefetch, **config: object) -> Flask:
        given = {"PREFETCH_CACHE_URL": redis_server.url, "PREFETCH_DEADLINE": 30}
        name = f"shop-{next(_NUMBERS)}"  # and so its logger
        apps.append(make_app(blueprint, name=name, **(given | config)))
        return apps[-1]

    yield process
    for app in apps:
        app.logger.disabled = True  # it listens a while longer, and would miss this Redis
    apps.clear()
    gc.collect()  # ends the threads that listen for these apps; hundreds would take the machine


@pytest.fixture
def until_shared(
    ask: Callable[..., Response],
    until: Callable[[Callable[[], bool]], None],
    settled: Callable[[], None],
) -> Callable[[Flask, Flask], str]:
    """`until_shared(a, b)`: waits until `b` takes an answer of `a`; gives the query of it."""
    ids = count(1000)
    query = ""

    def until_shared(one: Flask, other: Flask) -> str:
        def takes() -> bool:
            nonlocal query
            query = f"id={next(ids)}"
            made = ask(one, query=query).data
            settled()
            return bool(ask(other, query=query).data == made)

        until(takes)
        return query

    return until_shared


@pytest.fixture
def settled(redis: Any, until: Callable[..., None]) -> Callable[[], None]:
    """`settled()`: waits until nobody is making an answer, and all that were made are shared."""
    return lambda: until(lambda: not redis.keys("*:run:*"))
