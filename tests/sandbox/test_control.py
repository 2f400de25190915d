"""The control API: the Python methods over HTTP, and callers that are refused."""

from typing import TYPE_CHECKING, Any

import pytest

from prefetch_kit.sandbox import Sandbox

if TYPE_CHECKING:
    from tests.conftest import Origin
    from tests.sandbox.conftest import Client

APPID = "wx01"
USER = f"/_sandbox/apps/{APPID}/users/o1"
API = "/wxa/fetchdatasetting"


def post(client: "Client", path: str, **body: object) -> dict[str, Any]:
    reply = client.send("POST", path, body)
    assert reply.status == 200, reply.body
    return reply.json()


def test_everything_can_be_set_up_over_http(wx: Sandbox, client: "Client") -> None:
    """App, user, domain, denial and stored settings."""
    post(client, "/_sandbox/apps", appid="wx02", secret="s", kind="official_account")
    post(client, "/_sandbox/apps/wx02/users", openid="o", unionid="u", blocked=True)
    post(client, "/_sandbox/apps/wx02/domains", host="a.example", level="platform")
    post(client, "/_sandbox/apps/wx02/denial", errcode=48001)
    client.send("PUT", "/_sandbox/apps/wx02/settings", {"settings": {"pre_env": "e"}})
    app = wx.app("wx02")
    assert (app.kind, app.users["o"].unionid, app.users["o"].blocked) == (
        "official_account",
        "u",
        True,
    )
    assert (app.domains.platform, app.domains.miniprogram) == ({"a.example"}, set())
    assert app.denied == 48001
    shown = client.get("/_sandbox/apps/wx02/settings")
    assert shown == {"settings": {"pre_env": "e"}}


def test_origins(wx: Sandbox, client: "Client") -> None:
    """The map of hosts is read and extended under one path."""
    origin = "http://127.0.0.1:8000"
    post(client, "/_sandbox/origins", host="shop.example", origin=origin)
    assert wx.origin("shop.example") == origin
    assert client.get("/_sandbox/origins") == {"origins": {"shop.example": origin}}


def test_a_phone_can_be_driven_over_http(client: "Client", registered: "Origin") -> None:
    """Token, launch, periodic pull, and what the mini program gets to see."""
    post(client, f"{USER}/background_fetch_token", token="t")
    pulled = post(client, f"{USER}/cold_start", query="a=1", scene=1007)["pulled"]
    assert (pulled["kept"], pulled["status"]) == (True, 200)
    assert registered.params["token"] == "t"
    assert post(client, f"{USER}/periodic_pull")["pulled"]["kept"]
    assert post(client, f"{USER}/periodic_pull", force=True)["pulled"]["kept"]
    assert client.get(f"{USER}/background_fetch_data")["data"]["fetchedData"] == '{"n":1}'
    handed = client.get(f"{USER}/background_fetch_data", fetch_type="periodic", platform="ios")
    assert handed["data"]["fetchedData"] == '{"n":1}'


def test_credentials_can_be_had_over_http(wx: Sandbox, client: "Client") -> None:
    """A login code, an access token, and the end of all tokens."""
    code = post(client, f"{USER}/login_code")["login_code"]
    assert client.login(code)["openid"] == "o1"
    token = post(client, f"/_sandbox/apps/{APPID}/access_token")["access_token"]
    post(client, f"/_sandbox/apps/{APPID}/expire_tokens")
    answer = client.post("/wxa/fetchdatasetting", {"action": "get"}, access_token=token)
    assert answer["errcode"] == 42001


def test_clock_and_reset(wx: Sandbox, client: "Client") -> None:
    """Time can be moved and everything forgotten."""
    before = client.get("/_sandbox/now")["now"]
    post(client, "/_sandbox/advance", seconds=43_200)
    assert 43_200 <= client.get("/_sandbox/now")["now"] - before < 43_300
    assert client.send("POST", "/_sandbox/reset").status == 200
    assert wx.state.apps == {}


