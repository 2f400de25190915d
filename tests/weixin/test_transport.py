"""What goes over the wire, and what comes back of it."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

import pytest

from prefetch_kit.errors import ConfigError, OutcomeUnknown, Refused, SystemBusy
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.transport import Transport

if TYPE_CHECKING:
    from tests.weixin.conftest import Connect, Far, Peer, Serve

Http = Callable[..., bytes]
TOKEN = Secret("tök/en +&=?#")


def sent(far: "Far") -> tuple[str, str, dict[str, str], bytes]:
    """Method, target, headers (names in lower case) and body of the only request."""
    head, _, body = bytes(far.received).partition(b"\r\n\r\n")
    request_line, *lines = head.decode().split("\r\n")
    method, target, _ = request_line.split(" ")
    headers = dict(line.split(": ", 1) for line in lines)
    assert len(headers) == len(lines)
    return method, target, {name.lower(): value for name, value in headers.items()}, body


def test_a_call_on_the_wire(serve: "Serve", connect: "Connect", http: Http) -> None:
    """Secrets are revealed in the query and in the body, percent-encoded and as JSON."""
    far = serve.answers(http())
    body = {"secret": Secret('a"b'), "open": True, "name": "中"}
    answer = connect(far).call("set", "POST", "/wxa/x", query={"t": TOKEN}, body=body)
    method, target, headers, sent_body = sent(far)
    path, _, query = target.partition("?")
    assert (method, path, answer) == ("POST", "/wxa/x", {"errcode": 0, "errmsg": "ok"})
    assert parse_qsl(query, strict_parsing=True) == [("t", TOKEN.reveal())]
    assert json.loads(sent_body) == {"secret": 'a"b', "open": True, "name": "中"}
    assert headers["content-length"] == str(len(sent_body))


def test_headers_say_who_asks_and_nothing_else(
    serve: "Serve", connect: "Connect", http: Http
) -> None:
    """No compression is offered, no cookie comes along, the kit names itself."""
    far = serve.answers(http(headers="Set-Cookie: a=b\r\n"))
    transport = connect(far)
    transport.call("get", "GET", "/", query={})
    far.received.clear()
    transport.call("get", "GET", "/", query={})
    _, target, headers, _ = sent(far)
    assert target == "/"
    assert headers.pop("user-agent").startswith("prefetch-kit/")
    assert headers == {
        "host": f"127.0.0.1:{far.port}",
        "accept-encoding": "identity",
        "accept": "application/json",
    }


def test_a_path_below_the_base_url(serve: "Serve", http: Http) -> None:
    """A base URL may hold a path, with or without a slash at its end."""
    far = serve.answers(http())
    with Transport(base_url=f"{far.url}/mock//") as transport:
        transport.call("get", "GET", "/cgi-bin/token", query={})
        assert transport.base_url == f"{far.url}/mock"
    assert sent(far)[1] == "/mock/cgi-bin/token"


def test_refused(serve: "Serve", connect: "Connect", http: Http) -> None:
    """An errcode becomes the error of its row, with the action and the request id."""
    far = serve.answers(http(b'{"errcode":-1,"errmsg":"system error rid: 1a-2b"}'))
    with pytest.raises(SystemBusy) as caught:
        connect(far).call("set_pre_fetch", "POST", "/", query={}, body={})
    refused = caught.value
    assert (refused.action, refused.errcode) == ("set_pre_fetch", -1)
    assert (refused.errmsg, refused.rid, refused.kind) == ("system error", "1a-2b", "transient")


def test_a_success_needs_no_errcode(serve: "Serve", connect: "Connect", http: Http) -> None:
    """The login call answers without one."""
    far = serve.answers(http(b'{"openid":"o1"}'))
    assert connect(far).call("login", "GET", "/", query={}) == {"openid": "o1"}


def test_nothing_listens(serve: "Serve", http: Http) -> None:
    """A refused connection means that nothing was sent, and says so, where to and what to do."""
    far = serve.answers(http())
    far.close()
    with Transport(base_url=f"{far.url}/x") as transport, pytest.raises(OutcomeUnknown) as caught:
        transport.call("get", "GET", "/", query={})
    assert (caught.value.sent, caught.value.cause) == (False, "the connection was refused")
    assert caught.value.remedy == (
        f"Nothing was sent to {far.url}: start `prefetch-kit sandbox`, "
        "or correct PREFETCH_API_BASE_URL"
    )


@pytest.mark.parametrize(
    ("action", "remedy"), [("set_pre_fetch", "read back"), ("get", "Try again")]
)
def test_a_reset_while_waiting(
    serve: "Serve", connect: "Connect", action: str, remedy: str
) -> None:
    """The request was sent, so what changes something may have taken effect."""

    def script(peer: "Peer") -> None:
        peer.request()
        peer.reset()

    with pytest.raises(OutcomeUnknown, match="connection broke before the whole") as caught:
        connect(serve(script)).call(action, "GET", "/", query={})
    assert caught.value.sent
    assert remedy in caught.value.remedy


def test_a_body_that_is_not_json_is_never_sent(
    serve: "Serve", connect: "Connect", http: Http
) -> None:
    """A value JSON does not know fails before the first byte."""
    far = serve.answers(http())
    with pytest.raises(OutcomeUnknown, match="could not be sent") as caught:
        connect(far).call("get", "POST", "/", query={}, body={"x": object()})
    assert not caught.value.sent
    assert far.received == b""


@pytest.mark.parametrize(
    "url",
    [
        "http://api.weixin.qq.com",
        "http://127.0.0.1.evil.example",
        "http://user:pass-word@127.0.0.1:1",
        "https://user:pass-word@api.weixin.qq.com",
        "https://api.weixin.qq.com?token=pass-word",
        "https://api.weixin.qq.com#pass-word",
        "https://127.0.0.1:99999",
        "https://api.weixin.qq.com\x7f",
        "https:// api.weixin.qq.com",
        "ftp://api.weixin.qq.com",
        "api.weixin.qq.com",
        "https://[::1",
        "https://",
        "",
    ],
)
def test_a_base_url_secrets_may_not_go_to(url: str) -> None:
    """Refused at construction, naming the setting and repeating no value."""
    with pytest.raises(ConfigError) as caught:
        Transport(base_url=url)
    assert caught.value.key == "PREFETCH_API_BASE_URL"
    assert "pass-word" not in str(caught.value)


def test_loopback_tells_the_sandbox_from_wechat() -> None:
    """The default is WeChat itself; a loopback host is this machine, over http or https."""
    with Transport() as weixin, Transport(base_url="https://localhost:1") as sandbox:
        assert (weixin.base_url, weixin.loopback) == ("https://api.weixin.qq.com", False)
        assert sandbox.loopback


def test_a_ca_file_that_cannot_be_loaded(tmp_path: object) -> None:
    """Found at construction: missing, a directory, or no certificate in it."""
    for path in (f"{tmp_path}/missing.pem", f"{tmp_path}", __file__):
        with pytest.raises(ConfigError, match="PREFETCH_CA_FILE"):
            Transport(ca_file=path)


def test_fetch_at_an_origin(serve: "Serve", connect: "Connect", http: Http) -> None:
    """The connection goes to the origin, the Host and the target are the public URL's."""
    far = serve.answers(http(b"hello", status="404 Not Found", headers="X-A: b\r\n"))
    reply = connect(far).fetch(
        "https://shop.example/p?x=y",
        query={"appid": "wx01", "token": TOKEN},
        origin=far.url,
        deadline_s=10,
        max_bytes=5,
    )
    _, target, headers, _ = sent(far)
    assert (reply.status, reply.body, reply.headers["x-a"]) == (404, b"hello", "b")
    assert 0 < reply.elapsed_s < 10
    assert headers["host"] == "shop.example"
    path, own, added = target.split("?")
    assert (path, own) == ("/p", "x=y")
    assert parse_qsl(added) == [("appid", "wx01"), ("token", TOKEN.reveal())]


