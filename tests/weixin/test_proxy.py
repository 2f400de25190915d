"""Calls through a real CONNECT proxy on this machine, which leads where the test says."""

import socket
import socketserver
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from prefetch_kit.addresses import proxy_url_problem
from prefetch_kit.errors import ConfigError, OutcomeUnknown
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.transport import Transport

if TYPE_CHECKING:
    from tests.weixin.conftest import Far, Peer, Serve, Watch

pytestmark = pytest.mark.slow

WECHAT = "https://api.weixin.qq.com"
PASSWORD = "canary/proxy+password=0123"
OPEN = b"HTTP/1.1 200 Connection established\r\n\r\n"


class ConnectProxy(socketserver.ThreadingTCPServer):
    """Leads every tunnel to one port of this machine, and keeps the heads it was sent."""

    daemon_threads = True

    def __init__(self, port: int, answer: bytes) -> None:
        self.heads: list[bytes] = []
        self.lead_to = port
        self.answer = answer
        super().__init__(("127.0.0.1", 0), _Tunnel)

    def url(self, credentials: str = "") -> Secret:
        return Secret(f"http://{credentials}127.0.0.1:{self.server_address[1]}")


class _Tunnel(socketserver.BaseRequestHandler):
    server: ConnectProxy

    def handle(self) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += self.request.recv(4096)
        self.server.heads.append(head)
        self.request.sendall(self.server.answer)
        if not self.server.answer.startswith(b"HTTP/1.1 200"):
            return
        with socket.create_connection(("127.0.0.1", self.server.lead_to)) as far:
            back = threading.Thread(target=self._copy, args=(far, self.request))
            back.start()
            self._copy(self.request, far)
            back.join()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


Led = Callable[..., ConnectProxy]


@pytest.fixture
def led() -> Iterator[Led]:
    """`led(far, answer)`: a proxy that leads to this server."""
    started: list[ConnectProxy] = []

    def start(far: "Far", answer: bytes = OPEN) -> ConnectProxy:
        started.append(ConnectProxy(far.port, answer))
        threading.Thread(target=started[-1].serve_forever, args=(0.01,)).start()
        return started[-1]

    yield start
    for proxy in started:
        proxy.shutdown()
        proxy.server_close()


@pytest.fixture
def wechat_tls(authority: trustme.CA) -> ssl.SSLContext:
    """A server's context with a certificate for WeChat's name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("api.weixin.qq.com").configure_cert(context)
    return context


@pytest.fixture
def through(ca_file: str) -> Iterator[Callable[..., Transport]]:
    """`through(proxy, credentials)`: a transport to WeChat by this proxy."""
    made: list[Transport] = []

    def connect(proxy: ConnectProxy, credentials: str = "", **options: Any) -> Transport:
        options = {"ca_file": ca_file, "deadline_s": 20.0, **options}
        made.append(Transport(base_url=WECHAT, proxy=proxy.url(credentials), **options))
        return made[-1]

    yield connect
    for transport in made:
        transport.close()


def ask(transport: Transport) -> dict[str, object]:
    token = Secret("canary-access-token")
    return transport.call("get", "POST", "/wxa/x", query={"access_token": token}, body={"a": "b"})


def failure(transport: Transport) -> OutcomeUnknown:
    with pytest.raises(OutcomeUnknown) as caught:
        ask(transport)
    return caught.value


def test_calls_go_through_one_tunnel(
    serve: "Serve",
    http: Callable[..., bytes],
    led: Led,
    through: Callable[..., Transport],
    wechat_tls: ssl.SSLContext,
) -> None:
    """The proxy looks the name up and hears nothing but that; the connection is used again."""
    far = serve.answers(http(), tls=wechat_tls)
    proxy = led(far)
    transport = through(proxy)
    assert ask(transport) == ask(transport) == {"errcode": 0, "errmsg": "ok"}
    target = b"api.weixin.qq.com:443"
    assert proxy.heads == [b"CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n" % (target, target)]
    assert far.received.count(b"canary-access-token") == 2
    assert b"Proxy-" not in far.received


def test_credentials_are_for_the_proxy_alone(
    serve: "Serve",
    http: Callable[..., bytes],
    led: Led,
    through: Callable[..., Transport],
    wechat_tls: ssl.SSLContext,
) -> None:
    """They are percent-decoded, and WeChat never sees them."""
    far = serve.answers(http(), tls=wechat_tls)
    proxy = led(far)
    ask(through(proxy, "me%40x:p%2Fw@"))
    packed = b64encode(b"me@x:p/w")
    assert proxy.heads[0].endswith(b"\r\nProxy-Authorization: Basic %s\r\n\r\n" % packed)
    assert packed not in far.received


REFUSALS = {
    407: "it wants a user name and a password",
    403: "it does not allow this host",
    502: "answered 502",
    301: "answered 301",
    199: "answered 199",
}


@pytest.mark.parametrize("status", REFUSALS)
def test_a_proxy_that_refuses(
    serve: "Serve",
    http: Callable[..., bytes],
    led: Led,
    through: Callable[..., Transport],
    status: int,
) -> None:
    """Nothing was sent, and the error names the proxy's setting; no redirect is followed."""
    answer = f"HTTP/1.1 {status} no\r\nLocation: http://x\r\nContent-Length: 0\r\n\r\n"
    error = failure(through(led(serve.answers(http()), answer.encode())))
    assert not error.sent
    assert f"the proxy of PREFETCH_PROXY answered {status}" in error.cause
    assert REFUSALS[status] in error.cause
    assert "check PREFETCH_PROXY" in error.remedy


