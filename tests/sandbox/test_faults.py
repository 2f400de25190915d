"""Scripted misbehaviour, as the caller meets it."""

import gzip
import http.client
import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from prefetch_kit.sandbox import Fault, Sandbox, SandboxError

if TYPE_CHECKING:
    from tests.sandbox.conftest import Client, Reply

APPID = "wx01"
PATH = "/wxa/fetchdatasetting"


def ask(client: "Client", *, timeout_s: float = 10) -> "Reply":
    token = client.wx.access_token(APPID)
    body = {"action": "get"}
    return client.send("POST", f"{PATH}?access_token={token}", body, timeout_s=timeout_s)


def test_errcode(wx: Sandbox, client: "Client") -> None:
    """A scripted refusal comes instead of the effect, once."""
    wx.inject(Fault(kind="errcode", action="set_pre_fetch", errcode=-1, errmsg="system error"))
    refused = client.set_pre_fetch()
    assert refused["errcode"] == -1
    assert refused["errmsg"].startswith("system error rid: ")
    assert wx.settings(APPID) == {}
    assert client.set_pre_fetch()["errcode"] == 0
    assert [request.errcode for request in wx.requests()] == [-1, 0]


def test_raw(wx: Sandbox, client: "Client") -> None:
    """Status, headers and body are sent as scripted."""
    wx.inject(Fault(kind="raw", status=502, headers={"X-From": "proxy"}, body=b"<html>\xff"))
    reply = ask(client)
    assert (reply.status, reply.body) == (502, b"<html>\xff")
    assert reply.headers["X-From"] == "proxy"


def test_redirect(wx: Sandbox, client: "Client") -> None:
    """The caller is sent elsewhere with its body."""
    wx.inject(Fault(kind="redirect", location="http://127.0.0.1:9/x"))
    reply = ask(client)
    assert (reply.status, reply.headers["Location"]) == (307, "http://127.0.0.1:9/x")


def test_delay(wx: Sandbox, client: "Client") -> None:
    """The ordinary answer comes late."""
    wx.inject(Fault(kind="delay", delay_s=0.2))
    started = time.monotonic()
    assert ask(client).json()["errcode"] == 0
    assert time.monotonic() - started >= 0.2


def test_delayed_call_takes_no_effect_once_the_caller_is_gone(
    wx: Sandbox, client: "Client"
) -> None:
    """A call whose caller gives up before the delay is over has no effect."""
    wx.inject(Fault(kind="delay", delay_s=30))
    with pytest.raises(TimeoutError):
        ask(client, timeout_s=0.1)
    wx.stop()
    assert wx.requests() == []


def test_lose(wx: Sandbox, client: "Client") -> None:
    """The set takes effect though nobody learns of it."""
    wx.inject(Fault(kind="lose"))
    with pytest.raises(http.client.RemoteDisconnected):
        client.set_pre_fetch()
    assert wx.settings(APPID)["is_pre_fetch_open"] is True
    assert wx.requests()[0].errcode == 0


def test_close(wx: Sandbox, client: "Client") -> None:
    """The connection ends in an orderly way, without an answer and without an effect."""
    wx.inject(Fault(kind="close"))
    with pytest.raises(http.client.RemoteDisconnected):
        client.set_pre_fetch()
    assert wx.settings(APPID) == {}
    assert wx.requests()[0].errcode is None


def test_reset(wx: Sandbox, client: "Client", capfd: pytest.CaptureFixture[str]) -> None:
    """The connection ends by RST, and the server makes nothing of it."""
    wx.inject(Fault(kind="reset"))
    with pytest.raises(ConnectionResetError) as raised:
        ask(client)
    assert not isinstance(raised.value, http.client.RemoteDisconnected)
    wx.stop()
    assert capfd.readouterr() == ("", "")


def test_cut(wx: Sandbox, client: "Client") -> None:
    """Fewer bytes come than were announced."""
    wx.inject(Fault(kind="cut"))
    with pytest.raises(http.client.IncompleteRead):
        ask(client)


def test_huge(wx: Sandbox, client: "Client") -> None:
    """Valid JSON, and as large as asked for."""
    wx.inject(Fault(kind="huge", size_bytes=300_000))
    reply = ask(client)
    assert len(reply.body) == 300_013
    assert reply.json() == {"errcode": 0}