def test_log_and_count(client: "Client") -> None:
    """The log is read as JSON; control calls are not in it."""
    client.fetchdatasetting(action="get")
    (entry,) = client.get("/_sandbox/requests")["requests"]
    assert (entry["action"], entry["errcode"], entry["appid"]) == ("get", 0, APPID)
    assert client.get("/_sandbox/requests/count", action="get") == {"count": 1}
    assert client.get("/_sandbox/requests/count?path=/cgi-bin/token") == {"count": 0}


def test_faults(client: "Client") -> None:
    """A fault is scripted as a JSON object of its fields."""
    post(client, "/_sandbox/faults", kind="raw", status=500, body="oops", headers={"X-A": "b"})
    reply = client.send("POST", "/wxa/fetchdatasetting", {})
    assert (reply.status, reply.body, reply.headers["X-A"]) == (500, b"oops", "b")


def test_switches(wx: Sandbox, client: "Client") -> None:
    """Those named are changed, the others stay."""
    wx.switches.bytes_per_kb = 1000
    client.send("PUT", "/_sandbox/switches", {"timestamp_unit": "s", "token_per_day": None})
    assert (wx.switches.timestamp_unit, wx.switches.token_per_day) == ("s", None)
    switches = client.get("/_sandbox/switches")["switches"]
    assert (switches["timestamp_unit"], switches["bytes_per_kb"]) == ("s", 1000)


def test_answers_end_their_line(client: "Client") -> None:
    """So the next prompt after curl begins on a new line."""
    assert client.send("GET", "/_sandbox/now").body.endswith(b"}\n")


def test_calls_are_listed(client: "Client") -> None:
    """The prefix itself explains what can be called, with what."""
    calls = client.get("/_sandbox/")["calls"]
    (origins,) = [call for call in calls if call["path"].endswith("/origins") and call["takes"]]
    assert origins == {
        "method": "POST",
        "path": "/_sandbox/origins",
        "takes": {"host": "a string", "origin": "a string"},
    }
    assert client.get("/_sandbox")["calls"] == calls


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/_sandbox/advance", {}, "'seconds' is missing"),
        ("/_sandbox/advance", {"seconds": "1"}, "'seconds' has the wrong value"),
        ("/_sandbox/advance", {"seconds": True}, "a number"),
        ("/_sandbox/advance", {"seconds": 10**400}, "a number"),
        ("/_sandbox/advance", {"seconds": -1}, "forward"),
        ("/_sandbox/advance", {"seconds": 1, "x": 1}, "'x' is not known"),
        ("/_sandbox/advance", [], "JSON object"),
        ("/_sandbox/advance", b"\xff", "JSON object"),
        ("/_sandbox/advance", b"[" * 100_000, "JSON object"),
        ("/_sandbox/reset", {"x": 1}, "no key"),
        ("/_sandbox/apps", {"appid": "a", "secret": 1}, "'secret'"),
        ("/_sandbox/origins", {"host": "a.b", "origin": "http://192.0.2.1:1"}, "origin"),
        (f"/_sandbox/apps/{APPID}/domains", {"host": "a.b", "level": "all"}, "'both'"),
        (f"/_sandbox/apps/{APPID}/denial", {"errcode": 1}, "errcode"),
        (f"{USER}/cold_start", {"query": "\ud800"}, "'query'"),
        (f"{USER}/cold_start", {"scene": 1.5}, "a whole number"),
        (f"{USER}/periodic_pull", {"force": 1}, "true or false"),
        ("/_sandbox/faults", {"kind": "typo"}, "'hang'"),
        ("/_sandbox/faults", {"kind": "raw", "headers": {"a": 1}}, "'headers'"),
        ("/_sandbox/faults", {"kind": "raw", "headers": {"a": "\n"}}, "headers"),
    ],
)
def test_mistake_is_explained(client: "Client", path: str, body: object, said: str) -> None:
    """A wrong body is a 400 whose sentence names the key."""
    reply = client.send("POST", path, body)
    assert reply.status == 400
    assert said in reply.json()["error"]


