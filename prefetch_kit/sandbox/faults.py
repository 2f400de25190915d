"""Scripted misbehaviour of the sandbox's API."""

import os
import random
import socket
import struct
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Literal, NoReturn, get_args

from prefetch_kit.sandbox.errors import SandboxError

FaultKind = Literal[
    "errcode",
    "raw",
    "redirect",
    "alter",
    "stale",
    "delay",
    "lose",
    "drip_headers",
    "drip_body",
    "hang",
    "close",
    "reset",
    "cut",
    "huge",
    "gzip_bomb",
]

# Sockets cannot wait for more than some days.
MAX_WAIT_S: Final = 86_400

_CHUNK: Final = b" " * 65_536


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One scripted misbehaviour of one API path.

    It lets `after` matching calls through, then applies to `times` of them (None: all). With a
    `chance` below 1 it applies to that share of the calls, by chance; the others are not counted.

    - `errcode`: the refusal `errcode`, `errmsg`, with `headers`
    - `raw`: `status`, `headers` and `body` as given
    - `alter`: the ordinary answer, with these `members` and `without` those
    - `stale`: the ordinary answer, in which `get` shows what was stored before the last `set`
    - `redirect`: 307 to `location`
    - `delay`: the ordinary answer, `delay_s` late
    - `lose`: the call takes effect, the connection closes without an answer
    - `drip_headers`, `drip_body`: an endless answer, one byte each `interval_s`
    - `hang`: no answer until the caller gives up
    - `close`, `reset`: the connection ends without an answer, orderly or by RST
    - `cut`: a Content-Length larger than what is sent
    - `huge`: a JSON answer of `size_bytes`, most of it white space
    - `gzip_bomb`: the same, compressed to about a thousandth

    The calls of the kinds `alter`, `stale`, `delay` and `lose` take effect; those of the others
    do so with `effect`: "now", or "late", `late_s` seconds of the sandbox's clock after the call.
    """

    kind: FaultKind
    path: str = "/wxa/fetchdatasetting"
    action: str | None = None
    times: int | None = 1
    after: int = 0
    chance: float = 1.0
    effect: Literal["none", "now", "late"] = "none"
    late_s: float = 1.0
    errcode: int = -1
    errmsg: str = "system error"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | str = b""
    location: str = ""
    members: Mapping[str, object] = field(default_factory=dict)
    without: list[str] = field(default_factory=list)
    delay_s: float = 0.0
    interval_s: float = 0.1
    size_bytes: int = 64 * 2**20

    def __post_init__(self) -> None:
        if self.kind not in get_args(FaultKind):
            known = ", ".join(get_args(FaultKind))
            raise SandboxError(f"kind {self.kind!r} is not a fault: choose one of {known}.")
        if (self.times is not None and self.times < 1) or self.after < 0:
            raise SandboxError("times must be at least 1 or null, and after at least 0.")
        if not (0 <= self.delay_s <= MAX_WAIT_S and 0 <= self.interval_s <= MAX_WAIT_S):
            raise SandboxError(f"delay_s and interval_s must be from 0 to {MAX_WAIT_S}.")
        if self.effect != "none" and self.kind in ("alter", "stale", "delay", "lose"):
            raise SandboxError(f"effect is not for the kind {self.kind}, which always has one.")
        if not (0 < self.chance <= 1 and 0 <= self.late_s <= MAX_WAIT_S):
            raise SandboxError(f"chance must be above 0, to 1, and late_s from 0 to {MAX_WAIT_S}.")
        if self.size_bytes < 0:
            raise SandboxError("size_bytes must not be negative.")
        if not 200 <= self.status <= 599:
            raise SandboxError(f"status {self.status} is not an HTTP status from 200 to 599.")
        for text in (*self.headers, *self.headers.values(), self.location):
            if not (text.isascii() and text.isprintable()):
                raise SandboxError("headers and location must be printable ASCII.")


@dataclass
class _Pending:
    fault: Fault
    seen: int = 0

    def matches(self, path: str, action: str | None) -> bool:
        fault = self.fault
        asked_for = fault.path == path and fault.action in (None, action)
        return asked_for and (fault.chance == 1 or random.random() < fault.chance)

    def is_spent(self) -> bool:
        times = self.fault.times
        return times is not None and self.seen >= self.fault.after + times


class FaultScript:
    """Faults in the order they were scripted; the first that matches a call decides."""

    def __init__(self) -> None:
        self._pending: list[_Pending] = []

    def add(self, fault: Fault) -> None:
        self._pending.append(_Pending(fault))

    def take(self, *, path: str, action: str | None) -> Fault | None:
        """The fault for this call, if any; counts the call."""
        pending = next((each for each in self._pending if each.matches(path, action)), None)
        if pending is None:
            return None
        pending.seen += 1
        if pending.is_spent():
            self._pending.remove(pending)
        return pending.fault if pending.seen > pending.fault.after else None


def pause(connection: socket.socket, seconds: float) -> bool:
    """Wait; return whether the connection ended meanwhile."""
    # Zero would make the socket non-blocking.
    connection.settimeout(max(seconds, 0.001))
    try:
        connection.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return False
    finally:
        connection.settimeout(None)
    return True


def spoil(fault: Fault, connection: socket.socket) -> NoReturn:
    """Cause a fault that no WSGI answer can express, then close the connection."""
    match fault.kind:
        case "drip_headers":
            _drip(connection, b"HTTP/1.1 200 OK\r\nX-Drip: ", b".", interval_s=fault.interval_s)
        case "drip_body":
            _drip(connection, _head(), b" ", interval_s=fault.interval_s)
        case "hang":
            while connection.recv(4096):
                pass
        case "reset":
            _reset(connection)
        case "cut":
            connection.sendall(_head("Content-Length: 400") + b'{"errcode":0,"errm')
        case "huge":
            _send_huge(connection, fault.size_bytes)
        case "gzip_bomb":
            _send_gzip_bomb(connection, fault.size_bytes)
    hang_up(connection)


def hang_up(connection: socket.socket) -> NoReturn:
    """Close the connection without an answer.

    The server treats the exception as a caller that went away, and writes nothing.
    """
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    raise ConnectionAbortedError


def _drip(connection: socket.socket, head: bytes, byte: bytes, *, interval_s: float) -> None:
    connection.sendall(head)
    while not pause(connection, interval_s):
        connection.sendall(byte)


def _reset(connection: socket.socket) -> None:
    no_linger = struct.pack("ii", 1, 0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)
    # The server shuts a socket down before it closes it, and the caller would see that orderly
    # end first: take the descriptor away from it.
    os.close(connection.detach())


def _send_huge(connection: socket.socket, size_bytes: int) -> None:
    connection.sendall(_head(f"Content-Length: {size_bytes + 13}") + b'{"errcode":0')
    for size in _chunk_sizes(size_bytes):
        connection.sendall(_CHUNK[:size])
    connection.sendall(b"}")


def _send_gzip_bomb(connection: socket.socket, size_bytes: int) -> None:
    packer = zlib.compressobj(wbits=31)
    packed = packer.compress(b'{"errcode":0')
    for size in _chunk_sizes(size_bytes):
        packed += packer.compress(_CHUNK[:size])
    packed += packer.compress(b"}") + packer.flush()
    head = _head("Content-Encoding: gzip", f"Content-Length: {len(packed)}")
    connection.sendall(head + packed)


def _chunk_sizes(size_bytes: int) -> list[int]:
    whole, rest = divmod(size_bytes, len(_CHUNK))
    return [len(_CHUNK)] * whole + [rest]


def _head(*lines: str) -> bytes:
    first = ("HTTP/1.1 200 OK", "Content-Type: application/json", "Connection: close")
    return "\r\n".join((*first, *lines, "", "")).encode()