def test_gzip_bomb(wx: Sandbox, client: "Client") -> None:
    """A small body that unpacks to a large one."""
    wx.inject(Fault(kind="gzip_bomb", size_bytes=3_000_000))
    reply = ask(client)
    assert reply.headers["Content-Encoding"] == "gzip"
    assert len(reply.body) < 10_000
    assert len(gzip.decompress(reply.body)) > 3_000_000
    assert json.loads(gzip.decompress(reply.body)) == {"errcode": 0}


def test_hang(wx: Sandbox, client: "Client") -> None:
    """Nothing comes until the caller gives up."""
    wx.inject(Fault(kind="hang"))
    with pytest.raises(TimeoutError):
        ask(client, timeout_s=0.2)


@pytest.mark.parametrize("kind", ["drip_headers", "drip_body"])
def test_drip(wx: Sandbox, client: "Client", kind: Any) -> None:
    """Bytes keep coming faster than a socket timeout, and the answer never ends."""
    wx.inject(Fault(kind=kind, interval_s=0.02))
    ended = threading.Event()

    def wait() -> None:
        with suppress(http.client.HTTPException, ConnectionError):
            ask(client, timeout_s=5)
        ended.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert not ended.wait(0.5)
    wx.stop()
    waiting.join()


@pytest.mark.parametrize("kind", ["hang", "drip_headers", "drip_body", "delay", "huge"])
def test_stop_ends_a_fault_in_the_middle(
    wx: Sandbox, kind: Any, until: Callable[[Callable[[], object]], None]
) -> None:
    """However long a fault would last, stopping does not wait for it."""
    wx.inject(Fault(kind=kind, interval_s=60, delay_s=60, size_bytes=10**9))
    connection = http.client.HTTPConnection(wx.base_url.removeprefix("http://"))
    connection.request("POST", f"{PATH}?access_token=x", b"{}")
    until(lambda: wx.requests() or kind == "delay")
    started = time.monotonic()
    wx.stop()
    assert time.monotonic() - started < 20
    connection.close()


@pytest.mark.parametrize("kind", ["errcode", "raw", "close", "reset", "cut"])
def test_a_fault_with_effect(wx: Sandbox, client: "Client", kind: Any) -> None:
    """The set is stored, and what the caller gets does not say so."""
    wx.inject(Fault(kind=kind, status=503, effect="now"))
    with suppress(http.client.HTTPException, OSError, ValueError):
        assert client.set_pre_fetch()["errcode"] == -1
    assert wx.settings(APPID)["is_pre_fetch_open"] is True
    (logged,) = wx.requests()
    assert logged.errcode == (-1 if kind == "errcode" else None)


def test_an_effect_that_comes_after_the_answer(wx: Sandbox, client: "Client") -> None:
    """The set is stored once the time is over, even over a later one."""
    late = "https://shop.example/late"
    wx.inject(Fault(kind="errcode", effect="late", late_s=60))
    assert client.set_pre_fetch(pre_fetch_url=late)["errcode"] == -1
    assert wx.settings(APPID) == {}
    assert client.set_pre_fetch()["errcode"] == 0
    wx.advance(60)
    assert client.fetchdatasetting(action="get")["pre_fetch_url"] == late
    assert wx.settings(APPID)["pre_fetch_url"] == late


def test_a_get_that_lags(wx: Sandbox, client: "Client") -> None:
    """For so long it shows what was there before; what is stored is another matter."""
    wx.switches.get_lag_s = 60
    first, second = "https://shop.example/1", "https://shop.example/2"
    client.set_pre_fetch(pre_fetch_url=first)
    wx.advance(30)
    client.set_pre_fetch(pre_fetch_url=second)
    assert wx.settings(APPID)["pre_fetch_url"] == second
    shown = []
    for _ in range(3):
        shown.append(client.fetchdatasetting(action="get").get("pre_fetch_url"))
        wx.advance(31)
    assert shown == [None, first, second]


def test_a_read_that_goes_back(wx: Sandbox, client: "Client") -> None:
    """Old, new, old, new: what two servers of WeChat would answer in turn."""
    client.set_pre_fetch()
    wx.inject(Fault(kind="stale", action="get"))
    wx.inject(Fault(kind="stale", action="get", after=1))
    shown = [client.fetchdatasetting(action="get") for _ in range(4)]
    assert ["pre_fetch_url" in each for each in shown] == [False, True, False, True]


