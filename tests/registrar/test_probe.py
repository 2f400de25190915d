"""Pulling our own URL the way WeChat will, and judging it."""

import socket
import time
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

import pytest

from prefetch_kit.errors import OutcomeUnknown, UrlRefused
from prefetch_kit.registrar.probe import Probed, probe
from prefetch_kit.sandbox import Sandbox
from prefetch_kit.weixin.transport import Transport

if TYPE_CHECKING:
    from tests.conftest import Origin

URL = "https://shop.example/prefetch/pre_fetch"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"


def pulled(transport: Transport, url: str = URL) -> Probed:
    return probe(transport, url, appid="wx01", kind="pre_fetch", page="pages/index/index")


def broken(probed: Probed) -> list[str]:
    """The names of the rules that make a probe fail."""
    return [verdict.rule for verdict in probed.verdicts if verdict.failure and not verdict.kept]


def test_a_good_answer(transport: Transport, origin: "Origin") -> None:
    """Every rule is kept, and the figures are there."""
    probed = pulled(transport)
    assert broken(probed) == []
    rules = ["redirect", "status", "size", "time", "text", "phone"]
    assert [verdict.rule for verdict in probed.verdicts] == rules
    assert (probed.status, probed.bytes) == (200, 7)


def test_it_asks_as_weixin_does(transport: Transport, origin: "Origin") -> None:
    """One GET with WeChat's parameters and our Host, without any proof of a user."""
    before_ms = int(time.time() * 1000)
    pulled(transport)
    request, *headers = origin.requests[0].splitlines()
    method, target, _ = request.split()
    query = parse_qs(target.partition("?")[2], strict_parsing=True)
    assert (method, len(origin.requests)) == ("GET", 1)
    assert query.keys() == {"appid", "timestamp", "path", "scene"}
    assert query["path"] == ["pages/index/index"]
    assert before_ms <= int(query["timestamp"][0]) <= before_ms + 60_000
    assert "Host: shop.example" in headers
    assert {"X-Forwarded-Proto: https", "X-Forwarded-Host: shop.example"} < {*headers}
    assert "X-Forwarded-For: 203.0.113.1" in headers


def test_a_periodic_pull_has_no_page(transport: Transport, origin: "Origin") -> None:
    """The periodic pull is for no page in particular."""
    probe(transport, URL, appid="wx01", kind="period_fetch", page="pages/index/index")
    assert "path=" not in origin.requests[0]
    assert "scene=" not in origin.requests[0]


@pytest.mark.parametrize("status", ["201 Created", "204 No Content", "403 Forbidden", "500 Oops"])
def test_any_other_status_fails(transport: Transport, origin: "Origin", status: str) -> None:
    """Only a 200 is known to be kept."""
    origin.reply(b"", status=status)
    probed = pulled(transport)
    assert broken(probed) == ["status"]
    assert status[:3] in probed.problems[0]


@pytest.mark.parametrize("reason", ["login", "page", "query"])
def test_a_refusal_of_the_kit_shows_that_it_is_there(
    transport: Transport, origin: "Origin", reason: str
) -> None:
    """A pull that only lacked a user, a page or a query is answer enough."""
    origin.reply(b"", status="400 No", headers=f"X-Prefetch-Refused: {reason}\r\n")
    assert broken(pulled(transport)) == []


@pytest.mark.parametrize("refused", ["appid", "handler; incident=1f", "login-x"])
def test_other_refusals_fail(transport: Transport, origin: "Origin", refused: str) -> None:
    """A pull that WeChat's own would fail like is a failure, and named."""
    origin.reply(b"", status="403 No", headers=f"X-Prefetch-Refused: {refused}\r\n")
    probed = pulled(transport)
    assert broken(probed) == ["status"]
    assert f"refused as {refused.partition(';')[0]}" in probed.problems[0]


def test_redirects_fail_and_are_not_followed(transport: Transport, origin: "Origin") -> None:
    """A redirect is named, and its target sees nothing."""
    origin.reply(b"", status="302 Found", headers=f"Location: {origin.url}/elsewhere\r\n")
    probed = pulled(transport)
    assert broken(probed) == ["redirect", "status"]
    assert "redirects (302)" in probed.problems[0]
    assert len(origin.requests) == 1


@pytest.mark.parametrize(("size", "rules"), [(262_144, []), (262_145, ["size"])])
def test_size_limit(transport: Transport, origin: "Origin", size: int, rules: list[str]) -> None:
    """256 KB are kept, one byte more is not."""
    origin.reply(b"x" * size)
    assert broken(pulled(transport)) == rules


