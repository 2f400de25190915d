"""A played WeChat, a transport to it, and sources of tokens in front of it."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prefetch_kit.sandbox import Sandbox
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.settings import SettingsApi
from prefetch_kit.weixin.token_store import FileTokenStore, TokenStore
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

    def renew(self, failed: Secret) -> Secret:  # noqa: ARG002 - part of TokenSource
        self.renewals += 1
        return self.get()


@pytest.fixture(scope="package")
def running() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def wx(running: Sandbox) -> Sandbox:
    """A WeChat that starts anew with each test, on one port."""
    running.reset()
    running.add_app(APPID, secret=SECRET)
    running.add_user(APPID, "o1", unionid="u1")
    running.add_domain(APPID, "shop.example")
    return running


@pytest.fixture
def transport(wx: Sandbox) -> Iterator[Transport]:
    with Transport(base_url=wx.base_url) as made:
        yield made


@pytest.fixture
def store(tmp_path: Path) -> FileTokenStore:
    return FileTokenStore(tmp_path / "state" / "token.json")


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
    store: FileTokenStore,
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


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start Python processes of a given script, whose pipes hold text; none outlives the test."""
    started: list[subprocess.Popen[str]] = []

    def begin(script: str, *args: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        argv = [sys.executable, "-c", script, *args]
        started.append(subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True))
        return started[-1]

    yield begin
    for process in started:
        with process:
            process.kill()
