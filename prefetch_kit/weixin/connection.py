"""Connections whose every wait ends together with the call they serve.

A `requests` timeout starts anew with each byte, so a dripping server never meets it. Here each
read, write, handshake and name lookup is given what is left of the call's own time instead.
"""

import ipaddress
import json
import queue
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from http.client import HTTPResponse
from typing import IO, TYPE_CHECKING, Any, cast
from urllib.parse import urlencode

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HeaderParsingError
from urllib3.util.response import assert_header_parsing

from prefetch_kit.addresses import is_public
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.answers import UnreadableError
from prefetch_kit.weixin.proxy import Proxy, ProxyError

_HEAD_BYTES = 2**20

AddressInfo = tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[Any, ...]]


class NotPublicError(Exception):
    """A name leads to this address, which strangers must not make this machine connect to."""


@dataclass(slots=True)
class Outgoing:
    """One request under way: its secrets and its deadline, kept out of everything requests sees.

    `deadline_s` counts from the moment this is made. `max_bytes` is the longest body that is
    wanted. `public_only` connects to nothing but public addresses, `proxy` through a tunnel.
    `sent` turns True when the first byte of the request is handed to the socket. `body` is as much
    of the answer's as came. `address` is what was connected to, and `certificate_ends` when what
    it showed does, in seconds since the epoch.
    """

    query: Mapping[str, str | Secret]
    deadline_s: float
    max_bytes: int
    public_only: bool = False
    proxy: Proxy | None = None
    started: float = field(default_factory=time.monotonic)
    sent: bool = False
    received: int = 0
    body: bytearray = field(default_factory=bytearray, repr=False)
    address: str | None = None
    certificate_ends: float | None = None

    def elapsed_s(self) -> float:
        return time.monotonic() - self.started

    def remaining_s(self) -> float:
        left = self.deadline_s - self.elapsed_s()
        if left <= 0:
            raise TimeoutError
        return left


# Not a threading.local: greenlets would share one that was made before gevent's patch.
OUTGOING: ContextVar[Outgoing] = ContextVar("prefetch_kit_outgoing")


class JsonBody:
    """A JSON body that reveals its secrets only while it is being sent."""

    def __init__(self, fields: Mapping[str, object]) -> None:
        self._fields = dict(fields)
        self._length: int | None = None

    def __len__(self) -> int:
        if self._length is None:  # it is asked for three times
            self._length = len(self._encoded())
        return self._length

    def __iter__(self) -> Iterator[bytes]:
        yield self._encoded()

    def _encoded(self) -> bytes:
        return json.dumps(self._fields, ensure_ascii=False, default=_reveal).encode()


def _reveal(value: object) -> str:
    if isinstance(value, Secret):
        return value.reveal()
    if isinstance(value, str):
        return value
    raise TypeError(f"{type(value).__name__} is not part of JSON")


if TYPE_CHECKING:
    _Socket = socket.socket
    _TLSSocket = ssl.SSLSocket
else:
    _Socket = _TLSSocket = object  # see socket_class


class _Deadline(_Socket):
    """What makes a socket wait no longer than the time that is left for the call."""

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        outgoing = OUTGOING.get()
        self.settimeout(outgoing.remaining_s())
        received = super().recv_into(*args, **kwargs)
        outgoing.received += received
        # Ends a flood outside the body: heads, chunk extensions, trailers, a bad chunk size. A body
        # in chunks of one byte takes six times its length.
        if outgoing.received > 8 * outgoing.max_bytes + _HEAD_BYTES:
            raise UnreadableError("the answer does not end")
        return received

    def send(self, *args: Any, **kwargs: Any) -> int:
        self.settimeout(OUTGOING.get().remaining_s())
        return super().send(*args, **kwargs)

    def sendall(self, *args: Any, **kwargs: Any) -> None:
        outgoing = OUTGOING.get()
        self.settimeout(outgoing.remaining_s())
        outgoing.sent = True
        super().sendall(*args, **kwargs)


class _TLSDeadline(_Deadline, _TLSSocket):
    """The same over TLS, handshake included."""

    def do_handshake(self, *args: Any, **kwargs: Any) -> None:
        outgoing = OUTGOING.get()
        self.settimeout(outgoing.remaining_s())
        super().do_handshake(*args, **kwargs)
        shown = cast("dict[str, str]", self.getpeercert() or {})
        if "notAfter" in shown:
            outgoing.certificate_ends = ssl.cert_time_to_seconds(shown["notAfter"])


# Not subclasses from the start: gevent may exchange what they derive from after our import, and
# a socket of the old kind would stop all greenlets, or break in the middle of a handshake.
@cache
def socket_class(base: type[socket.socket]) -> type[socket.socket]:
    """Sockets that keep the deadline of the call, made from the present `socket.socket`."""
    return type("DeadlineSocket", (_Deadline, base), {})


