"""What the probe must not be talked into reaching: refused before anything is sent."""

import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, repeat
from typing import Any

import pytest

from prefetch_kit.errors import UrlRefused
from prefetch_kit.registrar.probe import Probed, probe
from prefetch_kit.weixin.transport import Transport

pytestmark = pytest.mark.slow

HOST, PUBLIC = "shop.example", "93.184.216.34"
# How the address of a cloud's metadata can stand in a URL.
SPELLINGS = """
169.254.169.254 2852039166 0xA9FEA9FE 0xa9.0xfe.0xa9.0xfe 0251.0376.0251.0376 025177524776
169.254.43518 169.16689662 0xa9.254.0251.254 169.254.169.254. 169.254.169.254%00
%31%36%39.254.169.254 [::ffff:0:169.254.169.254]
[::ffff:169.254.169.254] [::ffff:a9fe:a9fe] [::169.254.169.254] [64:ff9b::169.254.169.254]
[64:ff9b:1::a9fe:a9fe] [2002:a9fe:a9fe::1] [0:0:0:0:0:ffff:a9fe:a9fe] [fe80::5efe:a9fe:a9fe]
１６９.２５４.１６９.２５４ 169。254。169。254 ①⑥⑨.②⑤④.①⑥⑨.②⑤④ shop.example@169.254.169.254
169.254.169.254\\@shop.example 169.254.169.254:443 shop.example:80 metadata localhost foo.localhost
""".split()  # noqa: SIM905 (one a line would be a page)
# What a name can resolve to, so that the URL looks like any other.
ADDRESSES = """
169.254.169.254 127.0.0.1 127.1.2.3 0.0.0.0 10.0.0.1 172.16.0.1 192.168.0.1 100.64.0.1 192.0.0.8
192.0.2.1 192.88.99.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 240.0.0.1 255.255.255.255
::1 :: fe80::1 fe80::1%1 fc00::1 fd00:ec2::254 fec0::1 ff02::1 2001:db8::1 3fff::1 100::1
::ffff:169.254.169.254 ::169.254.169.254 64:ff9b::169.254.169.254 64:ff9b:1::a9fe:a9fe
2002:a9fe:a9fe::1 2002:7f00:1::1 2606:4700::5efe:a9fe:a9fe 2606:4700::200:5efe:a9fe:a9fe
2001:0:4136:e378:8000:63bf:5601:5601
""".split()  # noqa: SIM905 (same)

Resolve = Callable[..., list[str]]
_events: list[tuple[str, Any]] = []
_is_watching = False


def _is_left_behind() -> bool:
    """Whether this is a thread of an endpoint, which an earlier test has left listening."""
    return threading.current_thread().name == "prefetch_kit"


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if _is_watching and event.startswith("socket.") and _is_left_behind():
        return
    if _is_watching and event == "socket.connect" and args[0].family != socket.AF_UNIX:
        _events.append((event, args[1]))
        raise ConnectionRefusedError  # nothing leaves this machine
    if _is_watching and event == "socket.getaddrinfo":
        _events.append((event, args[0]))


sys.addaudithook(_watch)  # for as long as this process lives


@pytest.fixture
def went_out() -> Iterator[list[tuple[str, Any]]]:
    """What Python itself says it connected to, or looked up."""
    global _is_watching
    _events.clear()
    _is_watching = True
    yield _events
    _is_watching = False


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Resolve:
    """`resolve(first, …)`: what shop.example leads to, time by time; returns who was asked for."""

    def resolve(*answers: Sequence[str]) -> list[str]:
        asked: list[str] = []
        later = chain(answers, repeat(answers[-1]))

        def getaddrinfo(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
            if not _is_left_behind():
                asked.append(host)
            return [info(address, port) for address in next(later)]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        return asked

    return resolve


def info(address: str, port: int) -> tuple[Any, ...]:
    if ":" in address:
        return socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0)
    return socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)


TRANSPORT = Transport()


def pulled(url: str) -> Probed:
    return probe(TRANSPORT, url, appid="wx01", kind="pre_fetch", page=None)


@pytest.mark.parametrize("host", SPELLINGS)
def test_spellings_of_one_address(went_out: list[tuple[str, Any]], host: str) -> None:
    """None of them is a public name, and none is even looked up."""
    for path in ("/latest/meta-data", ""):
        with pytest.raises(UrlRefused):
            pulled(f"https://{host}{path}")
    assert went_out == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000/", "http://localhost/", "http://[::1]/"])
def test_loopback_without_a_sandbox(went_out: list[tuple[str, Any]], url: str) -> None:
    """This machine is pulled only beside a WeChat that is played on it."""
    with pytest.raises(UrlRefused):
        pulled(url)
    assert went_out == []


@pytest.mark.parametrize("address", ADDRESSES)
def test_names_that_lead_to_a_private_address(
    went_out: list[tuple[str, Any]], resolve: Resolve, address: str
) -> None:
    """Alone, behind a public address or in front of one: nothing is connected to."""
    for addresses in ([address], [PUBLIC, address], [address, PUBLIC]):
        asked = resolve(addresses)
        (verdict,) = pulled(f"https://{HOST}/").verdicts
        assert (verdict.rule, verdict.kept, verdict.failure) == ("address", False, True)
        assert "not public" in verdict.says
        assert verdict.remedy
        assert asked == [HOST]
    assert went_out == []


def test_a_name_that_changes_its_mind(went_out: list[tuple[str, Any]], resolve: Resolve) -> None:
    """It is asked for once, and what it said then is connected to; later it is judged anew."""
    asked = resolve([PUBLIC], ["169.254.169.254"])
    assert [verdict.rule for verdict in pulled(f"https://{HOST}/").verdicts] == ["answered"]
    assert asked == [HOST]
    assert went_out == [("socket.connect", (PUBLIC, 443))]
    assert [verdict.rule for verdict in pulled(f"https://{HOST}/").verdicts] == ["address"]
    assert len(went_out) == 1


@pytest.mark.parametrize("address", [PUBLIC, "2606:4700::1111", "64:ff9b::5db8:d822"])
def test_public_addresses_are_tried(
    went_out: list[tuple[str, Any]], resolve: Resolve, address: str
) -> None:
    """What wraps a public address is one."""
    resolve([address])
    assert [verdict.rule for verdict in pulled(f"https://{HOST}/").verdicts] == ["answered"]
    assert went_out[0][1][:2] == (address, 443)


def test_how_many_there_are() -> None:
    """The number that is to be shown."""
    print(f"probe: {len(SPELLINGS)} spellings and {len(ADDRESSES)} addresses refused, 0 sent")
    assert len(set(SPELLINGS)) >= 12 <= len(set(ADDRESSES))
