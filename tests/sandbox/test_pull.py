"""WeChat's puller against origins that behave badly."""

import gzip
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from prefetch_kit.sandbox import Pulled, Sandbox

if TYPE_CHECKING:
    from tests.conftest import Origin

APPID = "wx01"
HEAD = b"HTTP/1.1 200 OK\r\n"


def pull(wx: Sandbox) -> Pulled:
    return wx.cold_start(APPID, "o1")


def drip(connection: socket.socket, *, gone: threading.Event) -> None:
    while not gone.wait(0.02):
        connection.sendall(b".")


def test_request_is_a_plain_get(wx: Sandbox, registered: "Origin") -> None:
    """The registered host is asked for, uncompressed, on a new connection."""
    pull(wx)
    head = registered.requests[-1]
    assert head.startswith("GET /prefetch/pre_fetch?appid=wx01&timestamp=")
    assert "\r\nHost: shop.example\r\n" in head
    assert "\r\nX-Forwarded-Proto: https\r\n" in head
    assert "\r\nX-Forwarded-Host: shop.example\r\n" in head
    assert "\r\nX-Forwarded-For: 203.0.113.1\r\n" in head
    assert "\r\nAccept-Encoding: identity\r\n" in head
    assert "\r\nConnection: close\r\n" in head


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"garbage\r\n\r\n",
        HEAD + b"Content-Length: 10\r\n\r\n123",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
        HEAD + b"X: y\r\n" * 200,
    ],
)
def test_broken_answer_is_no_answer(wx: Sandbox, registered: "Origin", raw: bytes) -> None:
    """Cut or unreadable answers are never kept, not even in part."""
    registered.send_raw(raw)
    assert pull(wx).reason == "no answer"


def test_closed_port_is_no_answer(wx: Sandbox, registered: "Origin") -> None:
    """An app that is not running leaves the pull without an answer."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    wx.map_origin("shop.example", f"http://127.0.0.1:{port}")
    pulled = pull(wx)
    assert (pulled.due, pulled.kept, pulled.status) == (True, False, None)
    assert pulled.reason == "no answer"


@pytest.mark.parametrize(
    "head", [b"", HEAD + b"X: ", HEAD + b"\r\n", HEAD + b"Content-Length: 5000\r\n\r\n"]
)
def test_drip_ends_at_the_deadline(wx: Sandbox, registered: "Origin", head: bytes) -> None:
    """However slowly bytes come, the whole pull has one deadline."""
    gone = threading.Event()

    def play(connection: socket.socket) -> None:
        connection.sendall(head)
        drip(connection, gone=gone)

    registered.play = play
    wx.switches.pull_deadline_s = 0.3
    pulled = pull(wx)
    gone.set()
    assert pulled.reason == "no answer"
    assert 300 <= pulled.ms < 20_000


def test_deadline_without_measure(wx: Sandbox, registered: "Origin") -> None:
    """A deadline longer than a socket can wait is cut to one it can."""
    wx.switches.pull_deadline_s = 1e12
    assert pull(wx).kept


def test_redirects_are_not_followed(wx: Sandbox, registered: "Origin") -> None:
    """By default a redirect is an answer like any other that is not 200."""
    registered.reply(b"", status="302 Found", headers="Location: /elsewhere\r\n")
    assert pull(wx).reason == "status 302"
    assert len(registered.requests) == 1


def test_redirects_can_be_followed(wx: Sandbox, registered: "Origin") -> None:
    """With the switch on, a redirect is followed as often as is reasonable."""
    wx.switches.follows_redirects = True
    registered.reply(b"", status="302 Found", headers="Location: /elsewhere\r\n")
    assert pull(wx).reason == "status 302"
    assert registered.target == "/elsewhere"
    assert len(registered.requests) == 6


@pytest.mark.parametrize("location", ["https://other.example/", "https://[", "/\xff"])
def test_redirect_to_where_nothing_is_mapped(
    wx: Sandbox, registered: "Origin", location: str
) -> None:
    """A redirect never leads off the mapped hosts."""
    wx.switches.follows_redirects = True
    head = f"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: {location}\r\n\r\n"
    registered.send_raw(head.encode("latin-1"))
    assert pull(wx).reason == "no origin"


def test_broken_connections_can_be_retried(wx: Sandbox, registered: "Origin") -> None:
    """With retries the pull is repeated after no answer, and only then."""
    wx.switches.pull_retries = 2
    registered.send_raw(b"")
    assert pull(wx).reason == "no answer"
    assert len(registered.requests) == 3
    registered.reply(b"", status="500 No")
    assert pull(wx).reason == "status 500"
    assert len(registered.requests) == 4


def test_retries_end_at_the_deadline(wx: Sandbox, registered: "Origin") -> None:
    """Repeating never outlasts the one deadline of a pull."""
    wx.switches.pull_retries = 10**9
    wx.switches.pull_deadline_s = 0.2
    registered.send_raw(b"")
    assert 200 <= pull(wx).ms < 20_000


def test_compressed_answer_nobody_asked_for(wx: Sandbox, registered: "Origin") -> None:
    """A puller that asks for identity takes the compressed bytes for the answer."""
    registered.reply(gzip.compress(b"{}"), headers="Content-Encoding: gzip\r\n")
    assert pull(wx).reason == "not text"


def test_compressed_answer_can_be_asked_for(wx: Sandbox, registered: "Origin") -> None:
    """With the switch on, gzip is offered and unpacked, and counts unpacked."""
    wx.switches.accept_encoding = "gzip"
    registered.reply(gzip.compress(b"{}"), headers="Content-Encoding: gzip\r\n")
    pulled = pull(wx)
    assert (pulled.kept, pulled.bytes) == (True, 2)
    registered.reply(gzip.compress(b"a" * 10**6), headers="Content-Encoding: gzip\r\n")
    assert pull(wx).bytes == 262_145
    registered.reply(b"{}", headers="Content-Encoding: gzip\r\n")
    assert pull(wx).reason == "not gzip"


@pytest.mark.parametrize("url", ["https://[/", "https://shop.example/é", "x y", "", 5])
def test_url_set_by_hand_that_is_none(wx: Sandbox, url: object) -> None:
    """With any settings, a pull ends with a reason."""
    settings = {"is_pre_fetch_open": True, "pre_fetch_type": 0, "pre_fetch_url": url}
    wx.put_settings(APPID, settings)
    assert pull(wx).reason == ("no origin" if url else "not configured")
