"""Every call ends within its deadline, whatever the other side does."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import pytest

from prefetch_kit.errors import OutcomeUnknown
from prefetch_kit.weixin.transport import Transport

if TYPE_CHECKING:
    from tests.weixin.conftest import Connect, Peer, Script, Serve

pytestmark = pytest.mark.slow

DEADLINE_S = 0.4
MARGIN_S = 5.0  # for a busy machine; without a deadline none of these would end
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 27\r\n"
WAY_S = 0.02
Way = Callable[[Transport, str], object]


def call(transport: Transport, _: str) -> object:
    return transport.call("get", "POST", "/", query={}, body={"action": "get"})


def fetch(transport: Transport, url: str) -> object:
    return transport.fetch(
        "https://shop.example/p", origin=url, deadline_s=DEADLINE_S, max_bytes=10_000_000
    )


def silent(peer: "Peer") -> None:
    peer.request()
    peer.wait()


def dripping_status_line(peer: "Peer") -> None:
    peer.request()
    peer.drip(b"HTTP/1.1 200 " + b"O" * 10_000, every_s=WAY_S)


def dripping_headers(peer: "Peer") -> None:
    peer.request()
    peer.send(b"HTTP/1.1 200 OK\r\n")
    peer.drip(b"X-A: b\r\n" * 10_000, every_s=WAY_S)


def half_a_head(peer: "Peer") -> None:
    peer.request()
    peer.send(HEAD)
    peer.wait()


def dripping_continues(peer: "Peer") -> None:
    peer.request()
    peer.drip(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, every_s=WAY_S)


def dripping_body(peer: "Peer") -> None:
    peer.request()
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n")
    peer.drip(b'{"errcode":0,"x":"' + b"x" * 9000, every_s=WAY_S)


def dripping_chunks(peer: "Peer") -> None:
    peer.request()
    peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    peer.drip(b"1\r\n \r\n" * 10_000, every_s=WAY_S)


def dripping_trailer(peer: "Peer") -> None:
    peer.request()
    peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n")
    peer.drip(b"X-A: b\r\n" * 10_000, every_s=WAY_S)


def whole_but_for_its_end(peer: "Peer") -> None:
    peer.request()
    peer.send(b'HTTP/1.1 200 OK\r\n\r\n{"errcode":0}')
    peer.wait()


SCRIPTS = [
    silent,
    dripping_status_line,
    dripping_headers,
    half_a_head,
    dripping_continues,
    dripping_body,
    dripping_chunks,
    dripping_trailer,
    whole_but_for_its_end,
]


def ends_in_time(
    transport: Transport, way: Way, url: str, *, sent: bool, deadline_s: float = DEADLINE_S
) -> None:
    started = time.monotonic()
    with pytest.raises(OutcomeUnknown) as caught:
        way(transport, url)
    assert time.monotonic() - started < deadline_s + MARGIN_S
    assert caught.value.cause == f"no complete answer within {deadline_s} s"
    assert caught.value.sent is sent


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_call_that_is_answered_slowly(
    serve: "Serve",
    connect: "Connect",
    tls: ssl.SSLContext,
    ca_file: str,
    script: "Script",
    secure: bool,
) -> None:
    """Time spent without a whole answer ends the call, however much came meanwhile."""
    far = serve(script, tls=tls if secure else None)
    transport = connect(far, ca_file=ca_file, deadline_s=DEADLINE_S)
    ends_in_time(transport, call, far.url, sent=True)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_fetch_that_is_answered_slowly(
    serve: "Serve", connect: "Connect", script: "Script"
) -> None:
    """The deadline is the one given to fetch, not the transport's; half a head is no reply."""
    far = serve(script)
    ends_in_time(connect(far, deadline_s=60), fetch, far.url, sent=True)


@pytest.mark.parametrize("script", [silent, dripping_body])
def test_a_slow_answer_on_a_warm_connection(
    serve: "Serve", connect: "Connect", http: Callable[..., bytes], script: "Script"
) -> None:
    """The time of one call is not what an earlier one on the connection had left."""

    def good_then_slow(peer: "Peer") -> None:
        peer.request()
        peer.send(http())
        script(peer)

    far = serve(good_then_slow)
    # Time enough for the first, or a busy machine makes it late and its connection is not kept.
    transport = connect(far, deadline_s=2.5)
    call(transport, far.url)
    ends_in_time(transport, call, far.url, sent=True, deadline_s=2.5)
    assert far.connections == 1


def test_a_server_that_reads_nothing(serve: "Serve", connect: "Connect") -> None:
    """A body larger than all buffers on the way is given up at the deadline."""

    def deaf(_: "Peer") -> None:
        far.ended.wait()

    far = serve(deaf)
    transport = connect(far, deadline_s=3)  # enough to write the JSON of the body, and begin
    with pytest.raises(OutcomeUnknown, match="within 3 s") as caught:
        transport.call("set", "POST", "/", query={}, body={"x": "x" * 12_000_000})
    assert caught.value.sent
    assert far.received == b""


