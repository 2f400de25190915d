"""From WeChat's push to the stored tokens and the app's function, over real HTTP."""

from collections.abc import Callable
from io import BytesIO
from threading import Event
from typing import Any

import pytest
from flask import Flask, current_app

from prefetch_kit.errors import ConfigError
from prefetch_kit.pushes import PlatformPushes
from prefetch_kit.sandbox import Fault, Sandbox
from prefetch_kit.weixin.third_party import ThirdParty

APPID, COMPONENT = "wx01", "wxplatform"
QUERY_AUTH = "/cgi-bin/component/api_query_auth"
Until = Callable[[Callable[[], bool]], None]

pytestmark = pytest.mark.usefixtures("served")


@pytest.fixture
def told(pushes: PlatformPushes) -> list[str]:
    """The appids that the app's function was called with, and the app it ran in."""
    said: list[str] = []
    pushes.on_authorized(lambda appid: said.append(f"{appid} in {current_app.name}"))
    return said


def test_a_ticket_is_kept(wx: Sandbox, platform: ThirdParty) -> None:
    """From then on the platform has a token."""
    assert wx.push_ticket(COMPONENT).accepted
    platform.token.get()


def test_a_new_merchant_is_told_once_its_tokens_are_safe(
    wx: Sandbox, told: list[str], platform: ThirdParty, until: Until
) -> None:
    """Another process can make calls for it without asking WeChat for anything more."""
    wx.push_ticket(COMPONENT)
    assert wx.authorize(COMPONENT, APPID).accepted
    until(lambda: told == ["wx01 in provider"])
    calls = wx.count()
    platform.authorizers.token(APPID).get()
    assert wx.count() == calls


def test_a_changed_grant_is_told_too(
    wx: Sandbox, told: list[str], platform: ThirdParty, until: Until
) -> None:
    """The permission may be there only now."""
    wx.push_ticket(COMPONENT)
    wx.authorize(COMPONENT, APPID, permissions=[1])
    wx.authorize(COMPONENT, APPID)
    until(lambda: len(told) == 2)
    platform.authorizers.token(APPID).get()


def test_a_merchant_who_leaves_is_forgotten(wx: Sandbox, platform: ThirdParty) -> None:
    """Its tokens are of no use to anyone."""
    wx.push_ticket(COMPONENT)
    since = wx.authorize(COMPONENT, APPID).at
    assert platform.authorizers.holds(APPID, since=int(since))
    assert wx.revoke(COMPONENT, APPID).accepted
    kept = platform.authorizers.token(APPID)._store.load()
    assert kept is not None
    assert (kept.refresh_tokens, kept.access) == ((), None)


def test_an_authorization_before_the_first_ticket(wx: Sandbox, platform: ThirdParty) -> None:
    """It cannot be exchanged yet and is not answered with success, but nothing is lost."""
    pushed = wx.authorize(COMPONENT, APPID)
    assert (pushed.accepted, pushed.status) == (False, 503)
    wx.push_ticket(COMPONENT)
    platform.authorizers.token(APPID).get()


@pytest.mark.parametrize("kind", ["close", "lose"])
def test_a_repeated_push_makes_good_what_failed(
    wx: Sandbox, told: list[str], platform: ThirdParty, until: Until, kind: Any
) -> None:
    """WeChat was away, or its answer got lost: then the list of merchants helps."""
    wx.push_ticket(COMPONENT)
    wx.inject(Fault(kind=kind, path=QUERY_AUTH))
    wx.switches.push_retries = 1
    pushed = wx.authorize(COMPONENT, APPID)
    assert (pushed.attempts, pushed.accepted) == (2, True)
    until(lambda: len(told) == 1)
    platform.authorizers.token(APPID).get()


def test_a_push_that_comes_again_is_told_again(
    wx: Sandbox, app: Flask, told: list[str], until: Until, replay: Callable[..., int]
) -> None:
    """Whether the first one was heard, nobody knows; its code is spent by now."""
    wx.push_ticket(COMPONENT)
    wx.authorize(COMPONENT, APPID)
    until(lambda: len(told) == 1)
    assert replay() == 200
    until(lambda: len(told) == 2)


@pytest.fixture
def replay(app: Flask) -> Callable[..., int]:
    """`replay(n)`: that push once more, byte for byte; the last one if n is left out."""
    seen: list[tuple[str, bytes]] = []
    inner = app.wsgi_app

    def recording(environ: Any, start_response: Any) -> Any:
        body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        seen.append((environ["QUERY_STRING"], body))
        return inner({**environ, "wsgi.input": BytesIO(body)}, start_response)

    app.wsgi_app = recording  # type: ignore[method-assign]

    def again(n: int = -1) -> int:
        query, body = seen[n]
        return app.test_client().post(f"/wechat/events?{query}", data=body).status_code

    return again


