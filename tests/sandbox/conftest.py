"""A running sandbox with one mini program, a client, an origin, and a service provider."""

import base64
import hashlib
import http.client
import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit
from xml.etree import ElementTree as ET

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from prefetch_kit.sandbox import Sandbox
from tests.conftest import Origin

APPID = "wx01"
SECRET = "canary-app-secret"
COMPONENT, COMPONENT_SECRET = "wxplatform", "canary-component-secret"
MESSAGE_TOKEN, AES_KEY = "canary-message-token", "k" * 43
URL = "https://shop.example/prefetch/pre_fetch"


class Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        value = json.loads(self.body)
        assert isinstance(value, dict)
        return value


class Client:
    """Speaks HTTP to the sandbox the way a stranger would."""

    def __init__(self, wx: Sandbox) -> None:
        self.wx = wx

    def send(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 10,
    ) -> Reply:
        netloc = urlsplit(self.wx.base_url).netloc
        connection = http.client.HTTPConnection(netloc, timeout=timeout_s)
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = {"Content-Type": "application/json"} | dict(headers or {})
        try:
            connection.request(method, path, raw, sent)
            with connection.getresponse() as response:
                return Reply(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def get(self, path: str, **query: str) -> dict[str, Any]:
        return self.send("GET", f"{path}?{urlencode(query)}" if query else path).json()

    def post(self, path: str, body: object, **query: str) -> dict[str, Any]:
        return self.send("POST", f"{path}?{urlencode(query)}", body).json()

    def fetchdatasetting(self, **body: object) -> dict[str, Any]:
        token = self.wx.access_token(APPID)
        return self.post("/wxa/fetchdatasetting", body, access_token=token)

    def set_pre_fetch(self, **fields: object) -> dict[str, Any]:
        half = {"is_pre_fetch_open": True, "pre_fetch_type": 0, "pre_fetch_url": URL}
        return self.fetchdatasetting(action="set_pre_fetch", **(half | fields))

    def token(self, **query: str) -> dict[str, Any]:
        given = {"grant_type": "client_credential", "appid": APPID, "secret": SECRET}
        return self.get("/cgi-bin/token", **(given | query))

    def stable_token(self, **fields: object) -> dict[str, Any]:
        given = {"grant_type": "client_credential", "appid": APPID, "secret": SECRET}
        return self.post("/cgi-bin/stable_token", given | fields)

    def login(self, code: str, **query: str) -> dict[str, Any]:
        given = {"grant_type": "authorization_code", "appid": APPID, "secret": SECRET}
        return self.get("/sns/jscode2session", js_code=code, **(given | query))


@pytest.fixture
def told() -> list[str]:
    """The lines the sandbox told its follower."""
    return []


@pytest.fixture
def wx(told: list[str]) -> Iterator[Sandbox]:
    with Sandbox(log=told.append) as sandbox:
        sandbox.add_app(APPID, secret=SECRET)
        sandbox.add_user(APPID, "o1", unionid="u1")
        sandbox.add_domain(APPID, "shop.example")
        yield sandbox


@pytest.fixture
def client(wx: Sandbox) -> Client:
    return Client(wx)


@pytest.fixture
def registered(client: Client, origin: Origin) -> Origin:
    """The origin, with both halves registered for it."""
    client.set_pre_fetch()
    client.fetchdatasetting(
        action="set_period_fetch",
        is_period_fetch_open=True,
        period_fetch_type=0,
        period_fetch_url="https://shop.example/prefetch/period_fetch",
    )
    return origin


class Receiver:
    """A service provider's server: it remembers what was pushed and answers as it was told."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answer = b"success"
        self.received: list[tuple[dict[str, str], bytes]] = []

    def event(self) -> dict[str, str | None]:
        """The members of the last event, whose signature is right; decrypted by hand."""
        query, body = self.received[-1]
        sealed = ET.fromstring(body).findtext("Encrypt") or ""  # noqa: S314 (the sandbox's own XML)
        parts = sorted([MESSAGE_TOKEN, query["timestamp"], query["nonce"], sealed])
        assert query["msg_signature"] == hashlib.sha1("".join(parts).encode()).hexdigest()  # noqa: S324 (WeChat's rule)
        key = base64.b64decode(AES_KEY + "=")
        aes = Cipher(algorithms.AES(key), modes.CBC(key[:16])).decryptor()
        plain = aes.update(base64.b64decode(sealed)) + aes.finalize()
        length = int.from_bytes(plain[16:20])
        assert plain[20 + length : -plain[-1]] == COMPONENT.encode()
        return {each.tag: each.text for each in ET.fromstring(plain[20 : 20 + length])}  # noqa: S314 (likewise)


@pytest.fixture
def receiver(wx: Sandbox) -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            hears.received.append((dict(parse_qsl(urlsplit(self.path).query)), body))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(hears.answer)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,)).start()
        hears = Receiver(f"http://127.0.0.1:{server.server_port}")
        yield hears
        server.shutdown()


@pytest.fixture
def platform(wx: Sandbox, receiver: Receiver) -> str:
    """A third-party platform that receives every push."""
    url = "https://provider.example/wechat"
    wx.add_platform(
        COMPONENT, secret=COMPONENT_SECRET, token=MESSAGE_TOKEN, aes_key=AES_KEY, receive_url=url
    )
    wx.map_origin("provider.example", receiver.url)
    return COMPONENT


class Provider:
    """Makes a service provider's calls by hand."""

    def __init__(self, wx: Sandbox, client: Client, receiver: Receiver) -> None:
        self.wx, self.client, self.receiver = wx, client, receiver

    def ticket(self) -> str:
        assert self.wx.push_ticket(COMPONENT).accepted
        return str(self.receiver.event()["ComponentVerifyTicket"])

    def component_token(self, ticket: str | None = None, **changed: str) -> dict[str, Any]:
        body = {"component_appid": COMPONENT, "component_appsecret": COMPONENT_SECRET, **changed}
        body["component_verify_ticket"] = self.ticket() if ticket is None else ticket
        return self.client.post("/cgi-bin/component/api_component_token", body)

    def call(self, name: str, *, token: str | None = None, **body: object) -> dict[str, Any]:
        token = token or self.component_token()["component_access_token"]
        sent = {"component_appid": COMPONENT, **body}
        path = f"/cgi-bin/component/{name}"
        return self.client.post(path, sent, component_access_token=token)

    def authorized(self, **options: Any) -> dict[str, Any]:
        """What api_query_auth says of a merchant that has just authorized."""
        assert self.wx.authorize(COMPONENT, APPID, **options).accepted
        code = self.receiver.event()["AuthorizationCode"]
        info = self.call("api_query_auth", authorization_code=code)["authorization_info"]
        assert isinstance(info, dict)
        return info

    def refresh(self, refresh_token: str) -> dict[str, Any]:
        given = {"authorizer_appid": APPID, "authorizer_refresh_token": refresh_token}
        return self.call("api_authorizer_token", **given)

    def settings(self, token: str) -> int:
        answer = self.client.post("/wxa/fetchdatasetting", {"action": "get"}, access_token=token)
        return int(answer["errcode"])


@pytest.fixture
def provider(wx: Sandbox, client: Client, receiver: Receiver, platform: str) -> Provider:
    return Provider(wx, client, receiver)