def test_a_handshake_without_an_answer(serve: "Serve", connect: "Connect") -> None:
    """The server accepts and never says a word of TLS; no secret was sent."""
    far = serve(lambda peer: peer.wait())
    with Transport(base_url=far.url.replace("http:", "https:"), deadline_s=DEADLINE_S) as transport:
        ends_in_time(transport, call, far.url, sent=False)


def test_a_dripping_handshake(serve: "Serve") -> None:
    """A TLS record that comes byte by byte."""
    far = serve(lambda peer: peer.drip(b"\x16\x03\x03\x40\x00\x02" + b"\0" * 16000, every_s=WAY_S))
    with Transport(base_url=far.url.replace("http:", "https:"), deadline_s=DEADLINE_S) as transport:
        ends_in_time(transport, call, far.url, sent=False)


@pytest.fixture
def full_port() -> Iterator[int]:
    """A port whose listener never accepts and whose queue is full."""
    with ExitStack() as opened:
        listener = opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = listener.getsockname()
        for _ in range(4):
            waiting = opened.enter_context(socket.socket())
            waiting.setblocking(False)
            with suppress(BlockingIOError):
                waiting.connect(address)
        yield address[1]


@pytest.mark.parametrize("way", [call, fetch])
def test_a_listener_that_never_accepts(full_port: int, way: Way) -> None:
    """The connection is never made, so nothing was sent."""
    url = f"http://127.0.0.1:{full_port}"
    with Transport(base_url=url, deadline_s=DEADLINE_S) as transport:
        ends_in_time(transport, way, url, sent=False)


@pytest.fixture
def slow_names(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The system's resolver answers only when the test is over."""
    over = threading.Event()
    real = socket.getaddrinfo

    def getaddrinfo(host: str, *args: Any, **kwargs: Any) -> Any:
        if host == "shop.example":
            over.wait(60)
            raise socket.gaierror(socket.EAI_AGAIN, "try again")
        return real(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield
    over.set()
    for thread in threading.enumerate():
        if thread.name == "prefetch-kit-dns":
            thread.join()


def test_a_slow_name_lookup(slow_names: None) -> None:
    """The system's resolver knows no timeout; the call does not wait for it."""
    url = "https://shop.example"
    with Transport(base_url=url, deadline_s=DEADLINE_S) as transport:
        ends_in_time(transport, call, url, sent=False)


def answer_names_with(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[str, int]) -> None:
    infos = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **options: Any) -> Any:
        # Other threads of this process look their own names up.
        return infos if host == "shop.example" else real(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def test_the_first_of_several_addresses_hangs(
    monkeypatch: pytest.MonkeyPatch,
    serve: "Serve",
    http: Callable[..., bytes],
    full_port: int,
    ca_file: str,
    named_tls: ssl.SSLContext,
) -> None:
    """Each address gets its share of the time, so the last one is still reached."""
    far = serve.answers(http(), tls=named_tls)
    answer_names_with(
        monkeypatch, ("127.0.0.1", full_port), ("127.0.0.1", 1), ("127.0.0.1", far.port)
    )
    with Transport(base_url="https://shop.example", ca_file=ca_file, deadline_s=6) as transport:
        assert call(transport, "") == {"errcode": 0, "errmsg": "ok"}


def test_all_of_several_addresses_hang(monkeypatch: pytest.MonkeyPatch, full_port: int) -> None:
    """Their shares together are the deadline, not a deadline each."""
    answer_names_with(monkeypatch, *[("127.0.0.1", full_port)] * 20)
    with Transport(base_url="https://shop.example", deadline_s=DEADLINE_S) as transport:
        ends_in_time(transport, call, "", sent=False)


@pytest.mark.parametrize("error", [socket.gaierror(-2, "unknown"), UnicodeError("label")])
def test_a_name_that_is_unknown(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Not a question of time, and told apart from it."""

    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **options: Any) -> Any:
        if host == "shop.example":
            raise error
        return real(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with Transport(base_url="https://shop.example") as transport:
        with pytest.raises(OutcomeUnknown, match="name cannot be resolved") as caught:
            call(transport, "")
        assert not caught.value.sent
        assert "Nothing was sent to https://shop.example: check the" in caught.value.remedy


def test_no_time_at_all(serve: "Serve", connect: "Connect") -> None:
    """A deadline that has passed sends nothing."""
    far = serve(silent)
    with pytest.raises(OutcomeUnknown, match="within 0 s") as caught:
        call(connect(far, deadline_s=0), far.url)
    assert not caught.value.sent
    assert far.received == b""
