"""Fixtures for several parts: waiting, a real Redis, a sandbox as the docs start it."""

import itertools
import os
import re
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import pytest
from werkzeug.serving import make_server

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

from prefetch_kit.cache import redis_breaker
from prefetch_kit.sandbox import Sandbox


def pytest_sessionstart() -> None:
    """Let Ctrl-C reach what tests start, also where they run in the background.

    There it is ignored, and whatever is started ignores it too; a handler is not handed on.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers() -> int:
    """Half as many again as there are cores: tests that start servers mostly wait for them."""
    return max(1, (os.cpu_count() or 1) * 3 // 2)


# Each of these starts processes.
SLOW_FIXTURES = {"make_redis", "shell", "local_wechat", "folder", "start"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what starts processes, tries many examples or breaks the code on purpose."""
    for item in items:
        is_slow = (
            item.get_closest_marker("weakened") is not None
            or not SLOW_FIXTURES.isdisjoint(getattr(item, "fixturenames", ()))
            or getattr(getattr(item, "obj", None), "is_hypothesis_test", False)
        )
        if is_slow:
            item.add_marker(pytest.mark.slow)
    # First what takes long, so that no process is left alone with it in the end.
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def until(
    condition: Callable[[], object], says: Callable[[], str] = str, *, within_s: float = 120
) -> None:
    """Wait for what another thread or process is about to do; else `says` tells what was seen."""
    ends_at = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < ends_at, says()
        time.sleep(0.002)


@pytest.fixture(scope="session", name="until")
def until_of_this_module() -> Callable[..., None]:
    return until


@pytest.fixture(scope="session")
def demand() -> Callable[[object, str], None]:
    """`demand(is_there, name)`: skip a test that lacks a program; in CI, fail it."""

    def demand(is_there: object, name: str) -> None:
        if not is_there:
            assert not os.environ.get("SERVERS_REQUIRED"), f"{name} is missing"
            pytest.skip(f"{name} is missing")

    return demand


@pytest.fixture
def serve() -> Iterator[Callable[["WSGIApplication"], str]]:
    """`serve(app)`: the origin of an app that listens on a free port until the test ends."""
    with ExitStack() as servers:

        def serve(app: "WSGIApplication") -> str:
            server = make_server("127.0.0.1", 0, app, threaded=True)
            thread = threading.Thread(target=server.serve_forever, args=(0.02,))
            thread.start()
            servers.callback(server.server_close)
            servers.callback(thread.join)
            servers.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}"

        yield serve


class Origin:
    """A server that sends the bytes it was told to, whatever it is asked."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[str] = []
        self.play: Callable[[socket.socket], None] = lambda _: None
        self.reply(b'{"n":1}')

    def reply(self, body: bytes, *, status: str = "200 OK", headers: str = "") -> None:
        first = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
        self.send_raw(f"{first}{headers}\r\n".encode() + body)

    def send_raw(self, raw: bytes) -> None:
        self.play = lambda connection: connection.sendall(raw)

    @property
    def target(self) -> str:
        """The request target asked for last."""
        return self.requests[-1].split()[1]

    @property
    def params(self) -> dict[str, str]:
        """The query asked for last."""
        values = parse_qs(self.target.partition("?")[2], strict_parsing=True)
        return {name: value for name, (value,) in values.items()}


@pytest.fixture
def origin(wx: Sandbox) -> Iterator[Origin]:
    """A server behind shop.example, for the `wx` of the package."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            lines = itertools.takewhile(lambda line: line != b"\r\n", self.rfile)
            served.requests.append(b"".join(lines).decode())
            with suppress(ConnectionError):
                served.play(self.connection)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = False

    with Server(("127.0.0.1", 0), Handler) as server:
        served = Origin(f"http://127.0.0.1:{server.server_address[1]}")
        wx.map_origin("shop.example", served.url)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield served
        server.shutdown()
        thread.join()


class RedisServer:
    """A real redis-server on a free port, which keeps nothing on disk."""

    def __init__(self, directory: Path, *options: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"
        self._directory = directory
        self._options = options
        self.start()

    def start(self) -> None:
        where = ["--bind", "127.0.0.1", "--port", str(self.port)]
        self.process = subprocess.Popen(
            ["redis-server", *where, "--save", "", "--appendonly", "no", *self._options],
            cwd=self._directory,
            stdout=subprocess.DEVNULL,
        )
        ends_at = time.monotonic() + 30
        while not self._is_there():
            assert self.process.poll() is None
            assert time.monotonic() < ends_at, "redis-server does not answer"
            time.sleep(0.01)

    def _is_there(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(1) in (b"+", b"-")
        except ConnectionError:
            return False

    def end(self) -> None:
        self.process.kill()  # which ends a stopped one too
        self.process.wait()


@pytest.fixture
def make_redis(
    tmp_path: Path, demand: Callable[[object, str], None]
) -> Iterator[Callable[..., RedisServer]]:
    """`make_redis(*options)`: a redis-server for this test alone."""
    demand(shutil.which("redis-server"), "redis-server")
    with ExitStack() as servers:

        def make_redis(*options: str) -> RedisServer:
            server = RedisServer(tmp_path, *options)
            servers.callback(lambda: server.end())
            return server

        yield make_redis


@pytest.fixture
def redis_server(make_redis: Callable[..., RedisServer]) -> RedisServer:
    return make_redis()


@pytest.fixture
def redis(redis_server: RedisServer) -> Iterator[Any]:
    """A client of that server, to read and to change its data."""
    from redis import Redis

    with Redis(port=redis_server.port, protocol=2) as client:
        yield client


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Where a handler can hang; opened when the test is over, so that no thread stays behind."""
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, Redis is not too slow."""
    for limit in ("BUDGET_S", "CONNECT_S", "SILENCE_S"):
        monkeypatch.setattr(redis_breaker, limit, 30.0)


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment with this Python's programs and a curl, and nothing else."""
    path = [str(Path(sys.executable).parent), os.environ["PATH"]]
    if shutil.which("curl") is None:
        folder = tmp_path_factory.mktemp("bin")
        source = (Path(__file__).parent / "curl.py").read_text()
        (folder / "curl").write_text(f"#!{sys.executable}\n{source}")
        (folder / "curl").chmod(0o700)
        path.append(str(folder))
    return {"PATH": ":".join(path)}


@pytest.fixture
def local_wechat(bare: dict[str, str]) -> Iterator[Callable[[str, Path], str]]:
    """`local_wechat(block, folder)`: start the sandbox as a block of the docs does; its address."""
    with ExitStack() as ending:

        def start(block: str, folder: Path) -> str:
            script = block.replace("prefetch-kit", "exec prefetch-kit")
            command = ["bash", "-ec", script.replace("--port 9000", "--port 0")]
            wechat = subprocess.Popen(
                command, cwd=folder, env=bare, stdout=subprocess.PIPE, text=True
            )
            ending.enter_context(wechat)
            ending.callback(wechat.terminate)
            assert wechat.stdout is not None
            address = re.search(r"http://\S+", wechat.stdout.readline())
            assert address is not None
            return address[0]

        yield start
