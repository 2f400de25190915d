"""What WeChat asks for on a user's behalf, and what the phone keeps of the answer."""

import threading
from typing import TYPE_CHECKING, Any

import pytest

from prefetch_kit.sandbox import Sandbox, SandboxError

if TYPE_CHECKING:
    from tests.conftest import Origin
    from tests.sandbox.conftest import Client

APPID = "wx01"
HOUR_S = 3600
LIMIT = 262_144


def data(wx: Sandbox) -> object:
    return wx.background_fetch_data(APPID, "o1").get("fetchedData")


def test_cold_start_carries_the_launch(wx: Sandbox, registered: "Origin") -> None:
    """Every value arrives as it was, however odd its characters."""
    wx.cold_start(APPID, "o1", path="pages/a/b", query="id=1&名=茶 +?", scene=1007)
    params = registered.params
    assert params.pop("code")
    assert abs(int(params.pop("timestamp")) / 1000 - wx.now()) < 60
    assert params == {
        "appid": APPID,
        "path": "pages/a/b",
        "query": "id=1&名=茶 +?",
        "scene": "1007",
        "customMiniprogramVersion": "1.0.0",
    }
    assert "path=pages%2Fa%2Fb&" in registered.target
    assert "id%3D1%26%E5%90%8D%3D%E8%8C%B6%20%2B%3F" in registered.target


def test_token_goes_instead_of_a_code(wx: Sandbox, registered: "Origin") -> None:
    """With a background token set no login code is made, so never both."""
    wx.set_background_fetch_token(APPID, "o1", "a/b+c=")
    wx.cold_start(APPID, "o1")
    assert registered.params["token"] == "a/b+c="
    assert "code" not in registered.params


def test_code_of_a_pull_is_a_login_code(
    wx: Sandbox, client: "Client", registered: "Origin"
) -> None:
    """The code of a pull can be exchanged for the user, and is new each time."""
    wx.cold_start(APPID, "o1")
    first = registered.params["code"]
    assert client.login(first)["openid"] == "o1"
    wx.cold_start(APPID, "o1")
    assert registered.params["code"] != first


def test_what_a_pull_carries_can_be_switched(wx: Sandbox, registered: "Origin") -> None:
    """Seconds, no code, and no version as in QQ."""
    wx.switches.timestamp_unit = "s"
    wx.switches.code_without_token = False
    wx.switches.custom_miniprogram_version = None
    wx.cold_start(APPID, "o1")
    assert set(registered.params) == {"appid", "timestamp", "path", "scene"}
    assert "query=" not in registered.target
    assert len(registered.params["timestamp"]) == 10


def test_periodic_pull_carries_three_values(wx: Sandbox, registered: "Origin") -> None:
    """Neither a launch nor a code belongs to a pull nobody is waiting for."""
    wx.set_background_fetch_token(APPID, "o1", "t")
    assert wx.periodic_pull(APPID, "o1").kept
    assert registered.target.startswith("/prefetch/period_fetch?")
    assert set(registered.params) == {"appid", "timestamp", "token"}


def test_periodic_pull_without_a_token(wx: Sandbox, registered: "Origin") -> None:
    """Whether WeChat asks at all before a token is set is a switch."""
    pulled = wx.periodic_pull(APPID, "o1")
    assert (pulled.due, pulled.reason) == (False, "token not set")
    wx.switches.periodic_without_token = True
    assert wx.periodic_pull(APPID, "o1").kept
    assert set(registered.params) == {"appid", "timestamp"}


def test_url_with_a_query_gets_a_second_question_mark(
    wx: Sandbox, client: "Client", origin: "Origin"
) -> None:
    """The parameters are appended without a look at the URL."""
    client.set_pre_fetch(pre_fetch_url="https://shop.example/p?x=y")
    pulled = wx.cold_start(APPID, "o1")
    assert origin.target.startswith("/p?x=y?appid=wx01&timestamp=")
    assert pulled.url == "https://shop.example/p"


def test_url_without_a_path(wx: Sandbox, client: "Client", origin: "Origin") -> None:
    """The bare host is asked for its root."""
    client.set_pre_fetch(pre_fetch_url="https://shop.example")
    wx.cold_start(APPID, "o1")
    assert origin.target.startswith("/?appid=wx01&")


def test_kept_answer_is_handed_to_the_mini_program(wx: Sandbox, registered: "Origin") -> None:
    """The body comes as a string, with the launch it was pulled for."""
    registered.reply('{"茶":1}'.encode())
    pulled = wx.cold_start(APPID, "o1", query="id=7", scene=1007)
    handed = wx.background_fetch_data(APPID, "o1")
    assert (pulled.due, pulled.kept, pulled.reason, pulled.status) == (True, True, "", 200)
    assert abs(int(str(handed.pop("timeStamp"))) / 1000 - wx.now()) < 60
    assert handed == {
        "errMsg": "getBackgroundFetchData:ok",
        "fetchedData": '{"茶":1}',
        "path": "pages/index/index",
        "query": "id=7",
        "scene": 1007,
    }


