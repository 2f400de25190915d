"""Raw servers that play a script on every connection, and transports that call them."""

import base64
import copy
import io
import json
import logging
import pickle
import socket
import ssl
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
import trustme

from prefetch_kit.sandbox import Sandbox
from prefetch_kit.weixin.transport import Transport

OK = b'{"errcode":0,"errmsg":"ok"}'


class Peer:
    """The server's end of one connection."""

    def __init__(self, far: "Far", sock: socket.socket) -> None:
        self._far = far
        self._sock = sock
        self._pending = b""

    def request(self) -> bytes:
        """One whole request; empty once the client has hung up."""
        while b"\r\n\r\n" not in self._pending:
            if not self._receive():
                return b""
        head, _, _ = self._pending.partition(b"\r\n\r\n")
        lengths = [
            int(line.partition(b":")[2])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length:")
        ]
        end = len(head) + 4 + sum(lengths)
        while len(self._pending) < end and self._receive():
            pass
        whole, self._pending = self._pending[:end], self._pending[end:]
        return whole

    def send(self, data: bytes) -> None:
        self._sock.sendall(data)

    def drip(self, data: bytes, *, every_s: float) -> None:
        """One byte at a time, until the client hangs up or the test ends."""
        for byte in data:
            self.send(bytes([byte]))
            if self._far.ended.wait(every_s):
                return

    def wait(self) -> None:
        """Until the client hangs up or the test ends."""
        while self._receive():
            pass

    def close(self) -> None:
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def reset(self) -> None:
        """End the connection without a farewell."""
        linger = b"\x01\0\0\0\0\0\0\0"
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._sock.close()

    def _receive(self) -> bool:
        data = self._sock.recv(65536)
        self._pending += data
        self._far.received += data
        return bool(data)


Script = Callable[[Peer], None]


class Far:
    """A server on port 0. `received` is every byte it was sent, after decryption."""

    def __init__(self, script: Script, tls: ssl.SSLContext | None) -> None:
        self.received = bytearray()
        self.connections = 0
        self.ended = threading.Event()
        self._script = script
        self._tls = tls
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self._start(self._accept)

    def close(self) -> None:
        self.ended.set()
        for sock in (self._listener, *self._sockets):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                accepted, _ = self._listener.accept()
                self.connections += 1
                self._sockets.append(accepted)
                self._start(self._serve, accepted)

    def _serve(self, accepted: socket.socket) -> None:
        with accepted, suppress(OSError):
            if self._tls is None:
                self._script(Peer(self, accepted))
                return
            with self._tls.wrap_socket(accepted, server_side=True) as wrapped:
                self._sockets.append(wrapped)
                self._script(Peer(self, wrapped))


class Connect:
    """Makes transports, and closes them when the test ends."""

    def __init__(self) -> None:
        self._made: list[Transport] = []

    def __call__(self, far: Far, **options: Any) -> Transport:
        self._made.append(Transport(base_url=far.url, **options))
        return self._made[-1]

    def close(self) -> None:
        for transport in self._made:
            transport.close()


class Serve:
    """Starts servers, and ends them with the test."""

    def __init__(self) -> None:
        self._started: list[Far] = []

    def __call__(self, script: Script, *, tls: ssl.SSLContext | None = None) -> Far:
        self._started.append(Far(script, tls))
        return self._started[-1]

    def answers(self, *raw: bytes, tls: ssl.SSLContext | None = None) -> Far:
        """Answer each request with the next of these bytes, the last one again and again."""
        left = list(raw)

        def script(peer: Peer) -> None:
            while peer.request():
                answer = left.pop(0) if len(left) > 1 else left[0]
                peer.send(answer)
                if b"Content-Length" not in answer:
                    return

        return self(script, tls=tls)

    def close(self) -> None:
        for far in self._started:
            far.close()


class Clock:
    """Wall time in seconds, which moves only when it is told to, or when somebody sleeps."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def running() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def wx(running: Sandbox) -> Sandbox:
    """A WeChat that starts anew with each test, on one port."""
    running.reset()
    return running


@pytest.fixture
def transport(wx: Sandbox) -> Iterator[Transport]:
    with Transport(base_url=wx.base_url) as made:
        yield made


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start Python processes of a given script, whose pipes hold text; none outlives the test."""
    started: list[subprocess.Popen[str]] = []

    def begin(script: str, *args: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        argv = [sys.executable, "-c", script, *args]
        started.append(subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True))
        return started[-1]

    yield begin
    for process in started:
        with process:
            process.kill()


@pytest.fixture
def serve() -> Iterator[Serve]:
    serving = Serve()
    yield serving
    serving.close()


@pytest.fixture
def connect(serve: Serve) -> Iterator[Connect]:
    connecting = Connect()
    yield connecting
    connecting.close()


