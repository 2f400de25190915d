"""Access tokens and login codes, asked for and used over HTTP."""

from typing import TYPE_CHECKING, Any

import pytest

from prefetch_kit.sandbox import Sandbox

if TYPE_CHECKING:
    from tests.sandbox.conftest import Client

APPID = "wx01"


def judge(client: "Client", token: str) -> int:
    answer = client.post("/wxa/fetchdatasetting", {"action": "get"}, access_token=token)
    return int(answer["errcode"])


def test_token_is_good_for_two_hours(wx: Sandbox, client: "Client") -> None:
    """A token is valid until the end it was announced with, then expired."""
    given = client.token()
    assert given["expires_in"] == 7200
    assert judge(client, given["access_token"]) == 0
    wx.advance(7200)
    assert judge(client, given["access_token"]) == 42001


def test_each_token_call_replaces_the_earlier_after_an_overlap(
    wx: Sandbox, client: "Client"
) -> None:
    """The earlier token lives on for five minutes, then is no longer the latest."""
    first, second = client.token()["access_token"], client.token()["access_token"]
    assert first != second
    assert judge(client, first) == 0
    wx.advance(301)
    assert judge(client, first) == 40001
    assert judge(client, second) == 0


def test_stable_token_stays_the_same_until_near_its_end(wx: Sandbox, client: "Client") -> None:
    """The plain mode gives out the same token, with what is left of its time."""
    first = client.stable_token()
    wx.advance(6000)
    again = client.stable_token()
    assert again["access_token"] == first["access_token"]
    assert 1100 < again["expires_in"] <= 1200
    wx.advance(950)
    assert client.stable_token()["access_token"] != first["access_token"]
    assert judge(client, first["access_token"]) == 0
    wx.advance(250)
    assert judge(client, first["access_token"]) == 42001


def test_force_refresh_ends_the_earlier_token_at_once(client: "Client") -> None:
    """Nothing of the earlier token is left after a forced refresh."""
    first = client.stable_token()["access_token"]
    second = client.stable_token(force_refresh=True)["access_token"]
    assert judge(client, first) == 40001
    assert judge(client, second) == 0


def test_force_refresh_needs_30_seconds_between(wx: Sandbox, client: "Client") -> None:
    """A second forced refresh within 30 s changes nothing."""
    first = client.stable_token(force_refresh=True)["access_token"]
    assert client.stable_token(force_refresh=True)["access_token"] == first
    wx.advance(31)
    assert client.stable_token(force_refresh=True)["access_token"] != first


def test_the_two_token_calls_do_not_end_each_other(wx: Sandbox, client: "Client") -> None:
    """A token of one call outlives any number of the other's."""
    stable, plain = client.stable_token()["access_token"], client.token()["access_token"]
    client.stable_token(force_refresh=True)
    assert judge(client, plain) == 0
    stable = client.stable_token()["access_token"]
    client.token()
    wx.advance(301)
    assert judge(client, stable) == 0


def test_expire_tokens_ends_all_of_one_app(wx: Sandbox, client: "Client") -> None:
    """Expired by hand they answer 42001, other apps' stay good, new ones can be had."""
    wx.add_app("wx02", secret="s")
    tokens = [client.token()["access_token"] for _ in range(2)] + [wx.access_token(APPID)]
    foreign = wx.access_token("wx02")
    wx.expire_tokens(APPID)
    assert [judge(client, token) for token in tokens] == [42001] * 3
    assert judge(client, foreign) == 0
    assert judge(client, client.stable_token()["access_token"]) == 0


@pytest.mark.parametrize(
    ("token", "errcode"), [("", 41001), ("not a token", 40014), ("x" * 131, 40001)]
)
def test_token_that_was_never_given_out(client: "Client", token: str, errcode: int) -> None:
    """Missing, odd and merely unknown tokens each have their code."""
    assert judge(client, token) == errcode