def test_an_earlier_ticket_pushed_again_changes_nothing(
    wx: Sandbox, platform: ThirdParty, replay: Callable[..., int]
) -> None:
    """A recorded push cannot bring an earlier state back."""
    wx.push_ticket(COMPONENT)
    wx.advance(600)
    wx.push_ticket(COMPONENT)
    newest = platform.tickets.newest()
    assert replay(0) == 200
    assert platform.tickets.newest() == newest


def test_a_slow_function_of_the_apps_holds_nothing_up(wx: Sandbox, pushes: PlatformPushes) -> None:
    """WeChat has its answer while the merchant is still being registered."""
    go_on = Event()
    pushes.on_authorized(lambda _: go_on.wait(60))
    wx.push_ticket(COMPONENT)
    assert wx.authorize(COMPONENT, APPID).accepted
    go_on.set()


def test_a_function_of_the_apps_that_fails_is_logged(
    wx: Sandbox, pushes: PlatformPushes, caplog: pytest.LogCaptureFixture, until: Until
) -> None:
    """The answer to WeChat is success all the same: the tokens are stored."""

    @pushes.on_authorized
    def fail(appid: str) -> None:
        raise ValueError("no room")

    wx.push_ticket(COMPONENT)
    assert wx.authorize(COMPONENT, APPID).accepted
    until(lambda: "on_authorized failed for wx01" in caplog.text and "no room" in caplog.text)


def test_events_nobody_asked_for_are_answered(
    wx: Sandbox, app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    """WeChat adds new kinds; an unknown one is not an error."""
    wx._push(COMPONENT, "notify_third_fasteregister", status=0)
    assert wx.pushes()[-1].accepted


@pytest.mark.parametrize(
    "members",
    [
        {"InfoType": "component_verify_ticket"},
        {"InfoType": "component_verify_ticket", "ComponentVerifyTicket": "a b"},
        {"InfoType": "authorized", "AuthorizerAppid": "wx01"},
        {"InfoType": "authorized", "AuthorizationCode": "c"},
        {"InfoType": "unauthorized", "AuthorizerAppid": "../../x"},
        {"InfoType": "unauthorized"},
    ],
)
def test_an_event_that_lacks_something(wx: Sandbox, members: dict[str, str]) -> None:
    """It is refused, and nothing is kept or forgotten."""
    given = dict(members)
    assert wx._push(COMPONENT, given.pop("InfoType"), **given).status == 400


def test_one_function_only(pushes: PlatformPushes) -> None:
    """A second one would silently replace the first; an async one would never run."""

    async def later(appid: str) -> None: ...

    with pytest.raises(TypeError):
        pushes.on_authorized(later)
    pushes.on_authorized(lambda _: None)
    with pytest.raises(ValueError, match="set already"):
        pushes.on_authorized(lambda _: None)


@pytest.mark.parametrize("lacks", ["APPID", "SECRET", "MESSAGE_TOKEN", "AES_KEY"])
def test_each_setting_is_demanded_at_start(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, lacks: str
) -> None:
    """Else the first push would fail, in ten minutes."""
    key = f"PREFETCH_COMPONENT_{lacks}"
    monkeypatch.delenv(key, raising=False)
    app = Flask("another")
    app.config.update(settings | {key: None})
    with pytest.raises(ConfigError) as caught:
        app.register_blueprint(PlatformPushes("wechat", __name__))
    assert caught.value.key == key


def test_without_the_library_for_aes(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The extra is named."""
    monkeypatch.setattr("prefetch_kit.pushes.blueprint.find_spec", lambda _: None)
    app = Flask("another")
    app.config.update(settings)
    with pytest.raises(ConfigError, match=r"prefetch-kit\[crypto\]"):
        app.register_blueprint(PlatformPushes("wechat", __name__))


def test_an_app_that_matches_hosts(
    wx: Sandbox,
    settings: dict[str, Any],
    pushes: PlatformPushes,
    platform: ThirdParty,
    serve: Callable[[Flask], str],
) -> None:
    """WeChat's pushes find it at the host of PREFETCH_BASE_URL."""
    app = Flask("provider", host_matching=True, static_host="provider.example")
    app.config.update(settings, PREFETCH_BASE_URL="https://provider.example")
    app.register_blueprint(pushes)
    wx.map_origin("provider.example", serve(app))
    assert wx.push_ticket(COMPONENT).accepted