@pytest.mark.parametrize("value", [1000.0, "1000", 512, None])
def test_switch_takes_its_own_values_only(wx: Sandbox, client: "Client", value: object) -> None:
    """A value of another type that equals an allowed one is refused."""
    reply = client.send("PUT", "/_sandbox/switches", {"bytes_per_kb": value})
    assert (reply.status, "1000 or 1024" in reply.body.decode()) == (400, True)
    assert wx.switches.bytes_per_kb == 1024


@pytest.mark.parametrize(
    "path",
    ["/_sandbox/apps/wx99/users/o1/cold_start", f"/_sandbox/apps/{APPID}/users/o9/login_code"],
)
def test_unknown_app_or_user_is_404(client: "Client", path: str) -> None:
    """A name nobody added is not found, and the sentence says how to add it."""
    reply = client.send("POST", path, {})
    assert reply.status == 404
    assert "add_" in reply.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/_sandbox/x", 404),
        ("DELETE", "/_sandbox/apps", 405),
        ("GET", "/_sandbox/reset", 405),
    ],
)
def test_unknown_call(client: "Client", method: str, path: str, status: int) -> None:
    """A wrong path or method is told where the right ones are listed."""
    reply = client.send(method, path)
    assert reply.status == status
    assert "GET /_sandbox/" in reply.json()["error"]


def test_body_too_large(client: "Client") -> None:
    """A body over the limit is refused unread."""
    reply = client.send("POST", "/_sandbox/apps", {"appid": "x" * 2**20})
    assert reply.status == 413


@pytest.mark.parametrize(
    "host", ["", "evil.example", "127.0.0.1.evil.example", "192.0.2.1:80", "localhost.evil", "["]
)
def test_foreign_host_is_refused(wx: Sandbox, client: "Client", host: str) -> None:
    """A name that was made to resolve to this machine gets nothing, not even to read."""
    for method, path in (("GET", "/_sandbox/origins"), ("POST", API)):
        reply = client.send(method, path, {"action": "get"}, headers={"Host": host})
        assert reply.status == 403
        assert "Host" in reply.json()["error"]
    assert wx.requests() == []


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:9000"])
def test_loopback_host_is_welcome(client: "Client", host: str) -> None:
    """Any spelling of this machine will do."""
    for path in ("/_sandbox/now", API):
        assert client.send("GET", path, headers={"Host": host}).status == 200


@pytest.mark.parametrize(
    "origin", ["null", "http://evil.example", "http://localhost:1", "https://127.0.0.1"]
)
def test_foreign_origin_is_refused(wx: Sandbox, client: "Client", origin: str) -> None:
    """A page from elsewhere cannot drive the sandbox, with or without a body."""
    reply = client.send("POST", "/_sandbox/reset", headers={"Origin": origin})
    assert reply.status == 403
    assert "wx01" in wx.state.apps
    assert client.send("POST", API, {"action": "get"}, headers={"Origin": origin}).status == 403
    assert wx.requests() == []


def test_own_origin_is_welcome(wx: Sandbox, client: "Client") -> None:
    """A page the sandbox itself served may call it."""
    reply = client.send(
        "POST", "/_sandbox/advance", {"seconds": 1}, headers={"Origin": wx.base_url}
    )
    assert reply.status == 200


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded"])
def test_body_must_be_declared_json(wx: Sandbox, client: "Client", kind: str) -> None:
    """A form can be posted from any page, so a body must be called JSON."""
    body = {"appid": "wx02", "secret": "s"}
    reply = client.send("POST", "/_sandbox/apps", body, headers={"Content-Type": kind})
    assert reply.status == 415
    assert "wx02" not in wx.state.apps