@pytest.mark.parametrize(
    "answer", [b"", b"SSH-2.0-x\r\n\r\n", b"HTTP/2 200\r\n\r\n", b"HTTP/1.1 200 x", b"x" * 20_000]
)
def test_a_proxy_that_is_none(
    serve: "Serve", led: Led, through: Callable[..., Transport], answer: bytes
) -> None:
    """What it says is neither believed nor quoted, nor read without end."""

    def script(peer: "Peer") -> None:
        peer.request()
        peer.send(answer)

    error = failure(through(proxy_at(serve(script))))
    assert (error.sent, error.cause) == (
        False,
        "the proxy of PREFETCH_PROXY gave no answer that can be read",
    )


def proxy_at(far: "Far") -> Any:
    """Something to connect `through` that need not be a proxy."""

    class There:
        def url(self, credentials: str) -> Secret:
            return Secret(f"http://{credentials}127.0.0.1:{far.port}")

    return There()


def test_nobody_speaks_before_the_handshake(
    serve: "Serve", http: Callable[..., bytes], led: Led, through: Callable[..., Transport]
) -> None:
    """What comes behind the proxy's answer is the proxy's own, and not WeChat's."""
    error = failure(through(led(serve.answers(http()), OPEN + http())))
    assert "says more" in error.cause


