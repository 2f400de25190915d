"""Login codes where the app is served by a third-party platform: the settings decide."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flask import Flask
from werkzeug.wrappers import Response

from prefetch_kit import Prefetch
from prefetch_kit.endpoint.app_state import state_of
from prefetch_kit.sandbox import Sandbox
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.third_party import third_party_of
from prefetch_kit.weixin.transport import Transport

COMPONENT = "wxplatform"


@pytest.fixture
def wx() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        for appid in ("wx1", "wx2"):
            sandbox.add_app(appid, secret="s")
            sandbox.add_user(appid, f"o-{appid}")
        sandbox.add_platform(COMPONENT, secret="c", token="t", aes_key="k" * 43)
        sandbox.authorize(COMPONENT, "wx1")
        yield sandbox


@pytest.fixture
def app(make_app: Callable[..., Flask], prefetch: Prefetch, wx: Sandbox, tmp_path: Path) -> Flask:
    """An app for any merchant, and one mini program with its own AppSecret."""
    prefetch.pre_fetch("mine", login_required=True)(lambda pull: pull.user_id)
    prefetch.code_user(lambda _appid, openid, _unionid: openid)
    app = make_app(
        prefetch,
        PREFETCH_APPIDS=["wx1", "wx2"],
        PREFETCH_APP_SECRETS={"wx2": "s"},
        PREFETCH_COMPONENT_APPID=COMPONENT,
        PREFETCH_COMPONENT_SECRET="c",
        PREFETCH_API_BASE_URL=wx.base_url,
        PREFETCH_STATE_DIR=tmp_path,
    )
    with wx.lock:
        ticket = wx.component(COMPONENT).issue_ticket(now=wx.now())
    with Transport(base_url=wx.base_url) as transport:
        platform = third_party_of(state_of(app).config, transport)
        assert platform is not None
        platform.tickets.keep(Secret(ticket), pushed_at=wx.now())
    return app


@pytest.mark.parametrize(
    ("appid", "path"), [("wx1", "/sns/component/jscode2session"), ("wx2", "/sns/jscode2session")]
)
def test_codes_are_exchanged_the_way_the_settings_say(
    app: Flask, wx: Sandbox, ask: Callable[..., Response], appid: str, path: str
) -> None:
    """By the platform for its merchants; by its own AppSecret where a mini program has one."""
    code = wx.login_code(appid, f"o-{appid}")
    assert ask(app, appid=appid, path="mine", code=code).data == f"o-{appid}".encode()
    assert wx.count(path=path) == 1


def test_a_merchant_who_took_it_back(app: Flask, wx: Sandbox, ask: Callable[..., Response]) -> None:
    """Nobody can be proved, and the page that insists on a user says why."""
    wx.revoke(COMPONENT, "wx1")
    reply = ask(app, appid="wx1", path="mine", code=wx.login_code("wx1", "o-wx1"))
    refused = reply.headers["X-Prefetch-Refused"].partition(";")[0]
    assert (reply.status_code, refused) == (503, "weixin")
