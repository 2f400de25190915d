"""Quotas run out and come back with the sandbox's clock."""

from typing import TYPE_CHECKING

from prefetch_kit.sandbox import Sandbox

if TYPE_CHECKING:
    from tests.sandbox.conftest import Client

APPID = "wx01"


def test_daily_quota_comes_back_the_next_day(wx: Sandbox, client: "Client") -> None:
    """The call after the last allowed one answers 45009 until midnight has passed."""
    wx.advance((16 * 3600 - wx.now()) % 86_400)
    wx.switches.fetchdatasetting_per_day = 2
    codes = [client.fetchdatasetting(action="get")["errcode"] for _ in range(3)]
    wx.advance(86_400)
    assert [*codes, client.fetchdatasetting(action="get")["errcode"]] == [0, 0, 45009, 0]


def test_day_ends_at_midnight_in_beijing(wx: Sandbox, client: "Client") -> None:
    """Sixteen hours UTC is midnight there: the quota starts anew."""
    wx.advance((16 * 3600 - 60 - wx.now()) % 86_400)
    wx.switches.fetchdatasetting_per_day = 1
    assert client.fetchdatasetting(action="get")["errcode"] == 0
    assert client.fetchdatasetting(action="get")["errcode"] == 45009
    wx.advance(61)
    assert client.fetchdatasetting(action="get")["errcode"] == 0


def test_minute_quota_comes_back_the_next_minute(wx: Sandbox, client: "Client") -> None:
    """The call after the last allowed one answers 45011 until the minute has passed."""
    wx.switches.fetchdatasetting_per_minute = 0
    assert client.fetchdatasetting(action="get")["errcode"] == 45011
    wx.switches.fetchdatasetting_per_minute = 1
    wx.advance(60)
    assert client.fetchdatasetting(action="get")["errcode"] == 0


def test_quota_is_each_apps_own(wx: Sandbox, client: "Client") -> None:
    """One app's calls take nothing from another's."""
    wx.add_app("wx02", secret="s")
    wx.switches.fetchdatasetting_per_day = 1
    client.fetchdatasetting(action="get")
    token = wx.access_token("wx02")
    answer = client.post("/wxa/fetchdatasetting", {"action": "get"}, access_token=token)
    assert answer["errcode"] == 0


def test_token_quotas(wx: Sandbox, client: "Client") -> None:
    """The two token calls and the forced refresh have a quota each."""
    wx.switches.token_per_day = wx.switches.force_refresh_per_day = 0
    assert client.token()["errcode"] == 45009
    assert client.stable_token(force_refresh=True)["errcode"] == 45009
    assert "access_token" in client.stable_token()
    wx.switches.stable_token_per_minute = 0
    assert client.stable_token()["errcode"] == 45011


def test_force_refresh_is_allowed_20_times_a_day(wx: Sandbox, client: "Client") -> None:
    """The default of the platform's page, counted over a day."""
    wx.advance((16 * 3600 - wx.now()) % 86_400)
    answers = []
    for _ in range(21):
        answers.append(client.stable_token(force_refresh=True))
        wx.advance(30)
    assert all("access_token" in answer for answer in answers[:20])
    assert answers[20]["errcode"] == 45009


def test_login_quota_is_each_users_own(wx: Sandbox, client: "Client") -> None:
    """A hundred exchanges a minute by default, counted for each user."""
    assert wx.switches.login_per_minute == 100
    wx.switches.login_per_minute = 0
    assert client.login(wx.login_code(APPID, "o1"))["errcode"] == 45011
    wx.switches.login_per_minute = 1
    wx.add_user(APPID, "o2")
    wx.advance(60)
    assert client.login(wx.login_code(APPID, "o1"))["openid"] == "o1"
    assert client.login(wx.login_code(APPID, "o2"))["openid"] == "o2"
