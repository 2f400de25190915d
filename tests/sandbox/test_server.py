"""Start, stop and requests of the server."""

import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from prefetch_kit.sandbox import Sandbox

if TYPE_CHECKING:
    from tests.sandbox.conftest import Client


def exchange(wx: Sandbox, raw: bytes) -> bytes:
    address = ("127.0.0.1", int(wx.base_url.rpartition(":")[2]))
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(raw)
        return b"".join(iter(lambda: connection.recv(4096), b""))


def test_stop_leaves_nothing_behind() -> None:
    """No thread and no listening port outlives the sandbox."""
    before = set(threading.enumerate())
    with Sandbox() as wx:
        port = int(wx.base_url.rpartition(":")[2])
        assert b"40066" in exchange(wx, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert not set(threading.enumerate()) - before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_stop_does_not_wait_for_silent_callers() -> None:
    """A connection on which nothing was ever sent is cut."""
    with Sandbox() as wx:
        address = ("127.0.0.1", int(wx.base_url.rpartition(":")[2]))
        silent = socket.create_connection(address, timeout=10)
        exchange(wx, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert silent.recv(1) == b""
    silent.close()


def test_stop_waits_for_a_call_under_way() -> None:
    """What was begun is finished before the sandbox is gone."""
    begun, finished = threading.Event(), threading.Event()

    def slow(line: str) -> None:
        begun.set()
        time.sleep(0.2)
        finished.set()

    with Sandbox(log=slow) as wx:
        address = ("127.0.0.1", int(wx.base_url.rpartition(":")[2]))
        with socket.create_connection(address) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert begun.wait(60)
    assert finished.is_set()


def test_taken_port_is_an_oserror(wx: Sandbox) -> None:
    """The caller decides what to say about a port that cannot be had."""
    taken = Sandbox(port=int(wx.base_url.rpartition(":")[2]))
    with pytest.raises(OSError, match="in use"):
        taken.start()
    taken.stop()


def test_started_twice_is_a_mistake(wx: Sandbox) -> None:
    """The second start is refused and leaves the first running."""
    with pytest.raises(RuntimeError, match="running"):
        wx.start()
    assert wx.base_url.startswith("http://127.0.0.1:")


def test_state_survives_a_restart(wx: Sandbox) -> None:
    """Stopped and started again, it remembers; the address is known only while it runs."""
    wx.stop()
    with pytest.raises(RuntimeError, match="start"):
        wx.base_url  # noqa: B018 (reading it fails)
    wx.start()
    assert wx.access_token("wx01")


@pytest.mark.parametrize(
    "raw",
    [
        b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST /wxa/fetchdatasetting HTTP/1.1\r\nHost: [::1]\r\nContent-Length: x\r\n\r\n",
        b"POST /wxa/fetchdatasetting HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /wxa/fetchdatasetting?access_token=%ff%00 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /_sandbox/%ff%00 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"POST /_sandbox/reset HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_malformed_request_is_no_crash(
    wx: Sandbox,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    raw: bytes,
) -> None:
    """No request causes a 5xx, and nothing is printed or logged."""
    head = exchange(wx, raw)
    assert head.startswith(b"HTTP/1.1 ")
    assert not head.startswith(b"HTTP/1.1 5")
    assert (*capfd.readouterr(), caplog.records) == ("", "", [])


def test_server_logs_no_urls(client: "Client", caplog: pytest.LogCaptureFixture) -> None:
    """The usual access log of a development server would hold the secrets of every query."""
    caplog.set_level("DEBUG")
    client.token()
    assert caplog.records == []


def test_callers_are_answered_side_by_side(wx: Sandbox, client: "Client") -> None:
    """Many threads at once each get their answer, and each is logged."""
    errcodes: list[int] = []

    def call() -> None:
        errcodes.append(client.fetchdatasetting(action="get")["errcode"])

    threads = [threading.Thread(target=call) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errcodes == [0] * 20
    assert wx.count(action="get") == 20
