"""A played third-party platform, and the kit in front of it as a service provider has it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from prefetch_kit.sandbox import Sandbox
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.third_party import ThirdParty
from prefetch_kit.weixin.token_stores.file import FileStores
from prefetch_kit.weixin.token_stores.records import Stores
from prefetch_kit.weixin.transport import Transport

APPID, COMPONENT = "wx01", "wxplatform"
SECRET = "canary-component-secret"


@pytest.fixture
def wx(wx: Sandbox) -> Sandbox:
    """With one mini program and one platform, which has no ticket yet.

    Replaced tokens end at once, so that no test passes because one was still good.
    """
    wx.switches.component_token_overlap_s = 0.0
    wx.switches.authorizer_token_overlap_s = 0.0
    wx.switches.refresh_token_grace_s = 0.0
    wx.add_app(APPID, secret="s")
    wx.add_user(APPID, "o1", unionid="u1")
    wx.add_platform(COMPONENT, secret=SECRET, token="t", aes_key="k" * 43)
    return wx


@pytest.fixture
def stores(tmp_path: Path) -> FileStores:
    return FileStores(tmp_path / "state")


@pytest.fixture
def started(transport: Transport, stores: Stores) -> ThirdParty:
    """The platform before WeChat has pushed anything."""
    return ThirdParty(transport, COMPONENT, Secret(SECRET), stores)


@pytest.fixture
def provider(wx: Sandbox, started: ThirdParty) -> ThirdParty:
    """The platform with a ticket."""
    with wx.lock:
        ticket = wx.component(COMPONENT).issue_ticket(now=wx.now())
    started.tickets.keep(Secret(ticket), pushed_at=wx.now())
    return started


@pytest.fixture
def authorize(wx: Sandbox, provider: ThirdParty) -> Callable[..., str]:
    """`authorize(appid)`: the merchant authorizes, and its tokens are kept."""

    def authorized(appid: str = APPID, **options: list[int]) -> str:
        since = wx.authorize(COMPONENT, appid, **options).at
        *_, code = wx.component(COMPONENT).codes
        return provider.authorizers.accept(Secret(code), since=since)

    return authorized


@pytest.fixture
def calls(wx: Sandbox) -> Callable[[str], int]:
    """How often one of the platform's calls was made, as WeChat counted."""
    return lambda name: wx.count(path=f"/cgi-bin/component/{name}")