def test_time_stamp_of_old_ios_clients(wx: Sandbox, registered: "Origin") -> None:
    """With the switch on iOS hands out seconds; Android never does."""
    wx.cold_start(APPID, "o1")
    wx.switches.ios_time_stamp_unit = "s"
    stamps = [
        len(str(wx.background_fetch_data(APPID, "o1", platform=platform)["timeStamp"]))
        for platform in ("android", "ios")
    ]
    assert stamps == [13, 10]


def test_phone_without_data(wx: Sandbox) -> None:
    """Android fails, iOS succeeds with nothing in it."""
    android = wx.background_fetch_data(APPID, "o1", platform="android")
    ios = wx.background_fetch_data(APPID, "o1", platform="ios")
    assert str(android["errMsg"]).startswith("getBackgroundFetchData:fail")
    assert "fetchedData" not in android
    assert ios == {"errMsg": "getBackgroundFetchData:ok", "fetchedData": ""}


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"", "200 OK", "empty"),
        (b"x" * (LIMIT + 1), "200 OK", "too large"),
        ("茶".encode() * 87_382, "200 OK", "too large"),
        (b"\xff", "200 OK", "not text"),
        (b"{}", "500 Broken", "status 500"),
        (b"{}", "201 Created", "status 201"),
        (b"", "204 No Content", "status 204"),
    ],
)
def test_dropped_answer_leaves_the_old_one(
    wx: Sandbox, registered: "Origin", body: bytes, status: str, reason: str
) -> None:
    """What cannot be kept takes nothing away from what was."""
    wx.cold_start(APPID, "o1")
    registered.reply(body, status=status)
    pulled = wx.cold_start(APPID, "o1")
    assert (pulled.kept, pulled.reason) == (False, reason)
    assert pulled.bytes == min(len(body), LIMIT + 1)
    assert data(wx) == '{"n":1}'


def test_largest_answer_is_kept_whole(wx: Sandbox, registered: "Origin") -> None:
    """The limit counts bytes, and is itself allowed."""
    registered.reply("茶".encode() * 87_381 + b"x")
    assert wx.cold_start(APPID, "o1").kept
    assert data(wx) == "茶" * 87_381 + "x"


def test_kilobytes_can_be_counted_in_thousands(wx: Sandbox, registered: "Origin") -> None:
    """With the switch the limit is 256,000 bytes."""
    wx.switches.bytes_per_kb = 1000
    registered.reply(b"x" * 256_000)
    assert wx.cold_start(APPID, "o1").kept
    registered.reply(b"x" * 256_001)
    assert wx.cold_start(APPID, "o1").reason == "too large"


def test_any_status_can_be_kept(wx: Sandbox, registered: "Origin") -> None:
    """With the switch an error page ends up in the mini program."""
    wx.switches.keeps_any_status = True
    registered.reply(b"<html>", status="500 Broken")
    assert wx.cold_start(APPID, "o1").kept
    assert data(wx) == "<html>"


def test_report_shows_why_the_app_refused(wx: Sandbox, registered: "Origin") -> None:
    """Of the headers the telling ones are handed on, the others are not."""
    registered.reply(b"", status="404 No", headers="x-prefetch-refused: page\r\nSet-Cookie: a\r\n")
    assert dict(wx.cold_start(APPID, "o1").headers) == {"X-Prefetch-Refused": "page"}


def test_old_data_while_the_pull_is_unfinished(wx: Sandbox, registered: "Origin") -> None:
    """Until this launch's answer is there, the phone hands out the launch before."""
    wx.cold_start(APPID, "o1")
    asked, answer = threading.Event(), threading.Event()

    def play(connection: Any) -> None:
        asked.set()
        answer.wait(60)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nnew")

    registered.play = play
    wx.switches.pull_deadline_s = 60
    launch = threading.Thread(target=wx.cold_start, args=(APPID, "o1"))
    launch.start()
    assert asked.wait(60)
    before = data(wx)
    answer.set()
    launch.join()
    assert (before, data(wx)) == ('{"n":1}', "new")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "not configured"),
        ({"is_pre_fetch_open": True, "pre_fetch_type": 0}, "not configured"),
        ({"is_pre_fetch_open": False, "pre_fetch_url": "https://shop.example/"}, "switched off"),
        ({"is_pre_fetch_open": True, "pre_fetch_type": 1, "pre_env": "e"}, "cloud function"),
    ],
)
def test_no_pull_without_a_url_to_ask(
    wx: Sandbox, origin: "Origin", settings: dict[str, object], reason: str
) -> None:
    """Unless the half is open and points to a server, nothing is asked."""
    wx.put_settings(APPID, settings)
    pulled = wx.cold_start(APPID, "o1")
    assert (pulled.due, pulled.kept, pulled.reason) == (False, False, reason)
    assert origin.requests == []


