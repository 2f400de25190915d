"""One GET as WeChat's puller makes it: with a deadline and a size limit."""

import http.client
import socket
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Final
from urllib.parse import urljoin, urlsplit, urlunsplit

from prefetch_kit.sandbox.switches import Switches

MAX_REDIRECTS: Final = 5
MAX_DEADLINE_S: Final = 86_400
KEPT_KB: Final = 256

# Nobody's (RFC 5737).
CALLER: Final = "203.0.113.1"

NO_ANSWER: Final = "no answer"
NO_ORIGIN: Final = "no origin"


@dataclass(frozen=True)
class Answer:
    """The answer; `problem` is set where it is not complete.

    `body` ends one byte past the limit.
    """

    problem: str = ""
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


def max_bytes(switches: Switches) -> int:
    """How large an answer a phone keeps."""
    return KEPT_KB * switches.bytes_per_kb


def fetch(url: str, *, origins: Mapping[str, str], switches: Switches) -> Answer:
    """GET a registered URL from the loopback origin its host is mapped to. Never raises."""
    until = time.monotonic() + min(switches.pull_deadline_s, MAX_DEADLINE_S)
    answer = _follow(url, origins=origins, switches=switches, until=until)
    for _ in range(switches.pull_retries):
        if answer.problem != NO_ANSWER or time.monotonic() >= until:
            break
        answer = _follow(url, origins=origins, switches=switches, until=until)
    return answer


def _follow(url: str, *, origins: Mapping[str, str], switches: Switches, until: float) -> Answer:
    answer = Answer()
    for _ in range(1 + (MAX_REDIRECTS if switches.follows_redirects else 0)):
        origin = origins.get(_host(url))
        if origin is None:
            return Answer(problem=NO_ORIGIN)
        answer = _get(url, origin=origin, switches=switches, until=until)
        location = answer.headers.get("location")
        if answer.status not in (301, 302, 303, 307, 308) or location is None:
            break
        url = _joined(url, location)
    return answer


def _host(url: str) -> str:
    """The host of a URL that can be pulled; empty for any other."""
    if not (url.isascii() and url.isprintable()) or " " in url:
        return ""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        return ""


def _get(url: str, *, origin: str, switches: Switches, until: float) -> Answer:
    left_s = until - time.monotonic()
    if left_s <= 0:
        return Answer(problem=NO_ANSWER)
    connection = http.client.HTTPConnection(urlsplit(origin).netloc, timeout=left_s)
    try:
        with closing(connection):
            connection.connect()
            with cut_at(until, connection.sock) as late:
                answer = _exchange(connection, url, switches)
    except (OSError, http.client.HTTPException):
        return Answer(problem=NO_ANSWER)
    # A connection that the deadline cut can look like a short but complete answer.
    return Answer(problem=NO_ANSWER) if late.is_set() else answer


def _exchange(connection: http.client.HTTPConnection, url: str, switches: Switches) -> Answer:
    parts = urlsplit(url)
    target = urlunsplit(("", "", parts.path or "/", parts.query, ""))
    connection.putrequest("GET", target, skip_host=True, skip_accept_encoding=True)
    for name, value in _headers(parts.netloc, switches):
        connection.putheader(name, value)
    connection.endheaders()
    with connection.getresponse() as response:
        limit = max_bytes(switches)
        body = response.read(limit + 1)
        headers = {name.lower(): value for name, value in response.getheaders()}
        if len(body) <= limit and response.length:
            return Answer(problem=NO_ANSWER)
        answer = Answer("", response.status, headers, body)
        return _unpack(answer, limit) if switches.accept_encoding == "gzip" else answer


def ingress_headers(host: str) -> dict[str, str]:
    """What stands between WeChat and an app takes the TLS off, and says so with these."""
    return {
        "Host": host,
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": host,
        "X-Forwarded-For": CALLER,
    }


def _headers(host: str, switches: Switches) -> Iterator[tuple[str, str]]:
    yield from ingress_headers(host).items()
    yield "User-Agent", "prefetch-sandbox"
    yield "Accept", "*/*"
    yield "Accept-Encoding", switches.accept_encoding
    yield "Connection", "close"


def _unpack(answer: Answer, limit: int) -> Answer:
    if answer.headers.get("content-encoding", "").lower() != "gzip":
        return answer
    try:
        return replace(answer, body=zlib.decompressobj(31).decompress(answer.body, limit + 1))
    except zlib.error:
        return replace(answer, problem="not gzip")


@contextmanager
def cut_at(until: float, connection: socket.socket) -> Iterator[threading.Event]:
    """Shut the connection down at the deadline: socket timeouts never end one that drips."""
    late = threading.Event()

    def cut() -> None:
        late.set()
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(until - time.monotonic(), cut)
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()
        timer.join()
