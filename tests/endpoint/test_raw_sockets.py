"""The example shop under gunicorn, spoken to by strangers over bare sockets.

Its tables are dropped once it serves, so a handler that runs fails; only the page that the shop
asked for itself, as it started, is answered out of its cache.
"""

import os
import random
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from urllib.parse import quote

import pytest

from prefetch_kit.sandbox import Sandbox

pytestmark = pytest.mark.slow

Until = Callable[[Callable[[], bool]], None]

ROOT = Path(__file__).parents[2]
APPID = "wx5e0f00d5ca1ab1e0"
CANARY = "canary5ec"
STRANGERS = int(os.environ.get("PREFETCH_KIT_STRANGERS", "4000"))
VALID = f"/prefetch/pre_fetch?appid={APPID}&timestamp=1700000000&path=pages%2Findex%2Findex"


@dataclass(frozen=True)
class Shop:
    port: int
    log: Path

    @property
    def log_bytes(self) -> int:
        return self.log.stat().st_size

    def log_from(self, start: int) -> str:
        """What was logged after the first `start` bytes: the tests share one log."""
        return self.log.read_bytes()[start:].decode()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def status(self, target: str) -> tuple[int, str]:
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.request("GET", target)
            reply = connection.getresponse()
            return reply.status, reply.getheader("X-Prefetch-Refused", "").partition(";")[0]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, until: Until) -> Iterator[Shop]:
    data = tmp_path_factory.mktemp("shop")
    with Sandbox() as wx, socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        wx.add_app(APPID, secret=f"{CANARY}-secret")
        wx.add_domain(APPID, "shop.example")
        wx.map_origin("shop.example", f"http://127.0.0.1:{port}")
        with (data / "log").open("wb") as log:
            gunicorn = start(listening, wx.base_url, data, log.fileno())
        try:
            until(lambda: len(wx.settings(APPID)) > 4)  # the deploy hook has finished
            with closing(sqlite3.connect(data / "shop.sqlite3")) as database:
                database.executescript("DROP TABLE products; DROP TABLE carts;")
            yield Shop(port, data / "log")
        finally:
            gunicorn.terminate()
            gunicorn.wait(30)


def start(listening: socket.socket, wechat: str, data: Path, log: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "gunicorn", "--config", "example_app/gunicorn.conf.py"]
    # One worker: a second one could still be making the tables when they are dropped.
    command += ["--workers", "1", "--bind", f"fd://{listening.fileno()}"]
    return subprocess.Popen(
        [*command, "example_app:create_app()"],
        cwd=ROOT,
        env=os.environ
        | {
            "SHOP_DATA": str(data),
            "PREFETCH_APP_SECRET": f"{CANARY}-secret",
            "PREFETCH_API_BASE_URL": wechat,
        },
        stdout=log,
        stderr=log,
        pass_fds=[listening.fileno()],
    )


def malformed(chance: random.Random) -> str:
    """A target that is proper HTTP and whose query is certain to be no pull."""
    values = {
        "appid": APPID,
        "timestamp": "1700000000",
        "path": "pages%2Findex%2Findex",
        "token": f"{CANARY}{chance.randrange(10**9)}",
        "scene": "1001",
        f"new{chance.randrange(99)}": CANARY,
    }
    name = chance.choice(list(values))
    spoil = chance.randrange(7)
    if spoil == 0:
        values[name] += chance.choice(["%FF", "%80", "%C0%80", "%ED%A0%80", "%F5%80%80%80"])
    elif spoil == 1:
        values[name] += f"%{chance.choice([*range(32), 127]):02X}"
    elif spoil == 2:
        values["timestamp"] = quote(
            chance.choice(["", "1", " 1700000000", "+170000000", "１" * 10])
        )
    elif spoil == 3:
        values["scene"] = quote(chance.choice(["+5", " 12 ", "1_000", "-1", "1e3", "9" * 4000]))
    elif spoil == 4:
        values["code"] = f"{CANARY}{chance.randrange(10**9)}"
    elif spoil == 5:
        values[chance.choice(["path", "token", "query"])] = CANARY * 500
    pairs = [f"{key}={value}" for key, value in values.items()]
    chance.shuffle(pairs)
    if spoil == 6:
        pairs.append(chance.choice(["appid", "%61ppid", "path", "t%6Fken", "scene"]) + "=" + CANARY)
    return "/prefetch/pre_fetch?" + "&".join(pairs)


def answers(shop: Shop, targets: list[str]) -> Counter[tuple[int, bytes]]:
    """Ask for all targets over one connection, and count what comes back."""
    seen: Counter[tuple[int, bytes]] = Counter()
    with shop.connect() as connection:
        for target in targets:
            connection.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode("latin-1"))
            with HTTPResponse(connection) as reply:
                reply.begin()
                seen[reply.status, reply.read()] += 1
                assert CANARY not in str(reply.headers)
    return seen


