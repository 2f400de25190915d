"""Servers that are not WeChat receive no secret."""

import datetime
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme

from prefetch_kit.errors import OutcomeUnknown
from prefetch_kit.secret import Secret
from prefetch_kit.weixin import sessions
from prefetch_kit.weixin.authorizations import Authorization
from prefetch_kit.weixin.authorizers import Authorizers
from prefetch_kit.weixin.component import ComponentCalls, ComponentToken, Tickets
from prefetch_kit.weixin.login import CodeExchange
from prefetch_kit.weixin.settings import SettingsApi
from prefetch_kit.weixin.token_stores.records import MemoryStore
from prefetch_kit.weixin.tokens import StableToken, StaticToken
from prefetch_kit.weixin.transport import Transport

if TYPE_CHECKING:
    from tests.weixin.conftest import Connect, Far, Peer, Serve

pytestmark = pytest.mark.slow

Http = Callable[..., bytes]
Forms = Callable[[str], set[str]]

TOKEN = "canary/access+token=0123456789"
APP_SECRET = "canary/app+secret=0123456789"
CODE = "canary/login+code=0123456789"
TICKET = "canary/verify+ticket=0123456789"
REFRESH = "canary/refresh+token=0123456789"
SECRETS = (TOKEN, APP_SECRET, CODE, TICKET, REFRESH)


def send_every_secret(base_url: str, ca_file: str | None) -> list[OutcomeUnknown]:
    """One call for each secret there is; all of them must fail."""
    transport = Transport(base_url=base_url, ca_file=ca_file)
    exchange = CodeExchange(base_url=base_url, ca_file=ca_file)
    tickets = Tickets(MemoryStore())
    tickets.keep(Secret(TICKET), pushed_at=0.0)
    component = ComponentToken(transport, "wx9", Secret(APP_SECRET), tickets, MemoryStore())
    authorization: MemoryStore[Authorization] = MemoryStore()
    authorization.save(Authorization((Secret(REFRESH),), None, 0.0))
    calls = ComponentCalls(transport, "wx9", StaticToken(Secret(TOKEN)))
    failed = []
    for call in (
        SettingsApi(transport, StaticToken(Secret(TOKEN)), sleep=lambda _: None).get,
        StableToken(transport, "wx01", Secret(APP_SECRET), MemoryStore()).get,
        lambda: exchange.exchange("wx01", Secret(APP_SECRET), Secret(CODE)),
        component.get,
        Authorizers(calls, lambda _: authorization).token("wx01").get,
    ):
        with pytest.raises(OutcomeUnknown) as caught:
            call()
        failed.append(caught.value)
    transport.close()
    exchange.close()
    return failed


def leaked(far: "Far", forms: Forms) -> list[str]:
    received = far.received.decode("latin-1")
    return [form for secret in SECRETS for form in forms(secret) if form in received]


