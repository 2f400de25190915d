"""A played WeChat, a transport to it, and sources of tokens in front of it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from prefetch_kit.sandbox import Sandbox
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.settings import SettingsApi
from prefetch_kit.weixin.token_stores.file import FileStores
from prefetch_kit.weixin.token_stores.records import TOKEN_CODEC, TokenStore
from prefetch_kit.weixin.tokens import StableToken, TokenSource
from prefetch_kit.weixin.transport import Transport

APPID = "wx01"
SECRET = "canary-app-secret"


class Numbered:
    """A source whose tokens differ each time, and are all unknown to WeChat."""

    def __init__(self) -> None:
        self.renewals = 0

    def get(self) -> Secret:
        return Secret(f"{self.renewals:032}")

    def renew(self, failed: Secret) -> Secret:  # noqa: ARG002 (part of TokenSource)
        self.renewals += 1
        return self.get()


@pytest.fixture
def wx(wx: Sandbox) -> Sandbox:
    """With the app of these tests."""
    wx.add_app(APPID, secret=SECRET)
    wx.add_user(APPID, "o1", unionid="u1")
    wx.add_domain(APPID, "shop.example")
    return wx


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    """The file store of the app's token."""
    return FileStores(tmp_path / "state").open(APPID, "access_token", TOKEN_CODEC)


@pytest.fixture
def stable(transport: Transport) -> Callable[[TokenStore], StableToken]:
    """The app's stable token, kept in a given store."""
    return lambda store: StableToken(transport, APPID, Secret(SECRET), store)


@pytest.fixture
def numbered() -> Numbered:
    return Numbered()


@pytest.fixture
def pauses() -> list[float]:
    """The seconds that would have been slept."""
    return []


@pytest.fixture
def settings_of(transport: Transport, pauses: list[float]) -> Callable[[TokenSource], SettingsApi]:
    """Settings calls with the tokens of a source; their pauses are noted, not slept."""
    return lambda tokens: SettingsApi(transport, tokens, sleep=pauses.append)


@pytest.fixture
def api(
    store: TokenStore,
    stable: Callable[[TokenStore], StableToken],
    settings_of: Callable[[TokenSource], SettingsApi],
) -> SettingsApi:
    """Settings calls as an app with an AppSecret makes them."""
    return settings_of(stable(store))


@pytest.fixture
def calls(wx: Sandbox) -> Callable[[], int]:
    """How often the settings were asked for or set, as WeChat counted."""
    return lambda: wx.count(path="/wxa/fetchdatasetting")


@pytest.fixture
def token_calls(wx: Sandbox) -> Callable[[], int]:
    """How often a stable token was asked for, as WeChat counted."""
    return lambda: wx.count(path="/cgi-bin/stable_token")
