"""What holds for every API call: the form of an answer, and the log that keeps no secret."""

import re
from typing import TYPE_CHECKING

from prefetch_kit.sandbox import Sandbox

if TYPE_CHECKING:
    from tests.sandbox.conftest import Client

APPID = "wx01"
SECRET = "canary-app-secret"


def test_refusals_are_200_with_a_request_id(client: "Client") -> None:
    """A refusal looks like success to HTTP and ends with the id WeChat asks for."""
    reply = client.send("POST", "/wxa/fetchdatasetting", {"action": "get"})
    assert reply.status == 200
    assert re.search(r" rid: [0-9a-f]{8}-[0-9a-f]{8}-[0-9a-f]{8}\Z", reply.json()["errmsg"])


def test_success_carries_no_request_id(client: "Client") -> None:
    """The message of a success is the bare word."""
    assert client.fetchdatasetting(action="get")["errmsg"] == "ok"


def test_unknown_path(client: "Client") -> None:
    """Off the platform's paths there is an errcode, in JSON."""
    reply = client.send("GET", "/cgi-bin/unknown")
    assert reply.status == 200
    assert reply.json()["errcode"] == 40066


def test_calls_are_logged_in_order(wx: Sandbox, client: "Client") -> None:
    """Each entry says what was asked, by whom, and how it was answered."""
    client.stable_token()
    client.set_pre_fetch(pre_fetch_type=5)
    first, second = wx.requests()
    assert (first.method, first.path) == ("POST", "/cgi-bin/stable_token")
    assert (first.appid, first.errcode, first.action) == (APPID, 0, None)
    assert (second.action, second.errcode) == ("set_pre_fetch", 9410014)
    assert second.body is not None
    assert second.body["pre_fetch_type"] == 5
    assert first.at <= second.at <= wx.now()


def test_calls_can_be_counted(wx: Sandbox, client: "Client") -> None:
    """By path, by action, by both or none."""
    client.token()
    client.fetchdatasetting(action="get")
    client.set_pre_fetch()
    assert wx.count() == 3
    assert wx.count(path="/wxa/fetchdatasetting") == 2
    assert wx.count(path="/wxa/fetchdatasetting", action="get") == 1
    assert wx.count(path="/cgi-bin/token", action="get") == 0


def test_the_log_is_bounded(wx: Sandbox, client: "Client") -> None:
    """The oldest calls are forgotten, so a load test does not fill the memory."""
    client.token()
    wx.state.requests.extend(wx.requests() * 9_999)
    client.fetchdatasetting(action="get")
    client.fetchdatasetting(action="set_pre_fetch")
    assert [request.action for request in wx.requests()[-2:]] == ["get", "set_pre_fetch"]
    assert wx.count() == 10_000


def test_the_log_keeps_no_secret(told: list[str], wx: Sandbox, client: "Client") -> None:
    """Neither entries nor told lines hold a secret, wherever in a call it was put."""
    canaries = [SECRET, wx.access_token(APPID), wx.login_code(APPID, "o1")]
    for canary in canaries:
        client.token(secret=canary)
        client.stable_token(secret=canary, note=canary, appid={"x": canary}, **{canary: "x"})
        client.post("/wxa/fetchdatasetting", {"access_token": canary}, access_token=canary)
        client.get(f"/wxa/{canary}", access_token=canary)
        client.login(canary)
    written = repr(wx.requests()) + repr(wx.state) + "".join(told)
    assert len(told) == len(wx.requests()) == 15
    assert [canary for canary in canaries if canary in written] == []


def test_a_line_is_told_for_each_call(told: list[str], client: "Client") -> None:
    """A line of the log has method, path, action, app and outcome."""
    client.fetchdatasetting(action="get")
    client.stable_token()
    client.get("/cgi-bin/unknown")
    assert told == [
        f"POST /wxa/fetchdatasetting 'get' {APPID}: errcode 0",
        f"POST /cgi-bin/stable_token {APPID}: errcode 0",
        "GET (unknown path): errcode 40066",
    ]