def test_a_proxy_that_is_not_there(
    serve: "Serve", through: Callable[..., Transport], ca_file: str
) -> None:
    """Nothing goes out by another way."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Transport(base_url=WECHAT, proxy=Secret(f"http://127.0.0.1:{port}")) as transport:
        error = failure(transport)
    assert (error.sent, error.cause) == (
        False,
        "the proxy of PREFETCH_PROXY cannot be connected to",
    )


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nX-A: "])
def test_the_deadline_holds_in_the_proxy(
    serve: "Serve", through: Callable[..., Transport], answer: bytes
) -> None:
    """Silent, or dripping a head that does not end."""

    def script(peer: "Peer") -> None:
        peer.request()
        peer.send(answer)
        peer.drip(b"x" * 1000 if answer else b"", every_s=0.05)
        peer.wait()

    began = time.monotonic()
    error = failure(through(proxy_at(serve(script)), deadline_s=0.3))
    assert (error.sent, error.cause) == (False, "no complete answer within 0.3 s")
    assert time.monotonic() - began < 10


def test_the_deadline_holds_behind_the_proxy(
    serve: "Serve", led: Led, through: Callable[..., Transport], wechat_tls: ssl.SSLContext
) -> None:
    """An answer that drips through the tunnel."""

    def script(peer: "Peer") -> None:
        peer.request()
        peer.drip(b"HTTP/1.1 200 OK\r\n" + b"x" * 1000, every_s=0.05)

    error = failure(through(led(serve(script, tls=wechat_tls)), deadline_s=1.0))
    assert (error.sent, error.cause) == (True, "no complete answer within 1 s")


def test_an_impostor_behind_the_proxy_is_noticed(
    serve: "Serve",
    http: Callable[..., bytes],
    led: Led,
    through: Callable[..., Transport],
    tls: ssl.SSLContext,
) -> None:
    """Its certificate is for another name, and not a byte of a secret is sent to it."""
    far = serve.answers(http(), tls=tls)
    error = failure(through(led(far)))
    assert (error.sent, "TLS problem" in error.cause) == (False, True)
    assert far.received == b""


def test_a_redirect_behind_the_proxy_is_not_followed(
    serve: "Serve",
    http: Callable[..., bytes],
    led: Led,
    through: Callable[..., Transport],
    wechat_tls: ssl.SSLContext,
) -> None:
    """As without one."""
    answer = http(status="307 Temporary", headers="Location: https://evil.example/\r\n")
    proxy = led(serve.answers(answer, tls=wechat_tls))
    assert "a redirect came" in failure(through(proxy)).cause
    assert len(proxy.heads) == 1


def test_nothing_shows_the_credentials(
    serve: "Serve",
    led: Led,
    through: Callable[..., Transport],
    watch_for: Callable[..., "Watch"],
) -> None:
    """Neither a refusal, nor a broken tunnel, nor the transport itself."""
    packed = b64encode(f"me:{PASSWORD}".encode()).decode()
    watch = watch_for(PASSWORD, packed, "canary-access-token")
    credentials = f"me:{PASSWORD.replace('/', '%2F').replace('+', '%2B').replace('=', '%3D')}@"
    far = serve(lambda peer: peer.close())
    for answer in (OPEN, f"HTTP/1.1 407 {packed}\r\n\r\n".encode(), packed.encode()):
        transport = through(led(far, answer), credentials)
        watch.failure(lambda transport=transport: ask(transport))  # type: ignore[misc]
        watch.nothing_of(transport)
        watch.nothing_of(transport._proxy)


def test_what_stays_on_this_machine_goes_through_no_proxy(
    serve: "Serve", http: Callable[..., bytes], led: Led
) -> None:
    """A sandbox is not reached by a proxy elsewhere."""
    far = serve.answers(http())
    proxy = led(far)
    with Transport(base_url=far.url, proxy=proxy.url()) as transport:
        ask(transport)
    assert proxy.heads == []


def test_the_probe_goes_through_no_proxy(
    serve: "Serve",
    http: Callable[..., bytes],
    led: Led,
    tls: ssl.SSLContext,
    ca_file: str,
) -> None:
    """It judges the addresses of a host, which the proxy would look up."""
    far = serve.answers(http(), tls=tls)
    proxy = led(far)
    with Transport(base_url=far.url, proxy=proxy.url(), ca_file=ca_file) as transport:
        assert transport.fetch(f"{far.url}/", deadline_s=20, max_bytes=99).status == 200
        assert proxy.heads == []
        ask(transport)
    assert len(proxy.heads) == 1


def test_the_environment_names_no_proxy(
    serve: "Serve",
    http: Callable[..., bytes],
    tls: ssl.SSLContext,
    ca_file: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What other programs are told is not meant for calls with secrets."""
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with Transport(base_url=serve.answers(http(), tls=tls).url, ca_file=ca_file) as transport:
        assert ask(transport)["errcode"] == 0


BAD = ["b.example:3128", "http://b.example", "http://:3128", "socks5://a.example:1"]
BAD += ["https://a.example:1", "http://a.example:x", "http://a.example:1/x", "http://a b:1", ""]
BAD += ["http://a.example:1?x", "http://a.example:1#", "http://a.example:0", "http://[::1:1"]


@pytest.mark.parametrize("url", BAD)
def test_what_is_no_proxy(url: str) -> None:
    """It is refused when it is read, and not shown."""
    assert proxy_url_problem(url) is not None
    if url:
        with pytest.raises(ConfigError, match="PREFETCH_PROXY") as caught:
            Transport(proxy=Secret(url))
        assert url not in str(caught.value)


@pytest.mark.parametrize("url", ["http://a.example:1", "http://u@[::1]:8080/", "http://u:p@a:1"])
def test_what_is_a_proxy(url: str) -> None:
    """With a name or an address, with or without credentials."""
    assert proxy_url_problem(url) is None