@cache
def tls_socket_class(base: type[ssl.SSLSocket]) -> type[ssl.SSLSocket]:
    """The same over TLS, made from the present `ssl.SSLSocket`."""
    return type("DeadlineTLSSocket", (_TLSDeadline, base), {})


class _Head:
    """Reads the lines of a head. http.client takes the end of the connection for its end."""

    def __init__(self, lines: IO[bytes]) -> None:
        self._lines = lines

    def readline(self, limit: int) -> bytes:
        line = self._lines.readline(limit)
        if len(line) < limit and not line.endswith(b"\n"):
            raise ConnectionAbortedError
        return line


class WholeResponse(HTTPResponse):
    """An answer whose head came whole and can be parsed."""

    def begin(self, *args: Any, **kwargs: Any) -> None:
        answer = self.fp
        self.fp = cast("Any", _Head(answer))
        try:
            super().begin(*args, **kwargs)
        finally:
            self.fp = answer
        try:
            assert_header_parsing(self.msg)
        except HeaderParsingError:
            # urllib3 would log what could not be parsed, which may be an echo of our secrets.
            raise UnreadableError("the head of the answer cannot be parsed") from None


class DeadlineConnection(HTTPConnection):
    """Connects within the deadline and adds the query below everything that logs URLs."""

    response_class = WholeResponse
    debuglevel = 0  # a process-wide http.client.HTTPConnection.debuglevel prints what is sent

    def _new_conn(self) -> socket.socket:
        host, port = self._dns_host.strip("[]"), self.port or self.default_port
        proxy = OUTGOING.get().proxy
        return _connect_any(host, port) if proxy is None else _tunnelled(proxy, host, port)

    def putrequest(self, method: str, url: str, *args: Any, **kwargs: Any) -> None:
        if query := OUTGOING.get().query:
            url += "?" + urlencode({name: _reveal(value) for name, value in query.items()})
        super().putrequest(method, url, *args, **kwargs)


class DeadlineTLSConnection(DeadlineConnection, HTTPSConnection):
    """The same over TLS."""

    @property
    def is_connected(self) -> bool:
        """Whether it may serve another request: no rest of the last answer waits."""
        # What is decrypted already does not make the socket readable.
        return super().is_connected and not cast("ssl.SSLSocket", self.sock).pending()


class PlainPool(HTTPConnectionPool):
    ConnectionCls = DeadlineConnection


class TLSPool(HTTPSConnectionPool):
    ConnectionCls = DeadlineTLSConnection


def _tunnelled(proxy: Proxy, host: str, port: int) -> socket.socket:
    """A connection to a host, whose name the proxy looks up."""
    try:
        sock = _connect_any(proxy.host, proxy.port)
    except TimeoutError:
        raise
    except (OSError, UnicodeError):
        raise ProxyError("cannot be connected to") from None
    try:
        proxy.open_tunnel(sock, host, port)
    except BaseException:
        sock.close()
        raise
    return sock


def _connect_any(host: str, port: int) -> socket.socket:
    addresses = _resolve(host, port)
    if OUTGOING.get().public_only:
        # All of them are judged, and these are connected to: a second lookup could differ.
        for info in addresses:
            address = str(info[4][0])
            if not is_public(address):
                raise NotPublicError(address)
    for left in range(len(addresses), 1, -1):
        try:
            return _connect_one(addresses[-left], shared_by=left)
        except OSError:
            continue
    return _connect_one(addresses[-1], shared_by=1)


def _connect_one(info: AddressInfo, *, shared_by: int) -> socket.socket:
    """Connect to one address, leaving the addresses after it their share of the time."""
    family, kind, proto, _, address = info
    sock = socket_class(socket.socket)(family, kind, proto)
    try:
        sock.settimeout(OUTGOING.get().remaining_s() / shared_by)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect(address)
        OUTGOING.get().address = str(address[0])
    except BaseException:
        sock.close()
        raise
    return sock


def _resolve(host: str, port: int) -> Sequence[AddressInfo]:
    if host == "localhost":  # never asked of a name server, which could say anything
        return [*_resolve("127.0.0.1", port), *_resolve("::1", port)]
    try:
        ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        numeric = socket.AI_NUMERICHOST
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=numeric)
    return _looked_up(host, port)


def _looked_up(host: str, port: int) -> Sequence[AddressInfo]:
    """Ask the system's resolver, which knows no timeout, and stop listening at the deadline."""
    answers: queue.SimpleQueue[Sequence[AddressInfo] | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            answers.put(error)

    threading.Thread(target=ask, name="prefetch-kit-dns", daemon=True).start()
    try:
        answer = answers.get(timeout=OUTGOING.get().remaining_s())
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(answer, Exception):
        raise answer
    return answer