def test_thousands_of_malformed_pulls(shop: Shop, until: Until) -> None:
    """Each gets an empty 400, none reaches a handler, nothing of them is in the log."""
    chance, start = random.Random(20240502), shop.log_bytes
    targets = [malformed(chance) for _ in range(STRANGERS)]
    with ThreadPoolExecutor(4) as pool:
        seen = sum(pool.map(lambda n: answers(shop, targets[n::4]), range(4)), Counter())
    assert seen == {(400, b""): STRANGERS}
    # gunicorn writes a pull's line after its answer.
    line = '"GET /prefetch/pre_fetch HTTP/1.1" 400 '
    until(lambda: shop.log_from(start).count(line) >= STRANGERS)
    log = shop.log_from(start)
    assert CANARY not in log
    assert "Traceback" not in log


def test_reached_handler_would_have_been_seen(shop: Shop) -> None:
    """The control: one good pull, of what is not cached yet, shows that the oracle above works."""
    detail = VALID.replace("index%2Findex", "product%2Fdetail") + "&query=id%3D1"
    assert shop.status(detail) == (500, "failed")
    assert shop.status(f"{VALID}&scene=+5") == (400, "scene")


PULL = f"GET {VALID}&scene=x".encode()
LINE = PULL + b" HTTP/1.1\r\n"
END = b"Host: x\r\n\r\n"
BROKEN = [
    b"\r\n\r\n",
    b"\0" * 64 + b"\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET\r\n\r\n",
    PULL[:40],
    PULL + b"\r\n\r\n",
    PULL + b" HTTP/9.9\r\n\r\n",
    PULL + b" JUNK\r\n\r\n",
    PULL + b" b HTTP/1.1\r\n" + END,
    PULL + b"\0 HTTP/1.1\r\n" + END,
    PULL + b"\n HTTP/1.1\nHost: x\n\n",
    PULL + b"\xff\xfe HTTP/1.1\r\n" + END,
    PULL + b"&token=" + CANARY.encode() * 2000 + b" HTTP/1.1\r\n" + END,
    PULL.replace(b"GET", b"get") + b" HTTP/1.1\r\n" + END,
    PULL.replace(b"GET", b"G\xc3\xa9T") + b" HTTP/1.1\r\n" + END,
    PULL.replace(b" ", b" http://evil.example") + b" HTTP/1.1\r\n" + END,
    PULL.replace(b" ", b" //evil.example") + b" HTTP/1.1\r\n" + END,
    b"OPTIONS * HTTP/1.1\r\n" + END,
    b"GET /prefetch/\xff HTTP/1.1\r\n" + END,
    LINE + b"No colon\r\n" + END,
    LINE + b"Host: y\r\n" + END,
    LINE + b"X\0Y: z\r\n" + END,
    LINE + b"X: a\r\n b\r\n" + END,
    LINE + b"X: " + b"x" * 70_000 + b"\r\n" + END,
    LINE + b"X: y\r\n" * 1000 + END,
    LINE + b"Content-Length: -1\r\n" + END,
    LINE + b"Content-Length: 1_0\r\n" + END,
    LINE + b"Content-Length: 1\r\nContent-Length: 2\r\n" + END + b"x",
    LINE + b"Content-Length: 99\r\n" + END + b"cut",
    LINE + b"Transfer-Encoding: chunked\r\n" + END + b"zz\r\n",
]


def ended(connection: socket.socket) -> bytes:
    """Half-close, then everything that still comes."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
    received = b""
    with suppress(ConnectionResetError):
        while chunk := connection.recv(65_536):
            received += chunk
    return received


@pytest.mark.parametrize("raw", BROKEN)
def test_broken_http_is_refused_or_dropped(shop: Shop, raw: bytes) -> None:
    """What is not even HTTP gets a 4xx or a closed connection, and the shop goes on."""
    with shop.connect() as connection:
        with suppress(ConnectionError):
            connection.sendall(raw)
        reply = ended(connection)
    assert reply == b"" or reply.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), reply[:200]
    assert CANARY.encode() not in reply
    assert shop.status("/prefetch/pre_fetch") == (400, "appid")


def test_slow_strangers_do_not_stop_the_shop(shop: Shop) -> None:
    """Pulls are answered while others send their request byte by byte, and those get their 400."""
    raw = f"GET {VALID}&scene=x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    slow = [shop.connect() for _ in range(3)]
    for at in range(len(raw)):
        for connection in slow:
            connection.sendall(raw[at : at + 1])
        if at % 20 == 0:
            assert shop.status("/prefetch/pre_fetch") == (400, "appid")
        time.sleep(0.002)
    replies = [ended(connection) for connection in slow]
    for connection in slow:
        connection.close()
    assert all(reply.startswith(b"HTTP/1.1 400 ") for reply in replies)
    assert all(b"X-Prefetch-Refused: scene" in reply for reply in replies)


def test_log_shows_nothing_that_came(shop: Shop) -> None:
    """Neither tokens nor the app's secret are in it: of failures, refusals, endless lines."""
    detail = VALID.replace("index%2Findex", "product%2Fdetail") + f"&query=id%3D{CANARY}"
    credentials = (f"&token={CANARY}", f"&code={CANARY}")
    assert {shop.status(detail + credential) for credential in credentials} == {(500, "failed")}
    with shop.connect() as connection:
        connection.sendall(PULL + b"&token=" + CANARY.encode() * 2000 + b" HTTP/1.1\r\n" + END)
        ended(connection)
    assert shop.status(f"{VALID}&scene={CANARY}") == (400, "scene")
    assert "failed (incident" in shop.log.read_text()
    assert CANARY not in shop.log.read_text()