@pytest.mark.parametrize(
    ("wrong", "errcode"),
    [
        ({"grant_type": "x"}, 40002),
        ({"appid": ""}, 41002),
        ({"appid": "wx99"}, 40013),
        ({"secret": ""}, 41004),
        ({"secret": "x"}, 40125),
    ],
)
def test_token_calls_check_what_they_are_given(
    client: "Client", wrong: dict[str, Any], errcode: int
) -> None:
    """Both token calls refuse the same mistakes alike."""
    assert client.token(**wrong)["errcode"] == errcode
    assert client.stable_token(**wrong)["errcode"] == errcode


def test_token_calls_insist_on_their_method(client: "Client") -> None:
    """GET for one, POST with JSON for the other, a real boolean for force_refresh."""
    assert client.post("/cgi-bin/token", {})["errcode"] == 43001
    assert client.get("/cgi-bin/stable_token")["errcode"] == 43002
    assert client.post("/cgi-bin/stable_token", b"")["errcode"] == 44002
    assert client.stable_token(force_refresh="true")["errcode"] == 47001


@pytest.mark.parametrize("errcode", [40164, 40243])
def test_token_calls_of_a_denied_app(wx: Sandbox, client: "Client", errcode: int) -> None:
    """A refused address and a frozen secret, until the denial is lifted."""
    wx.deny(APPID, errcode)
    assert client.token()["errcode"] == client.stable_token()["errcode"] == errcode
    wx.deny(APPID, None)
    assert "access_token" in client.token()


def test_login_code_works_once(wx: Sandbox, client: "Client") -> None:
    """The first exchange names the user, the second is told the code is used."""
    code = wx.login_code(APPID, "o1")
    session = client.login(code)
    assert (session["openid"], session["unionid"]) == ("o1", "u1")
    assert session["session_key"]
    assert client.login(code)["errcode"] == 40163


def test_login_without_unionid_leaves_the_field_out(wx: Sandbox, client: "Client") -> None:
    """A user outside an open platform account has no unionid at all."""
    wx.add_user(APPID, "o2")
    assert "unionid" not in client.login(wx.login_code(APPID, "o2"))


def test_login_code_ends_after_five_minutes(wx: Sandbox, client: "Client") -> None:
    """A code too old is a bad code."""
    code = wx.login_code(APPID, "o1")
    wx.advance(300)
    assert client.login(code)["errcode"] == 40029


def test_login_code_belongs_to_one_app(wx: Sandbox, client: "Client") -> None:
    """Another app's code is a bad code, and stays unspent."""
    wx.add_app("wx02", secret="s2")
    code = wx.login_code(APPID, "o1")
    assert client.login(code, appid="wx02", secret="s2")["errcode"] == 40029
    assert client.login(code)["openid"] == "o1"


@pytest.mark.parametrize(
    ("wrong", "errcode"),
    [
        ({"grant_type": "client_credential"}, 40002),
        ({"appid": "wx99"}, 40013),
        ({"secret": "x"}, 40125),
        ({"js_code": ""}, 41008),
        ({"js_code": "x"}, 40029),
    ],
)
def test_login_checks_what_it_is_given(
    wx: Sandbox, client: "Client", wrong: dict[str, str], errcode: int
) -> None:
    """Each mistake of a login call has its code."""
    given = {"code": wrong.get("js_code", wx.login_code(APPID, "o1"))}
    rest = {name: value for name, value in wrong.items() if name != "js_code"}
    assert client.login(given["code"], **rest)["errcode"] == errcode


def test_login_is_a_get(client: "Client") -> None:
    """A login call by POST is refused."""
    assert client.post("/sns/jscode2session", {})["errcode"] == 43001


def test_login_of_a_blocked_user(wx: Sandbox, client: "Client") -> None:
    """A user WeChat has blocked cannot log in."""
    wx.add_user(APPID, "bad", blocked=True)
    assert client.login(wx.login_code(APPID, "bad"))["errcode"] == 40226