def test_pull_for_a_host_without_an_origin(wx: Sandbox, client: "Client") -> None:
    """A registered host that was never mapped is due, and goes nowhere."""
    client.set_pre_fetch()
    pulled = wx.cold_start(APPID, "o1")
    assert (pulled.due, pulled.kept, pulled.reason) == (True, False, "no origin")


def test_periodic_pull_comes_12_hours_after_the_last_success(
    wx: Sandbox, registered: "Origin"
) -> None:
    """A failure does not start the 12 hours anew, a success does."""
    wx.set_background_fetch_token(APPID, "o1", "t")
    registered.reply(b"")
    assert not wx.periodic_pull(APPID, "o1").kept
    registered.reply(b"{}")
    assert wx.periodic_pull(APPID, "o1").kept
    wx.advance(12 * HOUR_S - 60)
    pulled = wx.periodic_pull(APPID, "o1")
    assert (pulled.due, "12 hours" in pulled.reason) == (False, True)
    wx.advance(60)
    assert wx.periodic_pull(APPID, "o1").kept


def test_forced_periodic_pull_does_not_wait(wx: Sandbox, registered: "Origin") -> None:
    """A person trying things out need not move the clock."""
    wx.set_background_fetch_token(APPID, "o1", "t")
    assert [wx.periodic_pull(APPID, "o1", force=True).kept for _ in range(2)] == [True, True]


def test_periodic_pull_ends_for_users_who_stay_away(wx: Sandbox, registered: "Origin") -> None:
    """Seven days after the last launch nothing is pulled, until the next launch."""
    wx.set_background_fetch_token(APPID, "o1", "t")
    wx.advance(7 * 24 * HOUR_S + 1)
    pulled = wx.periodic_pull(APPID, "o1")
    assert (pulled.due, pulled.reason) == (False, "not active in the last 7 days")
    wx.cold_start(APPID, "o1")
    assert wx.periodic_pull(APPID, "o1").kept


def test_the_two_kinds_of_data_are_kept_apart(wx: Sandbox, registered: "Origin") -> None:
    """What was pulled periodically is not what was pre-fetched."""
    wx.set_background_fetch_token(APPID, "o1", "t")
    wx.cold_start(APPID, "o1")
    registered.reply(b"digest")
    wx.periodic_pull(APPID, "o1")
    handed = wx.background_fetch_data(APPID, "o1", fetch_type="periodic")
    assert (data(wx), handed["fetchedData"]) == ('{"n":1}', "digest")
    assert "path" not in handed


def test_each_phone_keeps_its_own(wx: Sandbox, registered: "Origin") -> None:
    """What one user's phone kept, another's has not."""
    wx.add_user(APPID, "o2")
    wx.cold_start(APPID, "o2")
    assert data(wx) is None


@pytest.mark.parametrize("length", [0, 1025])
def test_background_token_has_a_limit(wx: Sandbox, length: int) -> None:
    """The phone takes 1 to 1024 characters."""
    with pytest.raises(SandboxError, match="1024"):
        wx.set_background_fetch_token(APPID, "o1", "t" * length)
    wx.set_background_fetch_token(APPID, "o1", "t" * 1024)


@pytest.mark.parametrize(
    "origin",
    [
        "https://127.0.0.1:8000",
        "http://127.0.0.1",
        "http://192.0.2.1:80",
        "http://shop.example:80",
        "http://127.0.0.1.shop.example:80",
        "http://127.0.0.1:8000/app",
        "http://u@127.0.0.1:8000",
        "http://127.0.0.1:x",
        "http://[::1",
    ],
)
def test_origin_is_on_this_machine(wx: Sandbox, origin: str) -> None:
    """The puller is never sent to another machine."""
    with pytest.raises(SandboxError, match="origin"):
        wx.map_origin("shop.example", origin)
    assert wx.origin("shop.example") is None


@pytest.mark.parametrize(
    "origin", ["http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1", "http://127.0.0.1:1/"]
)
def test_origin_can_be_looked_up(wx: Sandbox, origin: str) -> None:
    """By host, in any case of letters, without a slash at the end."""
    wx.map_origin("Shop.example", origin)
    assert wx.origin("SHOP.example") == origin.rstrip("/")


def test_pulls_are_told(told: list[str], wx: Sandbox, registered: "Origin") -> None:
    """A line of the log has kind, app, URL and outcome, never token or code."""
    wx.set_background_fetch_token(APPID, "o1", "canary-token")
    told.clear()
    wx.cold_start(APPID, "o1", query="canary-query")
    wx.cold_start(APPID, "o1")
    line = told[0]
    assert line.startswith("pre_fetch wx01 https://shop.example/prefetch/pre_fetch 200, 7 bytes")
    assert line.endswith(": kept")
    assert "canary" not in "".join(told)