def _http(body: bytes = OK, *, status: str = "200 OK", headers: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return head.encode("latin-1") + body


@pytest.fixture(scope="session")
def http() -> Callable[..., bytes]:
    """Builds the bytes of a sound answer: `http(body, status=, headers=)`."""
    return _http


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture
def tls(authority: trustme.CA) -> ssl.SSLContext:
    """A server's context with a certificate for 127.0.0.1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def named_tls(authority: trustme.CA) -> ssl.SSLContext:
    """A server's context with a certificate for shop.example."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("shop.example").configure_cert(context)
    return context


def _forms(secret: str) -> set[str]:
    raw = secret.encode()
    packed = {base64.b64encode(raw), base64.urlsafe_b64encode(raw)}
    encoded = {text.decode().rstrip("=") for text in packed}
    percent = {quote(secret), quote(secret, safe=""), quote_plus(secret)}
    return {secret, secret[:12], json.dumps(secret)[1:-1]} | percent | encoded


@pytest.fixture(scope="session")
def forms() -> Callable[[str], set[str]]:
    """The ways a secret may stand in a text: plain, percent-encoded, base64, cut short."""
    return _forms


class Watch:
    """Keeps whatever is said while something fails, and looks for secrets in it."""

    def __init__(self, secrets: Iterable[str], capsys: pytest.CaptureFixture[str]) -> None:
        self._forms = {form.lower() for secret in secrets for form in _forms(secret)}
        self._capsys = capsys
        self._log = io.StringIO()

    def failure(self, path: Callable[[], object]) -> BaseException:
        """The error of a path, after looking everywhere it can be seen."""
        with self._listening(), warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            error = caught(path)
        printed = self._capsys.readouterr()
        said = [self._log.getvalue(), printed.out, printed.err, *map(str, warned)]
        self.nothing_in(*said, *shown(error), *packed(error))
        return error

    def nothing_in(self, *texts: str) -> None:
        everything = "\n".join(texts).lower()
        assert [form for form in self._forms if form in everything] == []

    def nothing_of(self, value: object) -> None:
        """Neither printed nor serialised does this object show a secret."""
        self.nothing_in(printed(value), *packed(value))

    @contextmanager
    def _listening(self) -> Iterator[None]:
        handler = logging.StreamHandler(self._log)
        handler.setFormatter(_Everything())
        root = logging.getLogger()
        level = root.level
        root.addHandler(handler)
        root.setLevel(logging.NOTSET)
        try:
            yield
        finally:
            root.setLevel(level)
            root.removeHandler(handler)


class _Everything(logging.Formatter):
    """The whole record, and its traceback with local variables."""

    def format(self, record: logging.LogRecord) -> str:
        said = [super().format(record), repr(vars(record))]
        if record.exc_info and record.exc_info[1]:
            said += shown(record.exc_info[1])
        return "\n".join(said)


def caught(path: Callable[[], object]) -> BaseException:
    try:
        path()
    except BaseException as error:  # noqa: BLE001 (an interrupt is one of the paths)
        return error
    raise AssertionError("this path does not fail")


def shown(error: BaseException) -> Iterator[str]:
    """Each text an error, what is chained to it, and the frames it went through can give."""
    left, seen = [error], set()
    while left:
        one = left.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield from (str(one), repr(one), repr(one.args), repr(vars(one)))
        yield from traceback.TracebackException.from_exception(one, capture_locals=True).format()
        for frame, _ in traceback.walk_tb(one.__traceback__):
            yield from map(printed, frame.f_locals.values())
        left += [chained for chained in (one.__cause__, one.__context__) if chained]


def printed(value: object) -> str:
    """What a debugger shows of it: itself, its attributes and theirs."""
    inner = list(attributes(value).values())
    deeper = [attributes(each) for each in inner]
    return (
        f"{value!r} {value!s} {value:} {attributes(value)!r} {deeper!r}" if inner else f"{value!r}"
    )


def attributes(value: object) -> dict[str, Any]:
    return dict(getattr(value, "__dict__", {}))


def packed(value: object) -> Iterator[str]:
    """What serialising gives, where it is not refused."""
    with suppress(TypeError, AttributeError, pickle.PicklingError):
        yield pickle.dumps(value).decode("latin-1")
    with suppress(TypeError, ValueError):
        yield json.dumps(value, default=vars)
    with suppress(TypeError):
        yield printed(copy.copy(value))
    with suppress(TypeError):
        yield printed(copy.deepcopy(value))


@pytest.fixture
def watch_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Watch]:
    """Makes a Watch for these secrets, while http.client is told to print what it sends."""
    monkeypatch.setattr(HTTPConnection, "debuglevel", 1)
    return lambda *secrets: Watch(secrets, capsys)