def server_context(cert: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    cert.configure_cert(context)
    return context


def self_signed(_: trustme.CA) -> ssl.SSLContext:
    return server_context(trustme.CA().issue_cert("127.0.0.1"))


def for_another_host(authority: trustme.CA) -> ssl.SSLContext:
    return server_context(authority.issue_cert("api.weixin.qq.com", "127.0.0.2"))


def expired(authority: trustme.CA) -> ssl.SSLContext:
    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    return server_context(authority.issue_cert("127.0.0.1", not_after=yesterday))


def without_a_name(authority: trustme.CA) -> ssl.SSLContext:
    return server_context(authority.issue_cert(common_name="127.0.0.1"))


IMPOSTORS = {
    self_signed: "TLS problem: unable to get local issuer certificate",
    for_another_host: "TLS problem: IP address mismatch",
    expired: "TLS problem: certificate has expired",
    without_a_name: "TLS problem: IP address mismatch",
}


@pytest.mark.parametrize("impostor", IMPOSTORS)
def test_a_certificate_that_proves_nothing(
    serve: "Serve",
    authority: trustme.CA,
    ca_file: str,
    impostor: Callable[[trustme.CA], ssl.SSLContext],
) -> None:
    """The handshake fails, the error says why, and nothing was sent."""
    far = serve(lambda peer: peer.wait(), tls=impostor(authority))
    for failed in send_every_secret(far.url, ca_file):
        assert failed.cause.startswith(IMPOSTORS[impostor])
        assert not failed.sent
    assert far.connections >= 3
    assert far.received == b""


def test_a_good_certificate_nobody_trusts(
    serve: "Serve", connect: "Connect", tls: ssl.SSLContext, http: Http, ca_file: str
) -> None:
    """With the CA file the same server is good; without it, it is an impostor."""
    far = serve.answers(http(), tls=tls)
    with pytest.raises(OutcomeUnknown, match="issuer certificate"):
        connect(far).call("get", "GET", "/", query={"access_token": Secret(TOKEN)})
    assert far.received == b""
    answer = connect(far, ca_file=ca_file).call("get", "GET", "/", query={})
    assert answer == {"errcode": 0, "errmsg": "ok"}


def test_the_usual_certificates_wait_for_https(
    serve: "Serve",
    connect: "Connect",
    tls: ssl.SSLContext,
    http: Http,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A sandbox is called without them; where they are missing, https trusts nobody."""
    monkeypatch.setattr(sessions, "DEFAULT_CA_BUNDLE_PATH", "/nowhere/to-be-found")
    plain, secure = serve.answers(http()), serve.answers(http(), tls=tls)
    transport = connect(plain)
    assert transport.call("get", "GET", "/", query={})["errcode"] == 0
    with pytest.raises(OutcomeUnknown, match="could not be sent"):
        transport.fetch(secure.url, query={"token": Secret(TOKEN)}, deadline_s=9, max_bytes=9)
    assert secure.connections == 0


def test_plain_http_on_the_tls_port(serve: "Serve", http: Http, forms: Forms) -> None:
    """Only the greeting of TLS arrives, which holds no secret."""

    def script(peer: "Peer") -> None:
        peer.send(http())
        peer.wait()

    far = serve(script)
    for failed in send_every_secret(far.url.replace("http:", "https:"), None):
        assert failed.cause.startswith("TLS problem")
        assert not failed.sent
    assert far.received.startswith(b"\x16\x03")
    assert leaked(far, forms) == []


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_versions_of_tls(serve: "Serve", tls: ssl.SSLContext, ca_file: str) -> None:
    """A server that speaks nothing above TLS 1.1 is not spoken to."""
    tls.minimum_version = ssl.TLSVersion.TLSv1
    tls.maximum_version = ssl.TLSVersion.TLSv1_1
    tls.set_ciphers("ALL:@SECLEVEL=0")
    far = serve(lambda peer: peer.wait(), tls=tls)
    for failed in send_every_secret(far.url, ca_file):
        assert failed.cause.startswith("TLS problem")
        assert not failed.sent
    assert speaks_old_tls(far.port)


def speaks_old_tls(port: int) -> bool:
    """So that it is the client who refuses."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as raw,
        context.wrap_socket(raw) as wrapped,
    ):
        return wrapped.version() == "TLSv1.1"


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See", "307 Same", "308 Same"])
def test_a_redirect_is_not_followed(
    serve: "Serve",
    http: Http,
    tls: ssl.SSLContext,
    ca_file: str,
    forms: Forms,
    status: str,
    secure: bool,
) -> None:
    """The server it points to never hears of the call."""
    elsewhere = serve.answers(http())
    answer = http(status=status, headers=f"Location: {elsewhere.url}/wxa\r\n")
    far = serve.answers(answer, tls=tls if secure else None)
    for failed in send_every_secret(far.url, ca_file):
        assert failed.cause == f"a redirect came (HTTP {status[:3]}), which is never followed"
        assert failed.sent
    assert leaked(far, forms) != []  # so the search does find what arrives
    assert elsewhere.connections == 0


def test_fetch_shows_a_redirect_as_it_is(serve: "Serve", connect: "Connect", http: Http) -> None:
    """A probe needs to see it; the target is not asked."""
    elsewhere = serve.answers(http())
    far = serve.answers(http(status="307 Same", headers=f"Location: {elsewhere.url}/\r\n"))
    fetch = connect(far).fetch
    reply = fetch("https://shop.example/", origin=far.url, deadline_s=10, max_bytes=99)
    assert (reply.status, reply.headers["location"]) == (307, f"{elsewhere.url}/")
    assert reply.body  # not read by requests on its way to the target, without a limit
    assert elsewhere.connections == 0


def test_proxies_of_the_environment(
    serve: "Serve", http: Http, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call goes straight to WeChat, whatever the environment says."""
    far, proxy = serve.answers(http()), serve.answers(http())
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, proxy.url)
        monkeypatch.setenv(name.upper(), proxy.url)
    monkeypatch.delenv("no_proxy", raising=False)
    with Transport(base_url=far.url) as transport:
        transport.call("get", "GET", "/", query={"access_token": Secret(TOKEN)})
    assert (far.connections, proxy.connections) == (1, 0)


def test_localhost_is_not_asked_of_a_name_server(
    serve: "Serve", http: Http, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could say anything, and a base URL of http is allowed for this name."""
    far, rogue = serve.answers(http()), serve.answers(http())
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, **options: int) -> object:
        return real("127.0.0.1", rogue.port) if host == "localhost" else real(host, port, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with Transport(base_url=f"http://localhost:{far.port}") as transport:
        transport.call("get", "GET", "/", query={"access_token": Secret(TOKEN)})
    assert (far.connections, rogue.connections) == (1, 0)


def test_a_netrc_of_the_environment(
    serve: "Serve",
    connect: "Connect",
    http: Http,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """No password of the person who runs it is sent along."""
    netrc = tmp_path / "netrc"
    netrc.write_text("default login canary password canary\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    far = serve.answers(http())
    connect(far).call("get", "GET", "/", query={})
    assert b"authorization" not in far.received.lower()


def test_certificates_and_key_log_of_the_environment(
    serve: "Serve", tls: ssl.SSLContext, http: Http, ca_file: str, tmp_path: Path
) -> None:
    """No variable adds to what is trusted, and none has the session keys written down."""
    far, key_log = serve.answers(http(), tls=tls), tmp_path / "keys"
    names = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
    environment = os.environ | dict.fromkeys(names, ca_file) | {"SSLKEYLOGFILE": str(key_log)}
    program = f"""
from prefetch_kit.weixin.transport import Transport
from prefetch_kit.errors import OutcomeUnknown
try:
    Transport(base_url={far.url!r}).call("get", "GET", "/", query={{}})
except OutcomeUnknown as unknown:
    print(unknown.cause)
with Transport(base_url={far.url!r}, ca_file={ca_file!r}) as transport:
    print(transport.call("get", "GET", "/", query={{}})["errmsg"])
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert ended.stdout.splitlines() == [
        "TLS problem: unable to get local issuer certificate",
        "ok",
    ]
    # Older requests opens the file as it is imported, which writes a comment into it.
    written = key_log.read_text().splitlines() if key_log.exists() else []
    assert [line for line in written if not line.startswith("#")] == []