def test_an_answer_that_contradicts_itself(wx: Sandbox, client: "Client") -> None:
    """Open, but from nowhere; the log and the store know nothing of it."""
    client.set_pre_fetch()
    wx.inject(Fault(kind="alter", action="get", without=["pre_fetch_type", "pre_fetch_url"]))
    wx.inject(Fault(kind="alter", action="get", members={"is_pre_fetch_open": "true"}))
    assert client.fetchdatasetting(action="get") == {
        "errcode": 0,
        "errmsg": "ok",
        "is_pre_fetch_open": True,
    }
    assert client.fetchdatasetting(action="get")["is_pre_fetch_open"] == "true"
    assert wx.settings(APPID)["is_pre_fetch_open"] is True


def test_a_rotation_beside_an_unreadable_field(wx: Sandbox, client: "Client") -> None:
    """The answer has the new refresh token, and an `expires_in` that nobody can read."""
    wx.add_platform("wxplatform", secret="s", token="t", aes_key="k" * 43)
    wx.authorize("wxplatform", APPID)
    with wx.lock:
        ticket = wx.component("wxplatform").issue_ticket(now=wx.now())
    body = {"component_appid": "wxplatform", "component_appsecret": "s"}
    path = "/cgi-bin/component/"
    answer = client.post(f"{path}api_component_token", body | {"component_verify_ticket": ticket})
    members: dict[str, Any] = {"expires_in": [], "authorizer_access_token": None}
    wx.inject(Fault(kind="alter", path=f"{path}api_authorizer_token", members=members))
    body |= {"authorizer_appid": APPID}
    body["authorizer_refresh_token"] = wx.refresh_token("wxplatform", APPID)
    token = answer["component_access_token"]
    answer = client.post(f"{path}api_authorizer_token", body, component_access_token=token)
    assert answer["authorizer_refresh_token"] == wx.refresh_token("wxplatform", APPID)
    assert (answer["expires_in"], answer["authorizer_access_token"]) == ([], None)


def test_an_errcode_with_retry_after(wx: Sandbox, client: "Client") -> None:
    """The headers of a refusal are those of the script."""
    wx.inject(Fault(kind="errcode", errcode=45011, headers={"Retry-After": "7"}))
    reply = ask(client)
    assert (reply.json()["errcode"], reply.headers["Retry-After"]) == (45011, "7")


def test_a_fault_by_chance(wx: Sandbox, client: "Client", monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that it spares are not counted."""
    thrown = iter([0.9, 0.1, 0.5, 0.0])
    monkeypatch.setattr("prefetch_kit.sandbox.faults.random.random", lambda: next(thrown))
    wx.inject(Fault(kind="errcode", chance=0.5, times=2))
    codes = [ask(client).json()["errcode"] for _ in range(5)]
    assert codes == [0, -1, 0, -1, 0]


def test_faults_are_used_up_in_order(wx: Sandbox, client: "Client") -> None:
    """The second fault waits until the first has let through and spoiled its calls."""
    wx.inject(Fault(kind="errcode", errcode=-1, after=1, times=2))
    wx.inject(Fault(kind="errcode", errcode=45011))
    codes = [ask(client).json()["errcode"] for _ in range(5)]
    assert codes == [0, -1, -1, 45011, 0]


def test_fault_without_times_stays(wx: Sandbox, client: "Client") -> None:
    """Spoiling all calls means all."""
    wx.inject(Fault(kind="errcode", times=None))
    assert [ask(client).json()["errcode"] for _ in range(4)] == [-1] * 4


def test_fault_concerns_its_path_and_action(wx: Sandbox, client: "Client") -> None:
    """Other calls are neither spoiled nor counted."""
    wx.inject(Fault(kind="errcode", action="set_pre_fetch"))
    wx.inject(Fault(kind="errcode", path="/cgi-bin/token", errcode=45009))
    assert ask(client).json()["errcode"] == 0
    assert client.set_pre_fetch()["errcode"] == -1
    assert client.token()["errcode"] == 45009


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "typo"},
        {"times": 0},
        {"after": -1},
        {"delay_s": -1.0},
        {"interval_s": 1e6},
        {"size_bytes": -1},
        {"status": 100},
        {"headers": {"X": "a\r\nY: b"}},
        {"location": "/\n"},
        {"chance": 0.0},
        {"late_s": -1.0},
        {"effect": "now", "kind": "lose"},
    ],
)
def test_fault_that_cannot_be_played(wrong: dict[str, Any]) -> None:
    """A mistake in the script is told where it is made, not where it is played."""
    with pytest.raises(SandboxError, match=next(iter(wrong))):
        Fault(**({"kind": "raw"} | wrong))