def test_fetch_cuts_a_long_body(serve: "Serve", connect: "Connect", http: Http) -> None:
    """One byte more than allowed comes back, and no more, so that the caller can tell."""
    far = serve.answers(http(b"x" * 1000))
    fetch = connect(far).fetch
    reply = fetch("https://shop.example/", origin=far.url, deadline_s=10, max_bytes=5)
    assert reply.body == b"xxxxxx"


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://shop.example/", None),
        ("https://user:pw@shop.example/", None),
        ("https://shop.example/#x", None),
        ("https://", None),
        ("https://shop.example/", "http://shop.example"),
        ("https://shop.example/", "https://127.0.0.1:1"),
        ("https://shop.example/", "http://user@127.0.0.1:1"),
    ],
)
def test_fetch_only_where_it_may(url: str, origin: str | None) -> None:
    """https anywhere, http on this machine; nothing is sent otherwise."""
    with Transport() as transport, pytest.raises(ConfigError):
        transport.fetch(url, origin=origin, deadline_s=10, max_bytes=5)


def test_a_failed_fetch_shows_no_query(serve: "Serve", connect: "Connect") -> None:
    """The error names the address without what follows its path."""
    far = serve(lambda _peer: None)
    with pytest.raises(OutcomeUnknown) as caught:
        connect(far).fetch(
            "https://shop.example/p?own=hidden", origin=far.url, deadline_s=10, max_bytes=5
        )
    assert caught.value.action == "GET https://shop.example/p"
    assert not isinstance(caught.value, Refused)
    assert "hidden" not in repr(vars(caught.value))


def test_a_reply_prints_neither_body_nor_headers(
    serve: "Serve", connect: "Connect", http: Http
) -> None:
    """Both may hold secrets."""
    far = serve.answers(http(b"hidden", headers="X-A: hidden\r\n"))
    fetch = connect(far).fetch
    reply = fetch("https://shop.example/", origin=far.url, deadline_s=10, max_bytes=100)
    assert reply.body == b"hidden"
    assert "hidden" not in repr(reply)


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 99\r\n\r\n",  # and then nothing more comes
        b"content-length: 99\r\n\r\n",  # and then the connection ends
        b"Transfer-Encoding: chunked\r\n\r\n14\r\n",
    ],
    ids=["late", "cut", "a chunk without an end"],
)
def test_what_came_of_an_answer_is_handed_on(serve: "Serve", head: bytes) -> None:
    """The rest of it does not come; it may hold a token that counts all the same."""
    far = serve.answers(b"HTTP/1.1 200 OK\r\n" + head + b'{"a": "0123456789" }')
    taken: list[bytes] = []
    with Transport(base_url=far.url, deadline_s=0.5) as transport, pytest.raises(OutcomeUnknown):
        transport.call("a", "GET", "/x", query={}, on_answer=taken.append)
    assert taken == [b'{"a": "0123456789" }']