def test_a_body_cut_within_a_character_is_text(transport: Transport, origin: "Origin") -> None:
    """Only its size is wrong."""
    origin.reply("茶".encode() * 100_000)
    assert broken(pulled(transport)) == ["size"]


def test_bytes_that_are_no_text_fail(transport: Transport, origin: "Origin") -> None:
    """A phone keeps the body as a string."""
    origin.reply(b"\xff\xfe")
    assert broken(pulled(transport)) == ["text"]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"{}", "200 OK", "a phone would keep it"),
        (b"", "200 OK", "keep nothing: the body is empty"),
        (b"\xff", "200 OK", "keep nothing: the body is not UTF-8 text"),
        (b"x" * 262_145, "200 OK", "keep nothing: the body is over 262144 bytes"),
        (b"{}", "404 Not Found", "keep nothing: status 404"),
    ],
)
def test_what_a_phone_would_keep(
    transport: Transport, origin: "Origin", body: bytes, status: str, says: str
) -> None:
    """It is told beside the rules, and breaks none: no data is an answer too."""
    origin.reply(body, status=status)
    told = pulled(transport).verdicts[-1]
    assert (told.rule, told.kept) == ("phone", True)
    assert told.says.endswith(says)


def test_each_failure_has_a_remedy(transport: Transport, origin: "Origin") -> None:
    """Whatever breaks, the next thing to do is said with it."""
    origin.reply(b"\xff" * 262_145, status="302 Found")
    failed = [verdict for verdict in pulled(transport).verdicts if not verdict.kept]
    assert [verdict.rule for verdict in failed] == ["redirect", "status", "size", "text"]
    assert all(verdict.remedy for verdict in failed)


def test_slow_is_only_a_warning(
    transport: Transport, origin: "Origin", monkeypatch: pytest.MonkeyPatch
) -> None:
    """How long WeChat waits is not known, so a slow answer is told and not refused."""
    monkeypatch.setattr("prefetch_kit.registrar.probe.SLOW_S", 0.05)

    def dawdle(connection: socket.socket) -> None:
        time.sleep(0.1)
        connection.sendall(OK)

    origin.play = dawdle
    probed = pulled(transport)
    assert probed.problems == ()
    assert [verdict.rule for verdict in probed.verdicts if not verdict.kept] == ["time"]


def test_nobody_listening(wx: Sandbox, transport: Transport) -> None:
    """A refused connection is a verdict, not an error."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    wx.map_origin("shop.example", f"http://127.0.0.1:{port}")
    assert broken(pulled(transport)) == ["answered"]


def test_a_sandbox_that_knows_no_origin(transport: Transport) -> None:
    """It is not the app's fault: the error names the host and what to tell the sandbox."""
    with pytest.raises(OutcomeUnknown, match=r"no origin for shop\.example") as caught:
        pulled(transport)
    assert "--origin" in caught.value.remedy


def test_a_sandbox_that_is_not_started() -> None:
    """Nor is this: the error says how to start it."""
    with Sandbox() as stopped:
        transport = Transport(base_url=stopped.base_url)
    with transport, pytest.raises(OutcomeUnknown, match="the connection was refused") as caught:
        pulled(transport)
    assert "prefetch-kit sandbox" in caught.value.remedy


@pytest.mark.parametrize("where", ["127.0.0.1", "localhost"])
def test_a_loopback_url_is_its_own_origin(
    wx: Sandbox, transport: Transport, origin: "Origin", where: str
) -> None:
    """The app is pulled where it listens, and the sandbox is not asked."""
    url = f"{origin.url.replace('127.0.0.1', where)}/data"
    probed = pulled(transport, f"{url}?token=hidden")
    assert (probed.url, broken(probed)) == (url, [])
    assert origin.requests[0].startswith("GET /data?token=hidden?appid=")
    assert wx.requests() == []


@pytest.mark.parametrize(
    "url",
    [
        "http://shop.example/p",
        "https://shop.example:444/p",
        "https://127.0.0.1/p",
        "https://localhost/p",
        "https://user:hidden@shop.example/p",
        "https://shop.example/p?token=hidden",
    ],
)
def test_urls_weixin_could_never_pull(
    wx: Sandbox, transport: Transport, origin: "Origin", url: str
) -> None:
    """Refused before anything is sent, without what may be a secret."""
    with pytest.raises(UrlRefused) as caught:
        pulled(transport, url)
    assert (wx.requests(), origin.requests) == ([], [])
    assert "hidden" not in str(caught.value)
