"""Connections are used again, by one call at a time and by one process only."""

import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from prefetch_kit.errors import OutcomeUnknown
from prefetch_kit.weixin import sessions
from prefetch_kit.weixin.transport import Transport

if TYPE_CHECKING:
    from tests.weixin.conftest import Connect, Far, Peer, Script, Serve

pytestmark = pytest.mark.slow

Http = Callable[..., bytes]


def ask(transport: Transport, name: str) -> str:
    return str(transport.call("get", "GET", "/", query={"name": name})["name"])


@pytest.fixture
def echoing(http: Http) -> "Script":
    """Answers each request with the name that came in its query."""

    def script(peer: "Peer") -> None:
        while request := peer.request():
            name = request.split()[1].partition(b"name=")[2]
            peer.send(http(b'{"name":"%s"}' % name))

    return script


@pytest.fixture
def far(serve: "Serve", echoing: "Script") -> "Far":
    return serve(echoing)


def test_calls_one_after_another_share_a_connection(far: "Far", connect: "Connect") -> None:
    """One handshake for all of them."""
    transport = connect(far)
    assert [ask(transport, str(n)) for n in range(20)] == [str(n) for n in range(20)]
    assert far.connections == 1


def test_threads_have_a_connection_each_at_a_time(
    serve: "Serve", connect: "Connect", http: Http
) -> None:
    """Four calls at once need four connections, and the next four use them again."""
    together = threading.Barrier(4, timeout=30)

    def script(peer: "Peer") -> None:
        while peer.request():
            together.wait()
            peer.send(http())

    far = serve(script)
    transport = connect(far, deadline_s=30)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            list(pool.map(lambda n: transport.call("get", "GET", f"/{n}", query={}), range(4)))
    assert far.connections == 4


def test_threads_get_their_own_answers(far: "Far", connect: "Connect") -> None:
    """Eight threads, one transport, no mix-up."""
    transport = connect(far, deadline_s=30)
    names = [str(n) for n in range(400)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda name: ask(transport, name), names)) == names
    assert far.connections <= 8


def test_the_first_https_calls_of_many_threads(
    serve: "Serve",
    connect: "Connect",
    echoing: "Script",
    tls: ssl.SSLContext,
    ca_file: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whichever thread loads the usual certificates, each call has them."""
    monkeypatch.setattr(sessions, "DEFAULT_CA_BUNDLE_PATH", ca_file)
    transport = connect(serve(echoing, tls=tls), deadline_s=30)
    names = [str(n) for n in range(32)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda name: ask(transport, name), names)) == names


def test_close_and_call_again(far: "Far", connect: "Connect") -> None:
    """Closing ends what is idle, and nothing else."""
    transport = connect(far)
    assert ask(transport, "a") == "a"
    transport.close()
    transport.close()
    assert ask(transport, "b") == "b"
    assert far.connections == 2


def test_a_connection_the_server_closed_meanwhile(
    serve: "Serve", connect: "Connect", http: Http
) -> None:
    """It is noticed before anything is sent on it."""
    closed = threading.Semaphore(0)

    def script(peer: "Peer") -> None:
        peer.request()
        peer.send(http())
        peer.close()
        closed.release()

    far = serve(script)
    transport = connect(far)
    for _ in range(3):
        assert transport.call("get", "GET", "/", query={})["errcode"] == 0
        assert closed.acquire(timeout=30)
    assert far.connections == 3


def test_an_answer_that_came_too_late_belongs_to_nobody(
    serve: "Serve", connect: "Connect", http: Http
) -> None:
    """A connection given up at its deadline is not used again."""
    given_up = threading.Event()

    def script(peer: "Peer") -> None:
        while request := peer.request():
            if b"late" in request:
                given_up.wait(30)
            peer.send(http(b'{"name":"%s"}' % request.split()[1][1:]))

    far = serve(script)
    transport = connect(far, deadline_s=2)
    with pytest.raises(OutcomeUnknown, match="within 2 s"):
        transport.call("get", "GET", "/late", query={})
    given_up.set()
    assert transport.call("get", "GET", "/next", query={}) == {"name": "next"}
    assert far.connections == 2


FORKING = """
import os, sys
from prefetch_kit.weixin.transport import Transport

def ask(who):
    for number in range(200):
        name = f"{who}.{number}"
        answer = transport.call("get", "GET", "/", query={"name": name})
        assert answer == {"name": name}, (name, answer)

transport = Transport(base_url=sys.argv[1], ca_file=sys.argv[2], deadline_s=30)
transport.call("get", "GET", "/", query={"name": "warm"})
children = []
for child in "abc":
    pid = os.fork()
    if not pid:
        ask(child)
        transport.close()
        sys.exit()
    children.append(pid)
ask("parent")
transport.close()
sys.exit(sum(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children))
"""

MULTIPROCESSING = """
import multiprocessing, sys
from prefetch_kit.weixin.transport import Transport

def ask(name):
    return transport.call("get", "GET", "/", query={"name": name})["name"]

transport = Transport(base_url=sys.argv[1], ca_file=sys.argv[2], deadline_s=30)
ask("warm")
names = [str(number) for number in range(200)]
pool = multiprocessing.get_context("fork").Pool(3)
asked = pool.map_async(ask, names)
assert [ask(name) for name in names] == names
assert asked.get(60) == names
pool.close()
pool.join()
transport.close()
"""


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("program", [FORKING, MULTIPROCESSING], ids=["fork", "multiprocessing"])
def test_a_transport_warmed_before_a_fork(
    request: pytest.FixtureRequest,
    serve: "Serve",
    echoing: "Script",
    ca_file: str,
    program: str,
    secure: bool,
) -> None:
    """Parent and children get their own answers only, and leave nothing open."""
    far = serve(echoing, tls=request.getfixturevalue("tls") if secure else None)
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", "-c", program, far.url, ca_file],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert 2 <= far.connections <= 4  # a worker of the pool may get no work
