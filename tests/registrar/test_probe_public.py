"""The probe at a public address, in a network of this test's own."""

import ctypes
import fcntl
import os
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest
import trustme

from prefetch_kit.registrar.probe import Probed, Verdict, probe
from prefetch_kit.weixin.transport import Transport

HOST, PUBLIC, PRIVATE = "shop.example", "93.184.216.34", "169.254.169.254"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
CLONE_NEWNET, SIOCSIFFLAGS, SIOCSIFADDR, UP = 0x4000_0000, 0x8914, 0x8916, 0x41


@pytest.fixture(scope="module")
def abroad() -> Iterator[None]:
    """This thread, and those it starts, on a network whose one interface has both addresses."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    if libc.unshare(CLONE_NEWNET) != 0:
        os.close(home)
        pytest.skip("a network of one's own takes more rights")
    with socket.socket() as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", UP))
        for number, address in enumerate((PUBLIC, PRIVATE), start=1):
            packed = (socket.AF_INET, 0, socket.inet_aton(address))
            request = struct.pack("16sHH4s8x", f"lo:{number}".encode(), *packed)
            fcntl.ioctl(control, SIOCSIFADDR, request)
    yield
    libc.setns(home, 0)
    os.close(home)


class Site:
    """A server at one address, and what it was told."""

    def __init__(self, certificate: trustme.LeafCert) -> None:
        self.answer = OK
        self.heads: list[bytes] = []
        self.names: list[str | None] = []
        self.connections = 0
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(self._tls)
        self._tls.sni_callback = lambda _socket, name, _context: self.names.append(name)

    @contextmanager
    def at(self, address: str) -> Iterator[None]:
        with socket.create_server((address, 443)) as listening:
            thread = threading.Thread(target=self._serve, args=(listening,))
            thread.start()
            try:
                yield
            finally:
                listening.shutdown(socket.SHUT_RDWR)
                thread.join()

    def _serve(self, listening: socket.socket) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            self.connections += 1
            with connection, suppress(OSError):
                connection.settimeout(30)
                with self._tls.wrap_socket(connection, server_side=True) as secured:
                    self.heads.append(secured.recv(4096))
                    secured.sendall(self.answer)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def serve(abroad: None, authority: trustme.CA) -> Iterator[Callable[..., Site]]:
    """`serve(address, name=…, lasts=…)`: a site there, with such a certificate."""
    with ExitStack() as sites:

        def serve(
            address: str = PUBLIC, *, name: str = HOST, lasts: timedelta = timedelta(90)
        ) -> Site:
            now = datetime.now(UTC)
            not_before = now - timedelta(400)
            issued = authority.issue_cert(name, not_before=not_before, not_after=now + lasts)
            site = Site(issued)
            sites.enter_context(site.at(address))
            return site

        yield serve


@pytest.fixture
def transport(authority: trustme.CA, tmp_path: Path) -> Iterator[Transport]:
    """What trusts that authority, and means the real WeChat."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with Transport(ca_file=f"{tmp_path}/ca.pem") as made:
        yield made


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names that were looked up: first they lead to the public address, then to the private."""
    names: list[str] = []
    later = chain([PUBLIC], repeat(PRIVATE))
    resolve = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *args: Any, **kwargs: Any) -> list[Any]:
        if host != HOST:  # of a thread that another test has left behind
            return resolve(host, port, *args, **kwargs)
        names.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(later), port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return names


def pulled(transport: Transport) -> Probed:
    url = f"https://{HOST}/prefetch/pre_fetch"
    return probe(transport, url, appid="wx01", kind="pre_fetch", page=None)


def verdict(probed: Probed, rule: str) -> Verdict:
    (found,) = [verdict for verdict in probed.verdicts if verdict.rule == rule]
    return found


def test_a_good_site(transport: Transport, serve: Callable[..., Site]) -> None:
    """The checked address is connected to under the name of the host, and every rule is kept."""
    site = serve()
    probed = pulled(transport)
    rules = ["address", "tls", "redirect", "status", "size", "time", "text", "phone"]
    assert [each.rule for each in probed.verdicts] == rules
    assert all(each.kept for each in probed.verdicts)
    assert PUBLIC in verdict(probed, "address").says
    assert site.names == [HOST]
    assert f"\r\nHost: {HOST}\r\n".encode() in site.heads[0]


def test_a_name_that_flips(
    transport: Transport, serve: Callable[..., Site], asked: list[str]
) -> None:
    """Between the check and the connection nobody is asked again; the next probe finds out."""
    site, metadata = serve(), serve(PRIVATE)
    assert pulled(transport).problems == ()
    assert asked == [HOST]
    assert [each.rule for each in pulled(transport).verdicts] == ["address"]
    assert (site.connections, metadata.connections) == (1, 0)


def test_a_redirect_to_a_private_address(transport: Transport, serve: Callable[..., Site]) -> None:
    """It is judged, and its target hears nothing."""
    site, metadata = serve(), serve(PRIVATE, name=PRIVATE)
    site.answer = OK.replace(b"200 OK", f"302 Found\r\nLocation: https://{PRIVATE}/".encode())
    assert not verdict(pulled(transport), "redirect").kept
    assert (site.connections, metadata.connections) == (1, 0)


@pytest.mark.parametrize(("lasts", "kept"), [(timedelta(13), False), (timedelta(15), True)])
def test_a_certificate_that_ends_soon(
    transport: Transport, serve: Callable[..., Site], lasts: timedelta, kept: bool
) -> None:
    """Less than 14 days are a warning, which registers all the same."""
    serve(lasts=lasts)
    probed = pulled(transport)
    assert verdict(probed, "tls").kept is kept
    assert f"for {lasts.days - 1} days" in verdict(probed, "tls").says
    assert probed.problems == ()


@pytest.mark.parametrize(
    ("site", "says"),
    [
        ({"lasts": timedelta(-1)}, "certificate has expired"),
        ({"name": "other.example"}, "not valid for 'shop.example'"),
    ],
)
def test_certificates_that_are_no_good(
    transport: Transport, serve: Callable[..., Site], site: dict[str, Any], says: str
) -> None:
    """Past its end, or another's: nothing is sent to such a site."""
    served = serve(**site)
    (found,) = pulled(transport).verdicts
    assert (found.rule, found.kept, found.failure) == ("tls", False, True)
    assert says in found.says
    assert found.remedy
    assert served.heads == []


def test_an_authority_that_nobody_knows(serve: Callable[..., Site]) -> None:
    """The chain is verified as phones do it."""
    served = serve()
    with Transport() as stranger:
        assert [each.rule for each in pulled(stranger).verdicts] == ["tls"]
    assert served.heads == []
