"""A running sandbox with one mini program, a client of its HTTP side, and an origin to pull."""

import http.client
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import pytest

from prefetch_kit.sandbox import Sandbox
from tests.conftest import Origin

APPID = "wx01"
SECRET = "canary-app-secret"
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
